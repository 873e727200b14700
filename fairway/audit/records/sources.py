"""Reads and unpacks the scripts of a record, and checks them for known errors; runs none."""

import ast
import re
from collections import UserDict
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fairway.audit.findings import Finding
from fairway.audit.records.counts import check_bytes_of_pieces
from fairway.audit.records.flow import Flow
from fairway.audit.records.folder import File, Folder, read_text
from fairway.audit.records.literals import MOST_BYTES
from fairway.audit.records.logs import Log
from fairway.audit.records.native import check_native
from fairway.audit.records.order import check_order
from fairway.audit.records.shown import LogText, Shown
from fairway.audit.records.syntax import patterns
from fairway.audit.records.trees import OverBudget, Script, Steps
from fairway.audit.records.unwrap import MOST_PARSED, unwrap
from fairway.base.errors import UserError
from fairway.base.files import read_bytes
from fairway.base.nodes import walk

# The most scripts, and the most bytes of all of them, that are read: seconds of work.
_MOST_SCRIPTS = 50
_SCRIPT_BYTES = 1 << 24
# The most expressions that are followed, in all scripts: a few microseconds each.
_MOST_STEPS = 400_000
# The most nodes visited for patterns, in all scripts: about a microsecond each. The longest script
# of a known record takes about half of them.
_MOST_VISITS = 1_200_000
# The most characters of one log, and of all, that are searched for the prints of a script.
_LOG_CHARS, _ALL_LOG_CHARS = 2_000_000, 6_000_000
_MAIN = "train_gpt.py"
_README_BYTES, _README_LINES = 1_000_000, 20_000
_ASSIGNED = re.compile(
    r"(?<![\w$./{-])([A-Z][A-Z0-9_]{2,60})=(\"[^\"\n]*\"|'[^'\n]*'|[\w.+-]+)(?=[\s\\;&|`]|$)"
)
_MOST_LINES = 60
# A command that starts a script, and an option of its command line.
_STARTS = re.compile(
    r"\b(?:torchrun|accelerate launch|"
    r"python3?\s[^|;&\n]{0,120}?(?:\b(?:train|run|eval|submi)\w{0,60}\.py\b|\$\{?\w))",
    re.IGNORECASE,
)
_FLAG = re.compile(r"(?<!\S)--([a-z][\w-]{1,60})(?:[= ] {0,3}(?!-)([\w.+]{1,60}))?(?=[\s;&|`]|$)")
_NATIVE_CHARS = 300_000
NATIVE = (".c", ".cc", ".cpp", ".cu", ".cuh", ".h", ".hpp", ".cxx")
# Names of scripts that make training and validation data.
_PREPARES = re.compile(
    r"(prep|tokeni[sz]e|build|download|retoken|data|caseops|shard)", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class _Read:
    """A parsed script: its file, its innermost source and tree, its name in findings."""

    file: File
    source: str
    tree: ast.Module
    shown: str


@dataclass(frozen=True, slots=True)
class _Told:
    """The settings of a record's runs, their sources if not logs, and those that commands vary."""

    settings: dict[str, str]
    said: dict[str, str]
    unsettled: dict[str, set[str | None]]


class _Beside(UserDict[str, bytes]):
    """The files of a folder by their names without folders; each is read on first use."""

    def __init__(self, folder: Folder) -> None:
        super().__init__()
        self._files = {file.path.name: file for file in folder.files}

    def __contains__(self, name: object) -> bool:
        return name in self._files

    def __getitem__(self, name: str) -> bytes:
        try:
            return read_bytes(self._files[name].path, MOST_BYTES)
        except UserError as error:
            raise KeyError(name) from error


def check_sources(
    folder: Folder, logs: Sequence[Log], facts: dict[str, Any]
) -> Generator[Finding, None, list[str]]:
    """Yield findings about the scripts of a record; return the texts of all their layers."""
    texts: list[str] = []
    scripts = yield from _read_all(folder, texts, facts)
    told = _told(folder, settings_of(logs))
    main = [s for s in scripts if s.file.path.name.lower() == _MAIN] or scripts[:1]
    used = _used(main[:1], scripts)
    for script in main[:1]:
        yield from _order(script, scripts, told, folder, logs)
    work = Steps(_MOST_VISITS)
    trees = [Script(script.shown, script.tree, work) for script in used]
    for tree in trees:
        yield from patterns(tree)
    try:
        yield from check_bytes_of_pieces(trees)
    except OverBudget:
        yield Finding(
            "note", "syntax", "the scripts are too deep: tables of bytes were not checked"
        )
    yield from _native(folder)
    return texts


def _native(folder: Folder) -> Iterator[Finding]:
    """Yield findings in programs in C and related languages."""
    left = _NATIVE_CHARS
    for file in folder.ending(*NATIVE):
        if left <= 0:
            why = f"only {_NATIVE_CHARS:,} characters of all C programs together are read"
            yield Finding("note", "syntax", why, file.name)
            return
        text = read_text(file, left)
        left -= len(text)
        yield from check_native(text, file.name)


def _used(main: Sequence[_Read], scripts: Sequence[_Read]) -> list[_Read]:
    """Return the main script, those that it imports, and those that prepare its data."""
    if len(scripts) == len(main):
        return list(main)
    found, waiting = list(main), list(main)
    beside = {s.file.path.stem: s for s in scripts}
    while waiting:
        for name in _imported(waiting.pop().tree):
            if name in beside and beside[name] not in found:
                found.append(beside[name])
                waiting.append(beside[name])
    return found + [s for s in scripts if s not in found and _PREPARES.search(s.file.path.name)]


def _imported(tree: ast.Module) -> set[str]:
    """Return the last names of all modules that a script imports or starts by name."""
    found: set[str] = set()
    for node in walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.rpartition(".")[2] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").rpartition(".")[2])
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Constant) and str(node.value)[-200:].endswith(".py"):
            name = str(node.value)[-200:].replace("\\", "/").rpartition("/")[2]
            found.add(name.removesuffix(".py"))
    return found


