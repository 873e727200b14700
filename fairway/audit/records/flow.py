"""Follows a script statement by statement without running it, to find its trainings and scores.

Labels represent values (`values.py`). Every loop is followed for its first and its last turn. A
condition is decided if the script or the logs decide it; otherwise both branches are followed.
Calls of the script's own functions are followed, too. So trainings and scores come in the order in
which the script would make them. A value that is not understood has no labels, and leads to no
finding.
"""

import ast
import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from fairway.audit.records.calls import Calls
from fairway.audit.records.expressions import ENVIRONMENT
from fairway.audit.records.folding import element, formula
from fairway.audit.records.shown import Shown
from fairway.audit.records.trees import OverBudget, called, short
from fairway.audit.records.values import (
    COST,
    UNKNOWN,
    VAL,
    Call,
    Callee,
    Held,
    Items,
    Kind,
    Known,
    Label,
    Labels,
    Library,
    Position,
    Scope,
    Summed,
    Switch,
    Turn,
    Value,
    What,
    cut,
)
from fairway.base.nodes import walk

_RANGES = ("range", "trange")
# Names of conditions about learning from the scored text.
_ABOUT = re.compile(r"ttt|slot|adapt|refine|fine_?tun|test_time|pre_?quant", re.IGNORECASE)
_MOST_OF_TEST = 50
# Names of functions that start a script.
_STARTS = re.compile(r"^_?(main|run|start|entry|train_and_eval|evaluate_all)", re.IGNORECASE)


