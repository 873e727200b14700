"""Compares the rankings of arms in two studies, such as one of short runs and one of long runs.

The comparison uses the order of the arms, with the base among them, by their mean differences to
it. Kendall's tau-b is the number of pairs of arms in the same order, minus those in the other
order, over all pairs. Spearman's rho is the correlation of the ranks. Their intervals are a
bootstrap over pairs of runs (Efron, Annals of Statistics 7, 1979): pairs are resampled from each
table, with all arms of a pair together, because they share its base.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fairway.base.errors import UserError
from fairway.base.units import counted, duration
from fairway.studies.arms import BASE, NOISE
from fairway.studies.lines import Line, existing
from fairway.studies.table import Table, merge

Matrix = npt.NDArray[np.float64]

_DRAWS = 2000
_SEED = 20
# Fewer arms have no useful order.
_FEWEST_ARMS = 2


def transfer(cheap: Path, dear: Path, metric: str | None, error: float) -> dict[str, Any]:
    """Return how well the arms of two tables agree, for JSON.

    Raises UserError for tables without two arms in common, and for tables with a run in common.
    """
    tables = [merge([path], _metric_of(path, metric), error)[0] for path in (cheap, dear)]
    first, second = ({line.identity() for line in table.lines} for table in tables)
    if same := len(first & second):
        raise UserError(
            f"{cheap} and {dear} have {counted(same, 'run')} in common, which agree in any case; "
            "name the tables of two studies, one with short runs and one with long runs"
        )
    arms, left_out = _common(*tables)
    if len(arms) < _FEWEST_ARMS:
        raise UserError(
            f"{cheap} and {dear} have {counted(len(arms), 'arm')} with pairs in common; a ranking "
            f"needs at least {_FEWEST_ARMS}"
        )
    effects = [[_mean(table, arm) for arm in arms] for table in tables]
    draws = [_drawn(table, arms, seed) for seed, table in enumerate(tables)]
    found: dict[str, Any] = {
        "schema": 1,
        "cheap": _side(cheap, tables[0]),
        "dear": _side(dear, tables[1]),
        "error": error,
        "arms": [_row(arm, tables) for arm in arms],
        "left_out": left_out,
    }
    for name, measure in (("kendall", kendall), ("spearman", spearman)):
        # The base counts as an arm of effect zero: falling behind it is a change of order, too.
        value = measure([0.0, *effects[0]], [0.0, *effects[1]])
        found[name] = {"value": value, **_interval(measure, draws, error)}
    found["changed"] = [row["arm"] for row in found["arms"] if row["sign"] != "same"]
    return found


def _metric_of(path: Path, metric: str | None) -> str | None:
    """Return the requested score if a table has it; the tables may end at different verbs."""
    known = {name for line in existing(path) for name in line.bpb}
    return metric if metric in known else None


def _common(cheap: Table, dear: Table) -> tuple[list[str], list[str]]:
    """Return the arms with pairs in both tables, and reasons for the others."""
    arms, left_out = [], []
    for arm in dict.fromkeys([*cheap.arms(), *dear.arms()]):
        if arm == NOISE:
            continue
        settings = [_settings(table.of(arm)) for table in (cheap, dear)]
        if None in settings:
            left_out.append(f"{arm} is in one table only")
        elif settings[0] != settings[1]:
            left_out.append(f"{arm} has different settings in the two tables")
        elif not (cheap.differences(arm) and dear.differences(arm)):
            left_out.append(f"{arm} has no complete pair in both tables")
        else:
            arms.append(arm)
    return arms, left_out


def _settings(lines: Sequence[Line]) -> list[str] | None:
    return sorted(lines[0].settings) if lines else None


def _mean(table: Table, arm: str) -> float:
    return float(np.mean(table.differences(arm)))


def _side(path: Path, table: Table) -> dict[str, Any]:
    done = [line for line in table.lines if not line.failed]
    return {
        "table": str(path),
        "recipe": done[0].recipe,
        "metric": table.metric,
        "pairs": len({line.seed for line in done}),
        "seconds": float(np.mean([line.train_s or 0.0 for line in done])),
        "devices": sorted({line.device for line in done}),
    }


def _row(arm: str, tables: Sequence[Table]) -> dict[str, Any]:
    """Return an arm's effects in both tables, and whether they have the same sign.

    A change of sign is sure if both intervals exclude zero.
    """
    cheap, dear = (table.estimate(arm) for table in tables)
    sign = "same" if (cheap.mean or 0.0) * (dear.mean or 0.0) > 0 or cheap.mean == dear.mean else ""
    sure = {cheap.verdict, dear.verdict} == {"better", "worse"}
    word = sign or ("changes, surely" if sure else "changes, within noise")
    return {"arm": arm, "cheap": asdict(cheap), "dear": asdict(dear), "sign": word}


# ---------------------------------------------------------------------------------------------
# Rank correlations


def kendall(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Return Kendall's tau-b of two rows of numbers; None if a row has only equal numbers."""
    first, second = (np.sign(np.subtract.outer(row, row)) for row in (a, b))
    counted = math.sqrt(int(np.count_nonzero(first)) * int(np.count_nonzero(second)))
    return float((first * second).sum()) / counted if counted else None


