"""Shared by all probes: the scorer, the texts for it, and the time."""

import copy
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from fairway.audit.scorers.scorer import Costs, RowScorer, Scorer, scored
from fairway.audit.scorers.texts import of_few_words, of_pieces
from fairway.base.arrays import FloatArray, IntArray
from fairway.base.errors import UserError
from fairway.config.settings import BOS_ID

# Smaller differences between costs are rounding; a leak of information is much larger.
ROUNDING_NATS = 1e-5
# If two runs of one text differ by more than this, small effects cannot be detected.
MOST_NOISE_NATS = 0.01
# Costs with coarser rounding steps than this get no allowance for rounding.
_COARSEST_NATS = 0.02
# If a scorer is noisy, a difference must exceed its noise by this factor.
_NOISE_FACTOR = 4.0
# A difference counts only after both costs were asked for this many times: the first number is for
# scorers without noise so far, the second for noisy ones. Equal costs give 12 answers that all lie
# above the 12 others once in 1.35 million times, whatever the noise (2 of 24! / 12!^2 orders).
_AGAIN, _OFTEN = 2, 12

# Shorter texts have too few places for the probes.
MIN_TOKENS = 8
# Only the beginning of a longer text is audited if the budget does not hold this many questions.
_LONG_TOKENS, _QUESTIONS = 1024, 400
_FIRST_TOKENS = 256
# Later beginnings of documents count as unknown after this many moves of them without effect.
_MOVES = 32
# Texts longer than the audited one may take this share of the budget per question, at most 0.1 s.
_LONG_SHARE, _LONG_S = 0.002, 0.1


