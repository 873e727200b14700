"""A script's syntax tree, asked for names, statements and texts within one budget of work."""

import ast
import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from fairway.audit.findings import Finding, Severity

# Nodes of an expression that is shown; longer ones take a place, not a text.
_MOST_SHOWN = 150
# Parts of a dotted name that are looked at.
_MOST_PARTS = 8

# Names of the token that is scored, and of what it costs.
TARGET = re.compile(
    r"^_?(tgt|target|targets|next_tok|next_token|gold|actual|realized|realised|y|label|labels)(_\w*)?$"
)
COST = re.compile(r"(nll|logp|log_p|log_prob|logprob|_lp|^lp)", re.IGNORECASE)

Function = ast.FunctionDef | ast.AsyncFunctionDef


class OverBudget(Exception):  # noqa: N818 - what is found, not what went wrong here
    """A script that takes more steps than there are."""


@dataclass(eq=False)
class Steps:
    """Steps that are left, for all that look at one record."""

    left: int

    def spend(self, steps: int = 1) -> None:
        """Take steps; OverBudget once none are left."""
        self.left -= steps
        if self.left < 0:
            raise OverBudget


@dataclass(eq=False)
class Script:
    """A parsed script: its file as named in findings, its tree, and the work that may be spent."""

    file: str
    tree: ast.Module
    work: Steps
    _names: dict[int, frozenset[str]] = field(default_factory=dict)

    def walk(self, node: ast.AST) -> Iterator[ast.AST]:
        """Yield a node and all below it; OverBudget once no steps are left.

        The budget is for all calls: what is nested would be visited many times.
        """
        for found in ast.walk(node):
            self.work.spend()
            yield found

    @property
    def functions(self) -> list[Function]:
        """Return all functions, wherever they stand."""
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
        """Return whether a pattern is found in a name inside a node."""
        return any(pattern.search(name) for name in self.names(node))

    def finding(self, severity: Severity, code: str, why: str, node: ast.AST) -> Finding:
        """Return a finding about a node, which is its value."""
        line = getattr(node, "lineno", 0)
        return Finding(severity, code, why, self.file, line, self.shown(node))

    def strings(self, node: ast.AST) -> Iterator[str]:
        """Yield the strings inside a node."""
        for inner in self.walk(node):
            if isinstance(inner, ast.Constant) and isinstance(inner.value, str):
                yield inner.value

    def inside(self, body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
        """Yield statements and those inside them, in their order; functions are not entered."""
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
        """Return an expression as text, or nothing if it is long."""
        self.work.spend(_MOST_SHOWN)
        return short(node, _MOST_SHOWN)


def short(node: ast.AST, most: int = 60) -> str:
    """Return an expression of at most this many parts as text, or nothing."""
    if sum(1 for _ in itertools.islice(ast.walk(node), most)) >= most:
        return ""
    try:
        return ast.unparse(node)[:120]
    except RecursionError:
        return ""


def targets(node: ast.AST) -> list[ast.expr]:
    """Return what stands left of an assignment, or in a loop's head."""
    found = getattr(node, "targets", [getattr(node, "target", None)])
    return [target for target in found if target is not None]


def last_name(node: ast.Call) -> str:
    """Return the last name of what is called, '' if it has none."""
    return getattr(node.func, "attr", getattr(node.func, "id", ""))


def called(node: ast.Call) -> str:
    """Return the dotted name of what is called: at most its last parts."""
    parts: list[str] = []
    function = node.func
    while isinstance(function, ast.Attribute) and len(parts) < _MOST_PARTS:
        parts.append(function.attr)
        function = function.value
    if isinstance(function, ast.Name):
        parts.append(function.id)
    elif parts:
        # A method of a value that has no name.
        parts.append("")
    return ".".join(reversed(parts))
