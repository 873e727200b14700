"""Branches that a recipe never takes.

A setting that nothing changes while the run lasts is a constant: where an expression is known to be
one, by the types that the program declares (mypy vouches for them), its value takes its place, and
what then follows is followed: comparisons, conditions, the branch not taken, the code after a
return.
"""

import ast
import operator
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from fairway.bundle.modules import own_nodes, parameters
from fairway.bundle.trees import Transformer, walk
from fairway.config.settings import Config, to_dict

# What the bundle's command line may change.
RUNTIME = frozenset({"seed", "source", "clock", "replay"})

_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
}
_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}


@dataclass
class Types:
    """The declared types of attributes by class, and the values of settings by class and name."""

    attributes: dict[str, dict[str, str]] = field(default_factory=dict)
    values: dict[str, dict[str, Any]] = field(default_factory=dict)

    def learn(self, tree: ast.Module) -> None:
        """Note what the classes of a module say of their attributes."""
        for node in tree.body:
            if not isinstance(node, ast.ClassDef):
                continue
            known = self.attributes.setdefault(node.name, {})
            for item in node.body:
                if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
                    known[item.target.id] = _named(item.annotation)
                if isinstance(item, ast.FunctionDef) and item.name == "__init__":
                    known |= _assigned_to_self(item)


def types_of(config: Config, changed: frozenset[str]) -> Types:
    """Return what is known of a recipe's settings: all but those of the names `changed`."""
    types, top = Types(), to_dict(config)
    for name, value in {**top, "": top}.items():
        if isinstance(value, dict):
            node = getattr(config, name) if name else config
            types.values[type(node).__name__] = {
                key: setting
                for key, setting in value.items()
                if key not in RUNTIME | changed and not isinstance(setting, dict)
            }
    return types


def _named(annotation: ast.expr | None) -> str:
    return annotation.id if isinstance(annotation, ast.Name) else ""


def _assigned_to_self(init: ast.FunctionDef) -> dict[str, str]:
    """Return the declared types of the parameters that become attributes."""
    declared = {arg.arg: _named(arg.annotation) for arg in parameters(init)}
    found = {}
    for target, value in _pairs(init):
        if isinstance(target, ast.Attribute) and isinstance(value, ast.Name):
            found[target.attr] = declared.get(value.id, "")
    return found


def _pairs(function: ast.AST) -> list[tuple[ast.expr, ast.expr]]:
    """Return (target, value) of the plain assignments of a function, tuples taken apart."""
    found: list[tuple[ast.expr, ast.expr]] = []
    for node in own_nodes(function):
        if not isinstance(node, ast.Assign) or len(node.targets) > 1:
            continue
        target, value = node.targets[0], node.value
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            if len(target.elts) == len(value.elts):
                found += zip(target.elts, value.elts, strict=True)
        else:
            found.append((target, value))
    return found


