"""Computes expressions of a wrapper as far as their values are known, without running it.

Known are strings, bytes, whole numbers, lists of them, and operations on these. Every other
expression is unknown, and so is everything that contains it.
"""

import ast
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from fairway.audit.records.decoders import BROKEN, TooMuch, Unknown

# Limits: bytes of one value; steps of one script; bytes of all its values together.
MOST_BYTES = 16_000_000
_MOST_STEPS = 400_000
_MOST_MADE = 200_000_000
_MOST_DEPTH = 60
_MOST_TURNS = 100_000
# Exceptions that mean that a value is unknown.
LOST = (Unknown, RecursionError, ArithmeticError, AttributeError, *BROKEN)
BINARY: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.BitXor: operator.xor, ast.Mod: operator.mod,
    ast.BitAnd: operator.and_, ast.BitOr: operator.or_, ast.FloorDiv: operator.floordiv,
    ast.RShift: operator.rshift,
}  # fmt: skip
ORDERED: dict[type, Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.LtE: operator.le,
    ast.Gt: operator.gt, ast.GtE: operator.ge,
}  # fmt: skip


@dataclass(eq=False)
class Literals(ABC):
    """Computes expressions; `called`, which `Constants` adds, computes calls."""

    own: str
    names: dict[str, Any] = field(default_factory=dict)
    steps: int = 0
    made: int = 0
    depth: int = 0

    @abstractmethod
    def called(self, node: ast.Call) -> Any:
        """Return the value of a call; raise Unknown for a function that is not followed."""

    def bind(self, target: ast.expr, value: Any) -> None:
        """Assign a value to the target of an assignment."""
        if isinstance(target, ast.Name):
            self.names[target.id] = value
        elif isinstance(target, ast.Tuple | ast.List):
            for inner, part in zip(target.elts, list(value), strict=True):
                self.bind(inner, part)

    def spend(self, made: int = 0) -> None:
        """Count a step and the bytes that it makes; raise TooMuch above the limits."""
        self.steps += 1
        self.made += made
        if self.steps > _MOST_STEPS or self.made > _MOST_MADE:
            raise TooMuch(f"it takes more than {_MOST_STEPS:,} steps, or {_MOST_MADE:,} bytes")

    def value(self, node: ast.expr) -> Any:
        """Return the value of an expression; raise Unknown if it cannot be followed."""
        self.spend()
        self.depth += 1
        try:
            if self.depth > _MOST_DEPTH:
                raise Unknown
            found = self._value(node)
        finally:
            self.depth -= 1
        if isinstance(found, str | bytes):
            self.spend(len(found))
            bounded(len(found))
        return found

    def _value(self, node: ast.expr) -> Any:
        match node:
            case ast.Constant():
                return node.value
            case ast.Name():
                if node.id in self.names:
                    return self.names[node.id]
                if node.id in ("__file__", "__name__"):
                    return self.own if node.id == "__file__" else "__main__"
                raise Unknown
            case ast.BinOp():
                return self._binary(node)
            case ast.Subscript():
                return self.value(node.value)[self._index(node.slice)]
            case ast.Tuple() | ast.List():
                return [self.value(n) for n in node.elts]
            case ast.Dict():
                pairs = zip(node.keys, node.values, strict=True)
                return {self.value(k): self.value(v) for k, v in pairs if k is not None}
            case ast.Call():
                return self.called(node)
            case _:
                return self._rarer(node)

    def _rarer(self, node: ast.expr) -> Any:
        match node:
            case ast.JoinedStr():
                return "".join(str(self.value(n)) for n in node.values)
            case ast.FormattedValue():
                return self.value(node.value)
            case ast.NamedExpr():
                self.names[node.target.id] = self.value(node.value)
                return self.names[node.target.id]
            case ast.IfExp():
                return self.value(node.body if self.value(node.test) else node.orelse)
            case ast.UnaryOp(op=ast.USub()):
                return -self.value(node.operand)
            case ast.UnaryOp(op=ast.Not()):
                return not self.value(node.operand)
            case ast.Compare(ops=[op]) if type(op) in ORDERED:
                return ORDERED[type(op)](self.value(node.left), self.value(node.comparators[0]))
            case ast.GeneratorExp() | ast.ListComp():
                return self._comprehended(node)
            case ast.Attribute(attr="parent"):
                return self.value(node.value).rpartition("/")[0]
            case ast.Attribute(attr="name" | "stem"):
                return self.value(node.value).rpartition("/")[2]
        raise Unknown

    def _index(self, node: ast.expr) -> Any:
        if isinstance(node, ast.Slice):
            parts = (node.lower, node.upper, node.step)
            return slice(*(None if n is None else self.value(n) for n in parts))
        return self.value(node)

    def _binary(self, node: ast.BinOp) -> Any:
        left, right = self.value(node.left), self.value(node.right)
        if isinstance(node.op, ast.Div) and isinstance(left, str) and isinstance(right, str):
            return f"{left}/{right}"
        if isinstance(node.op, ast.Mult):
            sizes = [len(v) for v in (left, right) if isinstance(v, str | bytes | list)]
            counts = [v for v in (left, right) if isinstance(v, int)]
            if sizes and counts:
                bounded(sizes[0] * abs(counts[0]))
            _small(left, right)
            return left * right
        if isinstance(node.op, ast.Mod) and not isinstance(left, int):
            raise Unknown
        if type(node.op) not in BINARY:
            raise Unknown
        if isinstance(left, list) and isinstance(right, list):
            self.spend(len(left) + len(right))
        return BINARY[type(node.op)](left, right)

    def several(self, value: Any) -> list[Any]:
        """Return the items of an iterable value; raise Unknown for others or too many items."""
        if not isinstance(value, str | bytes | list | tuple | range | dict):
            raise Unknown
        if len(value) > _MOST_TURNS:
            raise Unknown
        return list(value)

    def _comprehended(self, node: ast.GeneratorExp | ast.ListComp) -> list[Any]:
        if len(node.generators) != 1:
            raise Unknown
        part = node.generators[0]
        found = []
        for one in self.several(self.value(part.iter)):
            self.bind(part.target, one)
            if all(self.value(test) for test in part.ifs):
                found.append(self.value(node.elt))
        return found


def bounded(size_bytes: int) -> None:
    """Raise TooMuch if a value would exceed the limit of bytes."""
    if size_bytes > MOST_BYTES:
        raise TooMuch(f"it is put together from more than {MOST_BYTES:,} bytes")


def _small(*values: Any) -> None:
    """Raise Unknown for numbers so long that their product would take time."""
    if any(isinstance(v, int) and v.bit_length() > 1 << 20 for v in values):
        raise Unknown
