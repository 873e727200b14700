"""Valid scorers that look odd: noisy, rounded, slow, large, in strange orders, sure of themselves.

None may be accused. `KINDS` has them by name, with those of `honest`.
"""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from audit.honest import (
    BOS,
    VALID,
    Adaptive,
    Charges,
    Counts,
    Floats,
    Ids,
    Plain,
    Separate,
    V,
    WithRows,
    documents,
    frozen,
    nats,
)


class Changed(Adaptive):
    """An honest scorer whose costs go through `change`, which knows the number of the call."""

    def __init__(self) -> None:
        self.draw, self.calls = np.random.default_rng(5), 0

    def score(self, ids: Ids) -> Charges:
        self.calls += 1
        index, costs = zip(*super().score(ids), strict=True)
        yield from zip(index, self.change(np.array(costs), ids).tolist(), strict=True)

    def change(self, costs: Floats, ids: Ids) -> Floats:
        return costs


def changed(change: Callable[[Changed, Floats, Ids], Floats], name: str) -> Any:
    return type(name, (Changed,), {"change": change})


NoisyByToken = changed(
    lambda s, c, ids: np.maximum(c + s.draw.uniform(-2e-3, 2e-3, len(c)), 0), "NoisyByToken"
)
Noisy4e3 = changed(
    lambda s, c, ids: np.maximum(c + s.draw.choice([0, 4e-3], len(c)), 0), "Noisy4e3"
)
NoisyNormal = changed(
    lambda s, c, ids: np.maximum(c + np.clip(1e-3 * s.draw.normal(size=len(c)), -4e-3, 4e-3), 0),
    "NoisyNormal",
)
NoisyByCall = changed(lambda s, c, ids: c * (1 + s.draw.uniform(0, 1e-3)), "NoisyByCall")
SeldomNoisy = changed(
    lambda s, c, ids: c + (4e-3 if s.draw.random() < 0.02 else 0.0), "SeldomNoisy"
)
NoisyInFew = changed(lambda s, c, ids: c + 4e-3 * (s.draw.random(len(c)) < 0.01), "NoisyInFew")
Float32 = changed(lambda s, c, ids: c.astype(np.float32).astype(np.float64), "Float32")
Float16 = changed(lambda s, c, ids: c.astype(np.float16).astype(np.float64), "Float16")
Decimals4 = changed(lambda s, c, ids: np.round(c, 4), "Decimals4")
Decimals3 = changed(lambda s, c, ids: np.round(c, 3), "Decimals3")
Decimals2 = changed(lambda s, c, ids: np.round(c, 2), "Decimals2")
BatchRounding = changed(
    lambda s, c, ids: c + 3e-6 * np.sin(len(ids) + np.arange(len(c)) // 16), "BatchRounding"
)


class Slow(Plain):
    """Takes its time."""

    def score(self, ids: Ids) -> Charges:
        time.sleep(0.005)
        return super().score(ids)


class NoRowNoise(WithRows):
    """Shows rows that are noisy, as what it charges is."""

    row_tolerance_nats = 1e-3

    def __init__(self) -> None:
        self.draw = np.random.default_rng(6)

    def score(self, ids: Ids) -> Charges:
        for t, cost in super().score(ids):
            yield t, cost + self.draw.uniform(0, 3e-3)

    def row(self, ids: Ids, index: int) -> Floats:
        return super().row(ids, index) + self.draw.uniform(-1e-3, 1e-3, V)


class RowsFloat32(WithRows):
    """Shows rows of float32."""

    row_tolerance_nats = 1e-6

    def row(self, ids: Ids, index: int) -> Floats:
        return super().row(ids, index).astype(np.float32).astype(np.float64)


class RowsFloat16(WithRows):
    """Shows rows of float16."""

    row_tolerance_nats = 5e-3

    def row(self, ids: Ids, index: int) -> Floats:
        return super().row(ids, index).astype(np.float16).astype(np.float64)


class RateByLength(Plain):
    """Learns at a rate that falls by a cosine over the whole text, whose length is known."""

    def score(self, ids: Ids) -> Charges:
        model = frozen()
        for t in range(1, len(ids)):
            yield t, nats(model.row(ids[t - 1])[ids[t]])
            model.learn(ids[t - 1], ids[t], 0.1 + 0.5 * (1 + np.cos(np.pi * t / len(ids))))


class Sliding(Plain):
    """Sees windows of 24, each 12 further, and charges for what is new in them."""

    def score(self, ids: Ids) -> Charges:
        done = 1
        for end in range(min(24, len(ids)), len(ids) + 12, 12):
            end, first = min(end, len(ids)), max(0, end - 24)
            model = frozen()
            for t in range(first + 1, end):
                if t >= done:
                    yield t, nats(model.row(ids[t - 1])[ids[t]])
                model.learn(ids[t - 1], ids[t])
            done = max(done, end)


class Cached(Adaptive):
    """Keeps what a beginning cost, and need not compute it again."""

    def __init__(self) -> None:
        self.kept: dict[bytes, list[tuple[int, float]]] = {}

    def score(self, ids: Ids) -> Charges:
        if ids.tobytes() not in self.kept:
            self.kept[ids.tobytes()] = list(super().score(ids))
        return iter(self.kept[ids.tobytes()])


class DearFirst(Plain):
    """Was all but sure of another first token: its first cost is huge."""

    def score(self, ids: Ids) -> Charges:
        for t, cost in super().score(ids):
            row = np.full(V, 1e-40)
            row[5] = 1 - 23e-40
            yield t, nats(row[ids[t]]) if t == 1 else cost


class Deaf(Plain):
    """Thinks that some pairs cannot be: they cost infinitely much."""

    def score(self, ids: Ids) -> Charges:
        model = frozen()
        for t in range(1, len(ids)):
            row = np.where(np.arange(V) % 7 == ids[t - 1] % 5, 0.0, model.row(ids[t - 1]))
            p = row[ids[t]] / row.sum()
            yield t, nats(p) if p else np.inf


class Sure(Plain):
    """Learns so fast that it is soon sure, and often wrong."""

    def score(self, ids: Ids) -> Charges:
        model = Counts(1e-6)
        for t in range(1, len(ids)):
            yield t, nats(model.row(ids[t - 1])[ids[t]])
            model.learn(ids[t - 1], ids[t])


class Uniform(Plain):
    """Knows nothing."""

    def score(self, ids: Ids) -> Charges:
        return ((t, nats(1 / V)) for t in range(1, len(ids)))


class Frequencies(Plain):
    """Counts single tokens."""

    def score(self, ids: Ids) -> Charges:
        counts = np.full(V, 0.2)
        for t in range(1, len(ids)):
            yield t, nats(counts[ids[t]] / counts.sum())
            counts[ids[t]] += 1


class FromTheRight(Plain):
    """Scores the last token first, and each from the one behind it."""

    def score(self, ids: Ids) -> Charges:
        model, after = frozen(), 0
        for t in range(len(ids) - 1, 0, -1):
            yield t, nats(model.row(after)[ids[t]])
            model.learn(after, ids[t])
            after = ids[t]


class OddPlacesFirst(Plain):
    """Scores odd places first, then even ones, by counts of what was scored."""

    def score(self, ids: Ids) -> Charges:
        counts = np.full(V, 0.2)
        for t in [*range(1, len(ids), 2), *range(2, len(ids), 2)]:
            yield t, nats(counts[ids[t]] / counts.sum())
            counts[ids[t]] += 1


class SideBySide(Plain):
    """Scores documents side by side, a token of each in turn, and learns from all."""

    def score(self, ids: Ids) -> Charges:
        model, found = frozen(), documents(ids)
        for step in range(max(map(len, found))):
            now = [d[step] for d in found if step < len(d)]
            yield from [(t, nats(model.row(ids[t - 1])[ids[t]])) for t in now]
            for t in now:
                model.learn(ids[t - 1], ids[t])


class ShortestFirst(Plain):
    """Scores short documents first and learns their words, but not where documents begin."""

    def score(self, ids: Ids) -> Charges:
        model = frozen()
        for document in sorted(documents(ids), key=len):
            for t in document:
                yield t, nats(model.row(ids[t - 1])[ids[t]])
                if ids[t] != BOS:
                    model.learn(ids[t - 1], ids[t])


class ShortPlain(Plain):
    """Does not learn in documents shorter than a chunk, which it knows before."""

    def score(self, ids: Ids) -> Charges:
        for document in documents(ids):
            model = frozen()
            for t in document:
                yield t, nats(model.row(ids[t - 1])[ids[t]])
                if len(document) >= 12:
                    model.learn(ids[t - 1], ids[t])


class SeparateChunks(Plain):
    """Learns every document by itself, in chunks of 6, two epochs each."""

    separate = True

    def score(self, ids: Ids) -> Charges:
        for document in documents(ids):
            model = frozen()
            for first in range(document.start, document.stop, 6):
                end = min(first + 6, document.stop)
                yield from [(t, nats(model.row(ids[t - 1])[ids[t]])) for t in range(first, end)]
                for _ in range(2):
                    model.learn_all(ids[first - 1 : end])


class SeparateRows(Separate):
    """Documents apart, with rows."""

    row_tolerance_nats = 1e-9

    def row(self, ids: Ids, index: int) -> Floats:
        document = next(d for d in documents(ids) if index in d)
        model = frozen()
        model.learn_all(ids[document.start - 1 : index])
        return np.log(model.row(ids[index - 1]))


class Parts(WithRows):
    """Can end early, and shows rows."""

    def score_part(self, ids: Ids, count: int | None, until: int) -> Charges:
        for n, (t, cost) in enumerate(self.score(ids), start=1):
            yield t, cost
            if n == count or t == until:
                return


class RandomStart(Plain):
    """Begins with another random table every time; what that changes is little."""

    def __init__(self) -> None:
        self.draw = np.random.default_rng(9)

    def score(self, ids: Ids) -> Charges:
        model = frozen()
        model.table *= 1 + 5e-4 * self.draw.uniform(-1, 1, model.table.shape)
        for t in range(1, len(ids)):
            yield t, nats(model.row(ids[t - 1])[ids[t]])


class FixedStart(Adaptive):
    """Begins with the same random table every time."""

    def score(self, ids: Ids) -> Charges:
        model = Counts()
        model.table *= np.exp(np.random.default_rng(3).normal(size=model.table.shape))
        for t in range(1, len(ids)):
            yield t, nats(model.row(ids[t - 1])[ids[t]])
            model.learn(ids[t - 1], ids[t])


class SureOfHabits(Plain):
    """Trusts what followed last time, the more often it came true: a gate of the past alone."""

    def score(self, ids: Ids) -> Charges:
        model, last, right = frozen(), {}, 1.0
        for t in range(1, len(ids)):
            row = model.row(ids[t - 1])
            guess = last.get(int(ids[t - 1]))
            if guess is not None:
                share = right / (right + 1)
                row = (1 - share) * row + share * (np.arange(V) == guess)
                right = 0.8 * right + (3.0 if guess == ids[t] else 0.0)
            yield t, nats(row[ids[t]])
            last[int(ids[t - 1])] = int(ids[t])


class Large(Plain):
    """Knows 3,000 tokens, and shows no rows."""

    vocab_size = 3000

    def score(self, ids: Ids) -> Charges:
        counts = np.full(self.vocab_size, 0.05)
        for t in range(1, len(ids)):
            yield t, nats(counts[ids[t]] / counts.sum())
            counts[ids[t]] += 1


class LargeRows(Large):
    """Knows 3,000 tokens, and shows rows."""

    row_tolerance_nats = 1e-9

    def row(self, ids: Ids, index: int) -> Floats:
        counts = np.full(self.vocab_size, 0.05) + np.bincount(ids[1:index], minlength=3000)
        return np.log(counts / counts.sum())


class CountsCalls(Adaptive):
    """Counts how often it was asked, and does nothing with it."""

    calls = 0

    def score(self, ids: Ids) -> Charges:
        self.calls += 1
        return super().score(ids)


class SaysBytes(Adaptive):
    """Says how many bytes its tokens stand for."""

    def byte_counts(self, ids: Ids) -> list[float]:
        from audit.honest import PIECES

        return [max(1, len(PIECES[token])) for token in ids[1:]]


KINDS: list[Any] = [
    *VALID, NoisyByToken, Noisy4e3, NoisyNormal, NoisyByCall, SeldomNoisy, NoisyInFew, Float32,
    Float16, Decimals4, Decimals3, Decimals2, BatchRounding, Slow, NoRowNoise, RowsFloat32,
    RowsFloat16, RateByLength, Sliding, Cached, DearFirst, Deaf, Sure, Uniform, Frequencies,
    FromTheRight, OddPlacesFirst, SideBySide, ShortestFirst, ShortPlain, SeparateChunks,
    SeparateRows, Parts, RandomStart, FixedStart, SureOfHabits, Large, LargeRows, CountsCalls,
    SaysBytes,
]  # fmt: skip
# Of these an audit may say that it cannot decide, and why.
OPEN = {"Large"}
