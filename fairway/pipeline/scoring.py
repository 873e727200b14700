"""The stages of a run that score its weights and its artifact, each by a ledger of its own.

Under `torchrun` every process scores a part; the first one writes what came of it.
"""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

from torch import Tensor

from fairway.api import load, model_from
from fairway.base import units
from fairway.base.files import digest_file
from fairway.base.memory import give_back
from fairway.config.settings import Config
from fairway.machine.plan import Plan
from fairway.machine.ranks import Ranks
from fairway.model.gpt import GPT
from fairway.pipeline.folder import RunFolder
from fairway.pipeline.inputs import ARTIFACT, WEIGHTS
from fairway.pipeline.results import average_warning
from fairway.score.evaluation import Evaluation
from fairway.score.ledger import Score, Text, Witness
from fairway.score.sliding import evaluate_frozen
from fairway.score.trail import Trail, trail_file, write_trails
from fairway.score.ttt import evaluate_ttt
from fairway.train.steps import Say

# Scores under the eyes of a witness; returns more facts, too.
_Work = Callable[[Witness], tuple[Score, dict[str, Any]]]


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class ScoreStages:
    """What the stages take. `weights` are the raw or averaged ones, and whether they looped."""

    config: Config
    folder: RunFolder
    ranks: Ranks
    reads: Callable[[str], dict[str, Any]]
    is_due: Callable[[str], bool]
    text: Text
    plan: Plan
    weights: Callable[[str], tuple[dict[str, Tensor], bool]]
    say: Say

    def run(self) -> None:
        """Score raw and averaged weights side by side, then the artifact, as read from disk."""
        self._score("raw", WEIGHTS, lambda: self._model("raw"))
        self._score("ema", WEIGHTS, lambda: self._model("ema"))
        if self.ranks.first and (warning := average_warning(self.config, self.folder)):
            self.say(warning)
        artifact = self._artifact()
        self._score("quantised", ARTIFACT, lambda: artifact)
        self._score("sliding", ARTIFACT, lambda: artifact, sliding=True)
        if self.config.ttt.method != "off":
            self._stage("ttt", ARTIFACT, self._adapted)
        elif self.ranks.first:
            self.folder.forget("score.ttt")

    def _model(self, kind: str) -> GPT:
        state, looping = self.weights(kind)
        return model_from(state, self.config.model, self.plan, looping)

    def _artifact(self) -> GPT:
        return load(self.folder.file(ARTIFACT), plan=self.plan).model

    def _score(self, name: str, file: str, model: Callable[[], GPT], sliding: bool = False) -> None:
        def work(witness: Witness) -> tuple[Score, dict[str, Any]]:
            asked = self._asked(f"score {name}", witness)
            return evaluate_frozen(model(), asked, sliding=sliding), {}

        self._stage(name, file, work)

    def _asked(self, description: str, witness: Witness) -> Evaluation:
        config = self.config
        return Evaluation(
            *(self.text, config.score, config.ttt, config.seed, description, self.ranks),
            witness=witness,
        )

    def _adapted(self, witness: Witness) -> tuple[Score, dict[str, Any]]:
        """Score the artifact as it learns from what is scored: read anew, since it changes."""
        ttt = self.config.ttt
        found = evaluate_ttt(self._artifact(), self._asked(f"score {ttt.method}", witness))
        if found.changes:
            self.say(f"ttt: to stay within {ttt.budget_s:.0f} s, {', '.join(found.changes)}")
        if found.seconds > ttt.budget_s:
            self.say(
                f"over budget: test-time training took {found.seconds:.0f} s of "
                f"{ttt.budget_s:.0f} s; raise ttt.budget_s or do less"
            )
        times = {"estimate_s": found.estimate_s, "budget_s": ttt.budget_s}
        return found.score, {"method": ttt.method, "changes": list(found.changes), **times}

    def _stage(self, name: str, file: str, evaluate_it: _Work) -> None:
        """Run a stage that scores a file of the folder."""

        def work() -> dict[str, Any]:
            give_back()
            start_s = time.perf_counter()
            trail = Trail()
            score, facts = evaluate_it(trail)
            seconds = time.perf_counter() - start_s
            facts["trail"] = write_trails(trail, self.ranks, self.folder.file(trail_file(name)))
            self.say(f"{name:>9}: {score.bpb:.4f} bpb ({units.duration(seconds)})")
            scored = digest_file(self.folder.file(file))
            account = {**dataclasses.asdict(score), "seconds": seconds, "file_digest": scored}
            return {**account, **facts}

        stage = f"score.{name}"
        due = self.is_due(stage)
        if self.ranks.first:
            self.folder.stage(stage, self.reads(stage), [trail_file(name)], work, self.say)
        elif due:
            work()
