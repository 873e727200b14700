"""The findings of an audit as HTML: a section of a run's page, and the page of records."""

from collections.abc import Sequence
from typing import Any

from fairway.audit.findings import SEVERITIES, SEVERITY_WORDS, Finding
from fairway.audit.records.audit import RecordAudit
from fairway.audit.records.telling import JUDGEMENTS, grouped, judged, sentence, summary
from fairway.report.html import DASH, Html, esc, join, note, num, raw, section, strong
from fairway.report.sorting import is_sortable, sortable
from fairway.report.style import CSS

# Texts of an audit are sentences: cells of these tables wrap and are aligned to the left.
TEXT_CSS = """
.text table { font-size: 0.84rem; }
.text th, .text td { text-align: left; white-space: normal; }
.text td.words { min-width: 15rem; }
"""
# A cell with more letters contains a sentence.
_WORD_LETTERS = 50
_TITLE = "Fairway audit"
_PAGE_CSS = """
details { border-top: 1px solid var(--rule); padding: 0.4rem 0; }
details:target { background: var(--panel); }
summary { cursor: pointer; overflow-wrap: anywhere; }
"""
# The most places of one finding that the page shows.
_MOST_PLACES = 20
_WORDS = {"invalid": "invalid", "warning": "look here", "note": "note"}


def _table(heads: Sequence[str], rows: Sequence[Sequence[Html]]) -> Html:
    head = "".join(f'<th scope="col">{esc(text)}</th>' for text in heads)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return Html(f'<div class="scroll text">{table}</div>')


def _cell(cell: Html) -> str:
    """Return a cell; a cell with a sentence keeps a readable width."""
    kind = ' class="words"' if len(cell) > _WORD_LETTERS else ""
    return f"<td{kind}>{cell}</td>"


def probes(results: dict[str, Any]) -> Html:
    """Return the audit of a run: every probe with its action and result, and other findings."""
    found = results.get("audit")
    if not found:
        return Html("")
    rows = [
        [
            esc(probe["stage"]),
            esc(probe["name"]),
            strong(probe["verdict"]) if probe["verdict"] == "invalid" else esc(probe["verdict"]),
            esc(", ".join(probe["rules"])),
            num(probe["samples"]),
            DASH if probe["worst"] is None else num(probe["worst"], ".2g"),
            esc(probe["why"]),
            esc(probe.get("power", "")),
        ]
        for probe in found["probes"]
    ]
    heads = ["score", "probe", "verdict", "rules", "samples", "worst", "because", "power"]
    did = {probe["name"]: probe["did"] for probe in found["probes"]}
    meanings = [Html(f"<b>{esc(name)}</b>: {esc(text)}.") for name, text in did.items()]
    passed = "passed" if found["passed"] else "not passed: it cannot become a submission"
    findings = [Finding(**finding) for finding in found["findings"]]
    return section(
        "Audit",
        note(esc(f"Verdict: {found['verdict']}; {passed}.")),
        _table(heads, rows) if rows else Html(""),
        *([_findings(findings)] if findings else []),
        note(join(meanings, " ")),
    )


def _findings(findings: Sequence[Finding]) -> Html:
    rows = [
        [
            strong(_WORDS[f.severity]) if f.severity == "invalid" else esc(_WORDS[f.severity]),
            esc(f.code),
            raw(f.place),
            raw(f.value),
            esc(f.why),
        ]
        for f in findings
    ]
    return _table(["", "what", "where", "value", "why it matters"], rows)


# ---------------------------------------------------------------------------------------------
# The page of records


def is_page(head: bytes) -> bool:
    """Return whether a file begins like a page of audited records."""
    return is_sortable(head, _TITLE)


def records_page(audits: Sequence[RecordAudit]) -> str:
    """Return a self-contained page of audited records by verdict; click a column head to sort."""
    ranked = sorted(audits, key=lambda one: JUDGEMENTS.index(judged(one)))
    counts = [(word, sum(judged(one) == word for one in audits)) for word in JUDGEMENTS]
    words = ", ".join(f"{count} {word}" for word, count in counts if count)
    title = f"{_TITLE}: {len(audits)} record{'' if len(audits) == 1 else 's'}, {words or 'none'}"
    parts = [_overview(ranked), *(_record(number, one) for number, one in enumerate(ranked))]
    return sortable(title, f"{CSS}{TEXT_CSS}{_PAGE_CSS}", join(parts))


_FIGURES = (
    ("claimed_bpb", "claimed, bpb", ".5g"), ("recomputed_bpb", "recomputed", ".5f"),
    ("seeds", "seeds", ","), ("steps", "steps", ",.0f"), ("bytes", "bytes", ",.0f"),
    ("train_s", "training, s", ",.1f"), ("eval_s", "evaluation, s", ",.1f"),
    ("coverage", "log read", ".0%"),
)  # fmt: skip


def _overview(audits: Sequence[RecordAudit]) -> Html:
    """Return the table of all records: one line each, with a link to its findings."""
    rows = []
    for number, audit in enumerate(audits):
        figures, found = summary(audit), grouped(audit.findings)
        counts = [sum(one.severity == word for one in found) for word in SEVERITIES]
        name = Html(f'<a href="#r{number}">{esc(audit.folder.name)}</a>')
        word = judged(audit)
        rank = Html(f'<data value="{JUDGEMENTS.index(word)}">{_marked(word)}</data>')
        cells = [num(figures[key], spec) for key, _, spec in _FIGURES]
        rows.append([name, rank, *(num(count) for count in counts), *cells])
    heads = ["record", "verdict", "invalid", "to ask", "notes", *(head for _, head, _ in _FIGURES)]
    return section("All records", _table(heads, rows))


def _marked(word: str) -> Html:
    return strong(word) if word == "invalid" else esc(word)


def _record(number: int, audit: RecordAudit) -> Html:
    """Return a record's findings, as a section that can be opened."""
    groups = [
        [
            _marked(SEVERITY_WORDS[one.severity].lower()),
            Html(f"{esc(one.question.title)}<br><code>{esc(one.code)}</code> {esc(one.often)}"),
            Html("<br>".join(_place(finding) for finding in one.findings[:_MOST_PLACES])),
            esc(one.findings[0].why),
            esc(one.question.matters),
            esc(one.question.ask),
        ]
        for one in grouped(audit.findings)
    ]
    heads = ["", "what", "where", "it says", "why it matters", "ask"]
    inside = _table(heads, groups) if groups else Html("")
    stages = _scores(audit.facts.get("stages", {}))
    head = f"<b>{esc(audit.folder.name)}</b>: {esc(sentence(audit))}"
    return Html(
        f'<details id="r{number}"><summary>{head}</summary>{inside}{stages}'
        f"{note(esc(str(audit.folder)))}</details>\n"
    )


def _place(finding: Finding) -> Html:
    value = f": {raw(finding.value)}" if finding.value else ""
    return Html(f"<code>{esc(finding.place)}</code>{value}" if finding.place else value[2:])


def _scores(stages: dict[str, Any]) -> Html:
    rows = [
        [esc(name), num(s["mean"], ".5f"), num(s["sd"], ".5f"), num(len(s["values"]))]
        for name, s in stages.items()
    ]
    if not rows:
        return Html("")
    return _table(["stage in all logs", "mean, bpb", "sd (n - 1)", "n"], rows)
