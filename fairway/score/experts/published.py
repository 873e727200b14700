"""The mixture of pull request #1858 as it was published, which is *not a distribution*.

The model's cost of a token is spread evenly over its bytes, each of which is then mixed with PPM
(method C, no exclusion): weight 0.9 for the model, or 0.05 where PPM is confident; in #1858 (after
#1885) a byte that is cheap by the model keeps the model's price. So the price of a token depends on
the cost of *that* token byte by byte, and the probabilities of all tokens sum to more than one,
which `sums` measures. The result is no score, because no decoder could use it. It serves for
comparison only, cannot be a headline, and is labelled wherever it is printed. Algorithms.md 6.1 and
6.2.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fairway.base.arrays import ByteArray, FloatArray, IntArray
from fairway.base.native import compiled, int64
from fairway.score.experts import ppm

LABEL = "not a distribution"
# In #1858 the costs were those of test-time training. Any other base is named in the report.
BASE = "sgd"


@dataclass(frozen=True, slots=True)
class Rule:
    """The weights of a mixture of this kind, by default as in #1858 after #1885.

    order: bytes of PPM's longest context. tokens: how many targets are scored, 0 for all. low and
    high: the model's weight where PPM's confidence is at least `threshold`, and below. hijack: a
    byte that the model prices below this, in nats, keeps the model's price; 0 is off.
    """

    order: int = 5
    tokens: int = 8_000_000
    threshold: float = 0.9
    low: float = 0.05
    high: float = 0.9
    hijack: float = 0.277


PUBLISHED = Rule()


@dataclass(frozen=True, slots=True)
class Sums:
    """The sums of the probabilities of all tokens at some positions; a distribution has 1."""

    positions: int
    mean: float
    geometric_mean: float
    least: float
    most: float


@dataclass(frozen=True, slots=True)
class Spread:
    """The result of the published mixture for a text; `distribution` is False, to mark it in files.

    bpb, ppm_bpb and model_bpb (of the same tokens) over `bytes`. Tokens without bytes are free in
    all three, as published: `free_tokens` of them, whose cost by the model, `free_bpb`, a score
    would count. `gate_share` is the share of bytes that kept the model's price, `confident_share`
    of those under the low weight. `tokens` of `text_tokens` were scored: `coverage`.
    """

    distribution: bool
    bpb: float
    ppm_bpb: float
    model_bpb: float
    free_tokens: int
    free_bpb: float
    gate_share: float
    confident_share: float
    tokens: int
    text_tokens: int
    coverage: float
    bytes: int
    sums: Sums | None


@compiled
def _price(
    share: float, confidence: float, model_nats: float, rates: FloatArray
) -> tuple[float, int]:
    """Return the nats of a byte and what happened: 0 mixed, 1 with the low weight, 2 the model's.

    rates: threshold, low weight, high weight, price below which the model's price is kept.
    """
    if model_nats < rates[3]:
        return model_nats, 2
    low = confidence >= rates[0]
    weight = rates[1] if low else rates[2]
    if weight <= 0.0:
        return -math.log(share), int(low)
    if weight >= 1.0:
        return model_nats, int(low)
    a, b = math.log(weight) - model_nats, math.log(1.0 - weight) + math.log(share)
    most = max(a, b)
    return -(most + math.log(math.exp(a - most) + math.exp(b - most))), int(low)


@compiled
def _score(
    words: ppm.Words,
    mask: ppm.Words,
    past: IntArray,
    data: ByteArray,
    starts: IntArray,
    model_nats: FloatArray,
    rates: FloatArray,
    learns: bool,
    out: FloatArray,
    counts: IntArray,
) -> float:
    """Write the price of every token; return PPM's own nats. counts: int64[3], what happened.

    Bytes starts[n]..starts[n + 1] - 1 are token n's. Without bytes a token is free, as published.
    With `learns` every byte is counted; else each token is priced after the same history.
    """
    own, root, all_bytes = 0.0, int64(0), int64(256)
    low, high, length = past[0], past[1], past[2]
    for n in range(out.size):
        out[n] = 0.0
        size = starts[n + 1] - starts[n]
        for at in range(starts[n], starts[n + 1]):
            symbol = int64(data[at])
            share, confidence, _ = ppm.share_of(
                words, mask, root, all_bytes, low, high, length, symbol
            )
            nats, what = _price(share, confidence, model_nats[n] / size, rates)
            out[n] += nats
            own -= math.log(share)
            counts[what] += 1
            if learns:
                ppm.learn(words, low, high, length, symbol)
            low, high = ppm.pushed(low, high, symbol)
            length = min(length + 1, 8)
        if not learns:
            low, high, length = past[0], past[1], past[2]
    past[0], past[1], past[2] = low, high, length
    return own


def described(base: str) -> str:
    """Return in words which costs were mixed, in comparison with those in #1858."""
    if base == BASE:
        return "over test-time training (sgd), as in #1858"
    model = "the frozen model" if base == "sliding" else f"test-time training ({base})"
    return f"over {model}, where #1858 mixed over test-time training (mixture.base={BASE})"


