"""The report page as a whole: its opening, its sections in order, its end."""

from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from fairway.report import audited, sections, tokens
from fairway.report.html import Html, document, esc, megabytes_of, num, pairs, time_of
from fairway.report.spending import spending
from fairway.report.style import CSS, TOKENS_CSS

# The title of the card for the claimed score.
_CLAIMED = {"sliding": "Sliding window", "ttt": "Test-time training", "mixture": "With experts"}


def page(
    results: dict[str, Any],
    derived: dict[str, Any],
    links: Sequence[str],
    costs: Sequence[dict[str, Any]] = (),
) -> str:
    """Return the whole page as HTML; `links` are names of other files, its own numbers first."""
    title = f"Fairway report: {results['recipe']}, seed {results['seed']}"
    parts = [
        _header(results, derived),
        _cards(results, derived),
        sections.scores(results, derived),
        sections.loss(derived),
        spending(results, derived),
        sections.made(results),
        sections.artifact(results, derived),
        sections.weights(results),
        sections.checks(results, derived),
        sections.experts(results),
        sections.proof(results, derived),
        audited.probes(results),
        sections.seconds(results, derived),
        sections.samples(results),
        tokens.documents(costs),
        sections.settings(results),
        _footer(links),
    ]
    return document(title, CSS + audited.TEXT_CSS + TOKENS_CSS, "".join(parts))


def _header(results: dict[str, Any], derived: dict[str, Any]) -> Html:
    stage = results["stages"][results["headline"]]
    best = min(derived["baselines"], key=lambda row: float(row["bpb"]), default=None)
    same = "on the same bytes" if derived["scored_whole"] else "on the whole text"
    if (part := derived["compressed_bytes"]) is not None:
        same = f"on the first {megabytes_of(part)}"
    beside = f"; {same} the strongest compressor, {_row_name(best)}" if best else ""
    audit = results.get("audit")
    if audit and not audit["passed"]:
        beside = ". The audit of this run did not pass, so no score is claimed"
    return Html(
        '<header>\n<p class="eyebrow">Fairway report &middot; recipe '
        f"{esc(results['recipe'])} &middot; seed {num(results['seed'], 'd')} &middot; one run "
        f"(n&nbsp;=&nbsp;1)</p>\n"
        f"<h1>An artifact of {megabytes_of(results['artifact']['bytes'])} predicts "
        f"{num(stage['bytes'])} bytes of held-out text at "
        f'<span class="score">{num(stage["bpb"], ".4f", " bits per byte")}</span> '
        f"after {time_of(results['train']['seconds'])} of training{beside}.</h1>\n"
        "</header>\n"
    )


def _row_name(row: dict[str, Any]) -> Html:
    """Return a compressor for the headline: its name, its way of use, its score."""
    return Html(
        f'<span class="whole">{esc(sections.tool_name(row["tool"]))} ({esc(row["way"])}), takes '
        f"{num(row['bpb'], '.4f')}</span>"
    )


def _cards(results: dict[str, Any], derived: dict[str, Any]) -> Html:
    artifact, text, train = results["artifact"], results["text"], results["train"]
    stage = results["headline"]
    score = results["stages"][stage]["bpb"]
    cards = [
        (_CLAIMED.get(stage, sections.stage_name(stage)), num(score, ".4f"), Html("bits per byte")),
        *_best(derived, "cold"),
        *_best(derived, "primed"),
        ("Artifact", megabytes_of(artifact["bytes"]), num(artifact["bytes"], ",", " bytes")),
        ("Training", time_of(train["seconds"]), num(train["tokens"], ",", " tokens")),
        ("Held-out text", megabytes_of(text["bytes"]), num(text["tokens"], ",", " tokens")),
    ]
    return pairs(
        [(name, Html(f"{value}<small>{note}</small>")) for name, value, note in cards], "cards"
    )


def _best(derived: dict[str, Any], way: str) -> list[tuple[str, Html, Html]]:
    """Return the card of the best compressor for one way of use, if there is one."""
    rows = [row for row in derived["baselines"] if row["way"] == way]
    best = sorted(rows, key=lambda row: float(row["bpb"]))[:1]
    return [
        (
            f"Against {sections.tool_name(row['tool'])}",
            num(row["model_percent"], "+.1f", " %"),
            Html(f"best {way}: {num(row['bpb'], '.4f')}"),
        )
        for row in best
    ]


def _footer(links: Sequence[str]) -> Html:
    numbers, *others = [Html(f'<a href="{esc(quote(name))}">{esc(name)}</a>') for name in links]
    files = f" Files of this run: {', '.join(others)}." if others else ""
    return Html(
        '<footer class="note">Every number of this page stands unrounded in '
        f"{numbers}.{files}</footer>\n"
    )
