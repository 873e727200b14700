"""Valid scorers, small enough to run thousands of times, and what planted violators are made of.

Tokens are 0..23; 1 is BOS. Every token but BOS stands for a string of a, b and c.
"""

import functools
import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

V, BOS = 24, 1
Ids, Floats = np.ndarray, np.ndarray
Charges = Iterator[tuple[int, float]]

STRINGS = ["".join(s) for n in (1, 2, 3) for s in itertools.product("abc", repeat=n)]
PIECES = [STRINGS[0], "", *STRINGS[1 : V - 1]]


def text(seed: int, tokens: int = 49, later: bool = False) -> Ids:
    """Return documents of a language in which a token mostly allows three others.

    `later` is another text of the same language.
    """
    return _text(seed, tokens, later).copy()


@functools.cache
def _text(seed: int, tokens: int, later: bool) -> Ids:
    draw = np.random.default_rng([7, seed])
    follow = draw.choice([v for v in range(V) if v != BOS], (V, 3))
    if later:
        draw = np.random.default_rng([8, seed])
    ids = [BOS]
    while len(ids) < tokens:
        if draw.random() < 0.05 and ids[-1] != BOS:
            ids.append(BOS)
        else:
            ids.append(int(draw.choice(follow[ids[-1]])))
    # What repeats wakes what waits for repetitions.
    third = tokens // 3
    return np.array([*ids[: tokens - third], *ids[:third]])


class Counts:
    """Bigram counts, smoothed: p(v | before) is a distribution by construction."""

    def __init__(self, smooth: float = 0.1) -> None:
        self._table = np.full((V, V), smooth)
        # Rows that were asked for since they were learned.
        self._rows: dict[int, Floats] = {}

    @property
    def table(self) -> Floats:
        """Return all counts; whoever asks for them may change them."""
        self._rows.clear()
        return self._table

    @table.setter
    def table(self, table: Floats) -> None:
        self._table = table
        self._rows.clear()

    def copy(self) -> "Counts":
        found = Counts()
        found._table, found._rows = self._table.copy(), self._rows.copy()
        return found

    def row(self, before: int) -> Floats:
        found = self._rows.get(before)
        if found is None:
            found = self._table[before] / self._table[before].sum()
            found.flags.writeable = False
            self._rows[before] = found
        return found

    def learn(self, before: int, token: int, times: float = 1.0) -> None:
        self._table[before, token] += times
        self._rows.pop(before, None)

    def learn_all(self, ids: Ids, times: float = 1.0) -> None:
        for before, token in itertools.pairwise(ids):
            self.learn(before, token, times)


@functools.cache
def trained() -> Counts:
    counts = Counts()
    counts.learn_all(text(1000), 0.3)
    for before in range(V):
        counts.row(before)
    return counts


def frozen() -> Counts:
    """Return what training on other text of the kind has left."""
    return trained().copy()


def peeking(model: Counts, ids: Ids, t: int, ahead: int = 1) -> Floats:
    """Return the row of a token, bent towards what goes well with a later one: a planted leak."""
    row = model.row(ids[t - 1])
    if t + ahead < len(ids):
        row = row * model._table[:, ids[t + ahead]] ** 2
    return row / row.sum()


def nats(probability: float) -> float:
    return -math.log(probability)


class Plain:
    """A frozen table."""

    vocab_size = V

    def score(self, ids: Ids) -> Charges:
        model = frozen()
        for t in range(1, len(ids)):
            yield t, nats(model.row(ids[t - 1])[ids[t]])


class Adaptive(Plain):
    """Learns every token once it is scored."""

    def score(self, ids: Ids) -> Charges:
        model = frozen()
        for t in range(1, len(ids)):
            yield t, nats(model.row(ids[t - 1])[ids[t]])
            model.learn(ids[t - 1], ids[t])


class WithRows(Adaptive):
    """Shows its distributions."""

    row_tolerance_nats = 1e-9

    def row(self, ids: Ids, index: int) -> Floats:
        model = frozen()
        model.learn_all(ids[:index])
        return np.log(model.row(ids[index - 1]))


class Chunks(Plain):
    """Scores chunks of 8, then learns each in three epochs: legal, since only later ones gain."""

    def score(self, ids: Ids) -> Charges:
        model = frozen()
        for first in range(1, len(ids), 8):
            end = min(first + 8, len(ids))
            for t in range(first, end):
                yield t, nats(model.row(ids[t - 1])[ids[t]])
            for _ in range(3):
                model.learn_all(ids[first - 1 : end])


