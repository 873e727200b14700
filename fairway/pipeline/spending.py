"""The stages of a run, done with an eye on its training and on where the bits of a score go."""

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
    """A run that counts what tokens cost while a ledger books it; `live` looks at its training."""

    live: Live | None = None
    counted: list[tuple[Spending, Recorder, Ranks]] = field(default_factory=list)

    @cached_property
    def occurrences(self) -> IntArray:
        """Return how often every token occurs in the training text, or its first part."""
        return occurrences(self.source.train_shards(), self.source.tokenizer.vocab_size)

    @cached_property
    def openings(self) -> list[Opening]:
        """Return the documents whose costs are kept token by token."""
        return openings(self.validation, self.source.tokenizer)

    def evaluation(self, description: str, trail: Trail, alone: bool = False) -> Evaluation:
        """Return what a scorer is asked, its costs counted beside the trail."""
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
    """Do a stage and return its facts; those of a score say where its bits went, those of a
    training what looked on."""
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
    return {**facts, "spending": spending.told(run.source.tokenizer, run.occurrences)}
