"""What is printed does nothing to a terminal, and what is offered as a command is one."""

import io
import json
import math
import os
import re
import subprocess
from pathlib import Path

import pytest
from rich.console import Console

from fairway.base import progress as bars
from fairway.base import terminal

HOSTILE = [
    ("\x1b[31mred\x1b[0m", "\\x1b[31mred\\x1b[0m"),
    ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
    ("\x9b2J", "\\x9b2J"),
    ("gone\rback\x08", "gone\\x0dback\\x08"),
    ("gpj.\u202eexe", "gpj.\\u202eexe"),
    ("a\u2066b\u2069\u200f", "a\\u2066b\\u2069\\u200f"),
    ("one\u2028two", "one\\u2028two"),
    (os.fsdecode(b"caf\xe9"), "caf\\xe9"),
    ("half \ud800", "half \\ud800"),
]
PLAIN = ["", "[bold]x[/nothing] :smile:", "caf\xe9 \u4e2d\u6587 \u0645\u06cc\u200c", "a\u3000b"]


@pytest.mark.parametrize(("text", "shown"), HOSTILE)
def test_what_a_terminal_obeys_is_only_shown(text: str, shown: str) -> None:
    assert terminal.clean(text) == terminal.line(text) == shown
    assert terminal.clean(shown) == shown


@pytest.mark.parametrize("text", PLAIN)
def test_other_text_is_shown_as_it_is(text: str) -> None:
    assert terminal.clean(text) == terminal.line(text) == terminal.sentence(text) == text


def test_lines_stay_lines_and_a_sentence_is_one() -> None:
    assert terminal.clean("a\n\tb") == "a\n\tb"
    assert terminal.line("a\n\tb") == "a\\n\\tb"


def test_a_name_whose_bytes_were_not_decoded_is_read_as_utf8() -> None:
    """As under LANG=C, where Python takes every byte above 127 for undecodable."""
    name = "caf\xe9 \u4e2d".encode().decode("ascii", "surrogateescape")
    assert terminal.line(name) == "caf\xe9 \u4e2d"


def test_a_sentence_does_not_flood() -> None:
    told = terminal.sentence("cannot read " + "x" * 10**6 + "; copy it again")
    assert len(told) < 2100
    assert told.startswith("cannot read xxx") and told.endswith("xxx; copy it again")
    assert "998,027 characters left out" in told


NAMES = [
    "plain", "two words", "it's", 'say "x"', "$HOME`id`", "a\nb", "tab\there", "back\\slash",
    "-rf", "~", "*?[x]", "caf\xe9 \u4e2d", "\x1b[31m", "\u202e", "!x", "a;b&c|d", "\udcff\udcfe",
    "it's\nboth\\", "",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_shell_reads_back_what_was_quoted(name: str) -> None:
    word = terminal.quoted(name)
    assert terminal.line(word) == word
    read = subprocess.run(["bash", "-c", f"printf %s {word}"], capture_output=True, check=True)
    assert read.stdout == os.fsencode(name)


def test_a_shell_reads_back_what_the_terminal_cannot_show(monkeypatch: pytest.MonkeyPatch) -> None:
    class Ascii:
        encoding = "ascii"

    monkeypatch.setattr("sys.stdout", Ascii())
    word = terminal.quoted("caf\xe9 'x'")
    assert word.isascii()
    read = subprocess.run(["bash", "-c", f"printf %s {word}"], capture_output=True, check=True)
    assert read.stdout == "caf\xe9 'x'".encode()


def test_a_path_is_no_option() -> None:
    assert terminal.quoted(Path("-rf x")) == "'./-rf x'"
    assert terminal.command("score", Path("my run"), "--set", "a=b c") == (
        "fairway score 'my run' --set 'a=b c'"
    )


def test_json_is_read_by_all() -> None:
    value = {"n": math.nan, "i": [math.inf, 1.5], "\udcff": ("\ud800", "caf\xe9"), "b": True}
    told = terminal.as_json(value)
    assert told.isascii()

    def refuse(word: str) -> None:
        raise AssertionError(word)

    read = json.loads(told, parse_constant=refuse)
    assert read == {"n": None, "i": [None, 1.5], "\\xff": ["\\ud800", "caf\xe9"], "b": True}
    json.dumps(read, ensure_ascii=False).encode()


@pytest.mark.parametrize(("term", "shown"), [("xterm", True), ("dumb", False), ("unknown", False)])
def test_a_bar_fits_80_columns_and_a_dumb_terminal_sees_none(
    term: str, shown: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", term)
    written = io.StringIO()
    monkeypatch.setattr(
        bars, "Console", lambda stderr: Console(file=written, force_terminal=True, width=80)
    )
    with bars.progress("training", 1000) as advance:
        advance(350, "step 12345 loss 2.3456")
    lines = re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", written.getvalue()))
    assert bool(written.getvalue()) == shown
    assert max(map(len, lines)) <= 80
    assert any("step 12345 loss 2.3456" in line and "350/1000" in line for line in lines) == shown
