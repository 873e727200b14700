"""Follows calls in a script: its own functions, classes and methods, and unknown ones."""

import ast
import re
from abc import abstractmethod
from dataclasses import dataclass, field

from fairway.audit.records.expressions import Expressions
from fairway.audit.records.methods import METHODS, library
from fairway.audit.records.shown import PRINTS, Printed, texts_of
from fairway.audit.records.trees import short
from fairway.audit.records.values import (
    COST,
    PATH,
    UNKNOWN,
    VAL,
    Call,
    Callee,
    Gradient,
    Held,
    Items,
    Kind,
    Label,
    Library,
    Scope,
    Switch,
    Value,
    union,
)
from fairway.base.nodes import walk

# The greatest depth of calls that is followed, and how often one function may be among them.
_MOST_CALLS = 14
_MOST_SAME = 2
# Names of functions that measure activations, or round by them.
_CALIBRATES = re.compile(r"^(?!.*(?:eval|score|valid))\w*(?:calib|hessian|gptq|awq)", re.IGNORECASE)
# The most print calls that are recorded.
_MOST_PRINTS = 2_000


@dataclass(eq=False)
class Calls(Expressions):
    """Follows calls; `block`, which `Flow` adds, follows the statements of a function."""

    running: list[ast.AST] = field(default_factory=list)
    training_inside: dict[ast.AST, bool] = field(default_factory=dict)

    @abstractmethod
    def block(self, body: list[ast.stmt]) -> bool:
        """Follow statements; return whether the statements after them cannot be reached."""

    def _call(self, node: ast.Call) -> Value:
        """Return the value of a call."""
        name, receiver = self._callee(node)
        if PRINTS.match(name) and len(self.prints) < _MOST_PRINTS:
            self._note_print(node)
        call = Call(node, receiver, *self._arguments(node))
        if _CALIBRATES.search(name) and VAL in call.given.labels:
            self.calibrations.append(self.place(node, short(node)))
        function = receiver
        if isinstance(node.func, ast.Attribute):
            function = self.attribute(receiver, name)
        if isinstance(function.what, Callee) and not self._is_forward(function.what):
            return self.run(function.what, call)
        if isinstance(function.what, Gradient):
            loss = self.run(function.what.of, call)
            found = self.gradient(node, loss)
            return Value(found.labels | loss.labels) if function.what.with_loss else found
        if isinstance(function.what, Library):
            given = library(self, function.what.name, call)
            if given is not None:
                return given
        known = METHODS[name](self, call) if name in METHODS else None
        if known is not None:
            return known
        if isinstance(function.what, Kind):
            return self._made(function.what, call)
        return self._unknown(name, call)

    def _note_print(self, node: ast.Call) -> None:
        """Record what a call prints: its texts, and the scores that its names stand for."""
        pieces = [piece for argument in node.args for piece in self._pieces(argument)]
        labels: set[Label] = set()
        for argument in [*node.args, *(k.value for k in node.keywords)]:
            for inner in walk(argument):
                self.work.spend()
                if isinstance(inner, ast.Name):
                    labels |= (self.scope.get(inner.id) or UNKNOWN).labels
                elif isinstance(inner, ast.Attribute) and isinstance(inner.value, ast.Name):
                    base = self.scope.get(inner.value.id) or UNKNOWN
                    labels |= self.attribute(base, inner.attr).labels
        value = Value(frozenset(labels))
        scores = self.summed_in(value)
        texts = texts_of(pieces)
        if texts:
            self.prints.add(Printed(node.lineno, texts, frozenset(s.number for s in scores)))

    def _pieces(self, node: ast.expr) -> list[str]:
        """Return the printed texts, including those of names that stand for a text."""
        match node:
            case ast.Constant(value=str() as text):
                return [text]
            case ast.Name():
                named = (self.scope.get(node.id) or UNKNOWN).text
                return [named] if named is not None else []
            case ast.JoinedStr():
                return [p for part in node.values for p in self._pieces(part)]
            case ast.FormattedValue(value=inner):
                return self._pieces(inner) if isinstance(inner, ast.Name) else []
            case ast.BinOp(left=left, op=ast.Add() | ast.Mod(), right=right):
                return [*self._pieces(left), *self._pieces(right)]
            case ast.Call(func=ast.Attribute(value=inner, attr="format")):
                return self._pieces(inner)
        return []

    def _is_forward(self, callee: Callee) -> bool:
        """Return whether a method belongs to a model or an optimiser and trains nothing itself."""
        if not callee.bound or not callee.scope.kind_is_model:
            return callee.scope.kind_is_optimiser and bool(callee.bound)
        if callee.node not in self.training_inside:
            self.training_inside[callee.node] = any(
                isinstance(n, ast.Attribute) and n.attr in ("backward", "grad")
                for n in walk(callee.node)
            )
        return not self.training_inside[callee.node]

    def _callee(self, node: ast.Call) -> tuple[str, Value]:
        """Return the last name of the called function, and its owner, or the function itself."""
        if isinstance(node.func, ast.Attribute):
            return node.func.attr, self.value(node.func.value)
        if isinstance(node.func, ast.Name):
            return node.func.id, self.value(node.func)
        return "", self.value(node.func)

    def _arguments(self, node: ast.Call) -> tuple[list[Value], dict[str, Value]]:
        found: list[Value] = []
        for argument in node.args:
            value = self.value(argument)
            if isinstance(argument, ast.Starred) and isinstance(value.what, Items):
                found += value.what.values
            else:
                found.append(value)
        named: dict[str, Value] = {}
        for keyword in node.keywords:
            value = self.value(keyword.value)
            if keyword.arg is not None:
                named[keyword.arg] = value
            elif isinstance(value.what, Items):
                named |= dict(zip(value.what.names, value.what.values, strict=False))
        return found, named

    def run(self, callee: Callee, call: Call) -> Value:
        """Follow a function of the script and return what it returns."""
        arguments = [*callee.bound, *call.arguments]
        named = dict(callee.named) | dict(call.named)
        if len(self.running) >= _MOST_CALLS or self.running.count(callee.node) >= _MOST_SAME:
            return Value(union([*arguments, *named.values()]))
        scope = Scope(callee.scope.file, callee.scope)
        scope.function = getattr(callee.node, "name", "") or self.scope.function
        scope.guards = len(self.guards)
        self._fill(scope, callee.node.args, arguments, named)
        outer, self.scope = self.scope, scope
        self.running.append(callee.node)
        self.calls.append(call.node.lineno)
        try:
            if isinstance(callee.node, ast.Lambda):
                return self.value(callee.node.body)
            self.block(callee.node.body)
        finally:
            self.scope = outer
            self.running.pop()
            self.calls.pop()
        if len(scope.returned) == 1:
            return scope.returned[0]
        return self._one_of(scope.returned)

    def _one_of(self, values: list[Value]) -> Value:
        """Return a value that may be any of several; parts are kept if all have equally many."""
        shapes = {len(v.what.values) if isinstance(v.what, Items) else 0 for v in values}
        labels = union(values)
        if len(shapes) == 1 and shapes != {0}:
            rows = [v.what.values for v in values if isinstance(v.what, Items)]
            return Value(labels, Items(tuple(Value(union(c)) for c in zip(*rows, strict=True))))
        return Value(labels)

    def _fill(
        self, scope: Scope, wanted: ast.arguments, given: list[Value], named: dict[str, Value]
    ) -> None:
        """Bind the parameters of a function."""
        names = [a.arg for a in [*wanted.posonlyargs, *wanted.args]]
        defaults = dict(zip(reversed(names), reversed(wanted.defaults), strict=False))
        defaults |= {
            a.arg: d
            for a, d in zip(wanted.kwonlyargs, wanted.kw_defaults, strict=True)
            if d is not None
        }
        for name, default in defaults.items():
            scope.names[name] = self.value(default)
        scope.names |= dict(zip(names, given, strict=False))
        allowed = {*names, *(a.arg for a in wanted.kwonlyargs)}
        rest = {name: value for name, value in named.items() if name not in allowed}
        scope.names |= {name: value for name, value in named.items() if name in allowed}
        if wanted.vararg is not None:
            more = tuple(given[len(names) :])
            scope.names[wanted.vararg.arg] = Value(union(more), Items(more))
        if wanted.kwarg is not None:
            values = tuple(rest.values())
            scope.names[wanted.kwarg.arg] = Value(union(values), Items(values, tuple(rest)))

    def _made(self, kind: Kind, call: Call) -> Value:
        """Return a new instance of a class of the script."""
        if kind.is_optimiser:
            return call.given
        held = self.new()
        self.parts[held] = {"__class__": Value(what=kind)}
        value = Value(frozenset({held, *(call.given.labels & {PATH, VAL})}))
        if not kind.is_model:
            first = kind.scope.names.get("__init__")
            if first is not None and isinstance(first.what, Callee):
                self.run(Callee(first.what.node, first.what.scope, (value,)), call)
        return value

    def _unknown(self, name: str, call: Call) -> Value:
        """Return the value of a call to an unknown function."""
        labels = Value(call.labels).without(Switch).labels
        stateful = call.receiver.of(Held) and COST not in call.receiver.labels
        if VAL in call.given.labels and stateful:
            # Tokens are given to something that keeps state: a model.
            return self.with_training(Value(labels | {COST}))
        if PATH in labels:
            labels = (labels - {PATH}) | {VAL}
        if name[:1].isupper() and not Value(labels).of(Held):
            # An instance of a class from elsewhere: a layer, a model, a generator.
            labels = (labels & {VAL}) | {self.new()}
        if not labels:
            labels = frozenset({self.new(), *self.turns[-1:]})
        return self.with_training(Value(frozenset(labels)))
