"""Constant expressions: folded numbers, named positions, the logarithm of 2."""

import ast
import operator
from collections.abc import Callable
from typing import Any

from fairway.audit.records.literals import BINARY, ORDERED
from fairway.audit.records.trees import last_name, short
from fairway.audit.records.values import Items, Known, Position, Value, union

_LOG2 = (0.6931, 0.69315, 1.4427, 1.442695)
COMPARED: dict[type, Callable[[Any, Any], Any]] = {
    **ORDERED, ast.In: lambda a, b: a in b, ast.NotIn: lambda a, b: a not in b,
    ast.Is: operator.is_, ast.IsNot: operator.is_not,
}  # fmt: skip


def plain_setting(text: str) -> object:
    """Return the value of a setting that a log prints."""
    low = text.strip().strip("'\"")
    if low.lower() in ("true", "false", "none", ""):
        return {"true": True, "false": False}.get(low.lower())
    for kind in (int, float):
        try:
            return kind(low)
        except ValueError:
            continue
    return low


def element(value: Value) -> Value:
    """Return an item of a value in a loop over it, for any iteration."""
    if isinstance(value.what, Items) and value.what.values:
        whats = value.what.values
        first = whats[0].what if len(whats) == 1 else None
        return Value(union(whats), first)
    return Value(value.labels)


def item(base: Value, index: object) -> Value:
    """Return one part of a value, or the labels of all parts."""
    assert isinstance(base.what, Items)
    values = base.what.values
    if isinstance(index, int) and -len(values) <= index < len(values):
        return values[index]
    return Value(base.labels)


def formula(node: ast.expr) -> str:
    """Return the formula of a position as text, without a choice of 0 or a bound by 0."""
    match node:
        case (
            ast.IfExp(body=ast.Constant(), orelse=inner)
            | ast.IfExp(body=inner, orelse=ast.Constant())
        ):
            return formula(inner)
        case (
            ast.Call(func=ast.Name(id="max"), args=[inner, ast.Constant(value=0)])
            | ast.Call(func=ast.Name(id="max"), args=[ast.Constant(value=0), inner])
        ):
            return formula(inner)
        case ast.BinOp() | ast.Call(func=ast.Name(id="max" | "min")):
            return short(node, 20)
    return ""


def is_until(index: ast.expr) -> bool:
    """Return whether an index is a range from the start to some end."""
    parts = index.elts if isinstance(index, ast.Tuple) else [index]
    return any(isinstance(n, ast.Slice) and n.lower is None and n.upper is not None for n in parts)


def is_log2(node: ast.expr) -> bool:
    """Return whether an expression is the natural logarithm of 2, or its inverse."""
    if isinstance(node, ast.Constant) and isinstance(node.value, float):
        return any(abs(node.value - known) < 1e-4 for known in _LOG2)
    if isinstance(node, ast.Name | ast.Attribute):
        name = node.id if isinstance(node, ast.Name) else node.attr
        return name.lower() in ("ln2", "log2", "ln_2", "log_2", "nats_per_bit", "log2e", "_ln2")
    if not isinstance(node, ast.Call) or len(node.args) != 1:
        return False
    argument = node.args[0]
    return last_name(node) in ("log", "tensor") and (
        (isinstance(argument, ast.Constant) and argument.value in (2, 2.0)) or is_log2(argument)
    )


def at_end(position: Position, compared: ast.cmpop, other: object, node: ast.expr) -> bool | None:
    """Return the result of comparing a loop's variable in its first or last turn."""
    text = short(node, 20)
    at_start = isinstance(other, Known) and str(other.value) == position.start
    ends = {f"{position.stop} - 1", position.stop.removesuffix(" + 1")} - {position.stop}
    at_end = bool(position.stop) and text.strip("()") in ends
    if not at_start and not at_end:
        return None
    inside = position.first if at_start else position.last
    # Below the last place, at the place, or above the first.
    order = 0 if inside else -1 if at_end else 1
    compare = ORDERED.get(type(compared))
    return compare(order, 0) if compare else None


def folded(operation: ast.operator, a: object, b: object) -> object:
    """Return the result of a simple operation on small numbers and short strings, or None."""
    if isinstance(operation, ast.Add) and isinstance(a, str) and isinstance(b, str):
        return a + b if len(a) + len(b) < 1_000 else None
    if not (isinstance(a, int | float) and isinstance(b, int | float)):
        return None
    if abs(a) > 1e15 or abs(b) > 1e15:
        return None
    match operation:
        case ast.Mult():
            return a * b
        case ast.Add() | ast.Sub():
            return BINARY[type(operation)](a, b)
        case ast.FloorDiv() | ast.Div() if b:
            return a / b if isinstance(operation, ast.Div) else a // b
    return None
