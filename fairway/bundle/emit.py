"""A flat program as short text: short names, and as few characters as Python needs."""

import ast
from collections import Counter
from dataclasses import dataclass

import python_minifier

from fairway.bundle.flatten import Flat
from fairway.bundle.shorten import library_names, shorten


@dataclass(frozen=True, slots=True)
class Program:
    """A short program: its text, what became of the names it shares, and, for each module, how many
    of its characters came from there. ("" stands for imports and for the start.)"""

    text: str
    names: dict[str, str]
    characters: dict[str, int]


def program(flat: Flat) -> Program:
    """Return a flat program as short as it gets; it defines and calls the same things."""
    tree = ast.parse(flat.text)
    names = shorten(tree, library_names(imported(tree)))
    counts: Counter[str] = Counter()
    for origin, node in flat.statements(tree):
        counts[origin] += len(ast.unparse(node))
    return Program(python_minifier.unparse(tree), names, dict(counts))


def imported(tree: ast.Module) -> frozenset[str]:
    """Return the modules that a program imports, or takes names from."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return frozenset(found)
