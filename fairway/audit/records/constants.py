"""Computes values that a wrapper computes before it runs the code inside, without executing it.

This module follows statements and calls; `literals.py` follows expressions. Files beside the script
are known. Everything else a script does is unknown, and so is every value that depends on it.
"""

import ast
import codecs
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fairway.audit.records.decoders import DECODERS, OPENERS, TooMuch, Unknown, options
from fairway.audit.records.literals import LOST, MOST_BYTES, Literals, bounded
from fairway.audit.records.trees import targets

_METHODS = {
    "strip", "lstrip", "rstrip", "split", "rsplit", "splitlines", "partition", "rpartition",
    "upper", "lower", "swapcase", "removeprefix", "removesuffix", "hex", "index",
    "find", "rindex", "rfind",
    "startswith", "endswith", "count", "items", "keys", "values", "get", "maketrans", "to_bytes",
}  # fmt: skip
_PATHS = {
    "os.path.abspath", "os.path.realpath", "os.path.basename", "pathlib.Path", "Path", "os.fspath",
    "os.path.normpath", "pathlib.PurePath", "os.path.expanduser",
}  # fmt: skip
_COMPILED = ("marshal.loads", "marshal.load", "pickle.loads", "pickle.load", "dill.loads",
             "cloudpickle.loads", "joblib.load")  # fmt: skip
