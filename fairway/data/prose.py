"""Extracts prose from documentation: the paragraphs of a docstring that are English sentences.

Docstrings mix sentences with markup (reStructuredText, numpydoc, Google style, Markdown). All else
is removed: doctests, code and other literal blocks, tables, titles, names and types of parameters,
and references. The sentences are joined to one line per paragraph, without inline markup.
"""

import inspect
import re
from collections.abc import Iterable, Iterator

_KEPT_DIRECTIVES = "note|warning|important|tip|hint|caution|attention|admonition|topic"
_DIRECTIVE = re.compile(r"\.\. ")
_ADMONITION = re.compile(rf"\.\. (?:{_KEPT_DIRECTIVES}):: *")
_FENCE = re.compile(r"```|~~~")
_UNDERLINE = re.compile(r"([=\-~^*#\"'`.+_])\1{2,}$")
_TABLE = re.compile(r"[|+]|.*(?:\S {3,}\S|\s\|\s|--\+|==\s+==)")
_BULLET = re.compile(r"(?:[-*+\u2022]|\(?(?:\d{1,2}|[a-zA-Z])[.)]|#\.) +")
_FIELD = re.compile(r":[a-z]+(?: [^:`]*)?: *|@\w+ +")
_PARAMETER = re.compile(r"\*{0,2}`{0,2}[\w.]+`{0,2} ?(?:\([^()]*(?:\([^()]*\)[^()]*)*\))?:\s+")
_NAMED_TYPE = re.compile(r"\*{0,2}[`\w][\w.,*`\\/ ]* : |\*{0,2}[\w.]+ ?:$")

_MARKUP = re.compile(r"[`*\]]")
_INLINE = [
    (re.compile(r"(?::[\w:.+-]+:)?``?([^`<]*[^`<\s])\s*<[^`>]*>``?_{0,2}"), r"\1"),
    (re.compile(r":[\w:.+-]+:`[~!]?\.?([^`]*)`"), r"\1"),
    (re.compile(r"``([^`]+)``"), r"\1"),
    (re.compile(r"`~?\.?([^`]+)`_{0,2}"), r"\1"),
    (re.compile(r" ?\[[\w#*]+\]_"), ""),
    (re.compile(r"\[([^\]\[]+)\]\([^()\s]+\)"), r"\1"),
    (re.compile(r"(?<![\w*])\*\*(\w(?:[^*]*\S)?)\*\*(?![\w*])"), r"\1"),
    (re.compile(r"(?<![\w*])\*(\w(?:[^*]*\S)?)\*(?![\w*])"), r"\1"),
]

_STOP_TEXT = """
a about all also an and any are as at be been before both but by can does each either else even for
from has have how if in instead into is it its just may more most must no not of on once one only or
other our same should since so some such than that the their them then there these they this those
through to too two under until up used using was we were what when where whether which while who
will with without would you your
"""
_STOP_WORDS = frozenset(_STOP_TEXT.split())
_MIN_WORDS, _MIN_CHARS = 8, 45
_FOREIGN = re.compile(r"://|\\|`|[^\x20-\x7e\u00a0-\u024f\u2010-\u2026]|\.\. ")
_END = re.compile(r"[.!?:][\"')\]]*$")
_START = re.compile(r"[\"'(]?[A-Z0-9]")
_CODE = re.compile(r"[_=<>{}\[\]\\|@#$^&*~/+`%]|\w\.\w|\(\)|[a-z][A-Z]|::")
_PLAIN = re.compile(r"[A-Za-z ]")


def prose(text: str) -> Iterator[str]:
    """Yield the paragraphs of a docstring that are English prose, each on one line."""
    for lines in _paragraphs(_outside_code(inspect.cleandoc(text).split("\n"))):
        joined = " ".join(lines)
        # Nine runs in ten are titles and labels; cleaning them first would take twice as long.
        if len(joined) >= _MIN_CHARS and is_prose(paragraph := _plain(joined)):
            yield paragraph


def is_prose(text: str) -> bool:
    """Return whether a line of text is English sentences and not code or a label.

    Tests length, first and last character, and the shares of letters, of stop words, and of words
    that look like code. The limits were set by reading what each accepts and rejects.
    """
    words = text.split()
    if len(words) < _MIN_WORDS or len(text) < _MIN_CHARS or _FOREIGN.search(text):
        return False
    if not _START.match(text) or not _END.search(text):
        return False
    stops = sum(word.strip(".,;:()\"'").lower() in _STOP_WORDS for word in words)
    code = sum(_CODE.search(word) is not None for word in words)
    plain = len(_PLAIN.findall(text))
    return stops >= 0.25 * len(words) and code <= 0.12 * len(words) and plain >= 0.92 * len(text)


def _outside_code(lines: Iterable[str]) -> Iterator[str]:
    """Yield the lines that are not in doctests, literal blocks, directives or fences."""
    deeper_than: int | None = None
    doctest = fenced = False
    for line in lines:
        bare = line.strip()
        indent = len(line) - len(line.lstrip())
        if _FENCE.match(bare):
            fenced = not fenced
            yield ""
            continue
        doctest = bool(bare) and (doctest or bare.startswith(">>>"))
        if deeper_than is not None and bare and indent <= deeper_than:
            deeper_than = None
        if fenced or doctest or deeper_than is not None:
            yield ""
            continue
        if admonition := _ADMONITION.match(bare):
            yield ""
            yield " " * (indent + 3) + bare[admonition.end() :]
        elif _DIRECTIVE.match(bare) or bare == "..":
            deeper_than = indent
            yield ""
        else:
            yield line
            if bare.endswith("::"):
                deeper_than = indent


def _paragraphs(lines: Iterable[str]) -> Iterator[list[str]]:
    """Yield runs of lines that belong together, without markers, tables and titles."""
    current: list[str] = []
    indent = 0
    for line in lines:
        bare = line.strip()
        depth = len(line) - len(line.lstrip())
        marker = _BULLET.match(bare) or _FIELD.match(bare) or _PARAMETER.match(bare)
        if _UNDERLINE.match(bare) or _TABLE.match(bare):
            current = []
        elif not bare or _NAMED_TYPE.match(bare):
            yield current
            current = []
        elif marker:
            yield current
            current, indent = [bare[marker.end() :]], -1
        elif not current or (depth != indent and indent >= 0):
            yield current
            current, indent = [bare], depth
        else:
            current.append(bare)
            indent = depth
    yield current


def _plain(text: str) -> str:
    """Return text without inline markup; a final '::' becomes a colon."""
    if _MARKUP.search(text):
        for pattern, replacement in _INLINE:
            text = pattern.sub(replacement, text)
    return re.sub(r"::$", ":", " ".join(text.split()))