def _joined(strings: Sequence[bytes]) -> tuple[ByteArray, IntArray]:
    starts = np.cumsum([0, *map(len, strings)])
    return np.frombuffer(b"".join(strings), np.uint8), starts


def spread(
    strings: Sequence[bytes],
    model_nats: FloatArray,
    memory_bytes: int,
    rows: Mapping[int, tuple[FloatArray, Sequence[bytes]]],
    text_tokens: int,
    text_bytes: int,
    rule: Rule = PUBLISHED,
) -> Spread:
    """Return the result of the published mixture, given tokens' bytes and the model's nats.

    rows: before some of the tokens, the model's log-probabilities of the whole vocabulary and
    the bytes of its tokens there; the sum of probabilities is measured at these. `text_bytes` is
    the denominator: the bytes of the tokens scored. `memory_bytes` bounds the tables of PPM.
    """
    size = sum(map(len, strings))
    room = ppm.room_for(size, rule.order, memory_bytes)
    words = ppm.tables(rule.order, "C", False, *room)
    rates = np.array([rule.threshold, rule.low, rule.high, rule.hijack or -math.inf])
    past, counts = np.zeros(3, np.int64), np.zeros(3, np.int64)
    nats = own = 0.0
    found: list[float] = []
    for first, end in itertools.pairwise([0, *sorted(rows), len(strings)]):
        if first in rows:
            found.append(_sum(words, past, *rows[first], rates))
        data, starts = _joined(strings[first:end])
        out, part = np.empty(end - first), model_nats[first:end]
        own += _score(words, ppm.ALL_BYTES, past, data, starts, part, rates, True, out, counts)
        nats += math.fsum(out)
    to_bits = 1.0 / math.log(2.0) / text_bytes
    free = np.array([not string for string in strings])
    return Spread(
        distribution=False,
        bpb=nats * to_bits,
        ppm_bpb=own * to_bits,
        model_bpb=math.fsum(model_nats[~free]) * to_bits,
        free_tokens=int(free.sum()),
        free_bpb=math.fsum(model_nats[free]) * to_bits,
        gate_share=int(counts[2]) / size,
        confident_share=int(counts[1]) / size,
        tokens=len(strings),
        text_tokens=text_tokens,
        coverage=len(strings) / text_tokens,
        bytes=text_bytes,
        sums=_summary(found) if found else None,
    )


def _sum(
    words: ppm.Words,
    past: IntArray,
    row: FloatArray,
    vocabulary: Sequence[bytes],
    rates: FloatArray,
) -> float:
    """Return the sum over the vocabulary of the mixture's so-called probabilities."""
    data, starts = _joined(vocabulary)
    out, counts = np.empty(len(row)), np.zeros(3, np.int64)
    _score(words, ppm.ALL_BYTES, past.copy(), data, starts, -row, rates, False, out, counts)
    # Tokens without bytes are free as published; here they count with the model's probability.
    free = np.diff(starts) == 0
    return math.fsum(np.exp(np.where(free, row, -out)))


def _summary(found: list[float]) -> Sums:
    logs = [math.log(value) for value in found]
    return Sums(
        positions=len(found),
        mean=math.fsum(found) / len(found),
        geometric_mean=math.exp(math.fsum(logs) / len(found)),
        least=min(found),
        most=max(found),
    )
