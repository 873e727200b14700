"""Progress bars on a terminal and in a notebook, and no output elsewhere."""

import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from fairway.base.terminal import line, put


class Advance(Protocol):
    """Move a bar by `count`, with a new description if one is given."""

    def __call__(self, count: int, description: str | None = None) -> None:
        """Advance."""


def speaks() -> bool:
    """Return whether this process is the one that prints: rank 0, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def notice(text: str) -> None:
    """Print on standard error that something continues in another way than requested."""
    if speaks():
        put(text, sys.stderr)


@contextmanager
def progress(description: str, total: int) -> Iterator[Advance]:
    """Yield `advance`, which moves a bar with the remaining time.

    The bar is on a terminal's standard error or, if ipywidgets is installed, in a notebook;
    elsewhere there is none.
    """
    console = Console(stderr=True)
    shown = (console.is_terminal and not console.is_dumb_terminal) or (
        console.is_jupyter and importlib.util.find_spec("ipywidgets") is not None
    )
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=16),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(
        *columns, console=console, transient=True, disable=not (shown and speaks())
    ) as bars:
        task = bars.add_task(line(description), total=total)

        def advance(count: int, description: str | None = None) -> None:
            shown = None if description is None else line(description)
            bars.update(task, advance=count, description=shown)

        yield advance
