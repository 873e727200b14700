"""P1: the sum of the probabilities of all candidates for a place, exact or by a sample.

If a scorer shows its distributions, they are summed at once, and some candidates are put at the
place to check that they are charged as shown. For other scorers every candidate is put there; of a
large vocabulary only a stratified sample is.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fairway.audit.scorers.bench import ROUNDING_NATS, Bench, grain, moved_by
from fairway.audit.scorers.scorer import RowScorer, scored, unlike
from fairway.base.arrays import IntArray

# |sum of probabilities - 1| allowed: costs may come from float32.
SUM_TOLERANCE = 1e-3
# A smaller excess may be noise that was not seen before. It is measured again this many times.
_SMALL, _AGAIN = 0.05, 2
# For a shown distribution: how many of the likeliest tokens and of random ones are put at the
# place, and how many of both together even if the time is over.
_LIKELY, _ANY, _LEAST = 4, 6, 5


@dataclass(frozen=True, slots=True)
class Sum:
    """The sum at one place: the number of candidates, sum - 1, and what is wrong or open."""

    index: int
    asked: int
    excess: float
    wrong: str = ""
    doubt: str = ""
    # The excess with BOS at the place, if the words alone sum to at most one.
    with_bos: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """A place in a text where other tokens are put."""

    bench: Bench
    ids: IntArray
    index: int
    # A fresh scorer answers for every candidate.
    anew: bool = False

    @property
    def allowed(self) -> float:
        """Return how far a sum may be from one; the noise that replay found is allowed too."""
        noise_nats = self.bench.tolerance_nats - ROUNDING_NATS + self.bench.grain_nats / 2
        return SUM_TOLERANCE + math.expm1(noise_nats)

    def cost_of(self, token: int) -> float:
        """Return the cost of another token at this place."""
        ids = self.ids.copy()
        ids[self.index] = token
        if not self.anew:
            return scored(self.bench.scorer, ids, until=self.index).at(self.index)
        with self.bench.anew() as fresh:
            asked = self.bench.scorer if fresh is None else fresh
            return scored(asked, ids, until=self.index).at(self.index)

    def sure(self, take: Callable[[], Sum]) -> Sum:
        """Return a sum; a small excess is measured again, and is wrong only if it repeats."""
        found = take()
        for _ in range(_AGAIN):
            if not found.wrong or not abs(found.excess) < _SMALL:
                break
            again = take()
            if not again.wrong:
                self.bench.met(abs(again.excess - found.excess))
            found = again
        return found

    def shown_sum(self, rows: RowScorer) -> Sum:
        """Return the sum of the shown distribution; candidates must be charged as it shows.

        After the first few, candidates are asked only while time is left.
        """
        row = rows.row(self.ids.copy(), self.index)
        excess = float(np.exp(row).sum()) - 1.0
        if not abs(excess) <= self.allowed + math.expm1(grain(row) / 2):
            return Sum(self.index, len(row), excess, _sentence(excess))
        drawn = self.bench.draw.choice(self.bench.words, _ANY).tolist()
        # BOS would begin a document, and the scorer may know beginnings: see `documents`.
        likely = [t for t in np.argsort(row)[::-1].tolist() if t != self.bench.bos_id][:_LIKELY]
        # Mixed, so that a short time still covers both kinds.
        mixed = [t for pair in zip(likely, drawn, strict=False) for t in pair]
        candidates = list(dict.fromkeys([*mixed, *drawn]))
        allowed = rows.row_tolerance_nats + 2 * self.bench.tolerance_nats + self.bench.grain_nats
        asked = 0
        for token in candidates if self.bench.left_s > 0 else candidates[:_LEAST]:
            asked += 1
            off = abs(self.cost_of(token) + float(row[token]))
            if not off <= allowed and not (np.isnan(off) and row[token] == -np.inf):
                wrong = "a candidate put at the place is not charged as the distribution shows"
                return Sum(self.index, asked, off, unlike(wrong, off, rows))
        return Sum(self.index, asked, excess)

    def full_sum(self) -> Sum:
        """Return the sum over all candidates."""
        words = self.bench.words
        asked = len(words)
        excess = math.fsum(math.exp(-self.cost_of(int(v))) for v in words) - 1.0
        if excess > self.allowed:
            return Sum(self.index, asked, excess, _sentence(excess))
        known = self._bos_decides_order()
        with_bos = excess + math.exp(-self.cost_of(self.bench.bos_id))
        wrong = "" if abs(with_bos) <= self.allowed else _sentence(with_bos)
        if known or (wrong and self._next_beginning_known()):
            # The cost of BOS here cannot be asked; it gets the remaining probability.
            return Sum(self.index, asked, max(excess, 0.0), with_bos=with_bos)
        return Sum(self.index, asked + 1, with_bos, wrong, with_bos=with_bos)

    def _bos_decides_order(self) -> bool:
        """Return whether BOS here changes earlier costs or their order.

        If so, beginnings of documents count as known in advance, which the challenge allows.
        """
        ids, before = self.ids.copy(), self.bench.costs(self.ids)
        ids[self.index] = self.bench.bos_id
        found = scored(self.bench.scorer, ids, until=self.index)
        count = len(found.index) - 1
        if not np.array_equal(found.index, before.index[: count + 1]):
            return True
        moved = moved_by(found.nats, before.nats[: count + 1])[:count]
        return bool((moved > self.bench.tolerance_nats).any())

    def _next_beginning_known(self) -> bool:
        """Return whether the cost of this token depends on a document ending after it.

        If so, BOS at this place changes the text for the scorer, and not only one token.
        """
        bench, before = self.bench, self.cost_of(int(self.ids[self.index]))
        behind = np.arange(len(self.ids)) > self.index
        joined = np.where(behind & (self.ids == bench.bos_id), bench.words[0], self.ids)
        ended = joined.copy()
        ended[self.index + 1 : self.index + 2] = bench.bos_id
        costs = [
            scored(bench.scorer, ids, until=self.index).at(self.index) for ids in (joined, ended)
        ]
        return bool((moved_by(np.array(costs), np.array(before)) > bench.tolerance_nats).any())

    def sampled_sum(self, asked: int) -> Sum:
        """Return a stratified sum: the text's common tokens, and a random sample of all others.

        The asked tokens give an exact lower bound of the sum; the rest is an estimate.
        """
        seen = np.concatenate([self.ids, self.bench.text])
        common, counts = np.unique(seen, return_counts=True)
        sure = [int(self.ids[self.index]), *common[np.argsort(-counts)][: asked // 2].tolist()]
        sure = list(dict.fromkeys(sure))
        rest = np.setdiff1d(np.arange(self.bench.scorer.vocab_size), sure)
        drawn = self.bench.draw.choice(rest, min(asked - len(sure), len(rest)), replace=False)
        known = np.exp([-self.cost_of(token) for token in sure])
        guessed = np.exp([-self.cost_of(int(token)) for token in drawn])
        asked = len(sure) + len(drawn)
        least = float(known.sum() + guessed.sum()) - 1.0
        if least > self.allowed:
            return Sum(self.index, asked, least, _sentence(least) + ", by those asked alone")
        error = len(rest) * float(guessed.std(ddof=1)) / math.sqrt(len(drawn))
        excess = float(known.sum() + len(rest) * guessed.mean()) - 1.0
        # One large value must not decide the estimate.
        without = float(known.sum() + len(rest) * np.sort(guessed)[:-1].mean()) - 1.0
        if without - 5 * error > self.allowed:
            wrong = f"{_sentence(excess)} (estimated, +-{error:.3g})"
            return Sum(self.index, asked, excess, wrong)
        if abs(excess) <= max(self.allowed, 5 * error) and error <= 0.02:
            return Sum(self.index, asked, excess)
        doubt = (
            f"{asked} candidates leave the sum open: {1 + excess:.3f} +- {error:.3f}; for a "
            f"vocabulary of {self.bench.scorer.vocab_size:,} the scorer must show whole "
            'distributions ("rows": true), or the budget must be larger'
        )
        return Sum(self.index, asked, excess, doubt=doubt)


def _sentence(excess: float) -> str:
    if excess > 0:
        return f"the probabilities sum to {1 + excess:.4g}, more than one"
    return (
        f"the probabilities sum to {1 + excess:.4g}, less than one: the score is not that of a "
        "distribution (the missing mass makes it higher, not lower)"
    )
