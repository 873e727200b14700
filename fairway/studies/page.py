"""Pages of a study, and of a comparison of two: the forest plot as SVG, and tables."""

from collections.abc import Sequence
from typing import Any

from fairway.report.html import DASH, Html, document, esc, join, note, num, section, table
from fairway.report.style import CSS
from fairway.studies.telling import number, reach

_LEFT, _RIGHT, _ROW, _WIDTH = 170, 110, 26, 860


def page(title: str, *sections: Html) -> str:
    """Return a whole page in the style of a run's report."""
    body = f"<header>\n<h1>{esc(title)}</h1>\n</header>\n{''.join(sections)}"
    return document(title, CSS, body)


def study_page(found: dict[str, Any]) -> str:
    """Return the page of a study's summary."""
    percent = f"{100 * (1 - found['error']):g} %"
    what = (
        f"Differences in bits per byte ({found['metric']}) to the base of {found['recipe']}, runs "
        f"until {found['until']}, clock {found['clock']}. Intervals of {percent} are valid at "
        "every look; less is better."
    )
    said = [*found["cautions"], *_failures(found)]
    return page(
        f"Study of {found['recipe']}",
        section("Effects", figure(found["arms"]), note(esc(what))),
        section("Numbers", _numbers(found)),
        section("Settings", _settings(found)),
        section("Cautions", join(Html(f"<p>{esc(text)}</p>") for text in said)),
        section("Where", note(esc(_where(found)))),
    )


def _where(found: dict[str, Any]) -> str:
    devices, commits = ", ".join(found["devices"]), ", ".join(found["commits"])
    return f"Devices: {devices or 'unknown'}. Sources: {commits or 'unknown'}."


def _failures(found: dict[str, Any]) -> list[str]:
    return [f"{one['arm']}, seed {one['seed']} failed: {one['reason']}" for one in found["failed"]]


def _numbers(found: dict[str, Any]) -> Html:
    heads = (
        "arm",
        "effect",
        "low",
        "high",
        "n",
        "failed",
        "seconds",
        "steps",
        "bytes",
        "seen from",
    )
    base = found["base"]
    rows = [(esc("base"), DASH, DASH, DASH, num(base["runs"]), *_spent(base), DASH)]
    for arm in found["arms"]:
        ends = (num(arm[end], "+.5f") for end in ("mean", "low", "high"))
        rows.append((esc(arm["arm"]), *ends, num(arm["n"]), *_spent(arm), num(arm["seen"], ".5f")))
    return table(heads, rows)


def _spent(arm: dict[str, Any]) -> tuple[Html, ...]:
    return (
        num(arm["failed"]),
        num(arm["seconds"], ",.1f"),
        num(arm["steps"], ",.0f"),
        num(arm["bytes"], ",.0f"),
    )


def _settings(found: dict[str, Any]) -> Html:
    rows = [(esc("all"), esc(" ".join(found["common"])))]
    rows += [(esc(arm["arm"]), esc(" ".join(arm["settings"]))) for arm in found["arms"]]
    return table(("arm", "settings"), rows)


def figure(arms: Sequence[dict[str, Any]]) -> Html:
    """Return a forest plot of arms as SVG, with the interval and the mean of each arm."""
    if not arms:
        return Html("")
    far, height = reach(list(arms)), _ROW * len(arms) + 34
    middle, half = (_LEFT + _WIDTH - _RIGHT) / 2, (_WIDTH - _RIGHT - _LEFT) / 2

    def at(value: float) -> float:
        return middle + max(-1.0, min(1.0, value / far)) * half

    bottom = _ROW * len(arms) + 6
    parts = [
        f'<line x1="{middle}" x2="{middle}" y1="0" y2="{bottom}" stroke="var(--muted)"/>',
        *(
            f'<text x="{at(value):.1f}" y="{bottom + 18}" text-anchor="middle" '
            f'fill="var(--muted)" font-size="12">{esc(number(value, "+"))}</text>'
            for value in (-far, -far / 2, 0.0, far / 2, far)
        ),
    ]
    for row, arm in enumerate(arms):
        parts += _arm(arm, row * _ROW + _ROW / 2 + 4, far, at)
    inner = "".join(parts)
    return Html(
        f'<figure><svg viewBox="0 0 {_WIDTH} {height}" role="img" '
        f'aria-label="Effects of {len(arms)} arms with intervals">{inner}</svg></figure>'
    )


def _arm(arm: dict[str, Any], y: float, far: float, at: Any) -> list[str]:
    text = '<text x="{}" y="{:.1f}" fill="var(--ink)" font-size="13">{}</text>'
    name = arm["arm"] if len(arm["arm"]) <= 22 else f"{arm['arm'][:21]}~"
    parts = [
        text.format(0, y + 4, esc(name)),
        text.format(_WIDTH - _RIGHT + 12, y + 4, esc(arm["verdict"])),
    ]
    if arm["mean"] is None:
        return parts
    low = -far if arm["low"] is None else arm["low"]
    high = far if arm["high"] is None else arm["high"]
    # An unbounded interval is drawn as a thin line from end to end.
    dashes = ' stroke-dasharray="2 4"' if arm["low"] is None else ""
    parts.append(
        f'<line x1="{at(low):.1f}" x2="{at(high):.1f}" y1="{y:.1f}" y2="{y:.1f}" '
        f'stroke="var(--model)" stroke-width="2"{dashes}/>'
    )
    parts.append(f'<circle cx="{at(arm["mean"]):.1f}" cy="{y:.1f}" r="4.5" fill="var(--model)"/>')
    return parts


def is_study_page(head: bytes) -> bool:
    """Return whether a file begins like the result of `study_page`."""
    return head.startswith(b"<!DOCTYPE html>") and b"<title>Study of " in head


def is_transfer_page(head: bytes) -> bool:
    """Return whether a file begins like the result of `transfer_page`."""
    return head.startswith(b"<!DOCTYPE html>") and b"<title>Does " in head


def transfer_page(found: dict[str, Any]) -> str:
    """Return the page of a comparison of two tables."""
    rows = []
    for row in found["arms"]:
        ends = (num(row[side]["mean"], "+.5f") for side in ("cheap", "dear"))
        counts = (num(row[side]["n"]) for side in ("cheap", "dear"))
        cheap, dear = (Html(f"{a} (n = {b})") for a, b in zip(ends, counts, strict=True))
        rows.append((esc(row["arm"]), cheap, dear, esc(row["sign"])))
    ranks = [
        (esc(name), *(num(found[name][part], "+.2f") for part in ("value", "low", "high")))
        for name in ("kendall", "spearman")
    ]
    changed = ", ".join(found["changed"]) or "none"
    return page(
        f"Does {found['cheap']['recipe']} hold on {found['dear']['recipe']}?",
        section("Rank correlation", table(("measure", "value", "low", "high"), ranks)),
        *(
            section(f"The {side} proxy", figure([_drawn(row, side) for row in found["arms"]]))
            for side in ("cheap", "dear")
        ),
        section("Arms", table(("arm", "cheap", "dear", "sign"), rows)),
        section("Cautions", note(esc(f"Arms that change sign: {changed}."))),
    )


def _drawn(row: dict[str, Any], side: str) -> dict[str, Any]:
    return {**row[side], "arm": row["arm"]}
