"""Audits a record's folder: do README, submission.json, logs, source and files agree?

A folder in the challenge's format has no fixed schema, so numbers are found by their meaning,
wherever they are. The audit reports what it could not find. It executes and imports nothing.
"""

import itertools
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fairway.audit.findings import Finding, holds, ordered, plain
from fairway.audit.records import accounts, agreement
from fairway.audit.records.accounts import Shipped, total_bytes
from fairway.audit.records.adaptation import check_adaptation
from fairway.audit.records.claims import (
    NON_RECORD,
    Claims,
    excuses,
    outside_budgets,
    read_claims,
)
from fairway.audit.records.coverage import gaps
from fairway.audit.records.denominators import check_denominators, text_bytes
from fairway.audit.records.folder import (
    CLAIM,
    README,
    SCRIPT,
    File,
    Folder,
    longest_line,
    open_file,
    open_folder,
    read_object,
    read_text,
)
from fairway.audit.records.logs import Log, read_runs
from fairway.audit.records.runs import Runs, choose
from fairway.audit.records.sources import NATIVE, check_sources
from fairway.base.errors import UserError
from fairway.config.settings import LIMIT_BYTES

_MODELS = (".ptz", ".pt", ".bin", ".fwy", ".safetensors", ".pth", ".br", ".zst", ".xz")
_ARCHIVES = (
    ".gz", ".zip", ".bz2", ".tar", ".tgz", ".7z", ".rar", ".zst", ".zstd", ".xz", ".txz", ".lzma",
    ".lz", ".lz4", ".br", ".z",
)  # fmt: skip
# The most names in one finding.
_MOST_NAMES = 4
_README_BYTES = 1_000_000
_LOGS = (".log", ".txt", ".out", ".err", ".jsonl", ".ndjson", ".csv", ".tsv", "")
# The limit of processor time for one record, whatever it contains. Honest records take 0.1 to 3 s.
# A part that has begun is finished; the reading process is ended a little later (`fence`).
MOST_S = 6.0
_MOST_LOGS, _LOG_BYTES = 50, 1 << 26
# Longer lines of a log are reported; a packed script in one line has 50,000 bytes at most.
_MOST_LINE = 1 << 16
# The most findings of one code that are listed; the rest are counted.
_MOST_OF_A_CODE = 200
# Codes of findings about a folder that do not apply to a single log or script.
_OF_FOLDERS = frozenset({"no-claim", "few-seeds"})


@dataclass(frozen=True, slots=True)
class RecordAudit:
    """The findings of a record, sorted by severity, and the numbers behind them."""

    folder: Path
    findings: tuple[Finding, ...]
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def valid(self) -> bool:
        """Return whether nothing invalid was found."""
        return holds(self.findings)


def audit_record(path: Path) -> RecordAudit:
    """Return the audit of a record's folder, or of a single log or script; UserError if neither.

    The work is bounded, and an error inside one part becomes a finding.
    """
    facts: dict[str, Any] = {}
    return RecordAudit(path, ordered(findings(path, facts)), facts)


def findings(path: Path, facts: dict[str, Any]) -> Iterator[Finding]:
    """Yield the findings of a record as they are found; put the numbers behind them in `facts`."""
    folder = open_folder(path) if path.is_dir() else open_file(path)
    facts |= {
        "files": {file.name: file.size_bytes for file in folder.files},
        "limit_bytes": LIMIT_BYTES,
    }
    record = _Record(folder, facts, Work())
    yield from _few_of_each(_all(record))


@dataclass
class Work:
    """The remaining work for one record; every part of the audit draws on it."""

    log_bytes: int = _LOG_BYTES
    most_s: float = MOST_S
    began_s: float = field(default_factory=time.process_time)

    def take_log(self, size_bytes: int) -> int:
        """Return how many bytes of a log of this size may be read, and subtract them."""
        taken = min(size_bytes, self.log_bytes)
        self.log_bytes -= taken
        return taken

    @property
    def ended(self) -> bool:
        """Return whether the processor time is used up."""
        return time.process_time() - self.began_s > self.most_s


@dataclass
class _Record:
    """The state of an audit: later parts use the results of earlier ones."""

    folder: Folder
    facts: dict[str, Any]
    work: Work
    logs: list[Log] = field(default_factory=list)
    claims: Claims = field(default_factory=Claims)
    runs: Runs = field(default_factory=Runs)
    readme: str = ""
    sources: list[str] = field(default_factory=list)


