"""Shared by the verbs of the command line: options, and printing of results."""

import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from fairway.base import terminal
from fairway.base.errors import UserError
from fairway.base.outputs import is_standard_output
from fairway.cli.options import path_argument, path_option
from fairway.config.overrides import override
from fairway.config.settings import Config, RuntimeConfig, TttConfig

# The exit code of work that no mistake ended, but a budget: a study, an audit that decided nothing.
UNFINISHED = 3


def recipe_names(begun: str) -> list[str]:
    """Return the names of Fairway's recipes that begin like a word on the command line."""
    from fairway.recipes import RECIPES

    return [name for name in RECIPES if name.startswith(begun)]


RunOrArtifact = Annotated[Path, path_argument("RUN|ARTIFACT", "Folder of a run, or an artifact.")]
Recipe = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE",
        autocompletion=recipe_names,
        help="Name of a recipe, or a Python file with a recipe: FILE.py or FILE.py:NAME.",
    ),
]
TokenizerFile = Annotated[
    Path | None, path_option("--tokenizer", help="Tokenizer file, if the artifact holds none.")
]
AdapterFile = Annotated[
    Path | None,
    path_option("--adapter", help="Adapter file of `fairway tune`, made with this artifact."),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.FIELD=VALUE", help="Change a setting; repeatable."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]


def say_to(as_json: bool) -> Callable[[str], None]:
    """Return the stream of progress lines: standard error if standard output has JSON."""
    return lambda text: terminal.put(text, sys.stderr if as_json else sys.stdout)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Any:
    """Return a table for `emit`, its first column to the left and numbers to the right."""
    from fairway.cli.show import plain_table

    return plain_table(title, columns, rows)


def emit(as_json: bool, value: Any, *things: Any, beside: Path | None = None) -> None:
    """Print the value as JSON, or tables and texts for people, only in the first process.

    `beside` is the file that the command wrote: if that is standard output, everything else is
    printed on standard error.
    """
    from fairway.base.progress import speaks

    if not speaks():
        return
    stream = sys.stderr if beside is not None and is_standard_output(beside) else sys.stdout
    if as_json:
        terminal.put(terminal.as_json(value), stream)
        return
    from fairway.cli.show import show

    show(*things, stream=stream)


def require_inputs(
    artifact: Path, tokenizer: Path | None, *texts: Path, adapter: Path | None = None
) -> None:
    """Raise UserError for a missing input, before the machine is measured."""
    from fairway.base.files import missing, opened
    from fairway.base.mistaken import artifact_at
    from fairway.data.sources import require_text

    opened(artifact_at(artifact), "the artifact").close()
    for name, given in (("tokenizer", tokenizer), ("adapter", adapter)):
        if given is not None and not given.exists():
            raise UserError(f"the {name} {given} {missing(given)}")
    for text in texts:
        require_text(text)


def runtime_of(overrides: list[str] | None) -> RuntimeConfig:
    """Return the machine settings among overrides; an artifact's own settings stay as they are."""
    return settings_of(overrides, ("runtime",)).runtime


def settings_of(
    overrides: list[str] | None, sections: tuple[str, ...], ttt: TttConfig | None = None
) -> Config:
    """Return the defaults, `ttt` among them, with overrides of some sections.

    UserError for any other section.
    """
    for text in overrides or []:
        if text.strip().partition(".")[0] not in sections:
            raise UserError(
                f"--set {text} changes a run, but an artifact has its own settings; for an "
                f"artifact, set only {', '.join(sections)}"
            )
    return override(Config(ttt=ttt or TttConfig()), overrides or [])
