"""A study's table for the terminal, 80 columns wide: numbers, and a forest plot below them."""

import math
from collections.abc import Iterator
from typing import Any

from fairway.base import units
from fairway.base.terminal import line

WIDTH = 80
_NAME, _VERDICT = 16, 12
_HEADS = ("arm", "effect", "interval", "n", "seconds", "bytes", "seen from")
_WIDTHS = (_NAME, 9, 20, 3, 7, 10, 9)
_PLOT = WIDTH - _NAME - _VERDICT - 3


def lines_of(found: dict[str, Any]) -> list[str]:
    """Return the table, the forest plot and the cautions."""
    percent = f"{100 * (1 - found['error']):g} %"
    head = (
        f"{found['metric']} bpb against the base of {found['recipe']}; {percent} intervals, valid "
        "at every look"
    )
    base = found["base"]
    lines = [head, _row(_HEADS), *_rows(found), "", *forest(found), ""]
    if base["bpb"] is not None:
        spread = "" if base["bpb_sd"] is None else f", sd {base['bpb_sd']:.5f} between seeds"
        lines.append(f"base: {base['bpb']:.5f} bpb over {base['runs']} runs{spread}")
    if found["noise_sd"] is not None:
        lines.append(f"noise floor: sd {found['noise_sd']:.5f} bpb of one run with one seed")
    lines += [
        f"{one['arm']}, seed {one['seed']} failed: {line(one['reason'])}" for one in found["failed"]
    ]
    return [*lines, *(f"- {line(caution)}" for caution in found["cautions"])]


def _rows(found: dict[str, Any]) -> Iterator[str]:
    base = found["base"]
    yield from _named("base", ["", "", str(base["runs"]), *_spent(base), ""])
    for arm in found["arms"]:
        cells = [number(arm["mean"], "+"), interval(arm), str(arm["n"]), *_spent(arm)]
        yield from _named(arm["arm"], [*cells, number(arm["seen"])])


def _spent(arm: dict[str, Any]) -> list[str]:
    seconds = "-" if arm["seconds"] is None else f"{arm['seconds']:.1f}"
    return [seconds, "-" if arm["bytes"] is None else f"{arm['bytes']:,.0f}"]


def _named(name: str, cells: list[str]) -> Iterator[str]:
    if len(name) > _NAME:
        yield name
        name = ""
    yield _row((name, *cells))


def _row(cells: tuple[str, ...]) -> str:
    first, *rest = (
        cell.rjust(width) if at else cell.ljust(width)
        for at, (cell, width) in enumerate(zip(cells, _WIDTHS, strict=True))
    )
    return " ".join((first, *rest)).rstrip()


def number(value: float | None, sign: str = "") -> str:
    """Return bits per byte with five decimals, or three significant digits from 10 on."""
    if value is None:
        return "-"
    return f"{value:{sign}.5f}" if abs(value) < 10 else f"{value:{sign}.3g}"


def interval(arm: dict[str, Any]) -> str:
    """Return an interval as text; a dash if it is unbounded."""
    if arm["low"] is None or arm["high"] is None:
        return "-"
    return f"[{number(arm['low'], '+')}, {number(arm['high'], '+')}]"


def reach(arms: list[dict[str, Any]]) -> float:
    """Return the largest value of a forest plot: at most three times its largest effect."""
    ends = [abs(arm[end]) for arm in arms for end in ("low", "high") if arm[end] is not None]
    means = [abs(arm["mean"]) for arm in arms if arm["mean"] is not None]
    if not means:
        return 1.0
    return float(min(max([*ends, *means]), 3 * max(means)) or max([*ends, 1e-9]))


def forest(found: dict[str, Any]) -> list[str]:
    """Return a forest plot: one line per arm, o at the mean, : at zero; arrows go beyond it."""
    arms, far = found["arms"], reach(found["arms"])
    if not arms:
        return []
    title = f"better {'<':-<{_PLOT // 2 - 8}}0{'>':->{_PLOT // 2 - 7}} worse"
    lines = [" " * (_NAME + 1) + title]
    for arm in arms:
        name = arm["arm"]
        shown = name if len(name) <= _NAME else f"{name[: _NAME - 1]}~"
        lines.append(f"{shown:<{_NAME}} {_bar(arm, far)}  {arm['verdict']}")
    lines.append(f"{'':<{_NAME}} {-far:<+{_PLOT // 2}.4f}{far:>+{_PLOT - _PLOT // 2}.4f}")
    return [text.rstrip() for text in lines]


def _bar(arm: dict[str, Any], far: float) -> str:
    middle = _PLOT // 2
    cells = [" "] * _PLOT

    def at(value: float) -> int:
        return middle + max(-middle, min(_PLOT - 1 - middle, round(value / far * middle)))

    if arm["mean"] is not None:
        low = -far if arm["low"] is None else arm["low"]
        high = far if arm["high"] is None else arm["high"]
        if arm["n"] > 1:
            for place in range(at(low), at(high) + 1):
                cells[place] = "-"
            for place, beyond, mark in ((at(low), low < -far, "<"), (at(high), high > far, ">")):
                unbounded = arm["low"] is None
                cells[place] = mark if beyond or unbounded else "|"
        cells[at(arm["mean"])] = "o"
    if cells[middle] in " -":
        cells[middle] = ":"
    return "".join(cells)


def plan_lines(found: dict[str, Any]) -> list[str]:
    """Return the estimate for a study before it starts: runs, seconds, and detectable effects."""
    lines = [
        f"{found['runs']} runs: {found['arms']} beside the base, {found['pairs']} pairs"
        + (f"; {found['done']} are done" if found["done"] else "")
    ]
    left = found["runs"] - found["done"]
    if found["run_s"] is not None and left > 0:
        # Single runs, or the runs of a pair one after another.
        size = 1 + found["arms"] if found["keeps_pairs"] else 1
        rounds = min(left, math.ceil(left / size / found["slots"]) * size)
        whole = found["run_s"] * rounds
        at_once = f", {found['slots']} at once" if found["slots"] > 1 else ""
        at_once += ", each pair on one GPU" if found["keeps_pairs"] else ""
        lines.append(
            f"about {units.duration(found['run_s'])} a run{at_once}: {units.duration(whole)} in all"
            " at most; what is decided stops before"
        )
    if found["pairs"] > found["planned"]:
        lines.append(
            f"the study planned {found['planned']} pairs when it began; intervals of later pairs "
            f"are wider. For {found['pairs']} planned pairs begin a study in another folder (--out)"
        )
    for sd, source, seen, needed in found["questions"]:
        runs = "" if needed is None else f" ({needed * (1 + found['arms']):,} runs)"
        pairs = f"{'more than 1,000' if needed is None else needed} pairs{runs}"
        these = "one pair shows" if found["pairs"] == 1 else "these show"
        shown = f"{these} nothing" if seen is None else f"{these} {seen:.5f} bpb and more"
        lines.append(
            f"if runs scatter by sd {sd:.5f} bpb ({source}): {shown}; {found['effect']:g} needs "
            f"{pairs}"
        )
    return lines