class _Folder(Transformer):
    """Puts constants in place of settings, and follows what then is constant."""

    def __init__(self, types: Types) -> None:
        self.types = types
        self.scopes: list[dict[str, str]] = []
        self.known: list[dict[str, ast.Constant]] = []
        self.owner: list[str] = []

    # -- what things are ----------------------------------------------------------------------

    def type_of(self, node: ast.expr) -> str:
        """Return the class of an expression, where it is declared; else nothing."""
        if isinstance(node, ast.Name):
            return next((s[node.id] for s in reversed(self.scopes) if node.id in s), "")
        if isinstance(node, ast.Attribute):
            return self.types.attributes.get(self.type_of(node.value), {}).get(node.attr, "")
        return ""

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        self.owner.append(node.name)
        self.generic_visit(node)
        self.owner.pop()
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        # Defaults and decorators belong outside; none of them is a setting.
        scope = {arg.arg: _named(arg.annotation) for arg in parameters(node)}
        if self.owner and parameters(node) and parameters(node)[0].arg == "self":
            scope["self"] = self.owner[-1]
        self.scopes.append(scope)
        for target, value in _pairs(node):
            if isinstance(target, ast.Name):
                scope.setdefault(target.id, self.type_of(value))
        owner, self.owner = self.owner, []
        self.known.append(dict(self.known[-1]) if self.known else {})
        for arg in parameters(node):
            self.known[-1].pop(arg.arg, None)
        node.body = self.block(node.body)
        self.known[-1] |= _constants(node)
        if self.known[-1]:
            node.body = self.block(node.body)
        self.known.pop()
        self.owner = owner
        self.scopes.pop()
        return node

    # -- statements ---------------------------------------------------------------------------

    def block(self, body: list[ast.stmt]) -> list[ast.stmt]:
        """Return the statements that are left of a block, none after one that leaves it."""
        kept: list[ast.stmt] = []
        for statement in body:
            found = self.visit(statement)
            kept += found if isinstance(found, list) else [found]
            if kept and isinstance(kept[-1], ast.Return | ast.Raise | ast.Continue | ast.Break):
                break
        return kept or [ast.Pass()]

    def visit_If(self, node: ast.If) -> Any:
        node.test = self.visit(node.test)
        if isinstance(node.test, ast.Constant):
            taken = node.body if node.test.value else node.orelse
            return self.block(taken) if taken else ast.Pass()
        node.body = self.block(node.body)
        node.orelse = self.block(node.orelse) if node.orelse else []
        return node

    def _inner_blocks(self, node: Any) -> Any:
        for name, value in ast.iter_fields(node):
            if name in ("body", "orelse", "finalbody"):
                if value:
                    setattr(node, name, self.block(value))
            elif isinstance(value, ast.AST):
                setattr(node, name, self.visit(value))
            elif isinstance(value, list):
                setattr(node, name, [self.visit(item) for item in value])
        return node

    visit_For = visit_While = visit_With = visit_Try = visit_ExceptHandler = _inner_blocks

    # -- expressions --------------------------------------------------------------------------

    def visit_Name(self, node: ast.Name) -> ast.AST:
        if isinstance(node.ctx, ast.Load) and self.known and node.id in self.known[-1]:
            return ast.copy_location(ast.Constant(self.known[-1][node.id].value), node)
        return node

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        values = self.types.values.get(self.type_of(node.value), {})
        if isinstance(node.ctx, ast.Load) and node.attr in values:
            return ast.copy_location(ast.Constant(values[node.attr]), node)
        self.generic_visit(node)
        return node

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        self.generic_visit(node)
        sides = [node.left, *node.comparators]
        if len(sides) != 2 or not all(isinstance(side, ast.Constant) for side in sides):
            return self._membership(node)
        a, b = (side.value for side in sides if isinstance(side, ast.Constant))
        compare = _COMPARE.get(type(node.ops[0]))
        if compare is None:
            return node
        return ast.copy_location(ast.Constant(compare(a, b)), node)

    def _membership(self, node: ast.Compare) -> ast.AST:
        left, right = node.left, node.comparators[0]
        inside = isinstance(right, ast.Tuple) and all(
            isinstance(item, ast.Constant) for item in right.elts
        )
        if not (inside and isinstance(left, ast.Constant) and len(node.ops) == 1):
            return node
        assert isinstance(right, ast.Tuple)
        found = left.value in [item.value for item in right.elts if isinstance(item, ast.Constant)]
        return ast.Constant(found if isinstance(node.ops[0], ast.In) else not found)

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.AST:
        self.generic_visit(node)
        ends = isinstance(node.op, ast.Or)
        left: list[ast.expr] = []
        for position, value in enumerate(node.values):
            last = position == len(node.values) - 1
            if isinstance(value, ast.Constant) and bool(value.value) == ends:
                left.append(value)
                break
            if not isinstance(value, ast.Constant) or last:
                left.append(value)
        if len(left) == 1:
            return left[0]
        node.values = left
        return node

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.op, ast.Not) and isinstance(node.operand, ast.Constant):
            return ast.copy_location(ast.Constant(not node.operand.value), node)
        return node

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        self.generic_visit(node)
        work = _BINARY.get(type(node.op))
        sides = [side.value for side in (node.left, node.right) if isinstance(side, ast.Constant)]
        if work is None or len(sides) < 2 or not all(type(side) is int for side in sides):
            return node
        if isinstance(node.op, ast.FloorDiv | ast.Mod) and not sides[1]:
            return node
        return ast.copy_location(ast.Constant(work(*sides)), node)

    def visit_IfExp(self, node: ast.IfExp) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.test, ast.Constant):
            return node.body if node.test.value else node.orelse
        return node

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.value, ast.Dict) and isinstance(node.slice, ast.Constant):
            for key, value in zip(node.value.keys, node.value.values, strict=True):
                if isinstance(key, ast.Constant) and key.value == node.slice.value:
                    return value
        return node


def fold_module(tree: ast.Module, types: Types) -> None:
    """Put constants in place of the settings in a module, and follow them."""
    _Folder(types).visit(tree)


def fold_with(known: dict[str, ast.Constant], function: ast.FunctionDef) -> None:
    """Put constants in place of names of a function that it never binds, and follow them."""
    folder = _Folder(Types())
    folder.known.append(known)
    function.body = folder.block(function.body)
    # What is bound once to what has become a constant may decide more.
    folder.known[-1] |= _constants(function)
    function.body = folder.block(function.body)


def _constants(function: ast.FunctionDef) -> dict[str, ast.Constant]:
    """Return the variables of a function that are bound once, to a constant."""
    bound: Counter[str] = Counter(arg.arg for arg in parameters(function))
    for node in walk(function):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store | ast.Del):
            bound[node.id] += 1
        elif isinstance(node, ast.arg | ast.Nonlocal):
            bound.update([node.arg] if isinstance(node, ast.arg) else node.names * 2)
    return {
        target.id: value
        for target, value in _pairs(function)
        if isinstance(target, ast.Name) and isinstance(value, ast.Constant)
        if bound[target.id] == 1
    }


def replaced_settings(trees: Sequence[ast.AST]) -> frozenset[str]:
    """Return the names that some call of `replace` gives another value, without their classes."""
    found = set()
    for tree in trees:
        for node in walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("replace"):
                found |= {keyword.arg or "*" for keyword in node.keywords}
    return frozenset(found)
