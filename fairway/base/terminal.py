"""Text for terminals: harmless characters, commands quoted for a shell, JSON.

Names of files and machines and texts of records and models come from others. Everything printed
passes `clean` or `line`, and no character makes printing fail.
"""

import io
import json
import math
import re
import shlex
import sys
from pathlib import Path
from typing import Any, TextIO

# Characters that control a terminal or the order of text: control characters except line end and
# tab, marks and separators of direction and line, and surrogates.
_OBEYED = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufff9-\ufffb"
    "\ud800-\udfff]"
)
# The characters by which Python represents bytes of a file name that it could not decode.
_BYTES = re.compile("[\udc80-\udcff]+")
# The longest sentence; it has room for two paths of ordinary length.
_MOST_CHARACTERS = 2_000


def clean(text: str) -> str:
    """Return a text of any number of lines without characters that control a terminal.

    Those are written as in Python: an escape becomes `\\x1b`, a byte of a name that is not UTF-8
    `\\xff`.
    """
    return _OBEYED.sub(_escape, whole(text))


def line(text: str) -> str:
    """Return a text as `clean` does, in one line."""
    return clean(text).replace("\n", "\\n").replace("\t", "\\t")


def sentence(text: str) -> str:
    """Return a text as `line` does; if it is too long, its middle is left out."""
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

    Values that cannot be shown directly are quoted as $'...', which bash, zsh and ksh read.
    """
    text = str(value)
    if isinstance(value, Path) and text.startswith("-"):
        text = f"./{text}"
    if text == line(text) and _speakable(text):
        return shlex.quote(text)
    return "$'" + "".join(_in_quotes(letter) for letter in text) + "'"


def _speakable(text: str) -> bool:
    """Return whether standard output can show every character of a text."""
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
    """Return a command of Fairway, quoted for a shell."""
    return " ".join(["fairway", *(quoted(word) for word in words)])


# ---------------------------------------------------------------------------------------------
# Printing


def prepare() -> None:
    """Let standard output and errors write any character; `\\u...` if their encoding lacks it."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def put(text: str, stream: TextIO | None = None, end: str = "\n") -> None:
    """Print a cleaned text immediately, by default to standard output."""
    print(clean(text), file=stream or sys.stdout, end=end, flush=True)


def put_bytes(data: bytes) -> None:
    """Write text for programs to standard output, unchanged."""
    sys.stdout.flush()
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def as_json(value: Any) -> str:
    """Return JSON in ASCII that every reader accepts: without surrogates and NaN.

    Bytes of names that are not UTF-8 are written as `\\xff`; numbers that are not finite become
    null.
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
