"""Every code of a finding has an entry: what it is called, why it matters, what to ask."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import fairway.audit
from fairway.audit.records.questions import KINDS, QUESTIONS, importance, question

PACKAGE = Path(fairway.audit.__file__).parent
# Functions whose second argument is a code.
MAKERS = ("Finding", "of")


def codes(source: str) -> Iterator[str]:
    """Yield the codes of findings that a source makes, as patterns where a part is computed."""
    for node in ast.walk(ast.parse(source)):
        match node:
            # A table of what each code says.
            case ast.Assign(targets=[ast.Name(id="WHY" | "_WHY")], value=ast.Dict(keys=keys)):
                for key in filter(None, keys):
                    yield from _pattern(key)
            case ast.Call(func=ast.Name(id=name), args=[_, code, *_]) if name in MAKERS:
                yield from _pattern(code)
            case ast.Call(func=ast.Name(id="Finding"), keywords=keywords):
                for keyword in keywords:
                    if keyword.arg == "code":
                        yield from _pattern(keyword.value)


def _pattern(node: ast.expr) -> Iterator[str]:
    match node:
        case ast.Constant(value=str(code)):
            yield re.escape(code)
        case ast.IfExp(body=a, orelse=b):
            yield from _pattern(a)
            yield from _pattern(b)
        case ast.JoinedStr(values=parts):
            yield "".join(
                re.escape(str(part.value)) if isinstance(part, ast.Constant) else "[a-z-]+"
                for part in parts
            )


FOUND = {code: file.name for file in PACKAGE.rglob("*.py") for code in codes(file.read_text())}


@pytest.mark.parametrize("code", sorted(FOUND))
def test_every_code_has_an_entry(code: str) -> None:
    known = [name for name in QUESTIONS if re.fullmatch(code, name)]
    assert known, f"{FOUND[code]} finds {code}: add it to QUESTIONS in audit/records/questions.py"


def test_codes_are_collected_however_they_are_given() -> None:
    source = (
        "Finding('note', 'a-b', w)\nof(s, f'no-{x}', w, n)\nFinding(severity=s, code='c')\n"
        "Finding('note', 'd' if x else 'e', w)\nFinding(s, code, w)\nother('note', 'f')\n"
        "_WHY = {'g': 'because'}\n"
    )
    assert sorted(code.replace("\\", "") for code in codes(source)) == [
        "a-b", "c", "d", "e", "g", "no-[a-z-]+",
    ]  # fmt: skip


def test_every_entry_says_something() -> None:
    for code, entry in QUESTIONS.items():
        assert entry.title and entry.matters and entry.ask.endswith("?"), code
        assert not entry.kind or entry.kind in KINDS, code


def test_an_unknown_code_is_told_by_its_name_and_last() -> None:
    assert question("brand-new").title == "brand new"
    assert importance("brand-new") > max(importance(code) for code in QUESTIONS)
