"""Labels of values in a script that is not run: they record where a value comes from."""

import ast
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, order=True)
class Turn:
    """One turn of a loop: which loop, and which turn."""

    loop: int
    number: int


@dataclass(frozen=True, slots=True, order=True)
class Slice:
    """A piece of the validation tokens: where it was cut, by which turns, and from which pieces."""

    site: int
    turns: frozenset[Turn]
    inside: frozenset[Any] = frozenset()

    def within(self, other: "Slice") -> bool:
        """Return whether this is the other piece, or was cut from it."""
        return self == other or any(outer.within(other) for outer in self.inside)


@dataclass(frozen=True, slots=True, order=True)
class Held:
    """An object with state: a model, a tensor, a table."""

    number: int


@dataclass(frozen=True, slots=True, order=True)
class Trained:
    """A piece of training that this value depends on: its index in `Flow.trainings`."""

    number: int


@dataclass(frozen=True, slots=True, order=True)
class Summed:
    """A score that this value contains: its index in `Flow.scores`."""

    number: int


@dataclass(frozen=True, slots=True, order=True)
class Switch:
    """A setting that this value depends on."""

    name: str


@dataclass(frozen=True, slots=True, order=True)
class Cut:
    """An end of a range of positions: "from", "upto" or "masked", and the expression for it."""

    side: str
    where: str


# Tokens of the validation text, or values computed from them.
VAL = "validation"
# The name of a file of validation tokens.
PATH = "path"
# The result of a model or a cost.
COST = "cost"
# A vector that is 1 at the token to predict, and 0 elsewhere.
ONE_HOT = "one-hot"

Label = str | Turn | Slice | Held | Trained | Summed | Switch | Cut
Labels = frozenset[Label]
NOTHING: Labels = frozenset()
# More labels than this give no further information.
_MOST_LABELS = 200
# The most outer pieces that are recorded for a piece.
_MOST_OUTER = 4


@dataclass(frozen=True, slots=True)
class Known:
    """A known value; `sure` unless it is a default that the environment may replace."""

    value: Any
    sure: bool = True


@dataclass(frozen=True, slots=True)
class Position:
    """The variable of a loop in its first or last turn, or in its only one."""

    first: bool
    last: bool
    start: str = "0"
    stop: str = ""


@dataclass(frozen=True, slots=True)
class Items:
    """The parts of a tuple, a list or the keywords of a call."""

    values: tuple["Value", ...]
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Callee:
    """A function of the script: its tree, the scope of its names, and its bound arguments."""

    node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
    scope: "Scope"
    bound: tuple["Value", ...] = ()
    named: tuple[tuple[str, "Value"], ...] = ()


@dataclass(frozen=True, slots=True)
class Kind:
    """A class of the script."""

    node: ast.ClassDef
    scope: "Scope"
    bases: frozenset[str]

    @property
    def is_model(self) -> bool:
        """Return whether instances are modules: calling one is a forward pass."""
        return bool(self.bases & {"Module", "Function"})

    @property
    def is_optimiser(self) -> bool:
        """Return whether `step` of an instance changes the values that it was given."""
        return "Optimizer" in self.bases


@dataclass(frozen=True, slots=True)
class Library:
    """A function of Python itself, by its original name."""

    name: str


@dataclass(frozen=True, slots=True)
class Gradient:
    """A function that returns the gradient of a loss function."""

    of: Callee
    with_loss: bool


What = Known | Position | Items | Callee | Kind | Library | Gradient | None


@dataclass(frozen=True, slots=True)
class Value:
    """The labels of a value, and the value itself if it is known."""

    labels: Labels = NOTHING
    what: What = None

    def has(self, label: Label) -> bool:
        """Return whether the value has a label."""
        return label in self.labels

    def of(self, kind: type) -> set[Any]:
        """Return the labels of one kind."""
        return {label for label in self.labels if isinstance(label, kind)}

    @property
    def text(self) -> str | None:
        """Return the value if it is a known text, else None."""
        known = self.what.value if isinstance(self.what, Known) else None
        return known if isinstance(known, str) else None

    def plus(self, labels: Iterable[Label]) -> "Value":
        """Return the value with more labels, up to a limit."""
        if len(self.labels) > _MOST_LABELS:
            return self
        return Value(self.labels.union(labels), self.what)

    def without(self, *kinds: type) -> "Value":
        """Return the value without labels of the given kinds."""
        return Value(frozenset(n for n in self.labels if not isinstance(n, kinds)), self.what)


UNKNOWN = Value()


def cut(labels: Iterable[Label], site: int, turns: Iterable[Turn]) -> set[Label]:
    """Return the labels of a piece that was cut from tokens with these labels.

    If the piece depends on no turn, the labels stay: it represents all that it was cut from.
    """
    known, turned = set(labels), frozenset(turns)
    whole = {n for n in known if isinstance(n, Slice)}
    if whole and not turned:
        return known
    outer = sorted((n for n in whole if n.turns), key=lambda n: n.site)
    return (known - whole) | {Slice(site, turned, frozenset(outer[:_MOST_OUTER]))}


def union(values: Iterable[Value]) -> Labels:
    """Return the labels of several values."""
    found: set[Label] = set()
    for value in values:
        found |= value.labels
        if len(found) > _MOST_LABELS:
            break
    return frozenset(found)


@dataclass(frozen=True, slots=True)
class Call:
    """A call: its node, the owner of the method (or the function itself), the arguments."""

    node: ast.Call
    receiver: Value = UNKNOWN
    arguments: Sequence[Value] = ()
    named: Mapping[str, Value] = field(default_factory=dict)

    @property
    def values(self) -> list[Value]:
        """Return all arguments."""
        return [*self.arguments, *self.named.values()]

    @property
    def given(self) -> Value:
        """Return a value with the labels of all arguments."""
        return Value(union(self.values))

    @property
    def labels(self) -> Labels:
        """Return the labels of the receiver and of all arguments."""
        return self.receiver.labels | self.given.labels

    @property
    def owner(self) -> ast.expr | None:
        """Return the expression whose method is called, or None for a function."""
        return self.node.func.value if isinstance(self.node.func, ast.Attribute) else None


@dataclass(eq=False)
class Scope:
    """Names and their values; `file` is the script that they belong to."""

    file: str
    outer: "Scope | None" = None
    names: dict[str, Value] = field(default_factory=dict)
    elsewhere: set[str] = field(default_factory=set)
    returned: list[Value] = field(default_factory=list)
    function: str = ""
    guards: int = 0
    # The formulas of names, as text.
    formulas: dict[str, str] = field(default_factory=dict)
    kind_is_model: bool = False
    kind_is_optimiser: bool = False

    def get(self, name: str) -> Value | None:
        """Return the value of a name, here or in an outer scope."""
        scope: Scope | None = self
        while scope is not None:
            if name in scope.names:
                return scope.names[name]
            scope = scope.outer
        return None

    def put(self, name: str, value: Value) -> None:
        """Set the value of a name, in the scope that `global` or `nonlocal` gives."""
        scope: Scope = self
        if name in self.elsewhere:
            while scope.outer is not None and (name not in scope.names or scope is self):
                scope = scope.outer
        scope.names[name] = value
