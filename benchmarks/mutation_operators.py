"""The mutants of a module: one small change each, by mutmut's operators and some of our own.

mutmut changes numbers, names, operators, arguments and strings. Ours are the mistakes that tests
of this project have missed: a check of one side only, a bound that nothing pins, a statement that
is gone. Words of messages, annotations, decorators and imports are left alone.
"""

import ast
import difflib
import textwrap
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import libcst as cst
import libcst.matchers as m
from libcst.metadata import MetadataWrapper, PositionProvider
from mutmut.mutation import mutators

# mutmut's operators that say nothing here: None in the place of a value ends in a TypeError, and
# its numbers grow by one, which no float notices (`_numbers` is ours).
_UNUSED = {
    "operator_number",
    "operator_assignment",
    "operator_augmented_assignment",
    "operator_dict_arguments",
}
_SWAPS = {
    "min": "max",
    "max": "min",
    "any": "all",
    "all": "any",
    "minimum": "maximum",
    "maximum": "minimum",
    "zeros": "ones",
    "argmax": "argmin",
    "argmin": "argmax",
    "floor": "ceil",
    "ceil": "floor",
}
_UNWRAPPED = ("abs", "sorted")
# Nothing below these is changed.
_LEFT_ALONE = (
    cst.Annotation,
    cst.Decorator,
    cst.Import,
    cst.ImportFrom,
    cst.Assert,
    cst.FormattedString,
    cst.Global,
    cst.Nonlocal,
)


@dataclass(frozen=True, slots=True)
class Mutant:
    """One change: where it is, what it was and is, and the whole source with it.

    `lines` are those whose running may show it; `old` and `new` are the changed lines without their
    indentation, and identify it in the list of equivalents when lines have moved.
    """

    module: str
    function: str
    lines: tuple[int, int]
    old: str
    new: str
    source: str

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What stays the same when lines move."""
        return self.module, self.function, self.old, self.new


Operator = Callable[[cst.CSTNode], Iterable[cst.CSTNode]]


def _numbers(node: cst.CSTNode) -> Iterator[cst.CSTNode]:
    """An integer one higher and one lower; a float doubled, halved and gone."""
    if isinstance(node, cst.Integer):
        value = node.evaluated_value
        yield node.with_changes(value=str(value + 1))
        if value > 0:
            yield node.with_changes(value=str(value - 1))
    if isinstance(node, cst.Float):
        number = node.evaluated_value
        for other in (2.0 * number, 0.5 * number, 0.0) if number else (1.0,):
            yield node.with_changes(value=repr(other))


def _comparisons(node: cst.CSTNode) -> Iterator[cst.CSTNode]:
    """A check of both sides becomes one of one side."""
    if isinstance(node, cst.ComparisonTarget) and not m.matches(
        node.comparator, m.SimpleString() | m.Tuple()
    ):
        others: dict[type, tuple[type, ...]] = {
            cst.Equal: (cst.LessThanEqual, cst.GreaterThanEqual),
            cst.NotEqual: (cst.LessThan, cst.GreaterThan),
        }
        for other in others.get(type(node.operator), ()):
            yield node.with_changes(operator=other())


def _calls(node: cst.CSTNode) -> Iterator[cst.CSTNode]:
    """min for max and the like; the argument in the place of its absolute value."""
    if not isinstance(node, cst.Call):
        return
    name = node.func.attr if isinstance(node.func, cst.Attribute) else node.func
    if not isinstance(name, cst.Name):
        return
    if name.value in _SWAPS:
        yield node.with_deep_changes(name, value=_SWAPS[name.value])
    if name.value in _UNWRAPPED and len(node.args) == 1 and not node.args[0].keyword:
        inner = node.args[0].value
        yield inner.with_changes(lpar=[cst.LeftParen()], rpar=[cst.RightParen()])


def _operands(node: cst.CSTNode) -> Iterator[cst.CSTNode]:
    """One side of `and` and `or` alone."""
    if isinstance(node, cst.BooleanOperation):
        yield _wrapped(node.left)
        yield _wrapped(node.right)


def _wrapped(node: cst.BaseExpression) -> cst.BaseExpression:
    return node.with_changes(lpar=[cst.LeftParen()], rpar=[cst.RightParen()])


def _slices(node: cst.CSTNode) -> Iterator[cst.CSTNode]:
    """A slice without its beginning, and one without its end."""
    if isinstance(node, cst.Slice):
        if node.lower is not None:
            yield node.with_changes(lower=None)
        if node.upper is not None:
            yield node.with_changes(upper=None)


def _conditions(node: cst.CSTNode) -> Iterator[cst.CSTNode]:
    """A comprehension that leaves nothing out."""
    if isinstance(node, cst.CompFor) and node.ifs:
        yield node.with_changes(ifs=[])


def _statements(node: cst.CSTNode) -> Iterator[cst.CSTNode]:
    """A statement that is gone; a function that returns None."""
    gone = (
        isinstance(node, cst.Raise | cst.AugAssign)
        or m.matches(node, m.Expr(value=m.Call() | m.Yield()))
        or m.matches(node, m.Assign(targets=[m.AssignTarget(m.Attribute() | m.Subscript())]))
    )
    if gone:
        yield cst.Pass()
    if isinstance(node, cst.Return) and node.value and not m.matches(node.value, m.Name("None")):
        yield node.with_changes(value=cst.Name("None"))


def _operators() -> list[Operator]:
    """mutmut's operators, each on its kind of node, and ours."""

    def on(kind: type, operator: Operator) -> Operator:
        return lambda node: operator(node) if isinstance(node, kind) else ()

    theirs = [
        on(kind, operator)
        for kind, operator in mutators.mutation_operators
        if operator.__name__ not in _UNUSED
    ]
    ours = [_numbers, _comparisons, _calls, _operands, _slices, _conditions, _statements]
    return [*theirs, *ours]


