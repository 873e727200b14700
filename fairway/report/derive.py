"""Numbers of the report that are not in results.json: comparisons, shares, the loss curve."""

import itertools
from collections.abc import Sequence
from typing import Any

from fairway.base.errors import UserError
from fairway.score.baselines import part_bytes

# A run's name and its step records.
Earlier = tuple[str, list[dict[str, Any]]]
SCHEMA = 1

_REQUIRED = (
    *("recipe", "seed", "text", "model", "train", "stages", "headline", "artifact", "seconds"),
)
# The divisions of tokens by `score.spending`, and the score of the unchanged model.
_DIVISIONS = ("kinds", "frequency", "place", "context")
_FROZEN = "sliding"
# Points of a curve. With more points than pixels the page only gets larger.
_CURVE_POINTS = 1_500
# Points of each curve, if a picture has several.
BESIDE_POINTS = 200
# The smoothed loss averages this many steps on either side, as a share of all.
_SMOOTH_SHARE = 0.01
# The start of a run is so steep that it would flatten the rest; it may be outside the frame.
_STEEP_SHARE = 0.05


def derive(
    results: dict[str, Any], steps: list[dict[str, Any]], earlier: Sequence[Earlier] = ()
) -> dict[str, Any]:
    """Return the numbers of the report that are not in results.json, ready for JSON.

    `earlier` are other runs on the same text: names and step records. Raises UserError for another
    schema, and for results that end before the last score.
    """
    _check(results)
    artifact, seconds, text = results["artifact"], results["seconds"], results["text"]
    parts = {item["name"]: item["bytes"] for item in artifact["sections"]}
    spent = {name: value for name, value in seconds.items() if name != "total"}
    scored = {name: stage["bytes"] for name, stage in results["stages"].items()}
    shipped_bytes = artifact["bytes"] + artifact["code_bytes"]
    return {
        "baselines": _versus(results),
        "shipped_bytes": shipped_bytes,
        "shipped_percent": 100.0 * shipped_bytes / artifact["limit_bytes"],
        "sections": _shares(parts, artifact["bytes"], "not attributed"),
        "seconds": _shares(spent, seconds.get("total", sum(spent.values())), "between the stages"),
        "scored_percent": {name: 100.0 * size / text["bytes"] for name, size in scored.items()},
        "scored_whole": all(size == text["bytes"] for size in scored.values()),
        "compressed_bytes": part_bytes(results.get("baselines"), text["bytes"]),
        "proof_percent": 100.0 * (results.get("proof") or {}).get("difference_share", 0.0),
        "spending": _spending(results),
        "curve": curve_of(steps, _CURVE_POINTS),
        "earlier": [{"name": n, "curve": curve_of(s, BESIDE_POINTS)} for n, s in earlier if s],
        "events": _events(steps),
    }


def _check(results: dict[str, Any]) -> None:
    if results.get("schema") != SCHEMA:
        raise UserError(
            f"results of schema {results.get('schema')!r} cannot be reported; this version reads "
            f"schema {SCHEMA}, so run the recipe again with it"
        )
    missing = [name for name in _REQUIRED if name not in results]
    if not missing and results["headline"] not in results["stages"]:
        missing = [f"stages.{results['headline']}"]
    if missing:
        raise UserError(f"results lack '{missing[0]}'; let the run finish (fairway run) first")