@dataclass(eq=False)
class Bench:
    """A scorer under audit, the audited text (BOS first), and the seconds left.

    With an equal `seed` a probe visits the same places; a larger budget only adds places. With a
    budget of 0 each probe asks its minimum, however long that takes. Without `thorough` the probes
    stop after the usual number of questions, even if time is left.
    """

    scorer: Scorer
    text: IntArray
    seed: int = 0
    budget_s: float = 60.0
    bos_id: int = BOS_ID
    noise_nats: float = 0.0
    thorough: bool = True
    # If known: the raw bytes of the whole text, and later text of the same source.
    text_bytes: int | None = None
    later: IntArray | None = None
    # The clock of the budget: wall-clock seconds, or seconds of this process.
    clock: Callable[[], float] = time.perf_counter
    # The seconds of one question about the text, and the rounding step of its costs.
    once_s: float = field(default=0.0, init=False)
    grain_nats: float = field(default=0.0, init=False)
    # The whole text. `text` is shortened to its beginning if the whole would take too long.
    whole: IntArray = field(init=False)
    # For each BOS put in place of a word: by how much the probabilities exceed 1; see `documents`.
    with_bos: list[float] = field(default_factory=list, init=False)
    _kept: dict[bytes, Costs] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self._check("the text", self.text)
        if self.later is not None:
            self._check("the fresh text", self.later)
        if not 0 <= self.bos_id < self.scorer.vocab_size:
            raise UserError(
                f"BOS is {self.bos_id} and the scorer knows tokens 0 to "
                f"{self.scorer.vocab_size - 1}; name the token that begins a document (--bos)"
            )
        self.whole = self.text
        self._start_s = self.clock()
        self._new = _copied(self.scorer)
        self.begin("")

    def _check(self, name: str, ids: IntArray) -> None:
        """Raise UserError for a text that is too short, or has tokens outside the vocabulary."""
        size = self.scorer.vocab_size
        if len(ids) < MIN_TOKENS:
            raise UserError(
                f"{name} has {len(ids)} tokens, which is too short to audit a scorer on; it needs "
                f"{MIN_TOKENS}"
            )
        if not 0 <= int(ids.min()) <= int(ids.max()) < size:
            raise UserError(f"{name} has tokens up to {ids.max()}, the scorer knows {size}")

    def begin(self, probe: str) -> None:
        """Give a probe its own random numbers, independent of earlier probes."""
        self.draw = np.random.default_rng([self.seed, *probe.encode()])

    def start(self) -> None:
        """Start the clock of the audit, and choose how much of a long text to audit."""
        self._start_s = self.clock()
        first = self.whole[:_FIRST_TOKENS]
        self.costs(first)
        each_s = self.seconds_of(lambda: scored(self.scorer, first)) / len(first)
        tokens = int(self.budget_s / _QUESTIONS / max(each_s, 1e-12))
        if len(self.whole) > max(_LONG_TOKENS, tokens):
            self.text = self.whole[: max(_LONG_TOKENS, tokens)]
        self.once_s = each_s * len(self.text)
        self.grain_nats = grain(self.costs(self.text).nats)

    def lengths(self) -> list[int]:
        """Return lengths of longer texts to try: some scorers are judged on long texts later."""
        most_s = min(_LONG_SHARE * self.budget_s, _LONG_S)
        fit = [times for times in (4, 16, 64) if times * self.once_s <= most_s]
        return [len(self.text) * times for times in (2, *fit)]

    def longer(self, length: int) -> IntArray:
        """Return a natural text of the given length."""
        if length <= len(self.whole):
            return self.whole[:length]
        return of_pieces(self.text, self.bos_id, length, self.draw)

    @property
    def left_s(self) -> float:
        """Return the seconds left of the budget; all probes share one clock."""
        return self.budget_s - (self.clock() - self._start_s)

    @property
    def debt_s(self) -> float:
        """Return the seconds left that a first step needs; without `thorough` it always runs."""
        return 0.0 if self.thorough else -math.inf

    @property
    def tolerance_nats(self) -> float:
        """Return how much a cost may move if nothing that it may depend on has changed."""
        return ROUNDING_NATS + _NOISE_FACTOR * self.noise_nats

    @property
    def rows(self) -> RowScorer | None:
        """Return the scorer if it shows whole distributions, else None."""
        return self.scorer if isinstance(self.scorer, RowScorer) else None

    @cached_property
    def words(self) -> IntArray:
        """Return all tokens but BOS, which decides where documents begin."""
        return np.setdiff1d(np.arange(self.scorer.vocab_size), [self.bos_id])

    def met(self, noise_nats: float) -> None:
        """Record a difference between equal questions as noise; later comparisons allow for it."""
        self.noise_nats = max(self.noise_nats, noise_nats)

    def costs(self, ids: IntArray) -> Costs:
        """Return the scorer's costs of all tokens of a text; each text is asked for only once."""
        key = ids.tobytes()
        if key not in self._kept:
            self._kept[key] = scored(self.scorer, ids)
        return self._kept[key]

    @contextmanager
    def anew(self) -> Iterator[Scorer | None]:
        """Yield a scorer that has answered no question: the same program restarted, or a copy.

        Yield None if it can be neither restarted nor copied.
        """
        fresh = self._new()
        try:
            yield fresh
        finally:
            close = getattr(fresh, "close", None)
            if close is not None and fresh is not self.scorer:
                close()

    def moved_beginnings(self) -> tuple[bool, float]:
        """Move later BOS tokens; return whether the earlier scoring order changes, and by how many
        nats earlier costs change.

        After the cut one document begins soon, or none begins. The text is drawn from the audited
        one and one of few words, in which learning shows at once.
        """
        ids = (self.text, self.few_words)[int(self.draw.integers(2))]
        costs = self.costs(ids)
        if len(costs.index) < 4:
            return False, 0.0
        cut = int(self.draw.integers(1, len(costs.index) - 2))
        later = np.sort(costs.index[cut:])
        other = ids.copy()
        marks = later[other[later] == self.bos_id]
        other[marks] = self.draw.choice(self.words, len(marks))
        if soon := int(self.draw.integers(0, 4)):
            other[later[min(soon, len(later) - 1)]] = self.bos_id
        again = scored(self.scorer, other, count=cut)
        if not np.array_equal(again.index, costs.index[:cut]):
            return True, 0.0
        return False, float(moved_by(again.nats, costs.nats[:cut]).max(initial=0.0))

    @cached_property
    def few_words(self) -> IntArray:
        """Return a text with the same document lengths that uses only three words."""
        return of_few_words(self.text, self.words, self.bos_id, self.draw)

    @cached_property
    def beginnings_known(self) -> bool:
        """Return whether later beginnings of documents change earlier costs or their order."""
        found = (self.moved_beginnings() for _ in range(_MOVES))
        return any(order or not nats <= self.tolerance_nats for order, nats in found)

    def differ(self, one: Callable[[], float], other: Callable[[], float]) -> bool:
        """Return whether two costs really differ: both are asked for several times.

        Differences between equal questions are recorded as noise, which is allowed for.
        """
        heard: tuple[list[float], list[float]] = ([], [])
        times = _OFTEN if self.noise_nats > 0 else _AGAIN
        while len(heard[0]) < times:
            first = int(self.draw.integers(2))
            for which in (first, 1 - first):
                heard[which].append((one, other)[which]())
            if np.isnan(heard).any():
                # The token is charged for only sometimes, or never.
                return not np.isnan(heard).all()
            spread = max(max(moved_by(np.array(h), np.array(h[:1]))) for h in heard)
            if spread > ROUNDING_NATS:
                self.met(float(spread))
                times = _OFTEN
        a, b = heard
        return max(a) < min(b) - ROUNDING_NATS or max(b) < min(a) - ROUNDING_NATS

    def changed(self, ids: IntArray, places: IntArray) -> IntArray:
        """Return a text with other tokens at some places; no BOS is added or removed."""
        found = ids.copy()
        places = places[found[places] != self.bos_id]
        # Draw from all words but the last; where the token itself was drawn, use the last.
        words = self.words
        drawn = words[self.draw.integers(0, max(1, len(words) - 1), len(places))]
        found[places] = np.where(drawn == found[places], words[-1], drawn)
        return found

    def seconds_of(self, work: Callable[[], object]) -> float:
        """Return the seconds that some work takes."""
        start_s = self.clock()
        work()
        return self.clock() - start_s


