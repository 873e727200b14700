"""The token tilt: after a long run of tokens that occurred before, its earlier follower becomes
likelier.

The hint h is the commonest follower of the longest known run of 16, 14, 12, 10 or 8 tokens, if it
was seen often enough and followed mostly by h. The model's distribution becomes p(t) exp(beta [t =
h]) over its sum, beta = 2 times that share: a distribution for every beta and every h that does not
depend on the outcome. Counts grow with every token after its cost is on record. Algorithms.md 5.4;
the experts for words and word beginnings of its pull request read the target's class and are not
built.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fairway.base.arrays import FloatArray, IntArray, Zeros
from fairway.base.native import compiled, int64
from fairway.score.experts.mixing import Hints

LENGTHS = (16, 14, 12, 10, 8)
_LONGEST = LENGTHS[0]
# The number of places tried before a run is dropped.
_PROBES = 16


class Runs(NamedTuple):
    """Runs of tokens and what followed them, in places found by hash.

    keys: int64[size], 0 is free; counts: int32[size, 3], the run, its commonest follower, and
    that one's. pairs, pair_counts: the same for runs with one follower. recent: int64[17], the last
    tokens, newest first, and how many there are. factors: int64[16], of the hash.
    """

    keys: IntArray
    counts: NDArray[np.int32]
    pairs: IntArray
    pair_counts: NDArray[np.int32]
    recent: IntArray
    factors: IntArray


def runs(tokens: int, bits: int, zeros: Zeros) -> Runs:
    """Return empty tables of up to 2^bits runs and as many pairs, for a text of this many tokens.

    A short text has fewer: sixteen places for each of its runs, so that each finds one.
    """
    size = 1 << min(bits, (16 * len(LENGTHS) * tokens).bit_length())
    factors = np.random.default_rng(0).integers(1 << 42, 1 << 44, _LONGEST) | 1
    return Runs(
        zeros(size, np.int64),
        zeros((size, 3), np.int32),
        zeros(size, np.int64),
        zeros(size, np.int32),
        np.zeros(_LONGEST + 1, np.int64),
        factors,
    )


@compiled
def _place(keys: IntArray, key: int) -> int:
    """Return the place of a key, or a free place for it; -1 if there is neither."""
    last = keys.size - 1
    at = (key ^ (key >> 23)) & last
    for _ in range(_PROBES):
        if keys[at] == key or keys[at] == 0:
            return at
        at = (at + 1) & last
    return -1


@compiled
def _key(r: Runs, length: int) -> int:
    """Return the hash of the last tokens, never 0."""
    key = length
    for n in range(length):
        key ^= (r.recent[n] + 1) * r.factors[n]
    return key | (1 << 61)


@compiled
def _hint(r: Runs) -> tuple[int, float]:
    """Return the token to expect next and its share, or (-1, 0)."""
    for length in LENGTHS:
        if length > r.recent[_LONGEST]:
            continue
        at = _place(r.keys, _key(r, length))
        if at < 0 or r.keys[at] == 0:
            continue
        count, token, best = r.counts[at, 0], r.counts[at, 1], r.counts[at, 2]
        least = 3 if length <= 10 else 2
        share = 0.5 if length >= 14 else (0.6 if length >= 11 else 0.7)
        if count >= least and best >= share * count:
            return int64(token), best / count
    return -1, 0.0


@compiled
def _learn(r: Runs, token: int) -> None:
    """Count a token after the runs before it, then add it to the last tokens."""
    for length in LENGTHS:
        if length > r.recent[_LONGEST]:
            continue
        key = _key(r, length)
        at = _place(r.keys, key)
        pair = (key ^ ((token + 1) * 0x2545F4914F6)) & 0x3FFFFFFFFFFFFFFF | (1 << 61)
        pair_at = _place(r.pairs, pair)
        if at < 0 or pair_at < 0:
            continue
        r.keys[at], r.pairs[pair_at] = key, pair
        r.counts[at, 0] += 1
        r.pair_counts[pair_at] += 1
        if r.pair_counts[pair_at] > r.counts[at, 2]:
            r.counts[at, 1], r.counts[at, 2] = token, r.pair_counts[pair_at]
    for n in range(_LONGEST - 1, 0, -1):
        r.recent[n] = r.recent[n - 1]
    r.recent[0] = token
    r.recent[_LONGEST] = min(r.recent[_LONGEST] + 1, _LONGEST)


@compiled
def _read(r: Runs, tokens: IntArray, beta: float, hints: IntArray, gains: FloatArray) -> None:
    """Write the hint before every token, and learn the token."""
    for n in range(tokens.size):
        hints[n], share = _hint(r)
        gains[n] = math.exp(beta * share) - 1.0
        _learn(r, tokens[n])


class Tilt:
    """The hints along a text: exp(beta) at full confidence, and tables as `runs` makes them."""

    def __init__(self, beta: float, tables: Runs) -> None:
        self._beta, self._runs = beta, tables

    def begin(self, ids: IntArray) -> None:
        """Continue after some tokens; they are not counted again."""
        last = ids[-_LONGEST:][::-1]
        self._runs.recent[: len(last)] = last
        self._runs.recent[_LONGEST] = len(last)

    def hint(self) -> tuple[int, float]:
        """Return the token to expect next, or -1, and e^beta - 1."""
        token, share = _hint(self._runs)
        return int(token), math.exp(self._beta * share) - 1.0

    def read(self, tokens: IntArray) -> Hints:
        """Return the hint before each of some tokens, which are learned one by one."""
        hints = Hints(np.empty(len(tokens), np.int64), np.empty(len(tokens)))
        _read(self._runs, tokens, self._beta, hints.token, hints.gain)
        return hints
