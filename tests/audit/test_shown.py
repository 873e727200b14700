"""What a log shows of a script: a text convicts only where nothing else prints it."""

import ast

import pytest

from fairway.audit.records.shown import LogText, Shown

SCRIPT = """
def scored(model):
    log0(f"windows of the text: {model}")
def adapt(model):
    model.step()
    {inside}
def main():
    {outside}
    if switch:
        adapt(model)
"""


def shown(inside: str, outside: str) -> str | None:
    source = SCRIPT.replace("{inside}", inside).replace("{outside}", outside)
    tree = ast.parse(source)
    functions: dict[str, ast.AST] = {n.name: n for n in tree.body if isinstance(n, ast.FunctionDef)}
    found = Shown([LogText("a.log", "begin\nwindows of the text: 3\n")], source, functions)
    main = tree.body[-1]
    assert isinstance(main, ast.FunctionDef) and isinstance(main.body[-1], ast.If)
    return found.where(main.body[-1].body)


@pytest.mark.parametrize(
    ("inside", "outside", "expected"),
    [
        ("scored(model)", "pass", "a.log:2"),
        ("pass", "scored(model)", None),
        # Both call what prints: the log may be that of the other call.
        ("scored(model)", "scored(model)", None),
        ("scored(model)", "x = [scored(m) for m in models]", None),
    ],
)
def test_what_a_function_prints_shows_a_call_only_if_it_is_the_only_one(
    inside: str, outside: str, expected: str | None
) -> None:
    assert shown(inside, outside) == expected
