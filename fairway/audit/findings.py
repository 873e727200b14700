"""The findings of an audit, their evidence, and the verdict that follows from them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from fairway.base.terminal import line

Severity = Literal["invalid", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("invalid", "warning", "note")

# The words that a report shows for each.
SEVERITY_WORDS: dict[Severity, str] = {"invalid": "INVALID", "warning": "ask", "note": "note"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding: its severity, its code, why it matters, and its place.

    invalid: a rule is broken. warning: a reviewer should ask. note: worth knowing, or impossible to
    check. `file` is relative to the audited folder, '' for the whole; `line` counts from 1; `value`
    is the text at that place.
    """

    severity: Severity
    code: str
    why: str
    file: str = ""
    line: int | None = None
    value: str = ""

    @property
    def place(self) -> str:
        """Return file and line in the usual form."""
        return self.file if self.line is None else f"{self.file}:{self.line}"


def plain(text: str, most: int = 400) -> str:
    """Return foreign text as one short line that is safe for a terminal."""
    return line(text[:most])[:most]


def ordered(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Return findings as plain text without duplicates, sorted by severity, then file and line."""
    unique = dict.fromkeys(
        replace(f, why=plain(f.why, 1_000), file=plain(f.file), value=plain(f.value))
        for f in findings
    )
    return tuple(
        sorted(unique, key=lambda f: (SEVERITIES.index(f.severity), f.file, f.line or 0, f.code))
    )


def holds(findings: Sequence[Finding]) -> bool:
    """Return whether no finding says that a rule is broken."""
    return not any(finding.severity == "invalid" for finding in findings)
