"""A record's folder, audited: do README, submission.json, logs, source and files agree?

A folder in the challenge's format has no fixed schema, so numbers are taken where they stand, by
what they mean; what could not be found is said. Nothing of it is executed or imported.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fairway.audit.findings import Finding, holds, ordered
from fairway.audit.folder import Folder, open_folder, read_object

LIMIT_BYTES = 16_000_000


@dataclass(frozen=True, slots=True)
class RecordAudit:
    """What was found in a record: findings, the gravest first, and the numbers behind them."""

    folder: Path
    findings: tuple[Finding, ...]
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def valid(self) -> bool:
        """Return whether nothing invalid was found."""
        return holds(self.findings)


def audit_record(folder: Path) -> RecordAudit:
    """Return the audit of a record's folder; UserError if it is no folder."""
    opened = open_folder(folder)
    facts: dict[str, Any] = {
        "files": {file.name: file.size_bytes for file in opened.files},
        "limit_bytes": LIMIT_BYTES,
    }
    return RecordAudit(folder, ordered(_findings(opened, facts)), facts)


def _findings(folder: Folder, facts: dict[str, Any]) -> Iterator[Finding]:
    yield from _parts(folder)
    for file in folder.named("submission.json"):
        value = read_object(file)
        if isinstance(value, str):
            yield Finding("invalid", "json", f"the claim cannot be read: {value}", file.name)
        else:
            facts["submission"] = value


def _parts(folder: Folder) -> Iterator[Finding]:
    wanted = {"readme": "README.md", "claim": "submission.json", "script": "train_gpt.py"}
    for code, name in wanted.items():
        if not folder.named(name.lower()):
            yield Finding("warning", f"no-{code}", f"{name} could not be found")
    if not folder.ending(".log", ".txt"):
        yield Finding("warning", "no-log", "no training log could be found")
    for name in folder.skipped:
        yield Finding("note", "skipped", "not a regular file, or one too many: not read", name)
