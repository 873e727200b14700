"""The report's figures as SVG text whose colours are the page's CSS variables.

Text stays text, in the page's own font, so that programs can read it. Nothing in the SVG depends on
the date or the machine, so equal numbers give equal bytes.
"""

import io
import itertools
import re
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

# Matplotlib has no CSS variables: draw in marker colours, and replace them in the finished SVG.
_MARKERS = [f"#{i:02x}{i:02x}fe" for i in range(1, 15)]
_INK, _MUTED, _RULE, _MODEL, _FAINT, _BASE, _PRIMED, _RATE, *_OTHERS = _MARKERS
_VARIABLES = {
    _INK: "var(--ink)",
    _MUTED: "var(--muted)",
    _RULE: "var(--rule)",
    _MODEL: "var(--model)",
    _FAINT: "var(--faint)",
    _BASE: "var(--base)",
    _PRIMED: "var(--primed)",
    _RATE: "var(--rate)",
    **{colour: f"var(--line-{number})" for number, colour in enumerate(_OTHERS, 1)},
}
# Lines of several runs: one colour each, then the same colours in another pattern.
_PATTERNS: tuple[Any, ...] = ("-", (0, (4, 1.5)))
MOST_LINES = len(_OTHERS) * len(_PATTERNS)

_BAR_COLOURS = {"stage": _FAINT, "headline": _MODEL, "cold": _BASE, "primed": _PRIMED}

_STYLE = {
    "svg.fonttype": "none", "text.parse_math": False, "font.family": "DejaVu Sans",
    "font.size": 8.0, "axes.edgecolor": _MUTED, "axes.labelcolor": _MUTED, "axes.linewidth": 0.6,
    "axes.spines.top": False, "axes.spines.right": False, "text.color": _INK, "xtick.color": _MUTED,
    "ytick.color": _MUTED, "xtick.major.width": 0.6, "ytick.major.width": 0.6, "grid.color": _RULE,
    "grid.linewidth": 0.6, "path.simplify_threshold": 0.3, "savefig.facecolor": "none",
}  # fmt: skip

WIDE_IN, NARROW_IN = 9.4, 4.5


@dataclass(frozen=True)
class Bar:
    """One bar of the comparison; kind is 'stage', 'headline', 'cold' or 'primed'."""

    label: str
    bpb: float
    kind: str


@dataclass(frozen=True)
class Line:
    """The smoothed loss of a run over its seconds; its steep start is above `frame_loss`."""

    label: str
    curve: dict[str, Any]
    own: bool = False


def lines_figure(lines: list[Line], width_in: float) -> str:
    """Return the training losses of up to `MOST_LINES` runs over time; the own one is thick."""
    assert len(lines) <= MOST_LINES + 1, len(lines)
    with _style(f"lines {width_in}"):
        rows = -(-len(lines) // (2 if width_in < WIDE_IN else 3))
        figure = Figure(figsize=(width_in, 2.9 + 0.17 * rows), layout="constrained")
        axes = figure.subplots()
        unit, scale = _time_unit(max(line.curve["seconds"][-1] for line in lines))
        looks = ((colour, pattern) for pattern in _PATTERNS for colour in _OTHERS)
        for line in lines:
            colour, pattern = (_MODEL, "-") if line.own else next(looks)
            times = [second / scale for second in line.curve["seconds"]]
            width = 2.0 if line.own else 1.1
            style: dict[str, Any] = {"color": colour, "linestyle": pattern, "linewidth": width}
            style["zorder"] = 3 if line.own else 2
            # Matplotlib keeps names that begin with "_" out of its legend.
            label = line.label.replace("_", "\u200b_", 1)
            axes.plot(times, line.curve["smooth"], label=label, **style)
        bottom = min(min(line.curve["smooth"]) for line in lines)
        height = max(max(line.curve["frame_loss"] for line in lines) - bottom, 1e-3)
        axes.set_ylim(bottom - 0.05 * height, bottom + 1.1 * height)
        axes.set_xlim(left=0)
        axes.set_xlabel(f"training time ({unit})")
        axes.set_ylabel("training loss (nats/token)")
        axes.grid(axis="y")
        axes.set_axisbelow(True)
        columns = 2 if width_in < WIDE_IN else 3
        figure.legend(frameon=False, loc="outside lower left", ncols=columns)
        return _svg(figure)


def loss_figure(curve: dict[str, Any], events: list[dict[str, Any]], width_in: float) -> str:
    """Return the training loss in nats/token over time with events; the learning rate below."""
    with _style(f"loss {width_in}"):
        figure = Figure(figsize=(width_in, 3.9), layout="constrained")
        top, low = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1.3])
        unit, scale = _time_unit(curve["seconds"][-1])
        times = [second / scale for second in curve["seconds"]]
        top.plot(times, curve["loss"], color=_FAINT, linewidth=0.7, label="each step")
        top.plot(times, curve["smooth"], color=_MODEL, linewidth=1.5, label="smoothed")
        low.plot(times, curve["lr"], color=_RATE, linewidth=1.4)
        top.set_ylabel("training loss (nats/token)")
        low.set_ylabel("rate (of peak)")
        low.set_xlabel(f"training time ({unit})")
        top.legend(frameon=False, loc="upper right")
        top.tick_params(axis="x", length=0)
        _frame_loss(top, curve)
        low.set_ylim(0, 1.12 * max(1e-9, *curve["lr"]))
        low.set_xlim(0, times[-1] * 1.01 or 1.0)
        for axes in (top, low):
            axes.grid(axis="y")
            axes.set_axisbelow(True)
        _mark(top, low, [(event["name"], event["seconds"] / scale) for event in events])
        return _svg(figure)


