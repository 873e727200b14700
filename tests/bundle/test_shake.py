"""What is reached stays, and nothing else; what is missing is told."""

import ast

import pytest

from fairway.bundle.modules import Module
from fairway.bundle.shake import items_of, shake

SOURCE = """
def G_m__used(): return 1
def G_m__unused(): return 2
class G_m__C:
    def __init__(self): self.a = G_m__used()
    def called(self): return X_json__
    def asked_for(self): return 1
    def never(self): return G_m__unused()
@G_m__registered.extra
def G_m__more(): return 3
@X_functools__cache
def G_m__registered(): return 4
"""


def shaken(start: str) -> tuple[str, set[str]]:
    items = items_of({"m": Module("m", ast.parse(SOURCE), False)})
    kept, outside = shake(items, ast.parse(start).body[0])
    return "\n".join(ast.unparse(item.node) for item in kept), outside


def test_only_what_is_reached_stays() -> None:
    text, outside = shaken("getattr(G_m__C().called(), 'asked_for')")
    assert "unused" not in text and "never" not in text and "more" not in text
    assert "def called" in text and "def asked_for" in text and "def G_m__used" in text
    assert outside == {"X_json__"}


def test_what_completes_a_definition_stays_with_it() -> None:
    text, outside = shaken("G_m__registered()")
    assert "def G_m__more" in text and "G_m__C" not in text
    assert outside == {"X_functools__cache"}


def test_a_name_that_nothing_defines_is_told() -> None:
    with pytest.raises(AssertionError, match="G_m__moved"):
        shaken("G_m__moved()")
