"""Texts for the probes: drawn at random, or made of the pieces of a natural one.

A scorer may be honest only on random text. Therefore some texts resemble the audited one: its
pieces in another order, its pairs of tokens, or its lengths of documents.
"""

from dataclasses import dataclass

import numpy as np

from fairway.base.arrays import FloatArray, IntArray

# The share of draws from pairs of the text. The other draws keep every token possible.
_PAIRS, _SEEN = 0.9, 0.9
_LONGEST_PIECE = 24


def marks(text: IntArray, bos_id: int, length: int) -> IntArray:
    """Return the places of BOS in a text of another length with documents of the same lengths."""
    return np.flatnonzero(np.resize(text, length) == bos_id)


def with_marks(drawn: IntArray, places: IntArray, bos_id: int) -> IntArray:
    """Return drawn tokens with BOS at some places."""
    found = drawn.copy()
    found[places] = bos_id
    return found


def of_few_words(
    text: IntArray, words: IntArray, bos_id: int, draw: np.random.Generator
) -> IntArray:
    """Return a text of three words in random order, so that learned counts are soon used."""
    drawn = draw.choice(draw.choice(words, min(3, len(words)), False), len(text))
    return with_marks(drawn, np.flatnonzero(text == bos_id), bos_id)


def of_habits(text: IntArray, words: IntArray, bos_id: int, draw: np.random.Generator) -> IntArray:
    """Return a text of three repeated words with a few others, so that counts become confident."""
    drawn = np.resize(draw.choice(words, min(3, len(words)), False), len(text))
    odd = draw.random(len(drawn)) < 0.1
    drawn = np.where(odd, draw.choice(words, len(drawn)), drawn)
    return with_marks(drawn, np.flatnonzero(text == bos_id), bos_id)


def of_pieces(text: IntArray, bos_id: int, length: int, draw: np.random.Generator) -> IntArray:
    """Return a natural but new text: pieces of a text in random order.

    It begins like the text. Pieces keep their BOS, so that documents stay natural.
    """
    found = [text[:1]]
    total = 1
    while total < length:
        size = int(draw.integers(4, _LONGEST_PIECE + 1))
        first = int(draw.integers(1, max(2, len(text) - size)))
        piece = text[first : first + size]
        if found[-1][-1] == bos_id and piece[0] == bos_id:
            piece = piece[1:]
        found.append(piece)
        total += len(piece)
        if not len(piece):
            found.pop()
    return np.concatenate(found)[:length]


def natural_words(
    text: IntArray, bos_id: int, count: int, before: int, draw: np.random.Generator
) -> IntArray:
    """Return words that can follow a token naturally: a piece of the text, without BOS."""
    words = text[text != bos_id]
    if not len(words):
        return np.full(count, before)
    after = np.flatnonzero(words[:-1] == before) + 1
    first = int(draw.choice(after)) if len(after) else int(draw.integers(len(words)))
    return np.resize(np.roll(words, -first), count)


@dataclass(frozen=True, slots=True, eq=False)
class Pairs:
    """Draws each token from those that followed the token before in a text, with fair costs."""

    followers: dict[int, IntArray]
    seen: IntArray
    share: FloatArray
    words: IntArray
    bos_id: int

    @classmethod
    def of(cls, text: IntArray, bos_id: int, vocab_size: int) -> "Pairs":
        """Return the pairs of a text; BOS may only be the first of a pair."""
        pairs: dict[int, list[int]] = {}
        for before, token in zip(text[:-1].tolist(), text[1:].tolist(), strict=True):
            if token != bos_id:
                pairs.setdefault(before, []).append(token)
        words = np.setdiff1d(np.arange(vocab_size), [bos_id])
        # A text of nothing but BOS has no words; use the vocabulary.
        seen = text[text != bos_id] if (text != bos_id).any() else words
        counts = np.bincount(seen, minlength=vocab_size)
        share = (1 - _SEEN) / len(words) + _SEEN * counts / len(seen)
        return cls({b: np.array(t) for b, t in pairs.items()}, seen, share, words, bos_id)

    def draw(self, start: IntArray, draw: np.random.Generator) -> tuple[IntArray, FloatArray]:
        """Return a text with BOS where `start` has it, and the fair cost of its other tokens."""
        found, stakes = start.copy(), np.full(len(start), np.nan)
        for t in range(1, len(found)):
            if found[t] == self.bos_id:
                continue
            after = self.followers.get(int(found[t - 1]))
            if after is not None and draw.random() < _PAIRS:
                found[t] = draw.choice(after)
            elif draw.random() < _SEEN:
                found[t] = draw.choice(self.seen)
            else:
                found[t] = draw.choice(self.words)
            stakes[t] = -np.log(self._probability(int(found[t - 1]), int(found[t])))
        return found, stakes

    def _probability(self, before: int, token: int) -> float:
        after = self.followers.get(before)
        if after is None:
            return float(self.share[token])
        pair = float((after == token).mean())
        return _PAIRS * pair + (1 - _PAIRS) * float(self.share[token])


def in_order(index: IntArray, ids: IntArray, bos_id: int) -> bool:
    """Return whether every document is scored from left to right; documents may be in any order.

    The fair cost of a token drawn by pairs then depends only on the token before it.
    """
    rank = np.full(len(ids), -1)
    rank[index] = np.arange(len(index))
    inside = np.flatnonzero(ids[2:] != bos_id) + 2
    return bool((rank[inside] > rank[inside - 1]).all())