_SIMPLE: dict[str, Callable[..., Any]] = {
    "len": len, "ord": ord, "chr": chr, "list": list, "tuple": tuple, "abs": abs, "int": int,
    "reversed": lambda v: list(reversed(v)), "sorted": sorted, "dict": dict, "min": min, "max": max,
    "enumerate": lambda v: list(enumerate(v)), "zip": lambda *v: list(zip(*v, strict=False)),
    "str.maketrans": str.maketrans, "bytes.maketrans": bytes.maketrans, "json.loads": json.loads,
    "int.from_bytes": int.from_bytes, "bytearray": bytes, "memoryview": bytes,
    "io.BytesIO": bytes, "io.StringIO": str, "BytesIO": bytes,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Opened:
    """A file that a script opened: its name, whether it is written, whether it is text."""

    name: str
    writes: bool = False
    text: bool = False


@dataclass(frozen=True, slots=True)
class _Opener:
    """A decompressor object, with the name of the equivalent function."""

    name: str


@dataclass(eq=False)
class Constants(Literals):
    """Follows a script's statements as far as their values are known."""

    files: Mapping[str, bytes] = field(default_factory=dict)
    left: int = MOST_BYTES
    modules: dict[str, str] = field(default_factory=dict)
    functions: dict[str, ast.FunctionDef] = field(default_factory=dict)
    written: dict[str, str | bytes] = field(default_factory=dict)
    executed: list[str | bytes] = field(default_factory=list)
    refused: str = ""
    unread: int = 0

    # -----------------------------------------------------------------------------------------
    # Statements

    def follow(self, body: Iterable[ast.stmt]) -> Any:
        """Follow statements; return the value of the first `return` among them, or None."""
        for node in body:
            self.spend()
            try:
                if isinstance(node, ast.Return):
                    return self.value(node.value) if node.value else None
                self._statement(node)
            except LOST:
                for target in _targets(node):
                    self.names.pop(target, None)
        return None

    def _statement(self, node: ast.stmt) -> None:
        match node:
            case ast.Import():
                self.modules |= {a.asname or a.name: a.name for a in node.names}
            case ast.ImportFrom():
                self.modules |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
            case ast.FunctionDef():
                self.functions[node.name] = node
            case ast.Assign():
                value = self.value(node.value)
                for target in node.targets:
                    self.bind(target, value)
            case ast.AnnAssign() if node.value is not None:
                self.bind(node.target, self.value(node.value))
            case ast.AugAssign():
                both = ast.BinOp(node.target, node.op, node.value)
                self.bind(node.target, self.value(both))
            case ast.Expr():
                self.value(node.value)
            case ast.With():
                for item in node.items:
                    if item.optional_vars is not None:
                        self.bind(item.optional_vars, self.value(item.context_expr))
                self.follow(node.body)
            case ast.For():
                for one in self.several(self.value(node.iter)):
                    self.bind(node.target, one)
                    self.follow(node.body)
            case ast.If():
                self._if(node)
            case ast.Try():
                self.follow([*node.body, *node.orelse, *node.finalbody])

    def _if(self, node: ast.If) -> None:
        try:
            truth = bool(self.value(node.test))
        except LOST:
            # The condition is unknown: follow both branches.
            self.follow([*node.body, *node.orelse])
            return
        self.follow(node.body if truth else node.orelse)

    # -----------------------------------------------------------------------------------------
    # Calls

    def called(self, node: ast.Call) -> Any:
        """Return the value of a call; raise Unknown for a function that is not followed."""
        name = self._name(node.func)
        if name in _COMPILED:
            self.refused = f"it holds compiled or pickled Python ({name}), which is not read"
            raise Unknown
        if name in ("exec", "eval", "builtins.exec", "builtins.eval"):
            return self._execute(node)
        if name in ("compile", "builtins.compile"):
            return self.value(node.args[0])
        if name in ("runpy.run_path", "importlib.util.spec_from_file_location"):
            self._started(self.value(node.args[-1 if "spec" in name else 0]))
            raise Unknown
        if name in self.functions:
            return self._own(node, self.functions[name])
        if isinstance(node.func, ast.Lambda):
            return self._own(node, node.func)
        if name in OPENERS or name in DECODERS:
            return self._unpacked(node, name)
        if name in ("open", "io.open", "os.open") or name.endswith((".open",)):
            return self._open(node, name)
        if name.startswith(("os.path.", "pathlib.", "os.fspath")) or name == "Path":
            return self._path(node, name)
        if name.startswith("tempfile.") or name == "os.getcwd":
            return "tmp"
        if name == "codecs.decode":
            return self._codec(node)
        return self._function(node, name)

    def _execute(self, node: ast.Call) -> Any:
        try:
            value = self.value(node.args[0])
        except LOST:
            self.unread = self.unread or node.lineno
            raise
        if isinstance(value, str | bytes):
            self.executed.append(value)
        return None

    def _started(self, path: Any) -> None:
        """Record that a file is run that the script wrote, or that is beside it."""
        self.executed.append(self._read(_base(path)))

    def _own(self, node: ast.Call, function: ast.FunctionDef | ast.Lambda) -> Any:
        for parameter, argument in zip(function.args.args, node.args, strict=False):
            self.names[parameter.arg] = self.value(argument)
        if isinstance(function, ast.Lambda):
            return self.value(function.body)
        for keyword in node.keywords:
            if keyword.arg:
                self.names[keyword.arg] = self.value(keyword.value)
        return self.follow(function.body)

    def _unpacked(self, node: ast.Call, name: str) -> bytes:
        inner = self.value(node.args[0])
        inner = inner.encode("latin-1", "replace") if isinstance(inner, str) else bytes(inner)
        if name in DECODERS:
            return DECODERS[name](inner)
        found = OPENERS[name](inner, self.left + 1, options(node, self.modules))
        if len(found) > self.left:
            raise TooMuch(f"it unpacks to more than {MOST_BYTES:,} bytes")
        return found

    def _codec(self, node: ast.Call) -> Any:
        value, name = self.value(node.args[0]), str(self.value(node.args[1])).replace("_codec", "")
        data = value.encode() if isinstance(value, str) else value
        names = {"base64": "base64.b64decode", "hex": "bytes.fromhex"}
        if name in names:
            return DECODERS[names[name]](data)
        if name in ("zlib", "bz2"):
            return OPENERS[f"{name}.decompress"](data, self.left + 1, {})
        if name in ("rot13", "rot_13"):
            return codecs.decode(data.decode("utf-8", "replace"), "rot13")
        raise Unknown

    def _path(self, node: ast.Call, name: str) -> str:
        parts = [str(self.value(argument)) for argument in node.args]
        if name in _PATHS or name == "os.path.join":
            return "/".join(parts)
        if name == "os.path.dirname":
            return parts[0].rpartition("/")[0]
        raise Unknown

    def _open(self, node: ast.Call, name: str) -> Any:
        path = self.value(node.args[0])
        mode = str(self.value(node.args[1])) if len(node.args) > 1 else "r"
        opener = f"{name.rpartition('.')[0]}.decompress"
        if opener in OPENERS:
            data = path if isinstance(path, bytes) else self._read(_base(path))
            return OPENERS[opener](_bytes(data), self.left + 1, {})
        if not isinstance(path, str):
            raise Unknown
        return Opened(_base(path), any(c in mode for c in "wax+"), "b" not in mode)

    def _read(self, name: str) -> str | bytes:
        if name in self.written:
            return self.written[name]
        if name in self.files:
            return self.files[name]
        raise Unknown

    def _function(self, node: ast.Call, name: str) -> Any:
        of_value = isinstance(node.func, ast.Attribute) and not self._is_module(node.func.value)
        if isinstance(node.func, ast.Attribute) and of_value and name not in _SIMPLE:
            return self._method(node, self.value(node.func.value), node.func.attr)
        given = [self.value(n) for n in node.args]
        if name == "range":
            return range(*given)
        if name == "bytes" and len(given) < 3:
            return self._bytes_of(given)
        if name == "str":
            return _text(given[0]) if isinstance(given[0], bytes) else str(given[0])
        if name == "map":
            function = self._name(node.args[0])
            if function not in ("chr", "ord", "int"):
                raise Unknown
            return [_SIMPLE[function](one) for one in self.several(given[1])]
        opener = _OBJECTS.get(name)
        if opener is not None:
            return _Opener(opener)
        if name in _SIMPLE:
            for value in given:
                self.spend(len(value) if hasattr(value, "__len__") else 0)
            return _SIMPLE[name](*given)
        raise Unknown

    def _bytes_of(self, given: list[Any]) -> bytes:
        if given and isinstance(given[0], str):
            return given[0].encode("utf-8")
        if given and isinstance(given[0], int):
            bounded(given[0])
        return bytes(given[0]) if given else b""

    def _method(self, node: ast.Call, owner: Any, name: str) -> Any:
        if isinstance(owner, Opened):
            return self._of_file(node, owner, name)
        if isinstance(owner, _Opener):
            data = _bytes(self.value(node.args[0]))
            return OPENERS[owner.name](data, self.left + 1, {})
        given = [self.value(n) for n in node.args]
        if isinstance(owner, str) and name in ("read_bytes", "read_text"):
            return self._of_file(node, Opened(_base(owner)), name)
        if isinstance(owner, str) and name in ("write_bytes", "write_text"):
            return self._of_file(node, Opened(_base(owner), True), "write")
        if isinstance(owner, str) and name in ("resolve", "absolute", "expanduser", "as_posix"):
            return owner
        if isinstance(owner, str) and name in ("with_suffix", "with_name"):
            folder, _, last = owner.rpartition("/")
            last = last.rpartition(".")[0] + given[0] if name == "with_suffix" else given[0]
            return f"{folder}/{last}" if folder else last
        return self._of_text(owner, name, given)

    def _of_text(self, owner: Any, name: str, given: list[Any]) -> Any:
        if name == "decode" and isinstance(owner, bytes):
            return owner.decode(given[0] if given else "utf-8", "replace")
        if name == "encode" and isinstance(owner, str):
            return owner.encode(given[0] if given else "utf-8", "replace")
        if name in ("read", "getvalue", "tobytes", "copy") and isinstance(owner, str | bytes):
            return owner
        if name == "join" and isinstance(owner, str | bytes):
            parts = list(given[0])
            self.spend(sum(len(p) for p in parts) + len(owner) * len(parts))
            return owner.join(parts)
        if name == "replace" and isinstance(owner, str | bytes):
            bounded(owner.count(given[0]) * len(given[1]))
            return owner.replace(*given)
        if name == "translate" and isinstance(owner, str | bytes):
            if isinstance(given[0], dict):
                longest = max((len(str(v)) for v in given[0].values()), default=1)
                if longest * len(owner) > MOST_BYTES:
                    raise Unknown
            return owner.translate(*given)
        if name == "to_bytes" and not (isinstance(given[0], int) and given[0] <= MOST_BYTES):
            raise Unknown
        if name in _METHODS and isinstance(owner, str | bytes | dict | int):
            found = getattr(owner, name)(*given)
            return list(found) if name in ("items", "keys", "values") else found
        raise Unknown

    def _of_file(self, node: ast.Call, file: Opened, name: str) -> Any:
        if name == "write" and file.writes:
            value = self.value(node.args[0])
            if isinstance(value, str | bytes):
                self.written[file.name] = value
            return 0
        if name in ("read", "read_bytes", "read_text"):
            data = self._read(file.name)
            if file.text or name == "read_text":
                return _text(data)
            return _bytes(data)
        raise Unknown

    def _is_module(self, node: ast.expr) -> bool:
        """Return whether an expression is a module and not a value."""
        if isinstance(node, ast.Name):
            return node.id in self.modules and node.id not in self.names
        if isinstance(node, ast.Attribute):
            return self._is_module(node.value)
        match node:
            case ast.Call(func=ast.Name(id="__import__")):
                return True
        return False

    def _name(self, node: ast.expr) -> str:
        """Return the full name of a function, through aliases and __import__."""
        if isinstance(node, ast.Name):
            return self.modules.get(node.id, node.id)
        if isinstance(node, ast.Attribute):
            inner = self._name(node.value)
            return f"{inner}.{node.attr}" if inner else ""
        match node:
            case ast.Call(func=ast.Name(id="__import__"), args=[ast.Constant(value=str(name)), *_]):
                return name
            case ast.Call(func=ast.Name(id="getattr"), args=[owner, part, *_]):
                try:
                    return f"{self._name(owner)}.{self.value(part)}"
                except LOST:
                    return ""
        return ""


_OBJECTS = {
    "lzma.LZMADecompressor": "lzma.decompress", "zlib.decompressobj": "zlib.decompress",
    "bz2.BZ2Decompressor": "bz2.decompress", "zstandard.ZstdDecompressor": "zstandard.decompress",
    "zstd.ZstdDecompressor": "zstandard.decompress", "brotli.Decompressor": "brotli.decompress",
    "gzip.GzipFile": "gzip.decompress",
}  # fmt: skip


def _base(path: Any) -> str:
    return str(path).replace("\\", "/").rpartition("/")[2]


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode("utf-8", "replace")


def _bytes(value: Any) -> bytes:
    return value.encode("utf-8", "replace") if isinstance(value, str) else bytes(value)


def _targets(node: ast.stmt) -> list[str]:
    """Return the plain names that a statement would have assigned."""
    found = []
    for target in targets(node):
        parts = target.elts if isinstance(target, ast.Tuple | ast.List) else [target]
        found += [n.id for n in parts if isinstance(n, ast.Name)]
    return found