def spearman(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Return Spearman's rho of two rows of numbers; None if a row has only equal numbers."""
    ranks = [_ranks(np.asarray(row)) for row in (a, b)]
    centred = [row - row.mean() for row in ranks]
    size = math.sqrt(float(np.prod([(row**2).sum() for row in centred])))
    return float((centred[0] * centred[1]).sum()) / size if size else None


def _ranks(values: Matrix) -> Matrix:
    """Return the rank of every value; equal values have the mean of their ranks."""
    below = (values[:, None] > values[None, :]).sum(1)
    ranks: Matrix = below + ((values[:, None] == values[None, :]).sum(1) - 1) / 2.0
    return ranks


def _drawn(table: Table, arms: Sequence[str], seed: int) -> Matrix:
    """Return the arms' effects in resampled tables, the base's zero first: [draws, 1 + arms]."""
    rng = np.random.default_rng([_SEED, seed])
    by_pair: dict[Any, dict[str, float]] = {}
    for line in table.lines:
        if not line.failed and table.metric in line.bpb:
            pair = by_pair.setdefault((*line.where(), line.seed), {})
            pair[line.arm] = line.bpb[table.metric]
    pairs = [pair for pair in by_pair.values() if BASE in pair]
    # Missing runs of a pair, whose arm had stopped, are NaN and do not count.
    gains = np.array([[pair.get(arm, np.nan) - pair[BASE] for arm in arms] for pair in pairs])
    there, sums = ~np.isnan(gains), np.nan_to_num(gains)
    means = np.full((_DRAWS, len(arms)), np.nan)
    for draw in means:
        counts = np.bincount(rng.integers(len(pairs), size=len(pairs)), minlength=len(pairs))
        np.divide(counts @ sums, counts @ there, out=draw, where=counts @ there > 0)
    return np.concatenate([np.zeros((_DRAWS, 1)), means], axis=1)


def _interval(measure: Any, draws: Sequence[Matrix], error: float) -> dict[str, Any]:
    """Return the interval of a measure over the draws; draws without all arms are left out."""
    rows = zip(*draws, strict=True)
    whole = [(a, b) for a, b in rows if not (np.isnan(a).any() or np.isnan(b).any())]
    values = [value for a, b in whole if (value := measure(list(a), list(b))) is not None]
    if not values:
        return {"low": None, "high": None}
    low, high = np.quantile(values, [error / 2, 1 - error / 2])
    return {"low": float(low), "high": float(high)}


def lines_of(found: dict[str, Any]) -> list[str]:
    """Return a comparison of two tables for the terminal, 80 columns wide."""
    lines = [_told(name, found) for name in ("kendall", "spearman")]
    lines.append(f"{'arm':<20} {'cheap':>10} {'n':>3} {'dear':>10} {'n':>3}  sign")
    for row in found["arms"]:
        cheap, dear = row["cheap"], row["dear"]
        name = row["arm"] if len(row["arm"]) <= 20 else f"{row['arm'][:19]}~"
        lines.append(
            f"{name:<20} {cheap['mean']:>+10.5f} {cheap['n']:>3} {dear['mean']:>+10.5f} "
            f"{dear['n']:>3}  {row['sign']}"
        )
    changed = ", ".join(found["changed"]) or "none"
    lines += [f"arms that change sign: {changed}", *(f"- {t}" for t in found["left_out"])]
    seconds = found["cheap"]["seconds"], found["dear"]["seconds"]
    if seconds[0] > seconds[1]:
        cheap, dear = map(duration, seconds)
        lines.append(f"- the first table has the longer runs ({cheap}, and {dear} in the second)")
    return lines


def _told(name: str, found: dict[str, Any]) -> str:
    value, low, high = (found[name][part] for part in ("value", "low", "high"))
    if value is None:
        return f"{name}: no order, since all effects are equal"
    between = "" if low is None else f", {100 * (1 - found['error']):g} % [{low:+.2f}, {high:+.2f}]"
    return f"{name}: {value:+.2f}{between} over {len(found['arms'])} arms and the base"