@dataclass(eq=False)
class Flow(Calls):
    """Follows statements."""

    modules: Mapping[str, ast.Module] = field(default_factory=dict)
    loaded: dict[str, Scope] = field(default_factory=dict)
    finished: bool = True
    shown: Shown | None = None

    def follow(self, file: str, tree: ast.Module) -> None:
        """Follow a module like a started script; `finished` says whether the budget was enough."""
        self.scope = Scope(file)
        self.loaded[file] = self.scope
        try:
            self.block(tree.body)
            if not self.trainings and not self.scores:
                self._roots(tree)
        except (OverBudget, RecursionError):
            self.finished = False

    def _roots(self, tree: ast.Module) -> None:
        """Follow the functions that no other function names, if nothing else starts them."""
        named = {n.id for n in walk(tree) if isinstance(n, ast.Name)}
        self.work.spend(len(named))
        functions = [n for n in tree.body if isinstance(n, ast.FunctionDef)]
        roots = [n for n in functions if n.name not in named]
        for node in [n for n in roots if _STARTS.match(n.name)] or roots:
            given = [Value(frozenset({self.vague_one(a.arg)})) for a in node.args.args]
            call = ast.copy_location(ast.Call(ast.Name(node.name), [], []), node)
            self.run(Callee(node, self.scope), Call(call, arguments=given))
            # The next function starts with a fresh state.
            for known in (self.learned, self.summed, self.unknown, self.disk, self.waiting):
                known.clear()

    # -----------------------------------------------------------------------------------------
    # Statements

    def block(self, body: list[ast.stmt]) -> bool:
        """Follow statements; return whether the statements after them cannot be reached."""
        guards = len(self.guards)
        try:
            return any(self.statement(node) for node in body)
        finally:
            del self.guards[guards:]

    def statement(self, node: ast.stmt) -> bool:
        """Follow one statement; return whether the next one cannot be reached."""
        self.work.spend()
        match node:
            case ast.Assign():
                value = self.value(node.value)
                text = formula(node.value)
                for target in node.targets:
                    self.bind(target, value)
                    if isinstance(target, ast.Name):
                        self.scope.formulas[target.id] = text or target.id
            case ast.AnnAssign() if node.value is not None:
                self.bind(node.target, self.value(node.value))
            case ast.AugAssign():
                self._augmented(node)
            case ast.Expr():
                self.value(node.value)
                return _ends(node.value)
            case ast.If():
                return self._if(node)
            case ast.For() | ast.AsyncFor():
                self._for(node)
            case ast.While():
                self._while(node)
            case ast.With() | ast.AsyncWith():
                for item in node.items:
                    value = self.value(item.context_expr)
                    if item.optional_vars is not None:
                        self.bind(item.optional_vars, value)
                return self.block(node.body)
            case ast.Try():
                return self._try(node)
            case ast.Return():
                self._return(self.value(node.value))
                return True
            case _:
                return self._rarer(node)
        return False

    def _rarer(self, node: ast.stmt) -> bool:
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                self.scope.put(node.name, Value(what=Callee(node, self.scope)))
            case ast.ClassDef():
                self._class(node)
            case ast.Import() | ast.ImportFrom():
                self._import(node)
            case ast.Global() | ast.Nonlocal():
                self.scope.elsewhere |= set(node.names)
            case ast.Raise() | ast.Continue() | ast.Break():
                return True
            case ast.Match():
                for case in node.cases:
                    self.block(case.body)
        return False

    def _return(self, value: Value) -> None:
        """Record the result of a function; it is uncertain if a switch decides it."""
        guards = self.guards[self.scope.guards :]
        if guards and isinstance(value.what, Known) and value.what.sure:
            labels = value.labels | {Switch(guard) for guard in guards}
            value = Value(labels, Known(value.what.value, False))
        self.scope.returned.append(value)

    def _augmented(self, node: ast.AugAssign) -> None:
        target, value = self.value(node.target), self.value(node.value)
        if isinstance(node.op, ast.Add | ast.Sub):
            known = isinstance(target.what, Known) and isinstance(value.what, Known)
            grown = self.added(node, target, value)
            if grown.labels == target.labels:
                grown = grown.plus(value.without(Held, Summed).labels)
            if self.turns and known:
                # A counter has another value in every turn.
                grown = grown.plus({self.turns[-1]})
            self._put_back(node.target, Value(grown.labels))
        else:
            self._put_back(node.target, Value(target.labels).plus(value.labels))

    def _put_back(self, target: ast.expr, value: Value) -> None:
        if isinstance(target, ast.Name):
            self.bind(target, value)
        else:
            self.rebind(target, value)

    def _if(self, node: ast.If) -> bool:
        test = self.value(node.test)
        switches = sorted(n.name for n in test.labels if isinstance(n, Switch))
        named = switches or _named(node.test)
        what = test.what
        if not isinstance(what, Known) or not what.sure:
            what = self._looked_up(named, what, node)
        elif not what.value and self.shown is not None and self.shown.where(node.body):
            # Only two turns are followed; the log shows a branch from a later turn.
            what = Known(True)
        if isinstance(what, Known):
            taken, other = (node.body, node.orelse) if what.value else (node.orelse, node.body)
            return self._perhaps(switches, taken, other)
        guards = len(self.guards)
        self.guards += named
        before = dict(self.scope.names)
        first = self.block(node.body)
        after, self.scope.names = self.scope.names, before
        second = self.block(node.orelse)
        if not first:
            self._merge(after)
        del self.guards[guards:]
        return first and second and bool(node.orelse)

    def _looked_up(self, switches: list[str], what: What, node: ast.If) -> What:
        """Return the value of a condition if the logs show one of its branches."""
        if not switches or self.shown is None:
            return what
        for truth, body in ((True, node.body), (False, node.orelse)):
            where = self.shown.where(body)
            if where:
                self.seen |= {name.lower(): where for name in switches}
                return Known(truth)
        if self.shown.where(node.body) == "" and not (isinstance(what, Known) and not what.value):
            return Known(False)
        return what

    def _merge(self, other: dict[str, Value]) -> None:
        """Let names have either of two values after two branches."""
        names = self.scope.names
        for name, value in other.items():
            here = names.get(name)
            if here is None or here is value:
                names[name] = value
            elif here.what is not None and here.what == value.what:
                names[name] = here.plus(value.labels)
            else:
                what = value.what if isinstance(value.what, Callee) else here.what
                keeps = isinstance(what, Callee | Kind)
                names[name] = Value(here.labels | value.labels, what if keeps else None)

    def _perhaps(self, switches: list[str], taken: list[ast.stmt], other: list[ast.stmt]) -> bool:
        """Follow the default branch, and mark everything in it as uncertain."""
        guards = len(self.guards)
        self.guards += switches
        stops = self.block(taken)
        if not _leaves(other):
            del self.guards[guards:]
        return stops

    def _for(self, node: ast.For | ast.AsyncFor) -> None:
        values, turns = self._turns_of(node.iter)
        loop = self._loop(node)
        for number, turn in zip(self._turns(loop, len(turns)), turns, strict=False):
            if values is not None:
                labels = set(values.labels) | {number}
                if self._is_vague_call(node.iter):
                    # Pieces of tokens from a function in another file.
                    labels.discard(COST)
                if VAL in labels and COST not in labels:
                    labels = cut(labels, loop, {number})
                self.bind(node.target, self._turned(values, frozenset(labels), turn))
            else:
                self.bind(node.target, Value(frozenset({number}), turn))
            self.block(node.body)
        self.block(node.orelse)

    def _turns(self, loop: int, count: int) -> Iterator[Turn]:
        """Yield the turns of a loop; a second one only if the first had events."""
        for number in range(count):
            self.turns.append(Turn(loop, number))
            events = self.clock
            yield self.turns[-1]
            self.turns.pop()
            if self.clock == events:
                return

    def _loop(self, node: ast.AST) -> int:
        """Return an identity of a loop; another call of its function gives another one."""
        return hash((id(node), tuple(self.calls)))

    def _is_vague_call(self, node: ast.expr) -> bool:
        """Return whether an unknown function is called."""
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
            return False
        found = self.value(node.func)
        return found.what is None and found.of(Held) <= self.vague

    def _turned(self, values: Value, labels: Labels, turn: Position) -> Value:
        """Return the value of the loop variable in a turn."""
        turns = {n for n in labels if isinstance(n, Turn)}
        if isinstance(values.what, Items) and values.what.names == ("enumerate",):
            inner = values.what.values[0]
            counter = Value(frozenset(turns), turn)
            one = element(inner)
            kept = labels if VAL in inner.labels else one.labels | turns
            return Value(labels, Items((counter, Value(frozenset(kept), one.what))))
        if isinstance(values.what, Items) and values.what.names == ("zip",):
            return Value(labels, Items(tuple(self._in_step(v, turns) for v in values.what.values)))
        one = element(values)
        what = one.what if not isinstance(one.what, Known) else None
        return Value(labels, what)

    def _in_step(self, value: Value, turns: set[Turn]) -> Value:
        """Return one item of an iterated value."""
        one = element(value)
        labels = set(one.labels) | turns
        if VAL in labels and COST not in labels:
            labels = cut(labels, max(t.loop for t in turns), turns)
        return Value(frozenset(labels), one.what if not isinstance(one.what, Known) else None)

    def _turns_of(self, node: ast.expr) -> tuple[Value | None, list[Position]]:
        """Return the iterated value (None for numbers), and the first and last turn."""
        if not isinstance(node, ast.Call) or not node.args or called(node) not in _RANGES:
            both = [Position(True, False), Position(False, True)]
            return self.value(node), both
        given = [self.value(n) for n in node.args]
        known = [v.what.value if isinstance(v.what, Known) else None for v in given]
        low = 0 if len(known) == 1 else known[0]
        high = known[0] if len(known) == 1 else known[1]
        whole = len(known) < 3 and isinstance(low, int) and isinstance(high, int)
        count = int(high) - int(low) if whole else None  # type: ignore[arg-type]
        start = str(low)
        stop = short(node.args[0 if len(known) == 1 else 1]) if len(known) < 3 else ""
        turns = frozenset(t for v in given for t in v.of(Turn))
        values = Value(turns) if turns else None
        if count is not None and count <= 0:
            return values, []
        if count == 1:
            return values, [Position(True, True, start, stop)]
        return values, [Position(True, False, start, stop), Position(False, True, start, stop)]

    def _while(self, node: ast.While) -> None:
        loop = self._loop(node)
        self.unbound.add(loop)
        test = self.value(node.test)
        if isinstance(test.what, Known) and test.what.sure and not test.what.value:
            return
        for _ in self._turns(loop, 2):
            self.value(node.test)
            self.block(node.body)
        self.block(node.orelse)

    def _try(self, node: ast.Try) -> bool:
        stops = self.block(node.body)
        for handler in node.handlers:
            # Its definitions replace names whose import failed.
            defined = [n for n in handler.body if isinstance(n, ast.FunctionDef | ast.ClassDef)]
            known = set(self.scope.names)
            self.block([n for n in defined if n.name not in known])
        stops = self.block(node.orelse) or stops
        return self.block(node.finalbody) or stops

    def _class(self, node: ast.ClassDef) -> None:
        inner = Scope(self.scope.file, self.scope)
        bases: set[str] = set()
        for base in node.bases:
            found = self.value(base)
            if isinstance(found.what, Kind):
                self.work.spend(len(found.what.scope.names) + len(found.what.bases))
                bases |= found.what.bases
                inner.names |= found.what.scope.names
            name = base.attr if isinstance(base, ast.Attribute) else getattr(base, "id", "")
            bases.add(name)
        kind = Kind(node, inner, frozenset(bases))
        inner.kind_is_model, inner.kind_is_optimiser = kind.is_model, kind.is_optimiser
        outer, self.scope = self.scope, inner
        try:
            self.block(node.body)
        finally:
            self.scope = outer
        self.scope.put(node.name, Value(what=kind))

    def _import(self, node: ast.Import | ast.ImportFrom) -> None:
        if isinstance(node, ast.Import):
            for alias in node.names:
                scope = self._module(alias.name)
                labels: set[Label] = set()
                if scope is not None:
                    held = self.new()
                    self.parts[held] = scope.names
                    labels.add(held)
                name = alias.asname or alias.name.partition(".")[0]
                self.scope.put(name, Value(frozenset(labels)))
            return
        scope = self._module(node.module or "")
        for alias in node.names:
            if alias.name == "*" and scope is not None:
                self.scope.names |= scope.names
            elif alias.name != "*":
                found = scope.names.get(alias.name, UNKNOWN) if scope else UNKNOWN
                if node.module == "os" and alias.name in ENVIRONMENT:
                    found = Value(what=Library(alias.name))
                self.scope.put(alias.asname or alias.name, found)

    def _module(self, name: str) -> Scope | None:
        """Return the names of another script in the same folder, or None."""
        file = name.rpartition(".")[2] + ".py"
        if file in self.loaded:
            return self.loaded[file]
        if file not in self.modules:
            return None
        outer, self.scope = self.scope, Scope(file)
        self.loaded[file] = self.scope
        try:
            self.scope.names["__name__"] = Value(what=Known(name))
            self.block(self.modules[file].body)
            return self.scope
        finally:
            self.scope = outer


def _named(test: ast.expr) -> list[str]:
    """Return the unknown names in a condition that show what it is about."""
    inner = itertools.islice(walk(test), _MOST_OF_TEST)
    names = (getattr(n, "attr", getattr(n, "id", "")) for n in inner)
    return sorted({name for name in names if _ABOUT.search(name)})


def _ends(node: ast.expr) -> bool:
    """Return whether a call ends the program."""
    match node:
        case ast.Call(func=ast.Name(id="exit" | "quit")):
            return True
        case ast.Call(func=ast.Attribute(attr="exit" | "_exit", value=ast.Name(id="sys" | "os"))):
            return True
    return False


def _leaves(body: list[ast.stmt]) -> bool:
    """Return whether a branch leaves its block."""
    return bool(body) and isinstance(body[-1], ast.Return | ast.Raise | ast.Continue | ast.Break)
