"""Unpacks a self-extracting script without running any of it.

Records ship their code as `exec(decompress(b85decode("...")))`. It may be several layers deep, come
from files beside the script, or pass through a file that the script writes. This module computes
the executed code (`constants.py`), and reports whatever it cannot follow.
"""

import ast
import re
from collections import ChainMap
from collections.abc import MutableMapping
from dataclasses import dataclass

from fairway.audit.records.constants import Constants
from fairway.audit.records.decoders import TooMuch
from fairway.audit.records.literals import MOST_BYTES
from fairway.audit.records.parse import Parsed, parsed

MOST_DEPTH = 8
# The most characters of all layers that are parsed; each takes a microsecond and up to 400 bytes.
MOST_PARSED = 450_000
# A shorter string is a statement of the script and not another script.
_LEAST_CHARS = 40
_PYTHON = re.compile(r"^\s*(import|from|def|class|@|if|for|with|try)\b", re.MULTILINE)
# Names of calls that execute other code.
_RUNS = re.compile(r"\b(exec|eval|runpy|importlib|marshal|pickle|getattr|__import__)\b")
_TRAINS = re.compile(r"\.backward\(|\.step\(|class \w+\((\w+\.)*Module\)")


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer of a script: its source, its depth, its tree if it is Python, else the reason."""

    source: str
    depth: int
    tree: ast.Module | None
    why: str = ""


@dataclass(frozen=True, slots=True)
class Unwrapped:
    """All layers of a script, outermost first, and why the innermost could not be opened, or ''."""

    layers: tuple[Layer, ...]
    stopped: str = ""


def unwrap(
    source: str,
    most_parsed: int = MOST_PARSED,
    files: MutableMapping[str, bytes] | None = None,
    own: str = "train_gpt.py",
) -> Unwrapped:
    """Return the layers of a script; nothing of it is executed.

    `most_parsed` limits the parsed characters of all layers; the tree of a longer layer is None.
    `files` are the files beside the script by name; `own` is the script's name.
    """
    layers: list[Layer] = []
    beside = {} if files is None else files
    left = MOST_BYTES
    while True:
        read = Parsed(None, "it is too long") if len(source) > most_parsed else parsed(source)
        most_parsed -= len(source)
        layers.append(Layer(source, len(layers), read.tree, read.why))
        if read.tree is None or len(layers) > MOST_DEPTH:
            deep = f"it is nested more than {MOST_DEPTH} deep" if read.tree else ""
            return Unwrapped(tuple(layers), deep)
        values = Constants(own, files=ChainMap({own: source.encode()}, beside), left=left)
        stopped = ""
        try:
            values.follow(read.tree.body)
        except TooMuch as error:
            stopped = str(error)
        inner = _inner(values, {layer.source for layer in layers})
        if inner is None:
            return Unwrapped(tuple(layers), _unread(values, source, stopped))
        left -= len(inner)
        source = inner


def _inner(values: Constants, known: set[str]) -> str | None:
    """Return the longest source that a script executes, or writes for execution, or None."""
    for found in (values.executed, list(values.written.values())):
        texts = [v if isinstance(v, str) else v.decode("utf-8", "replace") for v in found]
        sources = [t for t in texts if len(t) > _LEAST_CHARS and t not in known]
        if found is not values.executed:
            sources = [t for t in sources if _PYTHON.search(t)]
        if sources:
            return max(sources, key=len)
    return None


def _unread(values: Constants, source: str, stopped: str) -> str:
    """Return why the code that a wrapper executes could not be followed, or ''."""
    if _TRAINS.search(source) or not _RUNS.search(source):
        return ""
    if stopped:
        return stopped
    if values.refused:
        return values.refused
    if values.unread:
        return f"the code that it executes in line {values.unread} could not be followed"
    return ""
