"""Computes the labels of expressions in a script: names, indices, calls."""

import ast
import builtins
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from fairway.audit.records.events import Events
from fairway.audit.records.folding import (
    COMPARED,
    at_end,
    element,
    folded,
    formula,
    is_log2,
    is_until,
    item,
    plain_setting,
)
from fairway.audit.records.trees import short
from fairway.audit.records.values import (
    COST,
    ONE_HOT,
    PATH,
    UNKNOWN,
    VAL,
    Call,
    Callee,
    Cut,
    Held,
    Items,
    Kind,
    Known,
    Label,
    Library,
    Position,
    Slice,
    Summed,
    Switch,
    Turn,
    Value,
    What,
    cut,
    union,
)

# The greatest depth of nested expressions that is followed; deeper ones are unknown.
_MOST_DEPTH = 40
# Names of validation tokens, whatever their origin, and strings that name their files.
TOKENS = re.compile(r"^_?val(id|idation)?_(tok|toks|tokens?|data|ids|text)(_\w+)?$", re.I)
_FILES = re.compile(
    r"(^|[_/\\\-.*])val(id|idation)?[_\-.*/\\][^\s:=]*(\*|\.(bin|npy|pt|txt|jsonl?|u16|npz))"
    r"|fineweb_val|[/\\]val(id|idation)?[/\\]"
)
_PATHS = re.compile(r"^_?val(id|idation)?_(\w+_)?(files?|paths?|glob|pattern|shards?)$", re.I)
_BUILTINS = frozenset(dir(builtins))
# Functions that convert a number or text, and names that read the environment.
CONVERTERS: dict[str, Callable[[Any], object]] = {
    "int": int, "float": float, "bool": bool, "str": str,
}  # fmt: skip
ENVIRONMENT = ("environ", "getenv")
# Functions that iterate over several values together; the items of their result are not its parts.
IN_STEP = (("enumerate",), ("zip",))
# Variables set by the machine and not by the author.
_OF_MACHINE = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR")
_NUMBERS = {"shape", "ndim", "dtype", "device", "requires_grad", "itemsize", "nbytes", "is_cuda"}


