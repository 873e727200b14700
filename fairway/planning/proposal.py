"""Proposes models for a budget on this machine: the best ones by the law, with timed steps."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fairway.base.errors import UserError
from fairway.config.checks import check
from fairway.config.settings import Config
from fairway.data.folder import DataFolder
from fairway.machine.plan import Plan
from fairway.planning.grid import (
    VOCABULARIES,
    Budget,
    Candidate,
    candidates,
    judged,
    rounded,
)
from fairway.planning.law import Law, Reading
from fairway.planning.speed import Measure, Speed

# The number of models whose steps are timed before one is chosen.
_FINALISTS = 3


@dataclass(frozen=True, slots=True)
class Proposal:
    """A plan: the chosen point with its config ready to run, and the grid it was chosen from.

    `grid` is sorted by the expected score at expected seconds per step, the best first; the seconds
    of `timed` were measured.
    """

    config: Config
    chosen: Candidate
    grid: list[Candidate]
    timed: list[Candidate]
    budget: Budget
    law: Law


# The bytes of the embedded corpus, nearly the same with all versions of a machine's software, and
# its bytes per token by vocabulary, without and with marks for capitals.
EMBEDDED_BYTES = 8_270_645.0
_MEASURED = (512, 1024, 2048, 4096, 6144, 8192)
_EMBEDDED = {
    False: (1.961, 2.737, 3.408, 3.985, 4.251, 4.403),
    True: (1.981, 2.787, 3.479, 4.017, 4.261, 4.378),
}


def embedded_text(vocab_size: int, case_ops: bool) -> Reading:
    """Return the facts of the embedded corpus for a vocabulary, between measured ones."""
    each = np.interp(np.log(vocab_size), np.log(_MEASURED), _EMBEDDED[case_ops])
    return Reading(EMBEDDED_BYTES, float(each), case_ops)


def texts_of(source: DataFolder | None, case_ops: bool = False) -> dict[int, Reading]:
    """Return the facts of the training text by vocabulary.

    The text is that of a folder, which has one vocabulary, or the embedded corpus, whose tokenizer
    has marks for capitals with `case_ops`.
    """
    if source is None:
        return {size: embedded_text(size, case_ops) for size in VOCABULARIES}
    tokens = sum(len(shard) for shard in source.train_shards())
    words, each = source.tokenizer, source.bytes_per_token
    return {words.vocab_size: Reading(tokens * each, each, words.case_ops)}


def propose(
    base: Config,
    budget: Budget,
    texts: Mapping[int, Reading],
    law: Law,
    speed: Speed,
    plan: Plan,
    measure: Measure,
) -> Proposal:
    """Return the best models for a budget by the law; UserError if nothing fits it.

    The best ones are timed by real steps, and the best of them by its measured time is chosen,
    because the fitted speed can be wrong by a tenth.
    """
    grid = candidates(base, budget, texts, law, speed)
    timed = []
    for point in _distinct(grid):
        step_s = measure(point.config, plan)
        text = texts[point.config.model.vocab_size]
        found = judged(point.config, budget, text, law, step_s, point.fit)
        timed += [found] if found else []
    if not timed:
        raise UserError(
            f"a step takes too long here for {budget.seconds:g} s of training; raise --seconds"
        )
    chosen = min(timed, key=lambda point: point.prediction.bpb)
    return Proposal(ready(chosen, budget), chosen, grid, timed, budget, law)


def _distinct(grid: list[Candidate]) -> list[Candidate]:
    """Return the best points of the grid that differ in model or batch."""
    found: dict[object, Candidate] = {}
    for point in grid:
        model = point.config.model
        found.setdefault((model.vocab_size, model.dim, model.num_layers), point)
        if len(found) == _FINALISTS:
            break
    return list(found.values())


def ready(point: Candidate, budget: Budget) -> Config:
    """Return the config of a point with its budgets, checked; its rounding fills the bytes."""
    config = rounded(point.config, point.fit.bits, fit=True)
    train = dataclasses.replace(
        config.train, clock="wall", budget_s=budget.seconds, reserve_s=round(budget.reserve_s, 3)
    )
    pack = dataclasses.replace(config.pack, limit_bytes=budget.limit_bytes)
    config = dataclasses.replace(config, train=train, pack=pack)
    check(config)
    return config
