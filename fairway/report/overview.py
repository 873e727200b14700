"""The page of all runs of a folder: a table that can be sorted, with curves and settings."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from fairway.report.html import DASH, Html, esc, figure, join, note, num, printable, section
from fairway.report.plots import MOST_LINES, NARROW_IN, WIDE_IN, Line, lines_figure
from fairway.report.sections import stage_name
from fairway.report.sorting import is_sortable, sortable
from fairway.report.style import CSS

_TITLE = "Fairway runs"
# The most characters of one cell: names and settings may be foreign.
_LONGEST = {"name": 120, "settings": 600, "state": 300}
# Points of a small curve, and its size in pixels.
_POINTS, _WIDTH, _HEIGHT = 40, 96, 22
_CSS = """
td, th { vertical-align: middle; }
thead th:nth-child(2) { text-align: left; }
td.words { text-align: left; white-space: normal; min-width: 13rem; }
td.state { white-space: normal; text-align: left; }
tbody th { white-space: normal; overflow-wrap: break-word; min-width: 7rem; max-width: 16rem; }
.curve { display: block; width: 6rem; height: 1.4rem; }
.curve polyline { fill: none; stroke: var(--model); stroke-width: 1.5;
  vector-effect: non-scaling-stroke; }
.best { font-weight: 700; }
.list li { margin: 0.35rem 0; overflow-wrap: break-word; }
@media (max-width: 40rem) { body { max-width: 100%; } td.words { min-width: 11rem; } }
"""


@dataclass(frozen=True)
class Row:
    """A run: its facts from `fairway.pipeline.index`, its loss if it was read, and its page."""

    facts: dict[str, Any]
    curve: dict[str, Any] | None = None
    page: str = ""

    @property
    def name(self) -> str:
        """Return its name in the folder."""
        return str(self.facts["name"])


def is_page(head: bytes) -> bool:
    """Return whether a file begins like a page of runs."""
    return is_sortable(head, _TITLE)


def overview(rows: Sequence[Row], left_out: int = 0, without_curve: int = 0) -> str:
    """Return the page. `left_out` runs are not on it; the loss of `without_curve` was not read."""
    broken = [row for row in rows if row.facts["recipe"] is None]
    whole = [row for row in rows if row.facts["recipe"] is not None]
    title = f"{_TITLE}: {len(whole)} run{'' if len(whole) == 1 else 's'}"
    title += f", {len(broken)} without results" if broken else ""
    notes = []
    if left_out:
        notes.append(f"Runs that are not shown: {left_out:,}. Name a folder further down.")
    if without_curve:
        notes.append(f"Runs whose loss was not read, for there are too many: {without_curve:,}.")
    parts = [
        *(Html(f"<p>{esc(text)}</p>") for text in notes),
        _losses(whole),
        _table(whole),
        _broken(broken),
    ]
    return sortable(title, f"{CSS}{_CSS}", join(parts))


def _losses(rows: Sequence[Row]) -> Html:
    """Return one picture with the losses of the runs that have the best scores."""
    drawn = sorted((row for row in rows if row.curve), key=_rank)[:MOST_LINES]
    if not drawn:
        return Html("")
    lines = [Line(_cut(row.name, "name")[:40], row.curve) for row in drawn if row.curve]
    which = "the" if len(drawn) == len(rows) else f"the {len(drawn)} best of {len(rows)}"
    caption = esc(
        f"Smoothed training loss of {which} runs. Losses are comparable only if text and tokenizer "
        "are the same. Bits per byte are comparable if the validation text is the same."
    )
    drawings = [lines_figure(lines, width_in) for width_in in (WIDE_IN, NARROW_IN)]
    return section("Loss over time", figure(drawings[0], drawings[1], "Training losses", caption))


def _rank(row: Row) -> tuple[float, float]:
    scores = row.facts["scores"].values()
    last = row.curve["last_smooth_loss"] if row.curve else math.inf
    return min(scores, default=math.inf), last


def _table(rows: Sequence[Row]) -> Html:
    if not rows:
        return note(esc("There is no finished run here."))
    stages = list(dict.fromkeys(stage for row in rows for stage in row.facts["scores"]))
    best = {
        stage: min(r.facts["scores"][stage] for r in rows if stage in r.facts["scores"])
        for stage in stages
    }
    common = _common(rows)
    heads = ["run", "settings", "loss over time", "last loss (nats/token)"]
    heads += [f"{stage_name(stage)} (bits/byte)" for stage in stages]
    heads += ["artifact (bytes)", "training (s)", "steps", "seed", "recipe", "state"]
    head = "".join(f'<th scope="col">{esc(text)}</th>' for text in heads)
    body = "".join(_row(row, best, common) for row in rows)
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    told = [
        f"All runs of {recipe} shown: {_cut(' '.join(sorted(same)), 'settings')}."
        for recipe, same in common.items()
        if same
    ]
    meaning = (
        "The column of settings shows what differs from the recipe. What all runs of a recipe "
        "share is listed below instead. The best score of every column is bold. A click on the "
        "head of a column sorts the table."
    )
    notes = [note(esc(text)) for text in (meaning, *told)]
    return section("All runs", Html(f'<div class="scroll">{table}</div>'), *notes)


def _row(row: Row, best: dict[str, float], common: dict[str, frozenset[str]]) -> str:
    facts = row.facts
    name = esc(_cut(row.name, "name"))
    shown = f'<a href="{esc(quote(row.page))}">{name}</a>' if row.page else name
    scores = [_score(facts["scores"].get(stage), least) for stage, least in best.items()]
    apart = [text for text in facts["differences"] or [] if text not in common[facts["recipe"]]]
    settings = "<br>".join(esc(text) for text in _within(apart, _LONGEST["settings"]))
    cells = [
        f'<td class="words">{settings or DASH}</td>',
        f"<td>{_small(row.curve)}</td>",
        f"<td>{num(row.curve['last_smooth_loss'], '.4f') if row.curve else DASH}</td>",
        *(f"<td>{score}</td>" for score in scores),
        f"<td>{num(facts['bytes'])}</td>",
        f"<td>{num(facts['train_s'], ',.1f')}</td>",
        f"<td>{num(facts['steps'])}</td>",
        f"<td>{num(facts['seed'], 'd')}</td>",
        f"<td>{esc(_cut(facts['recipe'], 'name'))}</td>",
        f'<td class="state">{esc(_cut(facts["state"], "state"))}</td>',
    ]
    return f'<tr><th scope="row">{shown}</th>{"".join(cells)}</tr>'


def _score(bpb: float | None, least: float) -> Html:
    shown = num(bpb, ".4f")
    return Html(f'<span class="best">{shown}</span>') if bpb == least else shown


def _common(rows: Sequence[Row]) -> dict[str, frozenset[str]]:
    """Return for each recipe the settings that all its runs change alike; none for one run."""
    found: dict[str, list[frozenset[str]]] = {}
    for row in rows:
        changed = frozenset(row.facts["differences"] or [])
        found.setdefault(str(row.facts["recipe"]), []).append(changed)
    return {
        recipe: frozenset.intersection(*sets) if len(sets) > 1 else frozenset()
        for recipe, sets in found.items()
    }


def _small(curve: dict[str, Any] | None) -> str:
    """Return a run's loss as a line without axes."""
    if curve is None:
        return DASH
    every = -(-len(curve["smooth"]) // _POINTS)
    kept = sorted({*range(0, len(curve["smooth"]), every), len(curve["smooth"]) - 1})
    values = [min(curve["smooth"][i], curve["frame_loss"]) for i in kept]
    low, high = min(values), max(values)
    scale_x, scale_y = _WIDTH / max(1, len(values) - 1), (_HEIGHT - 2) / ((high - low) or 1.0)
    points = " ".join(
        f"{scale_x * i:.1f},{1 + (high - value) * scale_y:.1f}" for i, value in enumerate(values)
    )
    label = f"loss from {curve['first_loss']:.2f} to {curve['last_smooth_loss']:.2f}"
    box = f'viewBox="0 0 {_WIDTH} {_HEIGHT}" preserveAspectRatio="none"'
    svg = f'<svg class="curve" {box} role="img" aria-label="{esc(label)}">'
    return f'{svg}<polyline points="{points}"/></svg>'


def _broken(rows: Sequence[Row]) -> Html:
    if not rows:
        return Html("")
    told = ((_cut(row.name, "name"), _cut(row.facts["state"], "state")) for row in rows)
    items = [Html(f"<li><b>{esc(name)}</b>: {esc(state)}</li>") for name, state in told]
    return section(
        "Unfinished runs, and runs that cannot be read",
        Html(f'<ul class="list">{join(items)}</ul>'),
    )


def _cut(text: str, kind: str) -> str:
    shown, most = printable(text), _LONGEST[kind]
    return shown if len(shown) <= most else f"{shown[:most]}..."


def _within(texts: Iterable[str], most: int) -> list[str]:
    """Return texts up to a total number of characters, then the count of the others."""
    shown: list[str] = []
    texts = list(texts)
    for text in texts:
        if most < len(text):
            return [*shown, f"and {len(texts) - len(shown)} more"]
        shown.append(text)
        most -= len(text)
    return shown