@dataclass(eq=False)
class Expressions(Events, ABC):
    """Follows expressions; `_call`, which `Calls` adds, follows calls."""

    settings: Mapping[str, str] = field(default_factory=dict)
    # Settings that differ among commands, by lower-case names; None stands for the default.
    unsettled: Mapping[str, Collection[str | None]] = field(default_factory=dict)
    depth: int = 0

    @abstractmethod
    def _call(self, node: ast.Call) -> Value:
        """Return the value of a call."""

    @abstractmethod
    def run(self, callee: Callee, call: Call) -> Value:
        """Follow a function of the script and return what it returns."""

    def value(self, node: ast.AST | None) -> Value:
        """Return the value of an expression."""
        if node is None or self.depth > _MOST_DEPTH:
            return UNKNOWN
        self.work.spend()
        self.depth += 1
        try:
            # The method has the name of the node's class, in lower case.
            return getattr(self, f"_{type(node).__name__.lower()}", self._any)(node)
        finally:
            self.depth -= 1

    def _any(self, node: ast.AST) -> Value:
        """Return the labels of all parts of an expression."""
        inner = (n for n in ast.iter_child_nodes(node) if isinstance(n, ast.expr))
        return self.with_training(Value(union([self.value(n) for n in inner])))

    def _constant(self, node: ast.Constant) -> Value:
        value = node.value
        if isinstance(value, str) and len(value) < 400 and _FILES.search(value):
            return Value(frozenset({PATH}), Known(value))
        return Value(what=Known(value))

    def _name(self, node: ast.Name) -> Value:
        found = self.scope.get(node.id)
        if found is not None:
            return found
        if TOKENS.match(node.id):
            return Value(frozenset({VAL}))
        if node.id in CONVERTERS:
            return Value(what=Library(node.id))
        return UNKNOWN if node.id in _BUILTINS else Value(frozenset({self.vague_one(node.id)}))

    def _attribute(self, node: ast.Attribute) -> Value:
        return self.attribute(self.value(node.value), node.attr)

    def attribute(self, base: Value, name: str) -> Value:
        """Return an attribute of a value."""
        if name in _NUMBERS:
            return Value(frozenset(base.of(Switch)))
        if name in ENVIRONMENT:
            return Value(what=Library(name))
        if base.what == Library("environ"):
            return Value(what=Library("getenv" if name == "get" else ""))
        found = self._part(base, name)
        setting = self.settings.get(name.lower())
        if setting is not None and (found is None or isinstance(found.what, Known | None)):
            labels = found.labels if found else frozenset()
            return Value(labels | {Switch(name)}, Known(plain_setting(setting)))
        if found is not None:
            return found
        if _PATHS.match(name):
            return Value(frozenset({PATH}))
        if TOKENS.match(name) and not base.of(Slice):
            return Value(frozenset({VAL}))
        vague = base.what is None and base.of(Held) <= self.vague and VAL not in base.labels
        return Value(base.labels | {Switch(name)} if vague else base.labels)

    def _part(self, base: Value, name: str) -> Value | None:
        """Return a known part of an object, of its class, or of a module."""
        if isinstance(base.what, Kind):
            return base.what.scope.names.get(name)
        for parts in self.parts_of(base):
            if name in parts:
                return parts[name]
            kind = parts.get("__class__")
            if kind is not None and isinstance(kind.what, Kind):
                found = kind.what.scope.names.get(name)
                if found is not None and isinstance(found.what, Callee):
                    return Value(base.labels, Callee(found.what.node, found.what.scope, (base,)))
                if found is not None:
                    return found
        return None

    def _subscript(self, node: ast.Subscript) -> Value:
        base = self.value(node.value)
        index = self.value(node.slice)
        if base.what == Library("environ"):
            return self.environment(index, None)
        in_step = isinstance(base.what, Items) and base.what.names in IN_STEP
        if isinstance(base.what, Items) and isinstance(index.what, Known) and not in_step:
            return item(base, index.what.value)
        if index.text is not None:
            for part in self.parts_of(base):
                if f"[{index.text}]" in part:
                    return part[f"[{index.text}]"]
        labels = set(base.labels)
        turns = index.of(Turn) | self._always()
        if VAL in labels and COST not in labels:
            labels = cut(labels, id(node), turns)
        if VAL in labels or VAL in index.labels:
            labels |= index.without(Held, Summed, Turn, Slice, Switch).labels
            labels |= index.of(Slice) if VAL not in base.labels else set()
        labels |= turns | self._cuts(node.slice)
        return self.with_training(Value(frozenset(labels)))

    def environment(self, name: Value, default: Value | None) -> Value:
        """Return a variable of the environment: the logged setting, else its default.

        Without a default its value is unknown.
        """
        if not isinstance(name.what, Known) or name.what.value in _OF_MACHINE:
            return UNKNOWN
        switch = Switch(str(name.what.value))
        logged = self.settings.get(switch.name.lower())
        if logged is not None:
            text = {"true": "1", "false": "0"}.get(logged.strip().lower(), logged.strip())
            return Value(frozenset({switch}), Known(text))
        if default is None:
            return Value(frozenset({switch}))
        return Value(default.labels | {switch}, self.by_default(switch.name, default.what))

    def by_default(self, name: str, what: What) -> Known | None:
        """Return the default of a setting, unless a command in the README sets another value."""
        if not isinstance(what, Known):
            return None
        others = self.unsettled.get(name.lower(), ())
        differ = {plain_setting(str(other)) for other in others if other is not None}
        return None if differ - {plain_setting(str(what.value))} else Known(what.value, False)

    def _always(self) -> set[Turn]:
        """Return the turns of loops that have no variable of their own (`while`)."""
        return {turn for turn in self.turns if turn.loop in self.unbound}

    unbound: set[int] = field(default_factory=set)

    def _cuts(self, index: ast.expr) -> set[Cut]:
        """Return the ends of the ranges in an index, except plain numbers."""
        parts = index.elts if isinstance(index, ast.Tuple) else [index]
        found = set()
        for part in parts:
            if isinstance(part, ast.Slice):
                for side, end in (("from", part.lower), ("upto", part.upper)):
                    where = self._where(end)
                    if where:
                        found.add(Cut(side, where))
        return found

    def _where(self, end: ast.expr | None) -> str:
        """Return a name for a position: the formula it was computed from, if that is known."""
        if isinstance(end, ast.Name):
            return self.scope.formulas.get(end.id, end.id)
        if isinstance(end, ast.Attribute):
            return short(end, 20)
        return formula(end) if end is not None else ""

    def _binop(self, node: ast.BinOp) -> Value:
        # A long sum is a chain to the left; a loop follows it.
        chain: list[ast.BinOp] = []
        left: ast.expr = node
        while isinstance(left, ast.BinOp):
            chain.append(left)
            left = left.left
        value = self.value(left)
        for link in reversed(chain):
            right = self.value(link.right)
            value = self._operated(link, value, right)
        return value

    def _operated(self, node: ast.BinOp, left: Value, right: Value) -> Value:
        self.work.spend()
        if isinstance(left.what, Known) and isinstance(right.what, Known):
            number = folded(node.op, left.what.value, right.what.value)
            if number is not None:
                sure = left.what.sure and right.what.sure
                return Value(left.labels | right.labels, Known(number, sure))
        if isinstance(node.op, ast.Sub) and (ONE_HOT in left.labels) != (ONE_HOT in right.labels):
            # Probabilities minus the one-hot target: the gradient of the cost, written by hand.
            other = left if ONE_HOT in right.labels else right
            if COST in other.labels and ONE_HOT not in other.labels:
                return self.gradient(node, Value(left.labels | right.labels))
        if isinstance(node.op, ast.Div | ast.Mult) and (is_log2(node.left) or is_log2(node.right)):
            self.bits(node, left if is_log2(node.right) else right)
        return self.with_training(Value(left.labels).plus(right.labels).without(Switch))

    def _compare(self, node: ast.Compare) -> Value:
        values = [self.value(node.left), *(self.value(n) for n in node.comparators)]
        # A comparison of tokens has no tokens in it; it may ask where documents begin.
        labels = frozenset(n for n in union(values) if isinstance(n, Turn | Switch))
        if len(values) == 2:
            truth = self._truth(node, values[0], values[1])
            if truth is not None:
                return Value(labels, truth)
        return Value(labels)

    def _truth(self, node: ast.Compare, left: Value, right: Value) -> Known | None:
        a, b = left.what, right.what
        if isinstance(node.ops[0], ast.In | ast.NotIn) and isinstance(b, Items) and not b.names:
            inner = [v.what for v in b.values]
            if all(isinstance(what, Known) for what in inner):
                b = Known(tuple(what.value for what in inner if isinstance(what, Known)))
        if isinstance(a, Known) and isinstance(b, Known):
            try:
                truth = COMPARED[type(node.ops[0])](a.value, b.value)
            except TypeError:
                return None
            return Known(bool(truth), a.sure and b.sure)
        if isinstance(a, Position):
            found = at_end(a, node.ops[0], b, node.comparators[0])
            return None if found is None else Known(found)
        return None

    def _boolop(self, node: ast.BoolOp) -> Value:
        values = [self.value(n) for n in node.values]
        labels = union(values)
        known = [v.what for v in values if isinstance(v.what, Known)]
        stops = isinstance(node.op, ast.Or)
        deciding = [k for k in known if bool(k.value) == stops]
        if deciding:
            return Value(labels, Known(stops, any(k.sure for k in deciding)))
        if len(known) == len(values):
            return Value(labels, Known(not stops, all(k.sure for k in known)))
        return Value(labels)

    def _unaryop(self, node: ast.UnaryOp) -> Value:
        value = self.value(node.operand)
        if isinstance(value.what, Known) and isinstance(node.op, ast.Not):
            return Value(value.labels, Known(not value.what.value, value.what.sure))
        if isinstance(value.what, Known) and isinstance(node.op, ast.USub):
            number = value.what.value
            if isinstance(number, int | float):
                return Value(value.labels, Known(-number, value.what.sure))
        return Value(value.labels)

    def _ifexp(self, node: ast.IfExp) -> Value:
        test = self.value(node.test)
        if isinstance(test.what, Known) and test.what.sure:
            return self.value(node.body if test.what.value else node.orelse)
        both = [self.value(node.body), self.value(node.orelse)]
        labels = union(both) | test.of(Switch)
        # The files are known only if both branches name them.
        return Value(labels if all(PATH in v.labels for v in both) else labels - {PATH})

    def _list(self, node: ast.List | ast.Tuple | ast.Set) -> Value:
        values = tuple(self.value(n) for n in node.elts[:200])
        labels = union(values)
        if not values:
            labels = labels | {self.new()}
        starred = any(isinstance(n, ast.Starred) for n in node.elts)
        return Value(labels, None if starred or not values else Items(values))

    _tuple = _set = _list

    def _dict(self, node: ast.Dict) -> Value:
        held = self.new()
        parts = self.parts.setdefault(held, {})
        values = []
        for key, value in zip(node.keys[:300], node.values, strict=False):
            found = self.value(value)
            values.append(found)
            if isinstance(key, ast.Constant) and isinstance(key.value, str):
                parts[f"[{key.value}]"] = found
        # Files are looked up by key; the other values name other files.
        return Value(union(values) - {PATH} | {held})

    def _listcomp(
        self, node: ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp
    ) -> Value:
        for part in node.generators:
            self.bind(part.target, element(self.value(part.iter)))
            for test in part.ifs:
                self.value(test)
        if isinstance(node, ast.DictComp):
            # A key is a name and has no state.
            inner = union([self.value(node.key).without(Held), self.value(node.value)])
        else:
            inner = self.value(node.elt).labels
        return self.with_training(Value(inner))

    _setcomp = _generatorexp = _dictcomp = _listcomp

    def _joinedstr(self, node: ast.JoinedStr) -> Value:
        labels: set[Label] = set()
        for part in node.values:
            if isinstance(part, ast.FormattedValue):
                labels |= self.value(part.value).labels & {PATH}
            elif _FILES.search(str(getattr(part, "value", ""))[:400]):
                labels.add(PATH)
        return Value(frozenset(labels))

    def _namedexpr(self, node: ast.NamedExpr) -> Value:
        value = self.value(node.value)
        self.bind(node.target, value)
        return value

    def _lambda(self, node: ast.Lambda) -> Value:
        return Value(what=Callee(node, self.scope))

    def _starred(self, node: ast.Starred) -> Value:
        return self.value(node.value)

    def bind(self, target: ast.expr, value: Value) -> None:
        """Assign a value to the target of an assignment."""
        if isinstance(target, ast.Name):
            if TOKENS.match(target.id) and not value.labels and value.what is None:
                value = Value(frozenset({VAL}))
            self.scope.put(target.id, value)
        elif isinstance(target, ast.Tuple | ast.List):
            parts = value.what.values if isinstance(value.what, Items) else ()
            same = len(parts) == len(target.elts)
            for number, inner in enumerate(target.elts):
                self.bind(inner, parts[number] if same else Value(value.labels))
        elif isinstance(target, ast.Starred):
            self.bind(target.value, Value(value.labels))
        elif isinstance(target, ast.Attribute):
            self._bind_part(self.value(target.value), target.attr, value)
        elif isinstance(target, ast.Subscript):
            self._store(target, value)

    def _bind_part(self, base: Value, name: str, value: Value) -> None:
        if name == "data":
            self.load(base, value)
        elif name != "grad":
            self.set_part(base, name, value)

    def _store(self, target: ast.Subscript, value: Value) -> None:
        """Store a value at an index of an object, which takes over the labels."""
        base, index = self.value(target.value), self.value(target.slice)
        if index.text is not None:
            self.set_part(base, f"[{index.text}]", value)
        if (
            isinstance(value.what, Known)
            and value.what.value in (True, 1)
            and is_until(target.slice)
        ):
            value = value.plus({Cut("masked", "")})
        value = self.with_training(value)
        if VAL in value.labels and COST in value.labels:
            self.rebind(target.value, self.added(target, base, value))
            return
        new = value.labels | self._cuts(target.slice)
        new |= {n for n in index.labels if isinstance(n, Turn)}
        self.rebind(target.value, base.plus(n for n in new if not isinstance(n, Held)))

    def rebind(self, node: ast.expr, value: Value) -> None:
        """Update the value of a name or an attribute after it has taken in another value."""
        while isinstance(node, ast.Subscript):
            node = node.value
        if isinstance(node, ast.Name) and self.scope.get(node.id) is not None:
            self.scope.put(node.id, Value(value.labels))
        elif isinstance(node, ast.Attribute):
            self._bind_part(self.value(node.value), node.attr, Value(value.labels))
