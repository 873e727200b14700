"""P2 and P5: texts that nobody can predict, drawn with known odds."""

import math
from abc import abstractmethod
from collections.abc import Iterator

import numpy as np

from fairway.audit.scorers import power, texts
from fairway.audit.scorers.betting import AHEAD_NATS, Bets, fair_shuffle
from fairway.audit.scorers.scorer import Costs, scored
from fairway.audit.scorers.trial import Trial
from fairway.base.arrays import FloatArray, IntArray

# More streams of a kind add little information.
_STREAMS = 48


class Streams(Trial):
    """Bet on texts at fair odds. Each kind has one bet; gains of independent texts multiply."""

    kinds: tuple[str, ...]

    def steps(self) -> Iterator[None]:
        """Draw and bet, all kinds in turn; later rounds use other lengths too."""
        self.bets = {kind: Bets() for kind in self.kinds}
        text = self.bench.text
        sizes = [len(text)] * 4 + [max(8, len(text) // 2)] + self.bench.lengths()
        for number in range(_STREAMS):
            length = len(text) if number < 3 else sizes[number % len(sizes)]
            for kind in self.kinds:
                self._bet(kind, length)
                if self.wrong:
                    return
            yield

    def _bet(self, kind: str, length: int) -> None:
        ids, stakes = self.draw_text(kind, length)
        costs = scored(self.bench.scorer, ids)
        odds = self.odds(kind, ids, stakes, costs)
        self.samples += len(costs.index)
        if odds is None:
            return
        bet = self.bets[kind]
        bet.play(odds, costs)
        if bet.rounds:
            self.see(bet.ahead_nats, bet.at or 0)
        if self.above(AHEAD_NATS):
            self.convict(self.sentence(kind))

    @abstractmethod
    def draw_text(self, kind: str, length: int) -> tuple[IntArray, FloatArray]:
        """Return a text of a kind, and the fair costs of its tokens, NaN for tokens not drawn."""

    @abstractmethod
    def odds(self, kind: str, ids: IntArray, stakes: FloatArray, costs: Costs) -> FloatArray | None:
        """Return the fair costs by index, or None for no bet."""

    @abstractmethod
    def sentence(self, kind: str) -> str:
        """Return what is wrong with a scorer that wins."""

    def power(self) -> str:
        """Return the power of the bets, measured with planted leaks."""
        return power.by_bets(list(self.bets.values()), self.bench.draw)


class Incompressible(Streams):
    """Score tokens drawn at random from known sets: no valid scorer gains over fair odds."""

    name = "P2 incompressible stream"
    rules = ("C2", "C3", "C1")
    did = (
        "scored random tokens from all of the vocabulary, from 16, from 2 and by the text's pairs "
        "(nats ahead)"
    )
    share, least, usual = 0.1, 1, 3
    kinds = ("all", "16", "2", "pairs")

    def steps(self) -> Iterator[None]:
        """Choose the sets of words, which stay the same in all rounds."""
        words, draw = self.bench.words, self.bench.draw
        self.sets = {
            "all": words,
            "16": draw.choice(words, min(16, len(words)), False),
            "2": draw.choice(words, min(2, len(words)), False),
        }
        text, bos_id = self.bench.text, self.bench.bos_id
        self.pairs = texts.Pairs.of(text, bos_id, self.bench.scorer.vocab_size)
        yield from super().steps()

    def draw_text(self, kind: str, length: int) -> tuple[IntArray, FloatArray]:
        """Return random tokens, with BOS at the same places as in the text."""
        bench = self.bench
        places = texts.marks(bench.text, bench.bos_id, length)
        start = np.full(length, bench.words[0])
        if kind == "pairs":
            start = texts.with_marks(start, places, bench.bos_id)
            start[0] = bench.text[0]
            return self.pairs.draw(start, bench.draw)
        tokens = self.sets[kind]
        ids = texts.with_marks(bench.draw.choice(tokens, length), places, bench.bos_id)
        return ids, np.where(ids == bench.bos_id, np.nan, math.log(len(tokens)))

    def odds(self, kind: str, ids: IntArray, stakes: FloatArray, costs: Costs) -> FloatArray | None:
        """Return the stakes; pairs are bet on only if documents are scored from left to right."""
        if kind == "pairs" and not texts.in_order(costs.index, ids, self.bench.bos_id):
            return None
        return stakes

    def sentence(self, kind: str) -> str:
        """Return what is wrong with a scorer that wins."""
        drawn = (
            "tokens drawn by the pairs of the text"
            if kind == "pairs"
            else f"random tokens from a set of {len(self.sets[kind])}"
        )
        return (
            f"{drawn} cost less than any distribution over them can charge: probabilities sum to "
            "more than one, or targets were seen"
        )

    def passed(self) -> str:
        """Return that no gain was found."""
        return "random tokens cost what they must"


class Shuffled(Streams):
    """Score shuffled texts: a scorer that adapts must not gain from patterns that do not exist."""

    name = "P5 shuffled targets"
    rules = ("C3", "C1")
    did = "scored the text's tokens in random order (nats ahead of a bet that knows their counts)"
    share, least, usual = 0.1, 1, 3
    kinds = ("shuffled",)

    def draw_text(self, kind: str, length: int) -> tuple[IntArray, FloatArray]:
        """Return the tokens of the text in random order; BOS stays."""
        bench = self.bench
        ids = np.resize(bench.text, length)
        places = np.flatnonzero(ids[1:] != bench.bos_id) + 1
        ids[places] = bench.draw.permutation(ids[places])
        return ids, np.empty(0)

    def odds(self, kind: str, ids: IntArray, stakes: FloatArray, costs: Costs) -> FloatArray | None:
        """Return the fair costs of the tokens, given the remaining ones."""
        return fair_shuffle(ids, costs, self.bench.bos_id)

    def sentence(self, kind: str) -> str:
        """Return what is wrong with a scorer that wins."""
        return (
            "shuffled tokens cost less than is possible without having seen them: a scorer that "
            "adapts reads its own targets"
        )

    def passed(self) -> str:
        """Return that no gain was found."""
        return "no pattern is found where there is none"
