"""A script's syntax tree, with searches for names, statements and texts within one budget."""

import ast
import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

from fairway.audit.findings import Finding, Severity
from fairway.base.nodes import walk

# The most nodes of an expression that is shown; a longer one is shown by its place only.
_MOST_SHOWN = 150
# The most parts of a dotted name that are read.
_MOST_PARTS = 8

# Names of the scored token, and of its cost.
TARGET = re.compile(
    r"^_?(tgt|target|targets|next_tok|next_token|gold|actual|realized|realised|y|label|labels)(_\w*)?$"
)
COST = re.compile(r"(nll|logp|log_p|log_prob|logprob|_lp|^lp)", re.IGNORECASE)

Function = ast.FunctionDef | ast.AsyncFunctionDef


class OverBudget(Exception):  # noqa: N818 - it is a finding, not an error of this code
    """A script takes more steps than the budget."""


@dataclass(eq=False)
class Steps:
    """The remaining steps, shared by all checks of one record."""

    left: int

    def spend(self, steps: int = 1) -> None:
        """Subtract steps; OverBudget if there are not enough."""
        self.left -= steps
        if self.left < 0:
            raise OverBudget


@dataclass(eq=False)
class Script:
    """A parsed script: its file as named in findings, its tree, and its budget of work."""

    file: str
    tree: ast.Module
    work: Steps
    _names: dict[int, frozenset[str]] = field(default_factory=dict)

    def walk(self, node: ast.AST) -> Iterator[ast.AST]:
        """Yield a node and all nodes below it; OverBudget at the end of the budget.

        All calls share the budget, because nested nodes would be visited many times.
        """
        for found in walk(node):
            self.work.spend()
            yield found

    @cached_property
    def functions(self) -> list[Function]:
        """Return all functions, also nested ones."""
        return [n for n in self.walk(self.tree) if isinstance(n, Function)]

    def names(self, node: ast.AST) -> frozenset[str]:
        """Return all names, attributes and parameters inside a node."""
        if id(node) not in self._names:
            found = set()
            for inner in self.walk(node):
                if isinstance(inner, ast.Name):
                    found.add(inner.id)
                elif isinstance(inner, ast.Attribute):
                    found.add(inner.attr)
                elif isinstance(inner, ast.arg):
                    found.add(inner.arg)
            self._names[id(node)] = frozenset(found)
        return self._names[id(node)]

    def says(self, node: ast.AST, pattern: re.Pattern[str]) -> bool:
        """Return whether a name inside a node matches a pattern."""
        return any(pattern.search(name) for name in self.names(node))

    def finding(self, severity: Severity, code: str, why: str, node: ast.AST) -> Finding:
        """Return a finding about a node; its value is the node's text."""
        line = getattr(node, "lineno", 0)
        return Finding(severity, code, why, self.file, line, self.shown(node))

    def strings(self, node: ast.AST) -> Iterator[str]:
        """Yield the strings inside a node."""
        for inner in self.walk(node):
            if isinstance(inner, ast.Constant) and isinstance(inner.value, str):
                yield inner.value

    def inside(self, body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
        """Yield statements and those inside them in order, but not those of inner functions."""
        waiting = list(reversed(list(body)))
        while waiting:
            node = waiting.pop()
            self.work.spend()
            yield node
            if isinstance(node, Function | ast.ClassDef):
                continue
            inner: list[ast.stmt] = []
            for name in ("body", "orelse", "finalbody"):
                inner += getattr(node, name, [])
            for handler in getattr(node, "handlers", []):
                inner += handler.body
            waiting += reversed(inner)

    def assigned(self, node: ast.stmt) -> set[str]:
        """Return the plain names that a statement assigns."""
        return {t.id for t in targets(node) if isinstance(t, ast.Name)}

    def shown(self, node: ast.AST) -> str:
        """Return an expression as text, or '' if it is long."""
        self.work.spend(_MOST_SHOWN)
        return short(node, _MOST_SHOWN)


def short(node: ast.AST, most: int = 60) -> str:
    """Return an expression of fewer than this many parts as text, or ''."""
    if sum(1 for _ in itertools.islice(walk(node), most)) >= most:
        return ""
    try:
        return ast.unparse(node)[:120]
    except RecursionError:
        return ""


def targets(node: ast.AST) -> list[ast.expr]:
    """Return the targets of an assignment or a loop."""
    found = getattr(node, "targets", [getattr(node, "target", None)])
    return [target for target in found if target is not None]


def last_name(node: ast.Call) -> str:
    """Return the last name of the called function, '' if it has none."""
    return getattr(node.func, "attr", getattr(node.func, "id", ""))


def called(node: ast.Call) -> str:
    """Return the dotted name of the called function: at most its last parts."""
    parts: list[str] = []
    function = node.func
    while isinstance(function, ast.Attribute) and len(parts) < _MOST_PARTS:
        parts.append(function.attr)
        function = function.value
    if isinstance(function, ast.Name):
        parts.append(function.id)
    elif parts:
        # A method of a value without a name.
        parts.append("")
    return ".".join(reversed(parts))