def settings_of(logs: Sequence[Log]) -> dict[str, str]:
    """Return the settings that have one value in all logs that list them, by lower-case names."""
    found: dict[str, str] = {}
    differ: set[str] = set()
    for log in logs:
        for name, value in log.settings.items():
            if found.setdefault(name.lower(), value) != value:
                differ.add(name.lower())
    return {name: value for name, value in found.items() if name not in differ}


def commanded(text: str) -> dict[str, tuple[set[str | None], int]]:
    """Return the settings of commands by lower-case names: all values, and the first line.

    None stands for a command without a setting that another command has.
    """
    found: dict[str, tuple[set[str | None], int]] = {}
    runs: list[set[str]] = []
    for number, line in _logical(text):
        given = {match[1]: match[2].strip("'\"") for match in _ASSIGNED.finditer(line)}
        run = _STARTS.search(line)
        if run is not None:
            flags = _FLAG.finditer(line, run.end())
            given |= {match[1].replace("-", "_"): match[2] or "True" for match in flags}
            runs.append({name.lower() for name in given})
        for name, value in given.items():
            found.setdefault(name.lower(), (set(), number))[0].add(value)
    for name in set().union(*runs):
        if not all(name in run for run in runs):
            found[name][0].add(None)
    return found


def _logical(text: str) -> Iterator[tuple[int, str]]:
    """Yield lines with their numbers; lines joined by backslashes are one."""
    begun: list[str] = []
    for number, line in enumerate(text.splitlines()[:_README_LINES], start=1):
        begun.append(line[:2_000])
        if not line.endswith("\\") or len(begun) == _MOST_LINES:
            yield number - len(begun) + 1, " ".join(part.rstrip("\\") for part in begun)
            begun = []


def _told(folder: Folder, settings: dict[str, str]) -> _Told:
    """Return a script's settings, from the logs, else from the files with commands."""
    told = _Told(settings, {}, {})
    commands = [
        file
        for file in folder.files
        if file.path.name.lower() in ("readme.md", "commands.txt") or file.path.suffix == ".sh"
    ]
    for file in commands[:5]:
        for name, (values, line) in commanded(read_text(file, _README_BYTES)).items():
            one = next(iter(values)) if len(values) == 1 else None
            if name in settings:
                continue
            if one is None:
                told.unsettled.setdefault(name, set()).update(values)
            else:
                settings[name], told.said[name] = one, f"{file.name}:{line}"
    return told


def _read_all(
    folder: Folder, texts: list[str], facts: dict[str, Any]
) -> Generator[Finding, None, list[_Read]]:
    found: list[_Read] = []
    left_bytes, left_parsed = _SCRIPT_BYTES, MOST_PARSED
    beside = _Beside(folder)
    # The main script comes first, so that no other one uses up the limit of parsed characters.
    scripts = sorted(folder.ending(".py"), key=lambda f: f.path.name.lower() != _MAIN)
    for file in scripts[:_MOST_SCRIPTS]:
        if left_bytes <= 0:
            why = f"only {_SCRIPT_BYTES:,} bytes of all scripts together are read"
            yield Finding("warning", "unpack", why, file.name)
            break
        opened = unwrap(read_text(file), left_parsed, beside, file.path.name)
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
    script: _Read, scripts: Sequence[_Read], told: _Told, folder: Folder, logs: Sequence[Log]
) -> Iterator[Finding]:
    """Yield findings about training before scoring."""
    beside = {s.file.path.name: s.tree for s in scripts if s is not script}
    shown = Shown(_logs(folder, logs), "\n".join(s.source for s in scripts))
    for read in scripts:
        shown.functions |= {n.name: n for n in walk(read.tree) if isinstance(n, ast.FunctionDef)}
    flow = Flow(
        Steps(_MOST_STEPS), settings=told.settings, unsettled=told.unsettled,
        modules=beside, shown=shown,
    )  # fmt: skip
    flow.follow(script.shown, script.tree)
    lines = [log.claimed.bpb.text for log in logs if log.claimed is not None]
    yield from check_order(flow, told.settings, told.said, lines)
    if not flow.finished:
        why = f"the script is long: only {_MOST_STEPS:,} of its steps were followed"
        yield Finding("note", "syntax", why, script.shown)


def _logs(folder: Folder, logs: Sequence[Log]) -> list[LogText]:
    """Return the texts of logs, up to the limit."""
    names = {log.name for log in logs}
    left, found = _ALL_LOG_CHARS, []
    for file in folder.files:
        if file.name in names and left > 0:
            text = read_text(file, min(_LOG_CHARS, left))
            left -= len(text)
            found.append(LogText(file.name, text))
    return found
