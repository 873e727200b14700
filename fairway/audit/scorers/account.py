"""Checks the byte count that a score is divided by, and compares the score with newer text."""

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from fairway.audit.scorers.bench import Bench
from fairway.audit.scorers.scorer import Costs, scored
from fairway.audit.scorers.trial import Trial
from fairway.base.arrays import FloatArray, IntArray

# Two texts of one source may differ in cost by this share.
DRIFT = 0.05
# The coverage of the interval, the number of resamples, and the least and most blocks.
COVERAGE, _RESAMPLES, FEWEST_BLOCKS, _MOST_BLOCKS = 0.999, 8000, 12, 256
_CUTS = 6


class Bytes(Trial):
    """Compare the bytes that the scorer counts with those that the text has."""

    name = "P7 bytes"
    rules = ("C4",)
    did = "asked for the bytes of every token, again with later tokens changed (bytes apart)"
    share, least, usual = 0.02, 2, 4
    turn = 1
    counted = 0

    @classmethod
    def concerns(cls, bench: Bench) -> bool:
        """Return whether the scorer gives byte counts, or the user gave the text's."""
        return hasattr(bench.scorer, "byte_counts") or bench.text_bytes is not None

    def steps(self) -> Iterator[None]:
        """Count the whole text, then count it again with the tokens after a cut changed."""
        bench = self.bench
        ask: Callable[[IntArray], Sequence[float]] | None
        ask = getattr(bench.scorer, "byte_counts", None)
        if ask is None:
            self.doubt = (
                'the scorer gives no byte counts ("bytes": true), so its count cannot be compared '
                f"with the {bench.text_bytes:,} bytes of the text"
            )
            return
        counts = np.array(ask(bench.whole.copy()), np.float64)
        self._plain(counts)
        if self.wrong:
            return
        self._total(counts)
        yield
        for _ in range(_CUTS):
            cut = int(bench.draw.integers(1, len(bench.whole)))
            other = bench.changed(bench.whole, np.arange(cut, len(bench.whole)))
            again = np.array(ask(other), np.float64)
            self.samples += len(again)
            if not np.array_equal(again[: cut - 1], counts[: cut - 1]):
                self.convict("how many bytes a token has depends on tokens after it")
            yield

    def _plain(self, counts: FloatArray) -> None:
        self.samples = len(counts)
        if len(counts) != len(self.bench.whole) - 1:
            self.convict(f"{len(counts)} counts of bytes for {len(self.bench.whole) - 1} tokens")
            return
        strange = np.flatnonzero((counts < 0) | (counts != np.round(counts)))
        if len(strange):
            self.position = int(strange[0]) + 1
            self.convict(f"a token of {counts[strange[0]]:g} bytes")

    def _total(self, counts: FloatArray) -> None:
        self.counted = int(counts.sum())
        expected = self.bench.text_bytes
        if expected is None:
            return
        self.see(float(abs(self.counted - expected)), 0)
        if self.counted != expected:
            more = self.counted > expected
            off = abs(self.counted / expected - 1)
            self.convict(
                f"the scorer counts {self.counted:,} bytes and the text has {expected:,}: its bits "
                f"per byte are too {'low' if more else 'high'}, by {off:.2%}"
            )

    def passed(self) -> str:
        """Return the byte count and the resulting bits per byte."""
        costs = scored(self.bench.scorer, self.bench.whole).nats.sum()
        bits = costs / math.log(2) / max(1, self.counted)
        held = "as the text has" if self.bench.text_bytes is not None else "not compared (--bytes)"
        return f"{self.counted:,} bytes, {held}: {bits:.5g} bits per byte"


class Memory(Trial):
    """Compare the text with later text of the same source, to find memorised text."""

    name = "fresh text"
    rules = ("C1",)
    did = "scored text that came later, and compared nats a token (later less audited)"
    share, least, usual = 0.05, 1, 1
    turn = 1
    interval = (0.0, 0.0, 0.0)

    @classmethod
    def concerns(cls, bench: Bench) -> bool:
        """Return whether the user gave a later text."""
        return bench.later is not None

    def steps(self) -> Iterator[None]:
        """Compare the two texts over the length of the shorter one."""
        bench = self.bench
        assert bench.later is not None
        count = min(len(bench.text), len(bench.later))
        audited, later = bench.text[:count], bench.later[:count]
        parts = [self._blocks(ids, scored(bench.scorer, ids)) for ids in (audited, later)]
        self.samples = 2 * (count - 1)
        if min(map(len, parts)) < FEWEST_BLOCKS:
            self.doubt = (
                f"{count} tokens are too few to compare texts; at least {FEWEST_BLOCKS} documents "
                f"or {FEWEST_BLOCKS * 4} tokens are needed"
            )
            return
        self.interval = interval(parts[0], parts[1], bench.draw)
        mean, least, _ = self.interval
        self.see(mean, 0)
        allowed = DRIFT * float(parts[1][:, 0].sum() / parts[1][:, 1].sum())
        if least > allowed:
            self.convict(
                f"the text costs less than text that came later, by {self._words()}: more than the "
                f"{allowed:.2g} by which texts of one source may differ; it is remembered, or the "
                "texts are not of one source"
            )
        yield

    def _blocks(self, ids: IntArray, costs: Costs) -> FloatArray:
        """Return (nats, tokens) by document, or by blocks if there are few documents."""
        nats = costs.by_index(len(ids))
        charged = ~np.isnan(nats)
        document = np.cumsum(ids == self.bench.bos_id)
        if document[-1] < FEWEST_BLOCKS:
            count = min(_MOST_BLOCKS, max(FEWEST_BLOCKS, len(ids) // 64), len(ids) // 4)
            document = np.arange(len(ids)) * count // len(ids)
        sums = [np.bincount(document[charged], w) for w in (nats[charged], None)]
        found = np.stack([np.asarray(s, np.float64) for s in sums], 1)
        return found[found[:, 1] > 0]

    def _words(self) -> str:
        mean, least, most = self.interval
        return f"{mean:.3g} nats a token ({COVERAGE:.1%} interval {least:.3g} to {most:.3g})"

    def passed(self) -> str:
        """Return the interval."""
        return f"text that came later costs more by {self._words()}"


def interval(
    audited: FloatArray, later: FloatArray, draw: np.random.Generator
) -> tuple[float, float, float]:
    """Return the difference of mean costs, later less audited, and the ends of its interval.

    Rows are (nats, tokens) of documents or blocks, resampled with replacement. With few blocks the
    interval is too short, so it is widened as Student's t widens the normal.
    """
    means = []
    for part in (audited, later):
        chosen = draw.integers(0, len(part), (_RESAMPLES, len(part)))
        means.append(part[chosen, 0].sum(1) / part[chosen, 1].sum(1))
    mean = float(later[:, 0].sum() / later[:, 1].sum() - audited[:, 0].sum() / audited[:, 1].sum())
    tail = (1 - COVERAGE) / 2
    ends = np.quantile(means[1] - means[0], [tail, 1 - tail]) - mean
    stretch = 1 + 4 / (min(len(audited), len(later)) - 1)
    return mean, mean + float(ends[0]) * stretch, mean + float(ends[1]) * stretch
