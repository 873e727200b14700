"""Text for terminals: foreign characters made harmless, commands quoted for a shell, JSON.

Names of files and machines, texts of records and models come from strangers. Whatever is printed
goes through `clean` or `line`, and nothing that is printed fails for a letter.
"""

import io
import json
import math
import re
import shlex
import sys
from pathlib import Path
from typing import Any, TextIO

# What a terminal obeys or reorders by: control characters but for the end of a line and the tab,
# marks and separators of direction and line, and halves of characters.
_OBEYED = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufff9-\ufffb"
    "\ud800-\udfff]"
)
# How Python keeps the bytes of a file name that it could not decode.
_BYTES = re.compile("[\udc80-\udcff]+")
# A sentence is not longer; two paths of ordinary length have room in it.
_MOST_CHARACTERS = 2_000


def clean(text: str) -> str:
    """Return a text of any number of lines whose characters are only to be seen.

    The others are written as Python writes them: an escape becomes `\\x1b`, a byte of a name that
    is not UTF-8 `\\xff`.
    """
    return _OBEYED.sub(_escape, whole(text))


def line(text: str) -> str:
    """Return a text as `clean` does, in one line."""
    return clean(text).replace("\n", "\\n").replace("\t", "\\t")


def sentence(text: str) -> str:
    """Return a text as `line` does, its middle left out if it is too long to be read."""
    shown = line(text)
    left_out = len(shown) - _MOST_CHARACTERS
    if left_out <= 0:
        return shown
    half = _MOST_CHARACTERS // 2
    return f"{shown[:half]} [{left_out:,} characters left out] {shown[-half:]}"


def whole(text: str) -> str:
    """Return a text that UTF-8 can hold: bytes of names are decoded, or written as `\\xff`."""
    text = _BYTES.sub(lambda found: _kept(found[0]).decode("utf-8", "backslashreplace"), text)
    return text.encode("utf-8", "backslashreplace").decode()


def _kept(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


# ---------------------------------------------------------------------------------------------
# Commands


def quoted(value: object) -> str:
    """Return a word that a shell reads as this value: a path, or a text.

    What cannot be shown as it is stands in $'...', which bash, zsh and ksh read.
    """
    text = str(value)
    if isinstance(value, Path) and text.startswith("-"):
        text = f"./{text}"
    if text == line(text) and _speakable(text):
        return shlex.quote(text)
    return "$'" + "".join(_in_quotes(letter) for letter in text) + "'"


def _speakable(text: str) -> bool:
    """Return whether standard output can show every letter of a text."""
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _in_quotes(letter: str) -> str:
    if letter in "'\\":
        return "\\" + letter
    if letter == line(letter) and _speakable(letter):
        return letter
    kept = "surrogateescape" if _BYTES.match(letter) else "surrogatepass"
    return "".join(f"\\x{byte:02x}" for byte in letter.encode("utf-8", kept))


def command(*words: object) -> str:
    """Return a command of Fairway that a shell takes as it stands."""
    return " ".join(["fairway", *(quoted(word) for word in words)])


# ---------------------------------------------------------------------------------------------
# Printing


def prepare() -> None:
    """Let standard output and errors write any letter: what they cannot encode becomes `\\u...`."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def put(text: str, stream: TextIO | None = None, end: str = "\n") -> None:
    """Print a text, cleaned, at once; to standard output if nothing is said."""
    print(clean(text), file=stream or sys.stdout, end=end, flush=True)


def put_bytes(data: bytes) -> None:
    """Write what is for programs to standard output as it is."""
    sys.stdout.flush()
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def as_json(value: Any) -> str:
    """Return JSON in ASCII that every reader takes: no halves of characters, no NaN.

    Bytes of names that are no UTF-8 are written as `\\xff`; a number that is not finite is null.
    """
    return json.dumps(_plain(value), indent=2, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return whole(value)
    if isinstance(value, dict):
        return {_plain(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