@dataclass(frozen=True, slots=True)
class _Found:
    """A node that changes: within which function or simple statement, and into what."""

    unit: cst.CSTNode
    node: cst.CSTNode
    other: cst.CSTNode
    function: str
    line: int


class _Finder(cst.CSTVisitor):
    """Collects the nodes that may change, with what they become."""

    METADATA_DEPENDENCIES = (PositionProvider,)

    def __init__(self) -> None:
        super().__init__()
        self.operators = _operators()
        self.path: list[str] = []
        self.units: list[cst.CSTNode] = []
        self.found: list[_Found] = []

    def on_visit(self, node: cst.CSTNode) -> bool:
        """Take a node's mutants; return whether to go on below it."""
        if isinstance(node, _LEFT_ALONE) or _says_nothing(node):
            return False
        if m.matches(node, m.Arg(keyword=m.Name("strict"))):
            return False
        if isinstance(node, cst.FunctionDef | cst.ClassDef):
            self.path.append(node.name.value)
        if isinstance(node, cst.FunctionDef | cst.SimpleStatementLine):
            self.units.append(node)
        if self.units:
            self._take(node)
        # A `raise` may go, but its words are a reader's.
        return not isinstance(node, cst.Raise)

    def _take(self, node: cst.CSTNode) -> None:
        line = self.get_metadata(PositionProvider, node).start.line
        name = ".".join(self.path)
        for operator in self.operators:
            for other in operator(node):
                if not _is_word(node, other):
                    self.found.append(_Found(self.units[0], node, other, name, line))

    def on_leave(self, original_node: cst.CSTNode) -> None:
        """Leave a function, a class or a statement."""
        if isinstance(original_node, cst.FunctionDef | cst.ClassDef):
            self.path.pop()
        if self.units and original_node is self.units[-1]:
            self.units.pop()


def _says_nothing(node: cst.CSTNode) -> bool:
    """Return whether a node is a docstring, a type, or the making of a dataclass field."""
    if m.matches(node, m.Expr(value=m.SimpleString() | m.ConcatenatedString())):
        return True
    kinds = m.Call(func=m.Name("TypeVar") | m.Name("field") | m.Name("cast"))
    return m.matches(node, kinds) or (
        m.matches(node, m.Assign(targets=[m.AssignTarget(m.Name())], value=m.Subscript()))
        and _is_type(node)
    )


