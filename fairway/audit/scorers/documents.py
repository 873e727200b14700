"""Probes of documents: whether they influence one another, and whether beginnings leak."""

import math
from collections.abc import Iterator

import numpy as np

from fairway.audit.scorers.bench import mean_error, moved_by
from fairway.audit.scorers.betting import AHEAD_NATS, Bets
from fairway.audit.scorers.places import in_turn, places
from fairway.audit.scorers.scorer import scored
from fairway.audit.scorers.trial import Trial
from fairway.base.arrays import FloatArray, IntArray

_DOCUMENTS, _STREAMS, _MOVES, _PLACES = 48, 24, 24, 24
# The mean probability of BOS put in place of a word may exceed its probability there by this much.
# A small excess is legitimate: with other documents the model may have learned other things.
_FREE_SHARE = 0.1
_FEWEST_SUMS = 8


class Packed(Trial):
    """Score a document after others: a scorer of separate documents must charge the same."""

    name = "packed documents"
    rules = ("C1",)
    did = "scored a document behind others: random, natural, several, itself (nats)"
    share, least, usual = 0.05, 2, 6

    def steps(self) -> Iterator[None]:
        """Score one document after two different pasts of equal length, and compare."""
        bench = self.bench
        half = max(3, len(bench.text) // 2)
        makers = (self._random, self._natural, self._several, self._same)
        for number in range(_DOCUMENTS):
            first = int(bench.draw.integers(0, len(bench.text) - half + 1)) if number else 0
            document = self._document(bench.text[first : first + half])
            others = [self._random(document), makers[(number + 1) % len(makers)](document)]
            one, other = (scored(bench.scorer, np.concatenate([o, document])) for o in others)
            self.samples += 1
            size = len(others[0]) + half
            nats = [costs.by_index(size)[-half + 1 :] for costs in (one, other)]
            self._judge(nats[0], nats[1], others, document)
            if self.above(bench.tolerance_nats):
                return
            yield

    def _judge(
        self, one: FloatArray, other: FloatArray, others: list[IntArray], document: IntArray
    ) -> None:
        bench, missing = self.bench, np.isnan(one) & np.isnan(other)
        moved = np.where(missing, 0.0, moved_by(one, other))
        at = int(np.argmax(moved))
        if not moved[at] <= bench.tolerance_nats:
            index = len(others[0]) + 1 + at

            def cost_behind(past: IntArray) -> float:
                return scored(bench.scorer, np.concatenate([past, document])).at(index)

            if not bench.differ(*(lambda o=o: cost_behind(o) for o in others)):
                return
            if getattr(bench.scorer, "separate", False):
                self.convict("a document's cost depends on the document before it")
        self.see(moved, np.arange(len(others[0]) + 1, len(others[0]) + len(moved) + 1))

    def _document(self, piece: IntArray) -> IntArray:
        """Return one document, with BOS only at its beginning."""
        bench, found = self.bench, piece.copy()
        inside = np.flatnonzero(found == bench.bos_id)
        found[inside] = bench.draw.choice(bench.words, len(inside))
        found[0] = bench.bos_id
        return found

    def _random(self, document: IntArray) -> IntArray:
        return self._document(self.bench.draw.choice(self.bench.words, len(document)))

    def _natural(self, document: IntArray) -> IntArray:
        text = self.bench.text
        first = int(self.bench.draw.integers(0, len(text) - len(document) + 1))
        return self._document(text[first : first + len(document)])

    def _several(self, document: IntArray) -> IntArray:
        found = self._natural(document)
        found[:: max(2, len(found) // 4)] = self.bench.bos_id
        return found

    def _same(self, document: IntArray) -> IntArray:
        return document.copy()

    def passed(self) -> str:
        """Return whether documents are separate."""
        if not self.above(self.bench.tolerance_nats):
            return "documents do not influence one another"
        return (
            "what comes before a document influences it, which the scorer does not deny and a "
            "stream may do"
        )


class Beginnings(Trial):
    """Find whether the scorer uses beginnings of later documents, and bound the gain."""

    name = "known beginnings"
    rules = ("C1", "C2")
    did = "moved and inserted BOS; bet on where it comes, at fair odds (nats ahead)"
    share, least, usual = 0.05, 2, 12
    moved_nats = 0.0
    ordered = False

    def steps(self) -> Iterator[None]:
        """Move later BOS, put BOS at places of words, and bet, in turn."""
        self.bets = {size: Bets() for size in (2, 4, 0)}
        yield from in_turn(self._bet(), self._move(), self._insert())

    def _bet(self) -> Iterator[None]:
        """Draw random lengths of documents; a scorer that pays too little for them gains."""
        bench = self.bench
        text, sizes = bench.text, [len(bench.text), *bench.lengths()]
        rate = min(0.25, max(1 / 24, float((text[1:] == bench.bos_id).mean())))
        known = len(bench.words)
        sets = {n: bench.draw.choice(bench.words, min(n or known, known), False) for n in self.bets}
        for number in range(_STREAMS):
            length = sizes[number % len(sizes)]
            for size, words in sets.items():
                begins = bench.draw.random(length) < rate
                ids = np.where(begins, bench.bos_id, bench.draw.choice(words, length))
                ids[0] = text[0]
                fair = np.where(begins, -math.log(rate), math.log(len(words) / (1 - rate)))
                costs = scored(bench.scorer, ids)
                self.samples += len(costs.index)
                self.bets[size].play(fair, costs)
                self.see(self.bets[size].ahead_nats, self.bets[size].at or 0)
            if self.above(AHEAD_NATS):
                self.convict(
                    "documents of random lengths cost less than any distribution over them can "
                    "charge: where they begin is known and not paid for"
                )
                return
            yield

    def _move(self) -> Iterator[None]:
        """Move the next BOS and all later ones, and compare the costs before them."""
        for _ in range(_MOVES):
            ordered, moved_nats = self.bench.moved_beginnings()
            self.ordered |= ordered
            self.moved_nats = max(self.moved_nats, moved_nats)
            self.samples += 1
            yield

    def _insert(self) -> Iterator[None]:
        """Compare the probability of BOS at an inserted place with its probability before."""
        bench = self.bench
        rows = bench.rows
        found = places(bench, bench.text, bench.costs(bench.text))[:_PLACES]
        for index in found if rows is not None else []:
            assert rows is not None
            ids = bench.text.copy()
            row = rows.row(ids.copy(), index)
            ids[index] = bench.bos_id
            put = rows.row(ids, index)
            self.samples += 1
            bench.with_bos.append(float(np.exp(put[bench.bos_id]) - np.exp(row[bench.bos_id])))
            self._judge()
            if self.wrong:
                return
            yield
        # For scorers without rows, P1 collects these sums.
        self._judge()

    def _judge(self) -> None:
        excess = np.array(self.bench.with_bos)
        if len(excess) < _FEWEST_SUMS:
            return
        mean, error = mean_error(excess)
        if mean - 5 * error > _FREE_SHARE:
            self.worst = mean
            self.convict(
                f"with BOS at the place of a word, probabilities sum to {1 + self.worst:.2g} on "
                "average: where documents begin is known and not paid for"
            )

    def bound_nats(self) -> float:
        """Return the most nats that knowing all beginnings can gain: ln of their arrangements."""
        ids = self.bench.text[1:]
        n, k = len(ids), int((ids == self.bench.bos_id).sum())
        return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) + math.log(n + 1)

    def passed(self) -> str:
        """Return whether beginnings are known in advance, and the most that this can gain."""
        bench = self.bench
        self._judge()
        costs = bench.costs(bench.text)
        marks = bench.text[costs.index] == bench.bos_id
        paid = f"{marks.sum()} of them in the text cost {costs.nats[marks].sum():.4g} nats"
        if not (self.ordered or not self.moved_nats <= bench.tolerance_nats):
            return f"later beginnings of documents do not reach what is scored before; {paid}"
        how = "the order of scoring" if self.ordered else "costs"
        if self.moved_nats > bench.tolerance_nats:
            how += f" (costs by up to {self.moved_nats:.2g} nats)"
        bound = self.bound_nats()
        return (
            f"where documents begin is known ahead and reaches {how}; {paid}; knowing it is worth "
            f"at most {bound:.4g} nats here, {bound / max(1, len(costs.index)):.2g} a token"
        )
