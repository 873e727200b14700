"""Divides texts into units, and units into runs by which two texts are compared.

A unit is a word in scripts with blanks between words, a character in other scripts (Han, kana,
Thai, Lao, Khmer, Burmese, Tibetan and others), or an emoji. A run, or shingle, is the shortest
sequence from a unit on with a weight of at least 39; a word weighs 3 and a character 2. That is 13
words, the usual length in contamination checks since GPT-3 (Brown et al. 2020, appendix C), or 20
characters, which in Chinese are about as many words. In a word of more than 40 letters, each
further letter is a unit, too: text without blanks, such as base64 or a genome, would otherwise be
one word that any edit changes.

Differences that do not change the text are removed first: forms of Unicode (NFKD), case,
punctuation, symbols, blanks of all kinds, accents and vowel points, soft hyphens, and the stroke
that stretches Arabic words. A character without width may represent a blank or nothing, so a text
with such characters is compared both ways.

Runs are compared by hashes of 64 bits: equal runs always have equal hashes, so nothing is missed.
"""

import functools
import hashlib
import unicodedata
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fairway.base.native import compiled

SHINGLE_WORDS, SHINGLE_CHARS = 13, 20
WORD_WEIGHT, CHAR_WEIGHT = 3, 2
WORD_LETTERS = 40
SHINGLE_WEIGHT = SHINGLE_WORDS * WORD_WEIGHT

Hashes = npt.NDArray[np.uint64]
Codes = npt.NDArray[np.uint32]
Classes = npt.NDArray[np.uint8]
Weights = npt.NDArray[np.int64]
Slots = npt.NDArray[np.int64]
# To a type checker NumPy's numbers are not `int`; compiled code has no such difference.
uint64: Any = np.uint64

_BREAK, _WORD, _CHAR, _MARK, _WIDTHLESS, _NOTHING = range(6)
_SOFT_HYPHEN, _TATWEEL, _EMPTY_BRAILLE = 0xAD, 0x640, 0x2800
# Hangul letters that are invisible.
_FILLERS = [0x115F, 0x1160]
_FIRST_EMOJI = 0x2600
# Blocks of scripts without blanks between words, first and last code point.
_UNSPACED = (
    (0x0E00, 0x109F),  # Thai, Lao, Tibetan, Burmese
    (0x1780, 0x17FF),  # Khmer
    (0x1950, 0x19FF),  # Tai Le, New Tai Lue, Khmer symbols
    (0x1A20, 0x1AAF),  # Tai Tham
    (0x1B00, 0x1B7F),  # Balinese
    (0x2E80, 0x2FDF),  # Han radicals
    (0x3005, 0x3007),  # Han iteration marks and zero
    (0x3021, 0x3029),  # Han numerals
    (0x3031, 0x312F),  # kana, Bopomofo
    (0x31A0, 0x31FF),  # more of both
    (0x3400, 0x4DBF),  # Han
    (0x4E00, 0xA4CF),  # Han, Yi
    (0xA980, 0xA9FF),  # Javanese, Burmese
    (0xAA60, 0xAADF),  # Burmese, Tai Viet
    (0xF900, 0xFAFF),  # Han
    (0x12000, 0x1345F),  # cuneiform, hieroglyphs
    (0x16FE0, 0x18DFF),  # Tangut, Khitan
    (0x1AFF0, 0x1B2FF),  # kana, Nushu
    (0x20000, 0x3FFFF),  # Han
)
_SEED = uint64(0xCBF29CE484222325)
_PRIME = uint64(0x100000001B3)
_BASE = uint64(0x9E3779B97F4A7C15)
_MIX_A, _MIX_B = uint64(0xFF51AFD7ED558CCD), uint64(0xC4CEB9FE1A85EC53)
_HALF = uint64(33)


@dataclass(frozen=True)
class Units:
    """The units of a text (N,): hashes without marks, hashes with them, and weights."""

    bare: Hashes
    full: Hashes
    weights: Weights

    @functools.cached_property
    def weight(self) -> int:
        """The total weight of all units."""
        return int(self.weights.sum())

    def key(self) -> bytes:
        """Return 16 bytes that are equal for texts with the same units, including accents."""
        return hashlib.blake2b(self.full.tobytes(), digest_size=16).digest()

    def runs(self, weight: int) -> Hashes:
        """Return the hash of the shortest run of at least `weight` from each unit on.

        If all units together weigh less, they are one run.
        """
        with np.errstate(over="ignore"):
            return _runs(self.bare, self.weights, min(weight, self.weight))


def views(text: str) -> list[Units]:
    """Return the units of a text: one reading, or two if it has characters without width."""
    folded = text.lower() if text.isascii() else unicodedata.normalize("NFKD", text).casefold()
    codes = np.frombuffer(folded.encode("utf-32-le"), np.uint32)
    classes = _classes()
    whole, has_widthless = _read(codes, classes, False)
    if not len(whole.bare):
        # A text of symbols alone, such as a drawing of stars: each counts as a character.
        classes = _sign_classes()
        whole, has_widthless = _read(codes, classes, False)
    return [whole, _read(codes, classes, True)[0]] if has_widthless else [whole]


