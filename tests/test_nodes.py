"""The fast walk of a syntax tree is Python's."""

import ast

import pytest

from fairway.base.nodes import walk
from fairway.bundle.modules import source_text

EVERY = """
match x:
    case {"a": [1, *_, C(b=2)], **rest} if y: pass
async def f(a: int, /, *b, c=1, **d) -> int:
    global g
    async with a as b, c: print(f"{a!r:>{b}}")
    return [i async for i in a if i] or {**d, 1: lambda x=1: -x} | {1 < a <= 2, not a}
try: import a.b as c
except* E as e: raise E from e
"""


@pytest.mark.parametrize("name", ["", "fairway.bundle.modules", "fairway.model.gpu.kernels"])
def test_the_fast_walk_is_that_of_python_without_contexts(name: str) -> None:
    tree = ast.parse(source_text(name) if name else EVERY)
    expected = [node for node in ast.walk(tree) if not isinstance(node, ast.expr_context)]
    assert list(walk(tree)) == expected
