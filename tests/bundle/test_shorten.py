"""Short names change nothing: programs say the same before and after."""

import ast
from typing import Any

import pytest

from fairway.bundle.modules import load_modules, source_file
from fairway.bundle.shorten import library_names, shorten

PROGRAM = """
class G_m__Counter:
    def __init__(self, start, step=1):
        self.total, self.own_step = start, step
        self.history = [entry for entry in range(start)]
    def walk_on(self, *, times=1):
        def inner():
            nonlocal moved
            moved += self.own_step
            return moved
        moved = 0
        for round_of in range(times):
            inner()
        self.total += moved
        return self
    def keys(self):
        return "keys"

def G_m__named(value, factor=2, dtype=None):
    shown = lambda number: number * factor
    try:
        return {"value": shown(value), "dtype": dtype}
    except ValueError as problem:
        return str(problem)

def G_m__main():
    counter = G_m__Counter(3, step=4).walk_on(times=2)
    found = G_m__named(5, factor=3, dtype="x")
    local = [total for total in counter.history if (last := total) is not None]
    return counter.total, found, getattr(counter, "history"), counter.keys(), local, last
"""


def outcome(tree: ast.Module, name: str) -> Any:
    scope: dict[str, Any] = {}
    exec(compile(tree, "test", "exec"), scope)
    return scope[name]()


def test_a_program_says_the_same_under_short_names() -> None:
    before = outcome(ast.parse(PROGRAM), "G_m__main")
    tree = ast.parse(PROGRAM)
    shorten(tree, library_names())
    text = ast.unparse(tree)
    main = text.rpartition("def ")[2].partition("(")[0]
    assert outcome(ast.parse(text), main) == before
    assert "own_step" not in text and "walk_on" not in text and "round_of" not in text
    # Asked for by a string, known to a library, or passed by a name that one has.
    assert "history" in text and "def keys" in text and "dtype" in text


LIKE_A_LIBRARY = """
import numpy as np
from itertools import chain as joined

class G_m__Need:
    def at(self):
        return 1
    def from_iterable(self):
        return self.at()

def G_m__main():
    total = np.zeros(2)
    np.add.at(total, [1, 1], 5)
    return total[1], G_m__Need().from_iterable(), [*joined.from_iterable(["a", "b"])]
"""


def test_what_is_looked_up_in_an_import_keeps_its_name() -> None:
    tree = ast.parse(LIKE_A_LIBRARY)
    shorten(tree, frozenset({"zeros", "add"}))
    name = ast.unparse(tree).rpartition("def ")[2].partition("(")[0]
    assert outcome(ast.parse(ast.unparse(tree)), name) == (10.0, 1, ["a", "b"])


def test_the_same_program_gets_the_same_names() -> None:
    first, second = ast.parse(PROGRAM), ast.parse(PROGRAM)
    shorten(first, library_names())
    shorten(second, library_names())
    assert ast.unparse(first) == ast.unparse(second)


@pytest.mark.parametrize(
    "name", ["load_state_dict", "save_for_backward", "shape", "read_text", "reduceat", "writeable"]
)
def test_names_of_libraries_are_known(name: str) -> None:
    assert name in library_names()


def test_modules_stand_behind_what_they_need_and_lazy_ones_last() -> None:
    modules = load_modules("fairway.train.loop", {})
    order = list(modules)
    assert (
        order.index("fairway.config.settings") < order.index("fairway.model.gpt") < len(order) - 1
    )
    lazy = [name for name in order if modules[name].lazy]
    assert "fairway.model.gpu.operations" in lazy and order[-len(lazy) :] == lazy
    assert source_file("fairway.nothing") is None