def grain(costs: FloatArray) -> float:
    """Return the rounding step of costs (decimals or float16), or 0 if they are not rounded.

    Steps above 0.02 nats return 0: an audit could not allow for them.
    """
    finite = costs[np.isfinite(costs)]
    for step in (0.01, 0.001, 0.0001):
        if len(finite) and np.allclose(finite, np.round(finite / step) * step, rtol=0, atol=1e-9):
            return step
    with np.errstate(over="ignore"):
        half = finite.astype(np.float16)
    if len(finite) and np.array_equal(half.astype(np.float64), finite):
        step = float(np.spacing(np.abs(half)).max())
        return step if step <= _COARSEST_NATS else 0.0
    return 0.0


def _copied(scorer: Scorer) -> Callable[[], Scorer | None]:
    """Return a function that makes a scorer that has answered no question."""
    again = getattr(scorer, "fresh", None)
    if again is not None:
        made: Callable[[], Scorer | None] = again
        return made
    pristine = _copy(scorer)
    return lambda: None if pristine is None else _copy(pristine)


def _copy(scorer: Scorer) -> Scorer | None:
    """Return a copy; None for a scorer with pipes or locks, or too large; `replay` reports that."""
    try:
        return copy.deepcopy(scorer)
    except (TypeError, AttributeError, NotImplementedError, RuntimeError, MemoryError, copy.Error):
        return None


def exercise(ids: IntArray, tokens: int) -> IntArray:
    """Return the beginning of a text with its last third replaced by a copy of its first.

    Caches and gates react to repeated text; without a repeat they would stay unused.
    """
    found = ids[:tokens].copy()
    third = len(found) // 3
    found[len(found) - third :] = found[:third]
    return found


def mean_error(values: FloatArray) -> tuple[float, float]:
    """Return the mean of some values, and its standard error."""
    return float(values.mean()), float(values.std(ddof=1)) / len(values) ** 0.5


def moved_by(a: FloatArray, b: FloatArray) -> FloatArray:
    """Return |a - b|: 0 for equal infinities, infinity where either is NaN."""
    with np.errstate(invalid="ignore"):
        moved = np.where(a == b, 0.0, np.abs(a - b))
    return np.where(np.isnan(moved), np.inf, moved)
