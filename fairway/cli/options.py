"""Arguments and options of verbs: paths and numbers; each mistake gives one sentence."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperGroup

from fairway.base.errors import UserError
from fairway.base.outputs import why_no_path
from fairway.base.units import written
from fairway.config.checks import LARGEST
from fairway.config.overrides import whole_number

_MOST_CHARACTERS = 40


def path_name(text: str | Path) -> Path:
    """Return a path; typer.BadParameter for a word that is none or probably another argument."""
    if isinstance(text, Path):
        # A default value needs no check.
        return text
    if why := why_no_path(text):
        raise typer.BadParameter(why)
    return Path(text)


def flag(name: str, help: str) -> Any:
    """Return an option that is off unless it is named."""
    return typer.Option(name, help=help)


def run_path(text: str | Path) -> Path:
    """Return the path of a run's folder; the artifact inside it also names the folder."""
    from fairway.pipeline.folder import run_at

    return run_at(path_name(text))


def run_argument(metavar: str, help: str) -> Any:
    """Return an argument that is the folder of a run, or several."""
    return typer.Argument(parser=run_path, metavar=metavar, help=_plain(help))


def path_option(*names: str, help: str, metavar: str = "PATH") -> Any:
    """Return an option that is a path."""
    return typer.Option(*names, parser=path_name, metavar=metavar, help=_plain(help))


def file_option(*names: str, help: str) -> Any:
    """Return an option that is a file to write."""
    rule = "A file that another program wrote is not replaced."
    return path_option(*names, help=f"{help} {rule}")


def path_argument(metavar: str, help: str) -> Any:
    """Return an argument that is a path, or several."""
    return typer.Argument(parser=path_name, metavar=metavar, help=_plain(help))


def whole_option(*names: str, lo: int, hi: int = LARGEST, help: str, metavar: str = "N") -> Any:
    """Return an option that is a whole number from `lo` to `hi`."""
    return typer.Option(*names, parser=whole(lo, hi), metavar=metavar, help=_plain(help))


def word_option(*names: str, words: tuple[str, ...], help: str, metavar: str = "WORD") -> Any:
    """Return an option that is one of a few words."""
    return typer.Option(*names, parser=_one_of(words), metavar=metavar, help=_plain(help))


def _one_of(words: tuple[str, ...]) -> Callable[[str], str]:
    def read(word: str) -> str:
        if word not in words:
            raise typer.BadParameter(f"'{_short(word)}' is none of {', '.join(words)}")
        return word

    return read


def number_option(*names: str, lo: float, hi: float, help: str) -> Any:
    """Return an option that is a number from `lo` to `hi`."""
    return typer.Option(*names, parser=number(lo, hi), metavar="X", help=_plain(help))


def number(lo: float, hi: float) -> Callable[[str | float], float]:
    """Return a parser of numbers within bounds; its errors give the value and the bounds."""

    def read(word: str | float) -> float:
        text = str(word)
        try:
            value = float(text)
        except ValueError:
            raise typer.BadParameter(f"'{_short(text)}' is not a number") from None
        if not lo <= value <= hi:
            raise typer.BadParameter(
                f"{_short(text)} is out of bounds; it must be between {written(lo)} and "
                f"{written(hi)}"
            )
        return value

    return read


def require_only(context: typer.Context, where: str, *taken: str) -> None:
    """Raise UserError if the command line names an option other than the parameters `taken`."""
    _refuse([option for name, option in _given(context).items() if name not in taken], where)


def require_none(context: typer.Context, where: str, *names: str) -> None:
    """Raise UserError if the command line names one of some options, which has no effect there."""
    _refuse([option for name, option in _given(context).items() if name in names], where)


def _given(context: typer.Context) -> dict[str, str]:
    """Return the options that the command line names: parameter, and its name there."""
    return {
        item.name: item.opts[0]
        for item in context.command.params
        if item.name
        and item.param_type_name == "option"
        # Compared by name: the module of this class depends on the version of Typer.
        and getattr(context.get_parameter_source(item.name), "name", "") == "COMMANDLINE"
    }


def _refuse(options: list[str], where: str) -> None:
    if options:
        has, them = ("has", "it") if len(options) == 1 else ("have", "them")
        raise UserError(f"{' and '.join(options)} {has} no effect {where}; leave {them} out")


def _plain(help: str) -> str:
    """Return a help text whose brackets Typer prints instead of parsing them as markup."""
    return help.replace("[", "\\[")


def whole(lo: int, hi: int = LARGEST) -> Callable[[str], int]:
    """Return a parser of whole numbers within bounds: 1000, 1_000, 1e3."""

    def read(word: str | int) -> int:
        text = str(word)
        number = whole_number(text)
        if number is None:
            raise typer.BadParameter(f"'{_short(text)}' is not a whole number")
        if not lo <= number <= hi:
            ends = f"between {written(lo)} and {written(hi)}"
            bound = f"at least {written(lo)}" if hi == LARGEST and number < lo else ends
            raise typer.BadParameter(f"{_short(text)} is out of bounds; it must be {bound}")
        return number

    return read


def _short(text: str) -> str:
    return text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]}..."


# Replacements of Typer's types in the help; a type after a flag would look like a value.
_VALUES = {"<bool>": "", "<int>": "N", "<float>": "X", "<str>": "TEXT"}


def show_values(command: Any, context: Any) -> None:
    """Let the help show N, X, TEXT or the metavar after options, and nothing after flags."""
    for item in command.get_params(context):
        if item.name == "show_completion":
            item.help = "Print the completion of the current shell, to install it by hand."
        # Older versions of Typer show no types.
        if shown := getattr(item, "display_type_rich", None):
            word = (shown(ctx=context) or "") if item.param_type_name == "option" else ""
            word = _VALUES.get(word, word)
            vars(item)["display_type_rich"] = lambda ctx, word=word: word or None


class Verbs(TyperGroup):
    """The verbs of the command line. An unknown command is refused in one sentence."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help."""
        show_values(self, ctx)
        super().format_help(ctx, formatter)

    def main(self, *args: Any, **how: Any) -> Any:
        """Run a verb, and end the process with its exit code."""
        try:
            ended = super().main(*args, **{**how, "standalone_mode": False})
        except Exception as error:
            # The module of its class depends on the version of Typer.
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
