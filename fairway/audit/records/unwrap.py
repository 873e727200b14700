"""A self-extracting script unpacked without running any of it.

Records ship their code as `exec(decompress(b85decode("...")))`, at times several layers deep. The
expression is followed by name through the syntax tree: only constants, a few decoders and
decompressors are known, each with a bound on what it may return. Whatever else is left unknown.
"""

import ast
import base64
import bz2
import io
import itertools
import lzma
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import brotli
import zstandard

from fairway.audit.records.parse import Parsed, parsed

MOST_BYTES = 16_000_000
MOST_DEPTH = 8
# Characters of all layers that are parsed. Each takes a microsecond, and up to 400 bytes of a tree.
MOST_PARSED = 350_000
# A dictionary larger than this is no part of an honest script, but takes memory.
_MOST_DICTIONARY = 64_000_000
_MEMORY = 128_000_000
# Calls of exec that are followed; a script needs one.
_MOST_CALLS = 20

Value = bytes | str


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer of a script: its source, how deep it lay, its tree if it is Python, else why."""

    source: str
    depth: int
    tree: ast.Module | None
    why: str = ""


@dataclass(frozen=True, slots=True)
class Unwrapped:
    """All layers of a script, outermost first, and why the innermost could not be opened, if so."""

    layers: tuple[Layer, ...]
    stopped: str = ""


class _Unknown(Exception):  # noqa: N818 - no error: the expression is none that is followed
    """An expression that is not followed."""


class _TooMuch(Exception):  # noqa: N818 - what is found, not what went wrong here
    """A layer that unpacks to more than may be unpacked."""


def unwrap(source: str, most_parsed: int = MOST_PARSED) -> Unwrapped:
    """Return the layers of a script; nothing of it is executed.

    Of all layers together, so many characters are parsed; the tree of what is longer is None.
    """
    layers: list[Layer] = []
    left = MOST_BYTES
    while True:
        read = Parsed(None, "it is too long") if len(source) > most_parsed else parsed(source)
        tree = read.tree
        most_parsed -= len(source)
        layers.append(Layer(source, len(layers), tree, read.why))
        if tree is None or len(layers) > MOST_DEPTH:
            deep = f"it is nested more than {MOST_DEPTH} deep" if tree else ""
            return Unwrapped(tuple(layers), deep)
        try:
            inner = _inner(tree, left)
        except _TooMuch as error:
            return Unwrapped(tuple(layers), str(error))
        if inner is None:
            return Unwrapped(tuple(layers))
        left -= len(inner)
        source = inner


def _inner(tree: ast.Module, left: int) -> str | None:
    """Return the source that a module executes from a value inside it, or None."""
    names: dict[str, ast.expr] = {}
    modules: dict[str, str] = {}
    for node in tree.body:
        if isinstance(node, ast.Import):
            modules |= {alias.asname or alias.name: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            names[node.targets[0].id] = node.value
    for call in itertools.islice(_executed(tree), _MOST_CALLS):
        try:
            value = _Follow(names, modules, left).value(call)
        except (_Unknown, ValueError, EOFError, lzma.LZMAError, zlib.error, OSError):
            continue
        except (brotli.error, zstandard.ZstdError, RecursionError):
            continue
        # A short string is a statement of the script, no script of its own.
        if len(value) > 40:
            return value if isinstance(value, str) else value.decode("utf-8", "replace")
    return None


def _executed(tree: ast.Module) -> Iterator[ast.expr]:
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Name(id="exec"), args=[first, *_]):
                yield first


class _Follow:
    """Follows an expression to the bytes or text that it would give."""

    def __init__(self, names: dict[str, ast.expr], modules: dict[str, str], left: int) -> None:
        self.names, self.modules, self.left = names, modules, left
        self.steps = 0

    def value(self, node: ast.expr) -> Value:
        """Return what an expression would give; _Unknown if it is none of those followed."""
        self.steps += 1
        if self.steps > 200:
            raise _Unknown
        if isinstance(node, ast.Constant) and isinstance(node.value, bytes | str):
            return node.value
        if isinstance(node, ast.Name) and node.id in self.names:
            return self.value(self.names[node.id])
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            return self._joined(self.value(node.left), self.value(node.right))
        if isinstance(node, ast.Call):
            return self._called(node)
        raise _Unknown

    def _joined(self, a: Value, b: Value) -> Value:
        if len(a) + len(b) > MOST_BYTES:
            raise _TooMuch(f"it is put together from more than {MOST_BYTES:,} bytes")
        if isinstance(a, str) and isinstance(b, str):
            return a + b
        if isinstance(a, bytes) and isinstance(b, bytes):
            return a + b
        raise _Unknown

    def _called(self, node: ast.Call) -> Value:
        if isinstance(node.func, ast.Attribute) and node.func.attr in ("decode", "encode", "strip"):
            inner = self.value(node.func.value)
            if node.func.attr == "strip":
                return inner.strip()
            return inner.decode("utf-8", "replace") if isinstance(inner, bytes) else inner.encode()
        name = self._name(node.func)
        if name == "compile" and node.args:
            return self.value(node.args[0])
        if not node.args:
            raise _Unknown
        if name in _DECODERS:
            inner = self.value(node.args[0])
            return _DECODERS[name](inner.encode() if isinstance(inner, str) else inner)
        if name in _OPENERS:
            inner = self.value(node.args[0])
            if isinstance(inner, str):
                raise _Unknown
            found = _OPENERS[name](inner, self.left + 1, _options(node, self.modules))
            if len(found) > self.left:
                raise _TooMuch(f"it unpacks to more than {MOST_BYTES:,} bytes")
            return found
        raise _Unknown

    def _name(self, node: ast.expr) -> str:
        """Return the full name of a function, through aliases and __import__."""
        if isinstance(node, ast.Name):
            return self.modules.get(node.id, node.id)
        if isinstance(node, ast.Attribute):
            return f"{self._name(node.value)}.{node.attr}"
        match node:
            case ast.Call(func=ast.Name(id="__import__"), args=[ast.Constant(value=str(name)), *_]):
                return name
        return ""


# ---------------------------------------------------------------------------------------------
# Decoders, and decompressors with a bound

_DECODERS: dict[str, Callable[[bytes], bytes]] = {
    "base64.b85decode": base64.b85decode,
    "base64.a85decode": base64.a85decode,
    "base64.b64decode": base64.b64decode,
    "base64.standard_b64decode": base64.b64decode,
    "base64.urlsafe_b64decode": base64.urlsafe_b64decode,
    "base64.b32decode": base64.b32decode,
    "base64.b16decode": base64.b16decode,
    "bytes.fromhex": lambda data: bytes.fromhex(data.decode()),
    "binascii.unhexlify": lambda data: bytes.fromhex(data.decode()),
    "binascii.a2b_base64": base64.b64decode,
}


def _options(node: ast.Call, modules: dict[str, str]) -> dict[str, Any]:
    """Return the keywords of a call whose values are plain; names of lzma's constants count."""

    def plain(value: ast.expr) -> Any:
        if isinstance(value, ast.Constant):
            return value.value
        if isinstance(value, ast.List | ast.Tuple):
            return [plain(item) for item in value.elts]
        if isinstance(value, ast.Dict):
            pairs = zip(value.keys, value.values, strict=True)
            return {plain(key): plain(item) for key, item in pairs if key is not None}
        name = value.attr if isinstance(value, ast.Attribute) else ""
        if isinstance(value, ast.Name):
            name = modules.get(value.id, value.id).rpartition(".")[2]
        if name.startswith(("FORMAT_", "FILTER_", "MF_", "MODE_")) and hasattr(lzma, name):
            return getattr(lzma, name)
        raise _Unknown

    found = {item.arg: plain(item.value) for item in node.keywords if item.arg}
    for name, value in zip(("format", "memlimit", "filters"), node.args[1:], strict=False):
        found[name] = plain(value)
    return found


