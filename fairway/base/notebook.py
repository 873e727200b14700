"""Tables that a notebook shows for an object: a caption and rows, without styles, for any theme."""

import html
from collections.abc import Iterable, Sequence

from fairway.base.terminal import line

_CELL = "padding: 0.15em 0.8em; text-align: {}"


def page(caption: str, *parts: str) -> str:
    """Return HTML of a caption with tables and texts below it."""
    return f"<div><p><b>{_text(caption)}</b></p>{''.join(parts)}</div>"


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """Return names and values as a table in HTML."""
    return table((), ((name, value) for name, value in pairs), numbers=False)


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], numbers: bool = True) -> str:
    """Return a table as HTML, its first column to the left, numbers to the right."""
    head = "".join(_cell("th", text, numbers and at > 0) for at, text in enumerate(heads))
    body = "".join(
        f"<tr>{''.join(_cell('td', text, numbers and at > 0) for at, text in enumerate(row))}</tr>"
        for row in rows
    )
    return (
        f"<table>{f'<thead><tr>{head}</tr></thead>' if heads else ''}<tbody>{body}</tbody></table>"
    )


def text(words: str) -> str:
    """Return a paragraph of text as HTML."""
    return f"<p>{_text(words)}</p>"


def _cell(tag: str, words: str, right: bool) -> str:
    style = _CELL.format("right" if right else "left")
    return f'<{tag} style="{style}">{_text(words)}</{tag}>'


def _text(words: str) -> str:
    return html.escape(line(words))
