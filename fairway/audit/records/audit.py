"""A record's folder, audited: do README, submission.json, logs, source and files agree?

A folder in the challenge's format has no fixed schema, so numbers are taken where they stand, by
what they mean; what could not be found is said. Nothing of it is executed or imported.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fairway.audit.findings import Finding, holds, ordered
from fairway.audit.records import accounts, agreement
from fairway.audit.records.accounts import LIMIT_BYTES, Shipped, text_bytes, total_bytes
from fairway.audit.records.claims import Claims, read_claims
from fairway.audit.records.folder import File, Folder, open_folder, read_object, read_text
from fairway.audit.records.logs import Log, read_log
from fairway.audit.records.sources import check_sources

# More logs than these are not read; a record has three to five.
_MOST_LOGS = 50
# Bytes of all logs together: seconds of work.
_LOG_BYTES = 1 << 26
_MODELS = (".ptz", ".pt", ".bin", ".fwy", ".safetensors", ".pth", ".br", ".zst", ".xz")
_README_BYTES = 1_000_000


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
    logs = []
    left_bytes = _LOG_BYTES
    for file in _log_files(folder):
        if file.size_bytes > left_bytes:
            why = f"of all logs together {_LOG_BYTES:,} bytes are read; this one has more"
            yield Finding("warning", "long-log", why, file.name, value=f"{file.size_bytes:,}")
        log = read_log(file, left_bytes)
        left_bytes = max(0, left_bytes - file.size_bytes)
        logs += [log] if log.ran else []
    facts["logs"] = [_facts_of(log) for log in logs]
    if not logs:
        yield Finding("warning", "no-log", "no training log could be found")
    claims, found = _claims(folder, facts)
    yield from found
    if "non_record" in str(folder.path.resolve()):
        claims.unlimited = True
    yield from accounts.check_bytes(logs, claims, _shipped(folder))
    yield from accounts.check_times(logs, claims)
    yield from accounts.check_steps(logs, claims)
    yield from accounts.check_denominators(logs)
    yield from agreement.check_settings(logs)
    yield from agreement.check_scores(logs, claims, facts)
    yield from agreement.check_gates(logs)
    sources = yield from check_sources(folder, logs, facts)
    yield from agreement.check_known_settings(logs, sources)
    for file in folder.named("readme.md")[:1]:
        text = read_text(file, _README_BYTES)
        yield from agreement.check_readme(text, file.name, logs, claims, sources)


def _parts(folder: Folder) -> Iterator[Finding]:
    wanted = {"readme": "README.md", "claim": "submission.json", "script": "train_gpt.py"}
    for code, name in wanted.items():
        if not folder.named(name.lower()):
            yield Finding("warning", f"no-{code}", f"{name} could not be found")
    for name in folder.skipped:
        yield Finding("note", "skipped", "not a regular file, or one too many: not read", name)


def _log_files(folder: Folder) -> list[File]:
    found = [
        file
        for file in folder.ending(".log", ".txt", ".out", "")
        if "requirements" not in file.name.lower() and "licen" not in file.name.lower()
    ]
    return found[:_MOST_LOGS]


def _facts_of(log: Log) -> dict[str, Any]:
    total, trained = total_bytes(log), log.train_s
    return {
        "file": log.name,
        "seed": log.seed,
        "steps": log.steps,
        "train_s": trained.value if trained else None,
        "total_bytes": total.value if total else None,
        "text_bytes": text_bytes(log),
        **{name: number.value for name, number in log.numbers.items()},
        "stages": {stage.name: stage.bpb.value for stage in log.stages},
    }


def _claims(folder: Folder, facts: dict[str, Any]) -> tuple[Claims, list[Finding]]:
    found: list[Finding] = []
    claims = Claims()
    for file in folder.named("submission.json")[:1]:
        value = read_object(file)
        if isinstance(value, str):
            why = f"the claim cannot be read: {value}"
            found.append(Finding("invalid", "json", why, file.name))
            continue
        claims = read_claims(value, file.name)
    facts["claims"] = {name: number.value for name, number in claims.numbers.items()}
    return claims, found


def _shipped(folder: Folder) -> Shipped:
    scripts = folder.named("train_gpt.py")
    code = sum(file.size_bytes for file in folder.ending(".py"))
    models = tuple(
        (file.name, file.size_bytes)
        for file in folder.ending(*_MODELS)
        if file.size_bytes > 1_000_000
    )
    return Shipped(scripts[0].size_bytes if scripts else None, code, models)