class Tilt(Plain):
    """Raises the likeliest continuation of the last two tokens, and divides by what that makes."""

    def score(self, ids: Ids) -> Charges:
        model, seen = frozen(), {}
        for t in range(1, len(ids)):
            row, after = model.row(ids[t - 1]), seen.get(tuple(ids[max(0, t - 2) : t]))
            if after is not None:
                row = row * np.where(np.arange(V) == after, np.exp(2.0), 1.0)
                row = row / row.sum()
            yield t, nats(row[ids[t]])
            seen[tuple(ids[max(0, t - 2) : t])] = ids[t]


class Mixture(Plain):
    """Mixes two distributions by weights that follow what each made of the past."""

    def score(self, ids: Ids) -> Charges:
        one, other, share = frozen(), Counts(0.01), 0.5
        for t in range(1, len(ids)):
            rows = [model.row(ids[t - 1]) for model in (one, other)]
            p = share * rows[0] + (1 - share) * rows[1]
            yield t, nats(p[ids[t]])
            share = 0.02 + 0.96 * share * rows[0][ids[t]] / p[ids[t]]
            other.learn(ids[t - 1], ids[t])


def documents(ids: Ids) -> list[range]:
    """Return the tokens that each document predicts: those after its BOS, up to the next BOS."""
    starts = [0, *(t for t in range(1, len(ids)) if ids[t] == BOS)]
    return [range(a + 1, b + 1) for a, b in itertools.pairwise([*starts, len(ids) - 1]) if a < b]


class LongestFirst(Plain):
    """Scores and learns documents by falling length: one order for all that adapts.

    It does not learn where documents begin: the order says that they become more frequent.
    """

    def score(self, ids: Ids) -> Charges:
        model = frozen()
        for document in sorted(documents(ids), key=len, reverse=True):
            for t in document:
                yield t, nats(model.row(ids[t - 1])[ids[t]])
                if ids[t] != BOS:
                    model.learn(ids[t - 1], ids[t])


class Separate(Plain):
    """Learns every document by itself."""

    separate = True

    def score(self, ids: Ids) -> Charges:
        for document in documents(ids):
            model = frozen()
            for t in document:
                yield t, nats(model.row(ids[t - 1])[ids[t]])
                model.learn(ids[t - 1], ids[t])


@functools.cache
def steps(prefix: str) -> dict[str, list[int]]:
    """Return what may follow the bytes of a token so far, and the tokens that go that way."""
    ways: dict[str, list[int]] = {}
    for v in range(V):
        if PIECES[v].startswith(prefix):
            ways.setdefault(PIECES[v][len(prefix) : len(prefix) + 1], []).append(v)
    return ways


class ByteTree(Plain):
    """Bytes one at a time, with an end of token among them: products of branches sum to one.

    Both experts branch alike; which of them counts more depends on the bytes before alone.
    """

    tokens = 31

    def score(self, ids: Ids) -> Charges:
        model, seen = frozen(), {}
        for t in range(1, len(ids)):
            row = model.row(ids[t - 1])
            yield t, sum(nats(p) for p in self.branches(row, seen, PIECES[ids[t]]))
            for n in range(len(PIECES[ids[t]])):
                place = PIECES[ids[t]][:n]
                seen.setdefault(place, dict.fromkeys("abc", 0.5))[PIECES[ids[t]][n]] += 1

    @staticmethod
    def branches(row: Floats, seen: dict[str, dict[str, float]], piece: str) -> Iterator[float]:
        """Yield the probability of every step: each next byte, then the end."""
        for n in range(len(piece) + 1):
            masses = {s: float(row[v].sum()) for s, v in steps(piece[:n]).items()}
            whole = sum(masses.values())
            ways = {step: mass / whole for step, mass in masses.items()}
            counts = seen.get(piece[:n], dict.fromkeys("abc", 0.5))
            possible = {s: counts.get(s, 1.0) for s in ways}
            total = sum(possible.values())
            step = piece[n : n + 1]
            share = 0.8 if n == 0 else 0.6
            yield share * ways[step] + (1 - share) * possible[step] / total


VALID: list[Any] = [
    Plain, Adaptive, WithRows, Chunks, Tilt, Mixture, LongestFirst, Separate, ByteTree,
]  # fmt: skip
