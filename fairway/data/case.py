"""Writes capital letters as marks before small letters, so that each word has one form.

A run of ASCII letters with capitals is written in small letters after a mark. The mark is TITLE if
only the first letter is a capital, and ALL if all of several letters are. Otherwise TITLE or NEXT
comes before each capital. TITLE and ALL stand before the blank in front of their word, if there is
one. A mark in the original text is written as ESCAPE and a letter that numbers it. So every text
has its own form, which no other text has.

This is CaseOps of #1729 with two differences. There a mark stands after the blank, so that `the
House` becomes five tokens: the, a blank, a mark, and a `house` that is not the one of `the house`.
Here it becomes the, a mark, and the usual ` house`. And there may be no mark after an ESCAPE, which
would make the bytes of a token depend on more than the token before.

It works on UTF-8 and on any other bytes.
"""

import re

# U+E001 to U+E004, from the private use area of Unicode.
TITLE, ALL, NEXT, ESCAPE = MARKS = ("\ue001", "\ue002", "\ue003", "\ue004")
# Bytes of the original text that a mark represents; ESCAPE and its letter represent three bytes.
MARK_BYTES = {TITLE: 0, ALL: 0, NEXT: 0, ESCAPE: 2}

_TITLE, _ALL, _NEXT, _ESCAPE = _MARKS = tuple(mark.encode() for mark in MARKS)
_LETTERS = b"abcd"
_CAPITALS_OR_MARK = re.compile(rb" ?[a-z]*[A-Z][A-Za-z]*|\xee\x80[\x81-\x84]")
_CAPITAL = re.compile(rb"[A-Z]")
_MARKED = re.compile(
    rb"\xee\x80(?:\x84([a-d])|\x82( ?[a-z]+)|\x81( ?[a-z])|\x83([a-z])|[\x81-\x84])"
)


def marked(data: bytes) -> bytes:
    """Return a text with marks for its capital letters."""
    return _CAPITALS_OR_MARK.sub(_written, data)


def restored(data: bytes) -> bytes:
    """Return the text that marks represent. A mark without meaning is left out."""
    return _MARKED.sub(_read, data)


def _written(match: re.Match[bytes]) -> bytes:
    word = match[0]
    if word in _MARKS:
        at = _MARKS.index(word)
        return _ESCAPE + _LETTERS[at : at + 1]
    letters = word.lstrip(b" ")
    blank = word[: len(word) - len(letters)]
    if len(letters) > 1 and letters.isupper():
        return _ALL + word.lower()
    head, rest = letters[:1], _CAPITAL.sub(lambda letter: _NEXT + letter[0].lower(), letters[1:])
    return (_TITLE if head.isupper() else b"") + blank + head.lower() + rest


def _read(match: re.Match[bytes]) -> bytes:
    if match[1]:
        return _MARKS[_LETTERS.index(match[1])]
    return (match[2] or match[3] or match[4] or b"").upper()
