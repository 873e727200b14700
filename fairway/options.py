"""What stands after a verb: paths and numbers, each mistake told in one sentence."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperGroup

from fairway.errors import UserError

# What 64 bits hold; nothing that is counted here comes near it.
MOST = 2**63 - 1
_WHOLE = re.compile(r"[+-]?(\d[\d_]*)(\.0*)?", re.ASCII)
_POWER = re.compile(r"([+-]?)(\d+)(?:\.(\d+))?[eE]\+?(\d{1,2})", re.ASCII)
_MOST_CHARACTERS = 40
_HOME = re.compile(r"~[^/]*(/|$)")


def path_name(text: str | Path) -> Path:
    """Return a path; typer.BadParameter for a word that is none, or not the one that was meant."""
    if isinstance(text, Path):
        # A default, which nobody typed.
        return text
    if not text:
        raise typer.BadParameter("the path is empty; was a variable of the shell not set?")
    if "\0" in text:
        raise typer.BadParameter("the path has a zero byte in it, which no path may have")
    if text == "-":
        raise typer.BadParameter(
            "- is no path; name /dev/stdin or /dev/stdout, or ./- for a file of that name"
        )
    if _HOME.match(text) and not os.path.lexists(text):
        raise typer.BadParameter(
            f"the shell left ~ as it is in {text}; write $HOME in its place, or ./ before it"
        )
    return Path(text)


def path_option(*names: str, help: str, metavar: str = "PATH") -> Any:
    """Return an option that is a path."""
    return typer.Option(*names, parser=path_name, metavar=metavar, help=help)


def path_argument(metavar: str, help: str) -> Any:
    """Return an argument that is a path, or several."""
    return typer.Argument(parser=path_name, metavar=metavar, help=help)


def whole_option(*names: str, lo: int, hi: int = MOST, help: str, metavar: str = "N") -> Any:
    """Return an option that is a whole number from `lo` to `hi`."""
    return typer.Option(*names, parser=whole(lo, hi), metavar=metavar, help=help)


def whole(lo: int, hi: int = MOST) -> Callable[[str], int]:
    """Return what reads a whole number within bounds: 1000, 1_000, 1e3."""

    def read(word: str | int) -> int:
        text = str(word)
        number = _number(text)
        if number is None:
            raise typer.BadParameter(f"'{_short(text)}' is not a whole number")
        if not lo <= number <= hi:
            bound = f"at least {lo:,}" if hi == MOST and number < lo else f"{lo:,} to {hi:,}"
            raise typer.BadParameter(f"{_short(text)} is out of bounds; it must be {bound}")
        return number

    return read


def _number(text: str) -> int | None:
    """Return a whole number; a longer one than any bound is cut, so that it is beyond them all."""
    if _WHOLE.fullmatch(text) and "__" not in text:
        digits = text.partition(".")[0].replace("_", "").lstrip("+-").lstrip("0") or "0"
        number = int(digits[:_MOST_CHARACTERS])
        return -number if text.startswith("-") else number
    if not (found := _POWER.fullmatch(text[:_MOST_CHARACTERS])):
        return None
    sign, digits, fraction, power = found[1], found[2], (found[3] or "").rstrip("0"), int(found[4])
    if len(fraction) > power:
        return None
    number = int(digits + fraction + "0" * (power - len(fraction)))
    return -number if sign == "-" else number


def _short(text: str) -> str:
    return text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]}..."


class Verbs(TyperGroup):
    """The verbs of the command line. Words that make no command are refused in one sentence."""

    def main(self, *args: Any, **how: Any) -> Any:
        """Run a verb, and end the process with its exit code."""
        try:
            ended = super().main(*args, **{**how, "standalone_mode": False})
        except Exception as error:
            # Whose class it is depends on the version of Typer.
            message = getattr(error, "format_message", None)
            if message is None:
                raise
            if type(error).__name__ == "NoArgsIsHelpError":
                raise SystemExit(2) from None
            raise UserError(_with_usage(message(), getattr(error, "ctx", None))) from None
        raise SystemExit(ended if isinstance(ended, int) else 0)


def _with_usage(message: str, context: Any) -> str:
    if not message.endswith((".", "?")):
        message += "."
    usage = "" if context is None else " ".join(context.get_usage().split())
    return f"{message} {usage}".rstrip()
