"""Fast ways through syntax trees beside those of `ast`."""

import ast
from pathlib import Path

import pytest

import fairway
from fairway.bundle import trees

# Everything that Python's grammar has, beside the package's own sources.
ODD = """
async def f(a, /, b: int = 1, *c, d, e=2, **g) -> None:
    async with a as (b, c), d: await e
    async for x, *y in z: pass
    match a:
        case {"k": [1, *rest], **more} | B(x=None) if not a: pass
        case (1 | 2) as n: pass
        case _: return
    try: yield
    except* (A, B) as error: raise C from error
    else: del a[1:2:3], b.c
    finally: global q; nonlocal_ = f"{a!r:>{w}}" "s", b"t", ...
class D(E, metaclass=F):
    x: int
    y = [i for i in j if k async for l in m]
    z = {**a, "b": lambda *p, q=1: (yield), **{c: d for c, d in e}}
    assert a < b <= c is not d not in e, -a + ~b @ c if d else (f := 1)
from .. import g as h, i
import j.k as l
"""
SOURCES = [ODD, *(p.read_text() for p in sorted(Path(fairway.__file__).parent.rglob("*.py"))[::7])]
BARE = (ast.expr_context, ast.boolop, ast.operator, ast.unaryop, ast.cmpop, ast.type_ignore)


def plain_walk(tree: ast.AST) -> list[ast.AST]:
    return [node for node in ast.walk(tree) if not isinstance(node, BARE)]


@pytest.mark.parametrize("source", SOURCES, ids=len)
def test_every_node_but_the_bare_comes_in_the_order_of_ast(source: str) -> None:
    tree = ast.parse(source)
    assert [*map(id, trees.walk(tree))] == [*map(id, plain_walk(tree))]
    for node in plain_walk(tree):
        plain = [child for child in ast.iter_child_nodes(node) if not isinstance(child, BARE)]
        assert [*map(id, trees.children(node))] == [*map(id, plain)]


def rules(base: type[ast.NodeTransformer]) -> ast.NodeTransformer:
    """Return a transformer that renames, removes and multiplies."""

    class Rules(base):  # type: ignore[misc, valid-type]
        def visit_Name(self, node: ast.Name) -> ast.AST:
            return ast.Name(node.id + "_", node.ctx)

        def visit_Assign(self, node: ast.Assign) -> list[ast.AST]:
            self.generic_visit(node)
            return [node, ast.Pass()]

        def visit_Assert(self, node: ast.Assert) -> None:
            return None

        def visit_arg(self, node: ast.arg) -> ast.AST:
            node.annotation = None
            return node

        def visit_Slice(self, node: ast.Slice) -> ast.AST:
            self.generic_visit(node)
            return node.lower or node

        def visit_Yield(self, node: ast.Yield) -> None:
            return None

    return Rules()


@pytest.mark.parametrize("source", SOURCES, ids=len)
def test_a_transformer_changes_what_one_of_ast_changes(source: str) -> None:
    ours, plain = ast.parse(source), ast.parse(source)
    assert ast.dump(rules(trees.Transformer).visit(ours)) == ast.dump(
        rules(ast.NodeTransformer).visit(plain)
    )