def bars_figure(bars: list[Bar], width_in: float) -> str:
    """Return horizontal bars of bits per byte, of the model's stages and of compressors."""
    with _style(f"bars {width_in}"):
        figure = Figure(figsize=(width_in, 0.8 + 0.26 * len(bars)), layout="constrained")
        axes = figure.subplots()
        places = _places(bars)
        sizes = [bar.bpb for bar in bars]
        axes.barh(places, sizes, height=0.7, color=[_BAR_COLOURS[bar.kind] for bar in bars])
        for place, bar in zip(places, bars, strict=True):
            headline = bar.kind == "headline"
            if headline:
                axes.axvline(bar.bpb, color=_MODEL, linewidth=0.8, dashes=(2, 2))
            axes.annotate(
                f"{bar.bpb:.4f}",
                (label_at(bar, bars), place),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                weight="bold" if headline else "normal",
            )
        axes.set_yticks(places, [bar.label for bar in bars])
        axes.tick_params(axis="y", length=0, labelcolor=_INK)
        axes.set_ylim(places[-1] + 0.6, -0.6)
        axes.set_xlim(0, 1.14 * max(sizes))
        axes.set_xlabel("bits per byte (lower is better)")
        axes.spines["left"].set_visible(False)
        return _svg(figure)


def label_at(bar: Bar, bars: list[Bar]) -> float:
    """Return where a bar's number begins: at its end, or after a line that would cross it."""
    lines = [other.bpb for other in bars if other.kind == "headline"]
    wide = 0.09 * max(other.bpb for other in bars)
    return max([bar.bpb, *(line for line in lines if line - wide < bar.bpb)])


def _places(bars: list[Bar]) -> list[float]:
    """Return the vertical place of each bar, with gaps between model, cold and primed ones."""
    groups = ["model" if bar.kind in ("stage", "headline") else bar.kind for bar in bars]
    gaps = [0, *(before != after for before, after in itertools.pairwise(groups))]
    return [row + 0.4 * gap for row, gap in enumerate(itertools.accumulate(gaps))]


def _frame_loss(axes: Axes, curve: dict[str, Any]) -> None:
    """Cut the frame below the steep start; the caption states its height."""
    bottom = min(min(curve["loss"]), min(curve["smooth"]))
    height = max(curve["frame_loss"] - bottom, 1e-3)
    axes.set_ylim(bottom - 0.05 * height, bottom + 1.1 * height)


def _mark(top: Axes, low: Axes, events: list[tuple[str, float]]) -> None:
    """Draw the events as vertical lines through both axes, with labels at alternating heights."""
    for row, (name, time) in enumerate(events):
        for axes in (top, low):
            axes.axvline(time, color=_INK, linewidth=0.7, dashes=(2, 2))
        top.annotate(
            name,
            (time, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(0, 2 + 10 * (row % 2)),
            textcoords="offset points",
            ha="right" if time > 0.8 * events[-1][1] else "left",
            color=_INK,
        )


def _time_unit(seconds: float) -> tuple[str, float]:
    for unit, scale, least in (("hours", 3600.0, 7200.0), ("minutes", 60.0, 900.0)):
        if seconds >= least:
            return unit, scale
    return "seconds", 1.0


def _style(name: str) -> AbstractContextManager[None]:
    # Ids are hashes of the drawing and this salt, which is fixed and differs between figures.
    return matplotlib.rc_context({**_STYLE, "svg.hashsalt": name})


def _svg(figure: Figure) -> str:
    stream = io.StringIO()
    FigureCanvasSVG(figure)
    figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, variable)
    return re.sub(r'<g id="[^"]*"', "<g", text)
