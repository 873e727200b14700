"""The wrapper: what comes out is what went in, whatever bytes a literal must carry."""

import ast
import random

import pytest

from fairway.base.errors import UserError
from fairway.bundle.wrap import Started, _latin1, unwrap, wrap

STARTED = Started(42, "", "wall")


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
    file = wrap(program, STARTED, ascii_only)
    assert unwrap(file) == program
    assert wrap(program, STARTED, ascii_only) == file
    assert file.isascii() == ascii_only


@pytest.mark.parametrize("ascii_only", [False, True])
@pytest.mark.parametrize(
    "started", [STARTED, Started(0, "embedded", "steps"), Started(2**32 - 1, "", "steps")]
)
def test_a_program_is_told_its_bytes_which_no_start_changes(
    started: Started, ascii_only: bool
) -> None:
    file = wrap("print(1)\n" * 50, started, ascii_only)
    call = ast.parse(file).body[-1]
    assert isinstance(call, ast.Expr) and isinstance(call.value, ast.Call)
    told = [ast.literal_eval(argument) for argument in call.value.args]
    assert told == [len(file), started.seed, started.source, started.clock]
    assert len(file) == len(wrap("print(1)\n" * 50, STARTED, ascii_only))


def test_the_latin_form_is_smaller() -> None:
    program = "".join(f"{random.Random(n).random()}\n" for n in range(200))
    assert len(wrap(program, STARTED)) < 0.9 * len(wrap(program, STARTED, ascii_only=True))


@pytest.mark.parametrize(
    "damage", [b"", b"print(1)\n", b"import lzma\nlzma.decompress(3)\n", b"\0"]
)
def test_what_is_no_bundle_is_refused(damage: bytes) -> None:
    with pytest.raises(UserError, match="not a bundle"):
        unwrap(damage)
