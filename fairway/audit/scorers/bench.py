"""What probes share: the scorer, the texts they put to it, the time they may take."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from fairway.audit.scorers.scorer import Costs, RowScorer, Scorer, scored
from fairway.config import BOS_ID
from fairway.errors import UserError
from fairway.score.ledger import FloatArray, IntArray

# Costs that move by less are rounding; a leak of information is larger by far.
ROUNDING_NATS = 1e-5
# A scorer that does not repeat itself is measured against its own noise, so many times of it.
_NOISE_FACTOR = 4.0


# Fewer tokens leave no place that a probe could change and look behind.
MIN_TOKENS = 8


@dataclass(eq=False)
class Bench:
    """A scorer under audit, the text it is audited on (BOS first), and the seconds left.

    With equal `seed` a probe looks at the same places; more time only means more of them.
    """

    scorer: Scorer
    text: IntArray
    seed: int = 0
    budget_s: float = 60.0
    bos_id: int = BOS_ID
    noise_nats: float = 0.0
    _kept: dict[bytes, Costs] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        if len(self.text) < MIN_TOKENS:
            raise UserError(
                f"a text of {len(self.text)} tokens is too short to audit a scorer on; it needs "
                f"{MIN_TOKENS}"
            )
        if not 0 <= int(self.text.min()) <= int(self.text.max()) < self.scorer.vocab_size:
            raise UserError(
                f"the text has tokens up to {self.text.max()}, the scorer knows "
                f"{self.scorer.vocab_size}"
            )
        self.begin("")

    def begin(self, probe: str) -> None:
        """Give a probe random numbers of its own, whatever those before it have used."""
        self.draw = np.random.default_rng([self.seed, *probe.encode()])

    @property
    def tolerance_nats(self) -> float:
        """Return how far a cost may move when nothing it may depend on has changed."""
        return ROUNDING_NATS + _NOISE_FACTOR * self.noise_nats

    @property
    def rows(self) -> RowScorer | None:
        """Return the scorer if it shows whole distributions."""
        return self.scorer if isinstance(self.scorer, RowScorer) else None

    @property
    def words(self) -> IntArray:
        """Return all tokens but BOS, which decides where documents begin."""
        return np.setdiff1d(np.arange(self.scorer.vocab_size), [self.bos_id])

    def costs(self, ids: IntArray) -> Costs:
        """Return what the scorer charges for all of a text; asked once only."""
        key = ids.tobytes()
        if key not in self._kept:
            self._kept[key] = scored(self.scorer, ids)
        return self._kept[key]

    def rounds(self, share: float, most: int, least: int = 1) -> Iterator[int]:
        """Yield 0, 1, ... up to `most`, at least `least`, while a share of the budget lasts."""
        end_s = time.perf_counter() + share * self.budget_s
        for number in range(most):
            yield number
            if number + 1 >= least and time.perf_counter() > end_s:
                return

    def other(self, token: int) -> int:
        """Return a random token that is another one, and not BOS."""
        words = self.words
        return int(self.draw.choice(words[words != token]))

    def changed(self, ids: IntArray, places: IntArray) -> IntArray:
        """Return a text with other tokens at some places; BOS stays what and where it is."""
        found = ids.copy()
        for place in places:
            if found[place] != self.bos_id:
                found[place] = self.other(int(found[place]))
        return found

    def _like_text(self, drawn: IntArray) -> IntArray:
        """Return drawn tokens with BOS where the text has it."""
        return np.where(self.text == self.bos_id, self.bos_id, drawn)

    def of_few_words(self) -> IntArray:
        """Return a text of three words in random order: whatever is learned is soon used."""
        words = self.draw.choice(self.words, 3, False)
        return self._like_text(self.draw.choice(words, len(self.text)))

    def of_habits(self) -> IntArray:
        """Return a text of three words in turn, now and then another: whoever counts gets sure."""
        words = self.draw.choice(self.words, 3, False)
        drawn = np.resize(words, len(self.text))
        odd = self.draw.random(len(drawn)) < 0.1
        return self._like_text(np.where(odd, self.draw.choice(self.words, len(drawn)), drawn))

    def seconds_of(self, work: Callable[[], object]) -> float:
        """Return the seconds that some work takes."""
        start_s = time.perf_counter()
        work()
        return time.perf_counter() - start_s


def exercise(ids: IntArray, tokens: int) -> IntArray:
    """Return the beginning of a text, its last third replaced by a copy of what it began with.

    Caches and gates act on what they have seen before; a text that never repeats wakes none.
    """
    found = ids[:tokens].copy()
    third = len(found) // 3
    found[len(found) - third :] = found[:third]
    return found


def moved_by(a: FloatArray, b: FloatArray) -> FloatArray:
    """Return |a - b|; equal infinities have not moved, and what is no number has, infinitely."""
    with np.errstate(invalid="ignore"):
        moved = np.where(a == b, 0.0, np.abs(a - b))
    return np.where(np.isnan(moved), np.inf, moved)


def winnings(stakes: FloatArray, costs: Costs, ids: IntArray) -> tuple[float, int | None]:
    """Return the most that a scorer was ahead of fair odds, in nats, and at which token.

    `stakes` are the fair costs of the tokens of a random text, by index; NaN where a token is not
    random. Whoever predicts by distributions, from the past alone, is ahead by L nats at any time
    with a probability of at most exp(-L): the ratio is a martingale (Ville's inequality). So this
    needs no assumption about the scorer.
    """
    fair = stakes[costs.index]
    random = ~np.isnan(fair)
    if not random.any():
        return 0.0, None
    ahead = np.cumsum(fair[random] - costs.nats[random])
    best = int(np.argmax(ahead))
    if not ahead[best] > 0:
        return 0.0, None
    return float(ahead[best]), int(costs.index[random][best])


def fair_shuffle(ids: IntArray, costs: Costs, bos_id: int) -> FloatArray:
    """Return the fair cost of every token of a shuffled text, by index, in its scoring order.

    Even who knows which tokens come, and how often, can do no better than to bet on what is left.
    """
    stakes = np.full(len(ids), np.nan)
    left = np.bincount(ids[1:][ids[1:] != bos_id]).astype(np.float64)
    total = float(left.sum())
    for at in costs.index:
        token = int(ids[at])
        if token == bos_id or not left[token]:
            continue
        stakes[at] = math.log(total / left[token])
        left[token] -= 1
        total -= 1
    return stakes
