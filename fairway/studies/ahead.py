"""Estimates of a study before it starts: runs, seconds, and the effects that it can show."""

import math
from typing import Any

from fairway.studies.arms import NOISE, Study
from fairway.studies.intervals import pairs_needed, smallest_seen
from fairway.studies.table import Table, planned

# Standard deviations of one run between seeds of one recipe, in bits per byte: the smallest and the
# largest known ones (docs/studies.md). Pairs with the same seed and order of data vary at most as
# much.
PUBLISHED_SD = (
    (0.0005, "12 seeds of one recipe, pull request #1130"),
    (0.005, "seeds of small runs, benchmarks/README.md"),
)


def ahead(
    study: Study,
    table: Table,
    effect: float,
    slots: int,
    run_s: float | None,
    keeps_pairs: bool = False,
) -> dict[str, Any]:
    """Return the number of runs of a study, their time, and the effects that they can show.

    `effect` is the smallest difference of interest, in bits per byte; `run_s` is the time of one
    run in seconds, if it is known. With `keeps_pairs` all runs of a pair use the same slot.
    """
    noise = planned(NOISE, study.pairs) if study.noise else 0
    known = measured_sd(table)
    first = min(table.planned(arm.name) for arm in study.arms)
    scatters = PUBLISHED_SD if known is None else ((known, "as the pairs so far do"),)
    return {
        "runs": study.pairs * (1 + len(study.arms)) + noise,
        "done": len(table.lines),
        "arms": len(study.arms),
        "pairs": study.pairs,
        "planned": first,
        "run_s": run_s,
        "slots": slots,
        "keeps_pairs": keeps_pairs,
        "effect": effect,
        "questions": [_question(study, first, sd, source, effect) for sd, source in scatters],
    }


def measured_sd(table: Table) -> float | None:
    """Return the sd of one run, from the pairs of all arms together, or None without pairs."""
    spreads = [(e.n - 1, e.sd**2) for e in map(table.estimate, table.arms()) if e.sd]
    if not spreads:
        return None
    weights = sum(degrees for degrees, _ in spreads)
    return math.sqrt(sum(degrees * variance for degrees, variance in spreads) / weights / 2.0)


def _question(study: Study, planned: int, sd: float, source: str, effect: float) -> list[Any]:
    difference_sd = math.sqrt(2.0) * sd
    seen = smallest_seen(difference_sd, study.pairs, planned, study.error)
    needed = pairs_needed(effect, difference_sd, study.error)
    return [sd, source, seen if math.isfinite(seen) else None, needed]