def _all(record: _Record) -> Iterator[Finding]:
    """Yield the findings of all parts; if one part fails, the others still run."""
    for name, part in _PARTS.items():
        if record.work.ended:
            why = f"the audit stopped after {MOST_S:.0f} s of processor time"
            rest = list(_PARTS)[list(_PARTS).index(name) :]
            yield Finding("warning", "work-ended", why, value=", ".join(rest))
            return
        try:
            yield from part(record)
        except Exception as error:
            why = f"its {name} could not be audited ({type(error).__name__}: {plain(str(error))})"
            yield Finding("warning", "not-audited", why)


def _few_of_each(found: Iterable[Finding]) -> Iterator[Finding]:
    """Yield findings, at most this many of each code, then the counts of the rest."""
    seen: Counter[str] = Counter()
    for finding in found:
        seen[finding.code] += 1
        if seen[finding.code] <= _MOST_OF_A_CODE or finding.severity == "invalid":
            yield finding
    for code, count in seen.items():
        if count > _MOST_OF_A_CODE:
            why = f"{_MOST_OF_A_CODE} of {count:,} findings of one kind are listed"
            yield Finding("note", "more-of-it", why, value=code)


# ---------------------------------------------------------------------------------------------
# The parts


def _files(record: _Record) -> Iterator[Finding]:
    folder = record.folder
    for name, code in ((README, "no-readme"), (CLAIM, "no-submission"), (SCRIPT, "no-script")):
        if folder.whole and not folder.named(name):
            shown = name.replace("readme", "README")
            yield Finding("warning", code, f"{shown} could not be found")
    for name in folder.skipped:
        yield Finding(
            "note", "skipped", "not a regular file, or not readable; it was skipped", name
        )
    if folder.left_out:
        why = "the folder has too many files, and some were not read"
        yield Finding("warning", "many-files", why, value=f"{folder.left_out:,} or more")
    for file in folder.ending(*_ARCHIVES):
        yield Finding("note", "archive", "archives are not opened", file.name)


def _logs(record: _Record) -> Iterator[Finding]:
    files = _log_files(record.folder)
    if len(files) > _MOST_LOGS:
        why = f"only {_MOST_LOGS} of {len(files):,} logs and texts are read"
        yield Finding("warning", "many-logs", why, files[_MOST_LOGS].name)
    for file in files[:_MOST_LOGS]:
        most_bytes = record.work.take_log(file.size_bytes)
        if file.size_bytes > most_bytes:
            why = f"only {_LOG_BYTES:,} bytes of all logs together are read; this one has more"
            yield Finding("warning", "long-log", why, file.name, value=f"{file.size_bytes:,}")
        if record.work.ended:
            why = f"after {MOST_S:.0f} s of processor time this log was not read"
            yield Finding("warning", "work-ended", why, file.name)
            return
        try:
            logs = read_runs(file, most_bytes)
        except UserError as error:
            yield Finding("warning", "unreadable", str(error), file.name)
            continue
        record.logs += [log for log in logs if log.ran]
        line, length = longest_line(file, most_bytes)
        if length > _MOST_LINE:
            why = "only the beginning of a very long line is read"
            yield Finding("note", "long-line", why, file.name, line, f"{length:,} bytes")
    record.facts["coverage"] = {log.shown: log.coverage.shares() for log in record.logs}
    # A script may be audited alone. Any other single file must be a log.
    scripts = record.folder.ending(".py", *NATIVE)
    if not record.logs and (record.folder.whole or not scripts):
        yield _no_log(record.folder)


def _no_log(folder: Folder) -> Finding:
    """Return the finding that no log was read, with the names of files that may be logs."""
    closed = [*folder.skipped, *(file.name for file in folder.ending(*_ARCHIVES))]
    shown = ", ".join(closed[:_MOST_NAMES])
    more = len(closed) - _MOST_NAMES
    why = "no training log could be found"
    if closed:
        why += "; links are not followed and archives are not opened, so these were not read"
    return Finding(
        "warning", "no-log", why, value=shown + (f" and {more} more" if more > 0 else "")
    )


def _told(record: _Record, found: Iterable[Finding]) -> Iterator[Finding]:
    """Yield the findings that apply to the given path, a folder or a single file."""
    for finding in found:
        if record.folder.whole or finding.code not in _OF_FOLDERS:
            yield finding


