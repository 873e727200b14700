"""The stages of a run, with its training watched and the costs of its scores recorded."""

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from fairway.base.arrays import IntArray
from fairway.base.names import recorded_file
from fairway.machine.ranks import Ranks
from fairway.pipeline.context import Run
from fairway.pipeline.live import Live
from fairway.pipeline.order import Stage
from fairway.pipeline.recorded import RECORDED, Opening, Recorder, openings
from fairway.pipeline.stages import ALL_WORK, done
from fairway.score.evaluation import Evaluation
from fairway.score.spending import Spending, occurrences
from fairway.score.trail import Trail

SCORE = "score."


@dataclass(frozen=True, kw_only=True, eq=False)
class WatchedRun(Run):
    """A run that records the costs of tokens during a score; `live` watches its training."""

    live: Live | None = None
    counted: list[tuple[Spending, Recorder, Ranks]] = field(default_factory=list)

    @cached_property
    def occurrences(self) -> IntArray:
        """Return how often every token occurs in the training text, or its first part."""
        return occurrences(self.source.train_shards(), self.source.tokenizer.vocab_size)

    @cached_property
    def openings(self) -> list[Opening]:
        """Return the documents whose costs are recorded token by token."""
        return openings(self.validation, self.source.tokenizer)

    def evaluation(self, description: str, trail: Trail, alone: bool = False) -> Evaluation:
        """Return the evaluation, with a witness that records costs beside the trail."""
        asked = super().evaluation(description, trail, alone)
        recorder = Recorder(trail, self.openings)
        spending = Spending(recorder, asked.text.vocab_size, self.source.tokenizer.bos_id)
        self.counted[:] = [(spending, recorder, asked.ranks)]
        return replace(asked, witness=spending)


def files_of(stage: Stage) -> list[str]:
    """Return the files that a watched stage writes."""
    name = stage.name.removeprefix(SCORE)
    kept = stage.name.startswith(SCORE) and name in RECORDED
    return [*stage.files, *([recorded_file(name)] if kept else [])]


def done_watched(name: str, run: WatchedRun) -> dict[str, Any]:
    """Run a stage and return its facts; a score's facts include the use of its bits, and a
    training's the watchers."""
    run.counted.clear()
    facts = done(ALL_WORK, name, run)
    if name == "train" and run.live is not None:
        return {**facts, "live": run.live.facts()}
    if not name.startswith(SCORE):
        return facts
    spending, recorder, ranks = run.counted.pop()
    spending.total(ranks)
    if (stage := name.removeprefix(SCORE)) in RECORDED:
        recorder.write(run.file(recorded_file(stage)), ranks)
    return {**facts, "spending": spending.groups(run.source.tokenizer, run.occurrences)}
