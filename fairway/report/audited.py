"""What an audit found, as HTML: the section of a run's page, and the page of some records."""

from collections.abc import Sequence
from typing import Any

from fairway.audit.findings import Finding
from fairway.audit.records.audit import RecordAudit
from fairway.report.html import DASH, Html, esc, join, note, num, printable, section, strong
from fairway.report.style import CSS

# Words of an audit are sentences: cells of these tables wrap and stand to the left.
TEXT_CSS = """
.text table { font-size: 0.84rem; }
.text th, .text td { text-align: left; white-space: normal; overflow-wrap: anywhere; }
"""
_HEAD = '<!DOCTYPE html>\n<html lang="en-GB">\n<head>\n<meta charset="utf-8">\n'
_TITLE = "Fairway audit"
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_WORDS = {"invalid": "invalid", "warning": "look here", "note": "note"}


def _table(heads: Sequence[str], rows: Sequence[Sequence[Html]]) -> Html:
    head = "".join(f'<th scope="col">{esc(text)}</th>' for text in heads)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return Html(f'<div class="scroll text">{table}</div>')


def probes(results: dict[str, Any]) -> Html:
    """Return the audit of a run: every probe with what it did, and what was found beside them."""
    found = results.get("audit")
    if not found:
        return Html("")
    rows = [
        [
            esc(probe["stage"]),
            esc(probe["name"]),
            esc(", ".join(probe["rules"])),
            num(probe["samples"]),
            DASH if probe["worst"] is None else num(probe["worst"], ".2g"),
            strong(probe["verdict"]) if probe["verdict"] == "invalid" else esc(probe["verdict"]),
            esc(probe["why"]),
        ]
        for probe in found["probes"]
    ]
    heads = ["score", "probe", "rules", "samples", "worst", "verdict", "because"]
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
            esc(f.place),
            esc(f.value),
            esc(f.why),
        ]
        for f in findings
    ]
    return _table(["", "what", "where", "value", "why it matters"], rows)


def is_page(head: bytes) -> bool:
    """Return whether a file begins as pages of audited records do."""
    return head.startswith(_HEAD.encode()) and f"<title>{_TITLE}".encode() in head


def records_page(audits: Sequence[RecordAudit]) -> str:
    """Return a self-contained page of audited records; nothing in it is fetched or run."""
    bad = sum(not audit.valid for audit in audits)
    title = f"{_TITLE}: {len(audits)} records, {bad} with something invalid"
    parts = [_record(audit) for audit in audits]
    return (
        f"{_HEAD}"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{esc(_POLICY)}">\n'
        f"<title>{esc(title)}</title>\n<style>{CSS}{TEXT_CSS}</style>\n</head>\n"
        f"<body>\n<header><h1>{esc(title)}</h1></header>\n{''.join(parts)}</body>\n</html>\n"
    )


def _record(audit: RecordAudit) -> Html:
    name = printable(audit.folder.name)
    if not audit.findings:
        return section(name, note(esc("Nothing was found that is wrong or missing.")))
    return section(name, _findings(audit.findings), _scores(audit.facts.get("stages", {})))


def _scores(stages: dict[str, Any]) -> Html:
    rows = [
        [esc(name), num(s["mean"], ".5f"), num(s["sd"], ".5f"), num(len(s["values"]))]
        for name, s in stages.items()
    ]
    if not rows:
        return Html("")
    return _table(["stage in all logs", "mean, bpb", "sd (n - 1)", "n"], rows)