def _is_type(node: cst.CSTNode) -> bool:
    """Return whether an assignment names a type: `Floats = NDArray[np.float64]`."""
    words = [n.value for n in m.findall(node, m.Name())]
    return words[0][0].isupper() and not words[0].isupper()


def _is_word(node: cst.CSTNode, other: cst.CSTNode) -> bool:
    """Return whether a string is words for people, or its change one of case alone."""
    if isinstance(node, cst.SimpleString) and isinstance(other, cst.SimpleString):
        return " " in node.value or node.value.lower() == other.value.lower()
    if isinstance(node, cst.Call) and isinstance(other, cst.Call):
        if _strict(node) != _strict(other):
            return True
        # An argument of None ends in a TypeError; the words of a message are nobody's business.
        if len(node.args) == len(other.args):
            changed = [
                (a, b) for a, b in zip(node.args, other.args, strict=True) if a.value is not b.value
            ]
            return any(m.matches(b.value, m.Name("None")) for _, b in changed)
        kept = {id(a.value) for a in other.args}
        gone = [a.value for a in node.args if id(a.value) not in kept]
        return any(isinstance(a, cst.FormattedString | cst.ConcatenatedString) for a in gone)
    return False


def _strict(call: cst.Call) -> bool:
    """Return whether a call says strict=True: a guard of `zip` that never fires in what works."""
    return m.matches(call, m.Call(args=[m.ZeroOrMore(), m.Arg(keyword=m.Name("strict"))]))


def _spans(source: str) -> dict[int, tuple[int, int]]:
    """Return for every line the lines of its innermost statement, without the body of one."""
    spans: dict[int, tuple[int, int]] = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.stmt):
            body = getattr(node, "body", None)
            last = max(node.lineno, body[0].lineno - 1) if body else node.end_lineno or node.lineno
            for line in range(node.lineno, last + 1):
                first, end = spans.get(line, (0, 1 << 30))
                if last - node.lineno <= end - first:
                    spans[line] = node.lineno, last
    return spans


def mutants(name: str, source: str) -> Iterator[Mutant]:
    """Yield the mutants of a module's source, each once, in the order of the text."""
    wrapper = MetadataWrapper(cst.parse_module(source))
    finder = _Finder()
    wrapper.visit(finder)
    spans, lines = _spans(source), source.splitlines()
    places = wrapper.resolve(PositionProvider)
    seen: set[tuple[int, str]] = set()
    for found in sorted(finder.found, key=lambda found: found.line):
        first, end = places[found.unit].start.line - 1, places[found.unit].end.line
        before = textwrap.dedent("\n".join(lines[first:end]))
        changed = _bare(found.unit.deep_replace(found.node, found.other))
        after = wrapper.module.code_for_node(changed)
        try:
            trees = [ast.dump(ast.parse(code)) for code in (before, after)]
        except SyntaxError:
            continue
        if trees[0] == trees[1] or (first, trees[1]) in seen:
            continue
        seen.add((first, trees[1]))
        old, new = _changed_lines(before, after.rstrip())
        indent = lines[first][: len(lines[first]) - len(lines[first].lstrip())]
        whole = [*lines[:first], textwrap.indent(after, indent), *lines[end:], ""]
        span = spans.get(found.line, (found.line, found.line))
        yield Mutant(name, found.function, span, old, new, "\n".join(whole))


def _bare(unit: Any) -> cst.CSTNode:
    """Return a function or a statement without the comments and the decorators around it."""
    unit = unit.with_changes(leading_lines=[])
    if isinstance(unit, cst.FunctionDef):
        unit = unit.with_changes(decorators=[], lines_after_decorators=[])
        unit = unit.with_deep_changes(unit.body, footer=[])
    return cast(cst.CSTNode, unit)


def _changed_lines(source: str, changed: str) -> tuple[str, str]:
    before, after = ([s.strip() for s in text.splitlines()] for text in (source, changed))
    matcher = difflib.SequenceMatcher(None, before, after, autojunk=False)
    old, new = [], []
    for kind, a, b, c, d in matcher.get_opcodes():
        if kind != "equal":
            old += before[a:b]
            new += after[c:d]
    return "\n".join(old), "\n".join(new)
