"""The wrapper: what comes out is what went in, whatever bytes a literal must carry."""

import ast
import random

import pytest

from fairway.bundle.wrap import _latin1, unwrap, wrap
from fairway.errors import UserError


@pytest.mark.parametrize(
    "data",
    [
        b"",
        bytes(range(256)),
        bytes(reversed(range(256))),
        b"\0007\0\0 1\x00",
        b"\r\n\r\\'\"" * 9,
        b'"' * 5 + b"'",
        random.Random(0).randbytes(5000),
    ],
)
def test_a_literal_carries_any_bytes(data: bytes) -> None:
    source = f"#coding:latin1\nx={_latin1(data)}\n".encode("latin1")
    node = ast.parse(source).body[0]
    assert isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
    assert str(node.value.value).encode("latin1") == data
    assert b"\0" not in source and b"\r" not in source


@pytest.mark.parametrize("ascii_only", [False, True])
def test_a_program_comes_back(ascii_only: bool) -> None:
    program = "print('\u2581')\n" * 50
    file = wrap(program, ascii_only)
    assert unwrap(file) == program
    assert wrap(program, ascii_only) == file
    assert file.isascii() == ascii_only


def test_the_latin_form_is_smaller() -> None:
    program = "".join(f"{random.Random(n).random()}\n" for n in range(200))
    assert len(wrap(program)) < 0.9 * len(wrap(program, ascii_only=True))


@pytest.mark.parametrize(
    "damage", [b"", b"print(1)\n", b"import lzma\nlzma.decompress(3)\n", b"\0"]
)
def test_what_is_no_bundle_is_refused(damage: bytes) -> None:
    with pytest.raises(UserError, match="not a bundle"):
        unwrap(damage)