def _lzma(data: bytes, most: int, options: dict[str, Any]) -> bytes:
    filters = options.get("filters")
    if filters is None:
        return lzma.LZMADecompressor(memlimit=_MEMORY).decompress(data, most)
    sizes = [f.get("dict_size", 0) for f in filters if isinstance(f, dict)]
    if len(sizes) != len(filters) or not all(type(s) is int for s in sizes):
        raise _Unknown
    if max(sizes, default=0) > _MOST_DICTIONARY:
        raise _TooMuch("it asks for a dictionary of more than 64 MB")
    raw = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=filters)
    return raw.decompress(data, most)


def _zlib(data: bytes, most: int, options: dict[str, Any]) -> bytes:
    return zlib.decompressobj(wbits=47).decompress(data, most)


def _bz2(data: bytes, most: int, options: dict[str, Any]) -> bytes:
    return bz2.BZ2Decompressor().decompress(data, most)


def _zstd(data: bytes, most: int, options: dict[str, Any]) -> bytes:
    decompressor = zstandard.ZstdDecompressor(max_window_size=1 << 27)
    with decompressor.stream_reader(io.BytesIO(data)) as reader:
        return reader.read(most)


def _brotli(data: bytes, most: int, options: dict[str, Any]) -> bytes:
    decompressor, parts, size = brotli.Decompressor(), [], 0
    while size < most:
        part = decompressor.process(data, output_buffer_limit=1 << 16)
        data = b""
        parts.append(part)
        size += len(part)
        if decompressor.is_finished() or (not part and decompressor.can_accept_more_data()):
            break
    return b"".join(parts)


_OPENERS: dict[str, Callable[[bytes, int, dict[str, Any]], bytes]] = {
    "lzma.decompress": _lzma,
    "zlib.decompress": _zlib,
    "gzip.decompress": _zlib,
    "bz2.decompress": _bz2,
    "brotli.decompress": _brotli,
    "zstandard.decompress": _zstd,
}