def _read(codes: Codes, classes: Classes, breaks: bool) -> tuple[Units, bool]:
    bare, full = np.empty(len(codes), np.uint64), np.empty(len(codes), np.uint64)
    weights = np.empty(len(codes), np.int64)
    with np.errstate(over="ignore"):
        count, has_widthless = _units(codes, classes, breaks, bare, full, weights)
    return Units(bare[:count], full[:count], weights[:count]), has_widthless


# ---------------------------------------------------------------------------------------------
# Classes of characters


@functools.cache
def _classes() -> Classes:
    """Return the class of every code point."""
    classes = np.full(0x110000, _WORD, np.uint8)
    for first, last in _UNSPACED:
        classes[first : last + 1] = _CHAR
    for code, kind in enumerate(_categories()):
        if kind[0] in "PSZ" or kind == "Cc":
            classes[code] = _CHAR if kind == "So" and code >= _FIRST_EMOJI else _BREAK
        elif kind in ("Mn", "Me"):
            classes[code] = _MARK
        elif kind == "Cf":
            classes[code] = _WIDTHLESS
    classes[[_SOFT_HYPHEN, _TATWEEL]] = _NOTHING
    classes[_FILLERS] = _WIDTHLESS
    classes[_EMPTY_BRAILLE] = _BREAK
    return classes


@functools.cache
def _sign_classes() -> Classes:
    """Return the classes for texts of symbols alone: all but blanks are characters."""
    classes = _classes().copy()
    blank = [kind[0] == "Z" or kind == "Cc" for kind in _categories()]
    classes[(classes == _BREAK) & ~np.array(blank)] = _CHAR
    return classes


@functools.cache
def _categories() -> list[str]:
    return [unicodedata.category(chr(code)) for code in range(0x110000)]


# ---------------------------------------------------------------------------------------------
# Compiled


@compiled
def _mixed(value: Any) -> Any:
    value = (value ^ (value >> _HALF)) * _MIX_A
    value = (value ^ (value >> _HALF)) * _MIX_B
    return value ^ (value >> _HALF)


@compiled
def _units(
    codes: Codes, classes: Classes, breaks: bool, bare: Hashes, full: Hashes, weights: Weights
) -> tuple[int, bool]:
    """Write the units of some code points; return their number and whether any has no width."""
    count = letters = 0
    inside = has_widthless = False
    word, marked = _SEED, _SEED
    # One index more than the length, to end the last word.
    for place in range(len(codes) + 1):
        code, kind = _SEED, _BREAK
        if place < len(codes):
            code, kind = uint64(codes[place]), classes[codes[place]]
        if kind == _WIDTHLESS:
            has_widthless = True
            kind = _BREAK if breaks else _NOTHING
        letters = letters + 1 if kind == _WORD else 0 if kind in (_BREAK, _CHAR) else letters
        if letters > WORD_LETTERS and kind == _WORD:
            kind = _CHAR
        if kind == _WORD:
            word, marked, inside = (word ^ code) * _PRIME, (marked ^ code) * _PRIME, True
        elif kind == _MARK and inside:
            marked = (marked ^ code) * _PRIME
        elif kind == _MARK and count:
            full[count - 1] = (full[count - 1] ^ code) * _PRIME
        elif kind in (_BREAK, _CHAR):
            if inside:
                bare[count], full[count], weights[count] = _mixed(word), _mixed(marked), WORD_WEIGHT
                word, marked, inside = _SEED, _SEED, False
                count += 1
            if kind == _CHAR:
                bare[count] = full[count] = _mixed((_SEED ^ code) * _PRIME)
                weights[count] = CHAR_WEIGHT
                count += 1
    return count, has_widthless


@compiled
def _runs(units: Hashes, weights: Weights, least: int) -> Hashes:
    """Return a hash of each run: a polynomial modulo 2^64 of mixed values."""
    powers = np.ones(least // CHAR_WEIGHT + 1, np.uint64)
    for n in range(1, len(powers)):
        powers[n] = powers[n - 1] * _BASE
    found = np.empty(len(units), np.uint64)
    value = uint64(0)
    first, weight, count = 0, 0, 0
    for last in range(len(units)):
        value = value * _BASE + units[last]
        weight += weights[last]
        while weight >= least:
            found[count] = _mixed(value)
            count += 1
            value -= units[first] * powers[last - first]
            weight -= weights[first]
            first += 1
    return found[:count]


@compiled
def index_of(keys: Hashes, slots: Slots) -> None:
    """Fill a table of -1, whose length is a power of two, with the indices of distinct hashes."""
    mask = uint64(len(slots) - 1)
    for place in range(len(keys)):
        slot = keys[place] & mask
        while slots[slot] >= 0:
            slot = (slot + uint64(1)) & mask
        slots[slot] = place


@compiled
def look_up(keys: Hashes, slots: Slots, wanted: Hashes) -> Slots:
    """Return the indices in `keys` of those wanted hashes that are there, in order."""
    mask = uint64(len(slots) - 1)
    found = np.empty(len(wanted), np.int64)
    count = 0
    for place in range(len(wanted)):
        slot = wanted[place] & mask
        while slots[slot] >= 0:
            if keys[slots[slot]] == wanted[place]:
                found[count] = slots[slot]
                count += 1
                break
            slot = (slot + uint64(1)) & mask
    return found[:count]
