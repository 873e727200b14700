"""Searches a script's syntax tree for known patterns of invalid scoring, for a reviewer.

A syntax tree gives only names, so a pattern is at most a reason to look at its line.
"""

import ast
import re
from collections.abc import Iterator

from fairway.audit.findings import Finding
from fairway.audit.records.counts import check_val_docs
from fairway.audit.records.lapses import check_lapses
from fairway.audit.records.native import check_native
from fairway.audit.records.peeks import check_peeks
from fairway.audit.records.spreading import check_spreading
from fairway.audit.records.trees import OverBudget, Script, called

_INSTALLS = re.compile(r"\b(apt(-get)?\s+install|pip3?\s+install|conda\s+install)\b")
_FETCHES = re.compile(r"\b(curl|wget)\s+\S*(https?:|-)")
_NETWORK = (
    "urllib.request.urlopen", "urllib.request.urlretrieve", "requests.get", "requests.post",
    "hf_hub_download", "snapshot_download", "socket.create_connection", "load_dataset",
)  # fmt: skip
_SHELLS = ("os.system", "os.popen", "subprocess.")
# Shorter strings are not programs.
_LEAST_PROGRAM = 200
# The steps that a character of such a string costs.
_STEPS_A_CHAR = 8


def patterns(script: Script) -> Iterator[Finding]:
    """Yield findings that a reviewer should look at."""
    try:
        for function in script.functions:
            yield from check_peeks(script, function)
            yield from check_spreading(script, function)
        yield from check_val_docs(script)
        yield from check_lapses(script)
        yield from _programs(script)
        yield from _calls(script)
    except OverBudget:
        why = "the scripts are long or deep: not all of their patterns were checked"
        yield Finding("note", "syntax", why, script.file)


def _programs(script: Script) -> Iterator[Finding]:
    """Yield findings in programs inside strings."""
    for node in script.walk(script.tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            text = node.value
            if len(text) >= _LEAST_PROGRAM and ";" in text and "{" in text:
                script.work.spend(_STEPS_A_CHAR * len(text))
                yield from check_native(text, script.file, node.lineno)


def _calls(script: Script) -> Iterator[Finding]:
    """Yield findings about calls that a self-contained script does not make."""
    for node in script.walk(script.tree):
        if not isinstance(node, ast.Call):
            continue
        name, line = called(node), node.lineno
        if name.startswith(_SHELLS):
            words = " ".join(script.strings(node))
            if _INSTALLS.search(words):
                why = "the script installs packages: it does not run as it was submitted"
                yield Finding("warning", "installs", why, script.file, line, words[:120])
            if _FETCHES.search(words):
                why = "the script fetches something: a submission must contain what it needs"
                yield Finding("warning", "network", why, script.file, line, words[:120])
        elif any(name == n or name.endswith(f".{n}") for n in _NETWORK):
            why = "the script uses the network: a submission must contain what it needs"
            yield Finding("warning", "network", why, script.file, line, name)
