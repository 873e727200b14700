"""Finds the part of a text that each token represents, and the places where a text may be cut.

A token represents as many bytes as it counts in a score, so that the parts add up to the text. A
part may end inside a character: an emoji is several byte tokens. A cell is the shortest part of a
text that ends both with a token and with a complete character; combining marks stay with their
character.
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fairway.base.arrays import IntArray
from fairway.data.tokens import Ids, Tokenizer, token_bytes

# This character joins its two neighbours into one.
_JOINER = "\u200d"
# Skin colours of emoji, and letters of flags, which come in pairs.
_SKINS = range(0x1F3FB, 0x1F400)
_FLAGS = range(0x1F1E6, 0x1F200)
# Letters that represent blanks in the name of a token.
_SHOWN = str.maketrans({" ": "\u2423", "\n": "\u23ce", "\t": "\u21e5", "\r": "\u240d"})
_LONGEST_NAME = 40


@dataclass(frozen=True, slots=True)
class Cell:
    """A part of a text, and the tokens in it for each of several tokenizers."""

    text: str
    tokens: tuple[range, ...]


def token_ends(ids: Ids, tokenizer: Tokenizer) -> IntArray:
    """Return the byte of the text at which each target ids[1:] ends, for a document after BOS."""
    return np.cumsum(token_bytes(ids[1:], ids[:-1], tokenizer.table), dtype=np.int64)


def cells(text: str, sides: Sequence[Sequence[int]]) -> list[Cell]:
    """Return a text in cells, given where the tokens of each side end; together they are the text.

    Every token is in one cell; a token without bytes is in the cell of the token after it.
    """
    places = [np.asarray(ends, np.int64) for ends in sides]
    found, start, firsts = [], 0, [0] * len(places)
    for end, end_byte in _cuts(text, places):
        last = end == len(text)
        afters = [
            len(ends) if last else int(np.searchsorted(ends, end_byte)) + 1 for ends in places
        ]
        tokens = tuple(range(first, after) for first, after in zip(firsts, afters, strict=True))
        found.append(Cell(text[start:end], tokens))
        start, firsts = end, afters
    return found


def _cuts(text: str, places: Sequence[IntArray]) -> list[tuple[int, int]]:
    """Return the ends of all cells, in characters and in bytes."""
    common = set(places[0].tolist()).intersection(*(ends.tolist() for ends in places[1:]))
    found, at_byte, in_flag = [], 0, False
    for at, letter in enumerate(text):
        at_byte += len(letter.encode())
        in_flag = ord(letter) in _FLAGS and not in_flag
        following = text[at + 1 : at + 2]
        whole = not following or not _belongs(letter, following, in_flag)
        if (at_byte in common and whole) or not following:
            found.append((at + 1, at_byte))
    return found


def _belongs(letter: str, following: str, in_flag: bool) -> bool:
    """Return whether a character is displayed as one with the character before it."""
    return (
        following == _JOINER
        or letter == _JOINER
        or ord(following) in _SKINS
        or (in_flag and ord(following) in _FLAGS)
        or unicodedata.category(following) in ("Mn", "Me", "Mc")
    )


def token_name(tokenizer: Tokenizer, token: int) -> str:
    """Return a token's name for lists: its text, its bytes in hex, or its function."""
    if token == tokenizer.bos_id:
        return "end of document"
    data = tokenizer.piece_bytes[token]
    if not data:
        return f"token {token}"
    try:
        name = data.decode()
    except UnicodeDecodeError:
        return "byte " + data.hex(" ").upper()
    if not name.translate(_SHOWN).isprintable():
        return "byte " + data.hex(" ").upper()
    shown = name.translate(_SHOWN)
    return shown if len(shown) <= _LONGEST_NAME else f"{shown[: _LONGEST_NAME - 1]}\u2026"
