"""The findings of an audit, their evidence, and the verdict that follows from them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from fairway.base.terminal import line

Severity = Literal["invalid", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("invalid", "warning", "note")

# How each is told to people.
SEVERITY_WORDS: dict[Severity, str] = {"invalid": "INVALID", "warning": "ask", "note": "note"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing found: how grave, its code, why it matters, and where it stands.

    invalid: a rule is broken. warning: a reviewer should ask. note: worth knowing, or could not be
    found. `file` is relative to what was audited, '' for the whole; `line` counts from 1; `value`
    is what stands there.
    """

    severity: Severity
    code: str
    why: str
    file: str = ""
    line: int | None = None
    value: str = ""

    @property
    def place(self) -> str:
        """Return file and line as people write them."""
        return self.file if self.line is None else f"{self.file}:{self.line}"


def plain(text: str, most: int = 400) -> str:
    """Return text of others as a terminal may show it, in one line, and not too long."""
    return line(text[:most])[:most]


def ordered(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Return findings as plain text, none twice, the gravest first, else by file and line."""
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
