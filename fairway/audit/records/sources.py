"""The scripts of a record: read, unpacked, and looked at for known faults; none is run."""

import ast
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fairway.audit.findings import Finding
from fairway.audit.records.events import Work
from fairway.audit.records.flow import Flow
from fairway.audit.records.folder import File, Folder, read_text
from fairway.audit.records.logs import Log
from fairway.audit.records.order import check_order
from fairway.audit.records.shown import LogText, Shown
from fairway.audit.records.syntax import Script, patterns
from fairway.audit.records.unwrap import MOST_PARSED, unwrap

# More scripts than these are not read, nor more bytes of all of them: seconds of work.
_MOST_SCRIPTS = 50
_SCRIPT_BYTES = 1 << 24
# Expressions that are followed, of all scripts: a few microseconds each.
_MOST_STEPS = 400_000
# Characters of a log in which is looked for what a script prints, and of all logs.
_LOG_CHARS, _ALL_LOG_CHARS = 2_000_000, 6_000_000
_MAIN = "train_gpt.py"


@dataclass(frozen=True, slots=True)
class _Read:
    """A script that was read: its file, its innermost source and tree, its name in findings."""

    file: File
    source: str
    tree: ast.Module
    shown: str


def check_sources(
    folder: Folder, logs: Sequence[Log], facts: dict[str, Any]
) -> Generator[Finding, None, list[str]]:
    """Yield what the scripts of a record do; return the text of all layers of all scripts."""
    texts: list[str] = []
    scripts = yield from _read_all(folder, texts, facts)
    settings = settings_of(logs)
    main = [s for s in scripts if s.file.path.name.lower() == _MAIN] or scripts[:1]
    for script in main[:1]:
        yield from _order(script, scripts, settings, _logs(folder, logs))
        if len(scripts) == 1 or script.file.path.name.lower() == _MAIN:
            yield from patterns(Script(script.shown, script.tree, settings))
    return texts


def settings_of(logs: Sequence[Log]) -> dict[str, str]:
    """Return the settings on which all logs that list them agree, by names in lower case."""
    found: dict[str, str] = {}
    differ: set[str] = set()
    for log in logs:
        for name, value in log.settings.items():
            text, low = str(getattr(value, "text", value)), name.lower()
            if found.setdefault(low, text) != text:
                differ.add(low)
    return {name: value for name, value in found.items() if name not in differ}


def _read_all(
    folder: Folder, texts: list[str], facts: dict[str, Any]
) -> Generator[Finding, None, list[_Read]]:
    found: list[_Read] = []
    left_bytes, left_parsed = _SCRIPT_BYTES, MOST_PARSED
    # The script that was run comes first, so that no other takes what may be parsed.
    scripts = sorted(folder.ending(".py"), key=lambda f: f.path.name.lower() != _MAIN)
    for file in scripts[:_MOST_SCRIPTS]:
        if left_bytes <= 0:
            why = f"of all scripts together {_SCRIPT_BYTES:,} bytes are read"
            yield Finding("warning", "unpack", why, file.name)
            break
        opened = unwrap(read_text(file), left_parsed)
        unpacked = sum(len(layer.source) for layer in opened.layers)
        left_bytes, left_parsed = left_bytes - unpacked, left_parsed - unpacked
        texts += [layer.source for layer in opened.layers]
        facts.setdefault("layers", {})[file.name] = len(opened.layers)
        if opened.stopped:
            why = f"the script cannot be unpacked for reading: {opened.stopped}"
            yield Finding("warning", "unpack", why, file.name)
        last = opened.layers[-1]
        if last.why:
            why = f"not all of the script was checked: {last.why}"
            yield Finding("note", "syntax", why, file.name)
        if last.tree is not None:
            shown = file.name if not last.depth else f"{file.name} (layer {last.depth})"
            found.append(_Read(file, last.source, last.tree, shown))
    return found


def _order(
    script: _Read, scripts: Sequence[_Read], settings: dict[str, str], logs: list[LogText]
) -> Iterator[Finding]:
    """Yield what is trained on before it is scored."""
    beside = {s.file.path.name: s.tree for s in scripts if s is not script}
    shown = Shown(logs, "\n".join(s.source for s in scripts))
    for read in scripts:
        shown.functions |= {
            n.name: n for n in ast.walk(read.tree) if isinstance(n, ast.FunctionDef)
        }
    flow = Flow(Work(_MOST_STEPS), settings=settings, modules=beside, shown=shown)
    flow.follow(script.shown, script.tree)
    yield from check_order(flow, settings)
    if not flow.finished:
        why = f"the script is long: {_MOST_STEPS:,} steps of what it trains on were followed"
        yield Finding("note", "syntax", why, script.shown)


def _logs(folder: Folder, logs: Sequence[Log]) -> list[LogText]:
    """Return the texts of logs, as far as they are looked at."""
    names = {log.name for log in logs}
    left, found = _ALL_LOG_CHARS, []
    for file in folder.files:
        if file.name in names and left > 0:
            text = read_text(file, min(_LOG_CHARS, left))
            left -= len(text)
            found.append(LogText(file.name, text))
    return found
