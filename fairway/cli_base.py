"""What the verbs of the command line share: options, and how results are printed."""

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from fairway.config import Config, RuntimeConfig
from fairway.errors import UserError
from fairway.overrides import override

RunOrArtifact = Annotated[
    Path, typer.Argument(metavar="RUN|ARTIFACT", help="Folder of a run, or an artifact.")
]
TokenizerFile = Annotated[
    Path | None, typer.Option("--tokenizer", help="Tokenizer of an artifact without one.")
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.FIELD=VALUE", help="Override a setting; repeatable."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]


def say_to(as_json: bool) -> Callable[[str], None]:
    """Return where progress lines go: standard error when standard output carries JSON."""
    return lambda text: print(text, file=sys.stderr if as_json else sys.stdout, flush=True)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Any:
    """Return a table for `emit`, its first column to the left and numbers to the right."""
    from rich.table import Table
    from rich.text import Text

    made = Table(title=Text(title), title_justify="left")
    for number, column in enumerate(columns):
        made.add_column(Text(column), justify="right" if number else "left")
    for row in rows:
        made.add_row(*(Text(cell) for cell in row))
    return made


def emit(as_json: bool, value: Any, *things: Any) -> None:
    """Print the value as JSON, or the things for people; of many processes, only the first."""
    from fairway.progress import speaks

    if not speaks():
        return
    if as_json:
        print(json.dumps(value, indent=2))
        return
    from fairway.show import show

    show(*things)


def runtime_of(overrides: list[str] | None) -> RuntimeConfig:
    """Return the machine settings among overrides; an artifact's own settings stay as they are."""
    return settings_of(overrides, ("runtime",)).runtime


def settings_of(overrides: list[str] | None, sections: tuple[str, ...]) -> Config:
    """Return the defaults with overrides of some sections; UserError for any other section."""
    for text in overrides or []:
        if text.strip().partition(".")[0] not in sections:
            raise UserError(
                f"--set {text} would change a run; an artifact carries its own settings, and only "
                f"those of {', '.join(sections)} can be set"
            )
    return override(Config(), overrides or [])
