"""A run: its stages, done and remembered in a folder. Every verb does some of them."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fairway.base.files import digest_file, read_json, write_json
from fairway.base.names import ARTIFACT, CHECKPOINT, COSTS, WEIGHTS
from fairway.config.overrides import override
from fairway.config.settings import Config
from fairway.config.written import to_dict
from fairway.data.build import DataFolder
from fairway.machine.plan import Plan, device_name
from fairway.machine.ranks import Ranks, join_ranks
from fairway.pipeline.codesize import known_code, measure_code
from fairway.pipeline.composing import compose
from fairway.pipeline.earlier import earlier_runs
from fairway.pipeline.folder import RunFolder
from fairway.pipeline.inputs import Inputs
from fairway.pipeline.limits import tell_of_size
from fairway.pipeline.live import FOLDER as LIVE
from fairway.pipeline.live import Live, Watching
from fairway.pipeline.memory import Watch
from fairway.pipeline.order import Stage, stages_of
from fairway.pipeline.planning import plan_key, plan_of_run
from fairway.pipeline.record import config_of
from fairway.pipeline.results import RESULTS
from fairway.pipeline.spending import SCORE, WatchedRun, done_watched, files_of
from fairway.pipeline.text import open_text
from fairway.pipeline.together import is_due, share_memory, told
from fairway.report import write_report
from fairway.train.preflight import require_packages
from fairway.train.steps import STEPS, Say, nobody, read_steps

# The last stage of `Pipeline.screen`.
UNTIL = ("train", "pack", "score")
DATA, REPORT = "data", "report.html"


class Pipeline:
    """A config, the run folder, and the verbs that do the stages.

    Under `torchrun` all ranks train and score. Only the first rank packs, writes, and decides which
    stages are done; the others wait for its decision. `origin` is the source of a recipe that is
    not Fairway's: see `fairway.recipes.find`. `watching` says how the training is observed.
    """

    def __init__(
        self,
        config: Config,
        folder: RunFolder,
        say: Say,
        origin: dict[str, Any] | None = None,
        watching: Watching | None = None,
    ) -> None:
        self.ranks: Ranks = join_ranks()
        self.config, self.folder, self.origin = config, folder, origin
        # Only the first process prints.
        self.say: Say = say if self.ranks.first else lambda text: None
        self.live: Live | None = None
        if watching is not None and self.ranks.first:
            self.live = Live(watching, config, folder.file(LIVE), say)
        self._source: DataFolder | None = None
        self._plan: Plan | None = None

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Lock the folder against other writers; only the first rank does so."""
        if not self.ranks.first:
            yield
            return
        with self.folder.locked():
            try:
                yield
            finally:
                if self.live:
                    self.live.close()

    # -----------------------------------------------------------------------------------------
    # Verbs

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
                "the training was kept and is not observed; `fairway runs --export` sends its steps"
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

    # -----------------------------------------------------------------------------------------
    # The inputs of the stages

    def data(self, build: bool = False) -> DataFolder:
        """Return the tokens for training and scoring; only training builds the embedded corpus."""

        def embedded(reads: dict[str, Any], work: Callable[[], dict[str, Any]]) -> None:
            if build:
                self.folder.stage("data", reads, [DATA], work, self.say)
            else:
                self._inputs.require_stage("data", reads)

        if self._source is None:
            self._source = open_text(self.config, self.folder.file(DATA), embedded)
        return self._source

    def plan(self) -> Plan:
        """Return the machine plan of this run, applied to this process."""
        if self._plan is None:
            self._plan = plan_of_run(self.config, self.folder, self.ranks, self.say)
        return self._plan

    @property
    def _inputs(self) -> Inputs:
        first = self.ranks.first
        return Inputs(self.config, self.folder, first, self.data, self.plan, self.origin)

    def _run(self, resume: bool = False) -> WatchedRun:
        return WatchedRun(
            config=self.config,
            public=self._inputs.public(),
            plan=self.plan(),
            ranks=self.ranks,
            source=self.data(),
            folder=self.folder.path,
            code_bytes=known_code(self.config, self.folder),
            facts=self.folder.all_facts,
            say=self.say,
            begin=functools.partial(self._begin, resume),
            beside=self.live.beside if self.live else nobody,
            live=self.live,
            resume=resume,
        )

    # -----------------------------------------------------------------------------------------
    # Doing them

    def _do(self, run: WatchedRun, wanted: Callable[[Stage], bool], **reads: Any) -> None:
        """Do those of some stages whose inputs have changed."""
        for stage in filter(wanted, stages_of(self.config)):
            if not (stage.together or self.ranks.first):
                continue
            read = self._inputs.of(stage.name)
            do = functools.partial(done_watched, stage.name, run)
            due = not stage.together or is_due(self.folder, self.ranks, stage.name, read)
            if self.ranks.first:
                read |= reads
                watch = Watch(self.config, run.plan.device)
                work = functools.partial(watch.done, stage.name, run, do)
                self.folder.stage(stage.name, read, files_of(stage), work, self.say, watch)
            elif due:
                do()

    def _settings(self) -> dict[str, Any]:
        plan = {"key": plan_key(self.config), **self.plan().as_dict()}
        return {"config": to_dict(self.config), "plan": plan, "origin": self.origin}

    def _propose(self) -> None:
        """Write config and machine plan to the record after a stage has succeeded with them."""
        self.folder.propose(**self._settings())

    def _begin(self, resume: bool) -> None:
        if self.live:
            self.live.open(self.data().tokenizer, resume)
        if self.ranks.first:
            self.folder.remember("begun", self._settings())

    def _checkpoint(self) -> bool:
        """Return whether a checkpoint exists to resume from; the same on every rank."""
        found = bool(told(self.folder.file(CHECKPOINT).exists()))
        if not found and not self.folder.is_done("train", self._inputs.of("train")):
            self.say(f"{self.folder.path} has no checkpoint yet: training starts at step 1")
        return found

    def _measure_for_score(self) -> None:
        """Measure the code again if settings of the score change the bundle."""
        code_bytes, packed = measure_code(self.config, self.folder, self.say), self._facts("pack")
        if code_bytes != packed["code_bytes"]:
            tell_of_size(self.config, packed["bytes"] + code_bytes, self.say)

    def _facts(self, stage: str) -> dict[str, Any]:
        return dict(self.folder.memory["stages"][stage]["facts"])


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
