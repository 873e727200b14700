"""Writes capital letters as marks before small letters, so that each word has one form.

A run of ASCII letters with capitals is written in small letters after a mark. The mark is TITLE if
only the first letter is a capital, and ALL if all of several letters are. Otherwise TITLE or NEXT
comes before each capital. TITLE and ALL stand before the blank in front of their word, if there is
one. A mark in the original text is written as ESCAPE and a letter that numbers it. So every text
has its own form, which no other text has.

The first word of a sentence has no TITLE. If it begins with a small letter, SMALL stands after the
sign that ends the sentence before. Folders and artifacts from before this rule have no SMALL; they
are read and written without it (`sentences`). Words that a tokenizer has as pieces with capitals
keep them and have no marks (`kept`).

This is CaseOps of #1729 with four differences. There a mark stands after the blank, so that `the
House` becomes five tokens: the, a blank, a mark, and a `house` that is not the one of `the house`.
Here it becomes the, a mark, and the usual ` house`. There the first words of sentences and frequent
words have marks. And there may be no mark after an ESCAPE, which would make the bytes of a token
depend on more than the token before.

It works on UTF-8 and on any other bytes.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Set

# U+E001 to U+E005, from the private use area of Unicode.
TITLE, ALL, NEXT, ESCAPE, SMALL = MARKS = ("\ue001", "\ue002", "\ue003", "\ue004", "\ue005")
# Bytes of the original text that a mark represents; ESCAPE and its letter represent three bytes.
MARK_BYTES = {TITLE: 0, ALL: 0, NEXT: 0, ESCAPE: 2, SMALL: 0}

_TITLE, _ALL, _NEXT, _ESCAPE, _SMALL = _MARKS = tuple(mark.encode() for mark in MARKS)
_LETTERS = b"abcde"
CAPITAL = re.compile(rb"[A-Z]")
# The end of a sentence, and what stands before the next word. U+2018 to U+201D are quotes.
_NEW_SENTENCE = rb"([.!?](?:[\"')\]]|\xe2\x80[\x99\x9d])*)(\s+(?:[\"'(\[]|\xe2\x80[\x98\x9c])*)"


class Capitals:
    """A way to write capital letters: with the rule for the first words of sentences or without.

    `kept` are words, with the blank before them, that keep their capitals and have no marks.
    """

    def __init__(self, sentences: bool, kept: Set[bytes] = frozenset()) -> None:
        self.marks = MARKS if sentences else MARKS[:4]
        self.kept = kept
        count = len(self.marks)
        mark = rb"\xee\x80[\x81-\x8%d]" % count
        escaped = rb"\x84([a-%b])" % _LETTERS[count - 1 : count]
        word = rb"( ?)(?P<word>[a-z]*[A-Z][A-Za-z]*)|(%b)" % mark
        read = rb"\xee\x80(?:%b|\x82( ?[a-z]+)|\x81( ?[a-z])|\x83([a-z]))|%b" % (escaped, mark)
        # A pattern that never matches keeps the numbers of the groups.
        first = _NEW_SENTENCE if sentences else rb"(?!)()()"
        self._written = re.compile(rb"%b([A-Za-z]+)|%b" % (first, word))
        self._read = re.compile(rb"%b([a-z])|%b" % (first, read))

    def marked(self, data: bytes) -> bytes:
        """Return a text with marks for its capital letters."""
        return self._written.sub(self._mark, data)

    def restored(self, data: bytes) -> bytes:
        """Return the text that marks represent. A mark without meaning is left out."""
        return self._read.sub(_capitalised, data)

    def frequent(self, texts: Iterable[str], vocab_size: int) -> frozenset[bytes]:
        """Return the words that are worth a piece of their own with their capitals.

        A word inside a sentence must occur four times as often as the rarest piece. By Zipf's law,
        at four characters a piece, that occurs `characters / (4 V ln V)` times for V pieces.
        """
        counts: Counter[bytes] = Counter()
        characters = 0
        for text in texts:
            characters += len(text)
            counts.update(m[0] for m in self._written.finditer(text.encode()) if m["word"])
        least = characters / (vocab_size * math.log(vocab_size))
        return frozenset(word for word, count in counts.items() if count >= least)

    def _mark(self, match: re.Match[bytes]) -> bytes:
        end, between, first, blank, word, mark = match.groups()
        if mark:
            at = _MARKS.index(mark)
            return _ESCAPE + _LETTERS[at : at + 1]
        if word:
            return match[0] if match[0] in self.kept else _marked_word(blank, word)
        gap = between.removesuffix(b" ")
        blank = between[len(gap) :]
        if blank + first in self.kept:
            return match[0]
        if first[:1].islower():
            return end + _SMALL + between + _marked_word(b"", first)
        if len(first) > 1 and first.isupper():
            return end + gap + _marked_word(blank, first)
        return end + between + _marked_word(b"", first).removeprefix(_TITLE)


def _marked_word(blank: bytes, word: bytes) -> bytes:
    """Return a word, with the blank before it, after its marks."""
    if len(word) > 1 and word.isupper():
        return _ALL + blank + word.lower()
    rest = CAPITAL.sub(lambda letter: _NEXT + letter[0].lower(), word[1:])
    return (_TITLE if word[:1].isupper() else b"") + blank + word[:1].lower() + rest


def _capitalised(match: re.Match[bytes]) -> bytes:
    end, between, first, number, *capitals = match.groups(b"")
    if end:
        return end + between + first.upper()
    if number:
        return _MARKS[_LETTERS.index(number)]
    return b"".join(capitals).upper()