def _claim(record: _Record) -> Iterator[Finding]:
    for file in record.folder.named(CLAIM)[:1]:
        value = read_object(file)
        if isinstance(value, str):
            yield Finding("warning", "json", f"the claim cannot be read: {value}", file.name)
            record.claims = excuses(read_text(file))
            continue
        record.claims = read_claims(value, file.name)
        for name, text in record.claims.unread.items():
            why = "a value of the claim could not be read as a number, so it was not checked"
            yield Finding("warning", "claim-unread", why, file.name, value=f"{name}: {text}")
    claimed = record.claims.numbers.items()
    record.facts["claims"] = {name: number.value for name, number in claimed}
    if NON_RECORD.search(os.path.realpath(record.folder.path)):
        record.claims.unlimited = True


def _runs(record: _Record) -> Iterator[Finding]:
    """Set aside the runs that are not claimed; yield which, and the unread parts of the others."""
    for file in record.folder.named(README)[:1]:
        record.readme = read_text(file, _README_BYTES)
    if "bpb" not in record.claims.numbers and outside_budgets(record.readme):
        record.claims.unlimited = True
    if not record.folder.whole:
        # A single file is always meant.
        record.runs = Runs(claimed=record.logs)
    else:
        record.runs = choose(record.logs, record.claims, record.readme)
    record.logs = record.runs.claimed
    record.facts["logs"] = [_facts_of(log) for log in record.logs]
    record.facts["logs_aside"] = {log.shown: why for log, why in record.runs.aside}
    yield from record.runs.findings()
    for log in record.logs:
        yield from gaps(log.name, log.coverage)


def _accounts(record: _Record) -> Iterator[Finding]:
    logs, claims = record.logs, record.claims
    found = [accounts.check_times(logs, claims), accounts.check_steps(logs, claims)]
    if logs or record.folder.whole:
        found.insert(0, accounts.check_bytes(logs, claims, _shipped(record.folder)))
    # Together, because a run may exceed one budget and another run the other.
    yield from record.runs.tempered(itertools.chain(*found))


def _scores(record: _Record) -> Iterator[Finding]:
    logs, claims, tempered = record.logs, record.claims, record.runs.tempered
    yield from tempered(agreement.check_settings(logs))
    found = agreement.check_scores(logs, claims, record.facts, record.readme)
    yield from tempered(_told(record, found))
    yield from tempered(agreement.check_seed_claims(logs, claims))
    yield from tempered(check_adaptation(logs))


def _scripts(record: _Record) -> Iterator[Finding]:
    record.sources = yield from check_sources(record.folder, record.logs, record.facts)
    yield from agreement.check_known_settings(record.logs, record.sources)
    yield from agreement.check_source(record.logs, record.sources)


def _readme(record: _Record) -> Iterator[Finding]:
    for file in record.folder.named(README)[:1]:
        yield from agreement.check_readme(
            record.readme, file.name, record.logs, record.claims, record.sources
        )


def _denominators(record: _Record) -> Iterator[Finding]:
    yield from record.runs.tempered(check_denominators(record.logs, record.claims))


# The order of the parts, and their names in findings.
_PARTS: dict[str, Callable[[_Record], Iterator[Finding]]] = {
    "files": _files,
    "logs": _logs,
    "claim": _claim,
    "runs": _runs,
    "bytes and times": _accounts,
    "denominators": _denominators,
    "scores and settings": _scores,
    "script": _scripts,
    "README": _readme,
}


def _log_files(folder: Folder) -> list[File]:
    if not folder.whole:
        return [file for file in folder.files if file.path.suffix.lower() != ".py"]
    return [
        file
        for file in folder.ending(*_LOGS)
        if "requirements" not in file.name.lower() and "licen" not in file.name.lower()
    ]


def _facts_of(log: Log) -> dict[str, Any]:
    total, trained, final = total_bytes(log), log.train_s, accounts.final_stage(log)
    return {
        "file": log.shown,
        "seed": log.seed,
        "steps": log.steps,
        "train_s": trained.value if trained else None,
        "eval_s": log.get("eval seconds") or (final.seconds if final else None),
        "total_bytes": total.value if total else None,
        "text_bytes": text_bytes(log),
        **{name: number.value for name, number in log.numbers.items()},
        "stages": log.scores,
        "coverage": log.coverage.shares(),
    }


def _shipped(folder: Folder) -> Shipped:
    scripts = folder.named(SCRIPT)
    code = sum(file.size_bytes for file in folder.ending(".py"))
    models = tuple(
        (file.name, file.size_bytes)
        for file in folder.ending(*_MODELS)
        if file.size_bytes > 1_000_000
    )
    packed = [
        file.size_bytes
        for file in folder.ending(".lzma", ".xz", ".br", ".zst", ".gz")
        if file.path.name.lower().startswith("train_gpt")
    ]
    script = scripts[0].size_bytes if scripts else None
    return Shipped(script, code, models, min(packed, default=None))
