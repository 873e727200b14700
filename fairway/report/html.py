"""The small pieces of HTML that pages consist of; all foreign text is escaped here."""

import html
import re
from collections.abc import Iterable, Sequence
from typing import NewType

from fairway.base.units import duration, megabytes

# Text that is safe inside a page. Code of this package wraps its own markup in it.
Html = NewType("Html", str)

DASH = Html("&ndash;")
# The beginning of every page.
HEAD = '<!DOCTYPE html>\n<html lang="en-GB">\n<head>\n<meta charset="utf-8">\n'
# A page may fetch and run nothing, whatever text of a model or a name it contains.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"

# Characters that HTML does not allow, or that have no encoding; byte-level models can write them.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def printable(value: object) -> str:
    """Return any value as text; characters that a page cannot contain become U+FFFD."""
    return _UNPRINTABLE.sub("\ufffd", str(value))


def esc(value: object) -> Html:
    """Return any value as text of a page, without any markup."""
    return Html(html.escape(printable(value)))


def num(value: float | None, spec: str = ",", unit: str = "") -> Html:
    """Return a rounded number that carries its exact value, as in report.json; a dash for None."""
    if value is None:
        return DASH
    text = f"{value:{spec}}{unit}"
    return shown(value, text.replace("-", "\N{MINUS SIGN}", 1) if value < 0 else text)


def shown(value: float, text: str) -> Html:
    """Return a number with a given text, such as 2.81 MB; it carries its exact value."""
    return Html(f'<data value="{value!r}">{esc(text)}</data>')


def megabytes_of(count: int) -> Html:
    """Return a byte count in decimal megabytes, or in kilobytes below one megabyte."""
    return shown(count, megabytes(count) if count >= 1_000_000 else f"{count / 1e3:.1f} kB")


def time_of(seconds: float) -> Html:
    """Return a duration in words."""
    return shown(seconds, duration(seconds))


def join(pieces: Iterable[Html], between: str = "") -> Html:
    """Return pieces one after another."""
    return Html(between.join(pieces))


def note(text: Html) -> Html:
    """Return a paragraph of small print."""
    return Html(f'<p class="note">{text}</p>')


def code(digest: str | None) -> Html:
    """Return a digest in a fixed-width font; a dash for None."""
    return DASH if digest is None else Html(f"<code>{esc(digest)}</code>")


def raw(text: str) -> Html:
    """Return foreign text, such as a path or a line of a log, which may break anywhere."""
    return Html(f'<span class="raw">{esc(text)}</span>') if text else Html("")


def strong(name: str) -> Html:
    """Return a name in bold; the whole row of its table becomes bold."""
    return Html(f'<span class="key">{esc(name)}</span>')


def table(heads: Sequence[str], rows: Iterable[Sequence[Html]], total: Sequence[Html] = ()) -> Html:
    """Return a table whose first column names the row and whose other columns are numbers."""
    head = "".join(f'<th scope="col">{esc(text)}</th>' for text in heads)
    body = "".join(_row(row) for row in rows)
    foot = f"<tfoot>{_row(total)}</tfoot>" if total else ""
    return Html(
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody>{foot}</table></div>"
    )


def _row(cells: Sequence[Html]) -> str:
    numbers = "".join(f"<td>{cell}</td>" for cell in cells[1:])
    return f'<tr><th scope="row">{cells[0]}</th>{numbers}</tr>'


def pairs(items: Iterable[tuple[str, Html]], kind: str) -> Html:
    """Return names and values as a description list; `kind` is a class of the style sheet."""
    inner = "".join(f"<div><dt>{esc(name)}</dt><dd>{value}</dd></div>" for name, value in items)
    return Html(f'<dl class="{kind}">{inner}</dl>')


def meter(percent: float) -> Html:
    """Return a thin bar filled to a percentage."""
    width = min(100.0, max(0.0, percent))
    return Html(f'<span class="meter"><i style="width:{width:.2f}%"></i></span>')


def figure(wide_svg: str, narrow_svg: str, label: str, caption: Html) -> Html:
    """Return a figure in two drawings, for wide pages and for phones; the style sheet shows one."""
    drawings = "".join(
        f'<div class="{kind}" role="img" aria-label="{esc(label)}">{svg}</div>'
        for kind, svg in (("wide", wide_svg), ("narrow", narrow_svg))
    )
    return Html(f"<figure>{drawings}<figcaption>{caption}</figcaption></figure>")


def document(title: str, css: str, body: str, policy: str = "") -> str:
    """Return a whole page; `policy` lists what it may do in addition."""
    return (
        f'{HEAD}<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{esc(_POLICY + policy)}">\n'
        f"<title>{esc(title)}</title>\n<style>{css}</style>\n</head>\n"
        f"<body>\n{body}</body>\n</html>\n"
    )


def section(title: str, *pieces: Html) -> Html:
    """Return a section with its heading, or nothing if it is empty."""
    inner = "\n".join(piece for piece in pieces if piece)
    return Html(f"<section>\n<h2>{esc(title)}</h2>\n{inner}\n</section>\n" if inner else "")