def _versus(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Return one row per compressor and way of use: its bpb, and the model's bpb against it."""
    bpb = results["stages"][results["headline"]]["bpb"]
    rows = []
    for prefix, way in (("", "cold"), ("primed_", "primed")):
        for tool, found in results.get("baselines", {}).items():
            if found[f"{prefix}bpb"] is None:
                continue
            theirs = found[f"{prefix}bpb"]
            row = {"tool": tool, "way": way, "bytes": found[f"{prefix}bytes"], "bpb": theirs}
            rows.append({**row, "model_percent": 100.0 * (bpb / theirs - 1.0)})
    return rows


def _shares(parts: dict[str, float], total: float, rest_name: str) -> list[dict[str, Any]]:
    """Return the parts with their percentage of the total; a remainder becomes another part."""
    rest = total - sum(parts.values())
    # A remainder of seconds below a thousandth is rounding; a remaining byte is not.
    if abs(rest) > (0 if isinstance(rest, int) else 1e-3 * total):
        parts = {**parts, rest_name: rest}
    scale = 100.0 / total if total else 0.0
    return [
        {"name": name, "value": value, "percent": scale * value} for name, value in parts.items()
    ]


def _spending(results: dict[str, Any]) -> dict[str, Any] | None:
    """Return the use of the bits of the claimed score, and of the frozen model's for comparison.

    Every group gets its share of all bits, its bits per token, and its bits per byte of the whole
    text: the groups of one division add up to the score. `plain_bpb` is the group's value under the
    sliding window, if that is another score of the same text.
    """
    stages, headline = results["stages"], results["headline"]
    stage, plain = stages[headline], stages.get(_FROZEN, {})
    if "spending" not in stage:
        return None
    same = headline != _FROZEN and plain.get("bytes") == stage["bytes"] and "spending" in plain
    bits = sum(one["bits"] for one in stage["spending"]["kinds"])

    def shares(one: dict[str, Any]) -> dict[str, Any]:
        size, tokens = one["bits"], one["tokens"]
        percent = 100.0 * size / bits if bits else 0.0
        return {"percent": percent, "token_bits": size / tokens, "bpb": size / stage["bytes"]}

    found: dict[str, Any] = {"stage": headline, "beside": _FROZEN if same else None}
    found["dearest"] = [shares(one) for one in stage["spending"]["dearest"]]
    for division in _DIVISIONS:
        groups = plain["spending"][division] if same else []
        beside = {one["name"]: one["bits"] / stage["bytes"] for one in groups}
        found[division] = [
            {**shares(one), "plain_bpb": beside.get(one["name"])}
            for one in stage["spending"][division]
        ]
    return found


def curve_of(steps: list[dict[str, Any]], points: int) -> dict[str, Any] | None:
    """Return loss (raw and smoothed) and learning rate against seconds, thinned; None if empty."""
    if not steps:
        return None
    reach = round(_SMOOTH_SHARE * len(steps))
    smooth = _smooth([step["loss"] for step in steps], reach)
    every = -(-len(steps) // points)
    kept = sorted({*range(0, len(steps), every), len(steps) - 1})
    calm = [smooth[i] for i in range(len(steps)) if i >= _STEEP_SHARE * len(steps)]
    return {
        "steps": len(steps),
        "every": every,
        "smooth_steps": 2 * reach + 1,
        "first_loss": steps[0]["loss"],
        "last_smooth_loss": smooth[-1],
        "frame_loss": max(calm, default=smooth[-1]),
        "seconds": [steps[i]["seconds"] for i in kept],
        "loss": [steps[i]["loss"] for i in kept],
        "smooth": [smooth[i] for i in kept],
        "lr": [steps[i]["lr"] for i in kept],
    }


def _smooth(values: list[float], reach: int) -> list[float]:
    """Return the mean of each value and its neighbours, up to `reach` steps away on each side."""
    sums = [0.0, *itertools.accumulate(values)]
    ends = [(max(0, i - reach), min(len(values), i + reach + 1)) for i in range(len(values))]
    return [(sums[last] - sums[first]) / (last - first) for first, last in ends]


def _events(steps: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the times of events, read from the steps: recurrence, warm-down, stop."""
    if not steps:
        return []
    peak = max(range(len(steps)), key=lambda i: (steps[i]["lr"], i))
    found = {
        "recurrence on": next((step for step in steps if step.get("looping")), None),
        "warm-down": steps[peak + 1] if peak + 1 < len(steps) else None,
        "stop": steps[-1],
    }
    events = [
        {"name": name, "step": step["step"], "seconds": step["seconds"]}
        for name, step in found.items()
        if step is not None
    ]
    return sorted(events, key=lambda event: event["seconds"])
