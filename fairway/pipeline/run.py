"""A run: its stages, done and remembered in a folder. Every verb does some of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fairway.base.files import digest_file, read_json, write_json
from fairway.base.names import ARTIFACT, CHECKPOINT, COSTS, WEIGHTS
from fairway.config.overrides import override
from fairway.machine.plan import device_name
from fairway.pipeline.codesize import known_code, measure_code
from fairway.pipeline.composing import compose
from fairway.pipeline.earlier import earlier_runs
from fairway.pipeline.folder import RunFolder
from fairway.pipeline.limits import tell_of_size
from fairway.pipeline.order import Stage
from fairway.pipeline.record import config_of
from fairway.pipeline.results import RESULTS
from fairway.pipeline.spending import SCORE
from fairway.pipeline.together import share_memory
from fairway.pipeline.work import Work
from fairway.report import write_report
from fairway.train.preflight import require_packages
from fairway.train.steps import STEPS, Say, read_steps

# The last stage of `Pipeline.screen`.
UNTIL = ("train", "pack", "score")
REPORT = "report.html"


class Pipeline(Work):
    """A config, the run folder, and the verbs that do the stages.

    Under `torchrun` all ranks train and score. Only the first rank packs, writes, and decides which
    stages are done; the others wait for its decision.
    """

    def walk(self, resume: bool = False, restart: bool = False) -> dict[str, Any]:
        """Do every stage in order; return the results, the same on every rank."""
        self.train(resume, restart)
        self.pack()
        self.score()
        self.report()
        return self.results()

    def screen(self, until: str, resume: bool = False, restart: bool = False) -> dict[str, Any]:
        """Do the stages that distinguish recipes; return the facts of every finished stage.

        `until` train scores the weights; pack also scores the artifact in windows side by side;
        score does all scores. It leaves out comparison, samples, proof and audit.
        """
        self.train(resume, restart)
        if self.ranks.first:
            self.folder.remember("device", device_name(self.plan()))
        if until != "train":
            self.pack()
        self._scored(lambda stage: _is_score(stage.name, until))
        return self.folder.all_facts()

    def train(self, resume: bool = False, restart: bool = False) -> dict[str, Any]:
        """Train and write raw and averaged weights; an unfinished run needs `resume` or
        `restart`."""
        if self.ranks.first:
            require_packages()
            self.data(build=True)
            if not (resume or restart):
                self._inputs.refuse_unfinished()
            measure_code(self.config, self.folder, self.say)
            self._propose()
            # After this training is recorded, nothing is unfinished.
            self.folder.propose(begun=None)
        share_memory(self.folder, self.ranks)
        self._do(self._run(resume and self._checkpoint()), lambda stage: stage.name == "train")
        if self.live and not self.live.opened:
            self.say(
                "this training was finished already, so nothing was sent while it ran; "
                "`fairway runs --export` sends its steps"
            )
        if self.ranks.first:
            self.folder.settle()
            # Only after the training is recorded: a full disk must not lose the training.
            self.folder.file(CHECKPOINT).unlink(missing_ok=True)
        share_memory(self.folder, self.ranks)
        return self._facts("train")

    def pack(self) -> dict[str, Any]:
        """Quantise the averaged weights and write the artifact."""
        if self.ranks.first:
            self.data()
            self._inputs.require_file(WEIGHTS, "train")
            self._inputs.require_stage("train")
            code_bytes = measure_code(self.config, self.folder, self.say, packing=True)
            self._propose()
            self._do(self._run(), lambda stage: stage.name == "pack", beside=code_bytes)
            self.folder.settle()
        share_memory(self.folder, self.ranks)
        return self._facts("pack")

    def score(self) -> dict[str, Any]:
        """Score weights and artifact, as read from disk; then do the stages that check the
        score."""
        if self.ranks.first:
            self.data()
            self._inputs.require_file(ARTIFACT, "pack")
            self._inputs.require_stage("train")
            self._inputs.require_stage("pack")
            self._measure_for_score()
            self._propose()
            self._inputs.forget_others()
        self._scored(lambda stage: stage.name not in ("train", "pack"))
        return self._facts("score.sliding")

    def _scored(self, wanted: Callable[[Stage], bool]) -> None:
        """Do some of the stages after training and packing, on every rank."""
        share_memory(self.folder, self.ranks)
        self.data().verify(("val",))
        self._do(self._run(), wanted)
        if self.ranks.first:
            self.folder.settle()
        if self.live:
            facts = self.folder.all_facts()
            self.live.scores({n: facts[n]["bpb"] for n in facts if n.startswith(SCORE)})
        share_memory(self.folder, self.ranks)

    def audit(self) -> dict[str, Any]:
        """Audit a scored run again if any input of its audit has changed."""
        self._inputs.require("audit")
        self._measure_for_score()
        self._propose()
        self._do(self._run(), lambda stage: stage.name == "audit")
        self.folder.settle()
        return self._facts("audit")

    def report(self) -> Path:
        """Write results.json and the report page; return the page's path."""
        if not self.ranks.first:
            return self.folder.file(REPORT)
        results = self.results()
        self.folder.require_unchanged("train", STEPS)
        steps, costs = read_steps(self.folder.file(STEPS)), read_json(self.folder.file(COSTS))
        write_json(self.folder.file(RESULTS), results)
        self.folder.remember("results", digest_file(self.folder.file(RESULTS)))
        beside = earlier_runs(self.folder)
        with self.folder.reading():
            page = self.folder.file(REPORT)
            return write_report(self.folder.path, results, steps, page, beside, costs)

    def results(self) -> dict[str, Any]:
        """Return all facts of this run, in the versioned schema of results.json."""
        self._inputs.require()
        with self.folder.reading():
            plan = self.plan().as_dict()
            code_bytes = known_code(self.config, self.folder)
            return compose(self.folder, self._inputs.public(), plan, code_bytes)

    def _measure_for_score(self) -> None:
        """Measure the code again if settings of the score change the bundle."""
        code_bytes, packed = measure_code(self.config, self.folder, self.say), self._facts("pack")
        if code_bytes != packed["code_bytes"]:
            tell_of_size(self.config, packed["bytes"] + code_bytes, self.say)


def _is_score(stage: str, until: str) -> bool:
    """Return whether `screen` does this scoring stage for a verb."""
    verbs = {"score.raw": "train", "score.ema": "train", "score.quantised": "pack"}
    return stage.startswith("score.") and UNTIL.index(verbs.get(stage, "score")) <= UNTIL.index(
        until
    )


def open_run(path: Path, overrides: list[str], say: Say) -> Pipeline:
    """Return the pipeline of an existing run folder, with overrides of its config."""
    folder = RunFolder.existing(path)
    config = override(config_of(folder), overrides)
    return Pipeline(config, folder, say, folder.memory.get("origin"))
