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

# Costs that move by less are rounding; a leak of information is larger by far.
ROUNDING_NATS = 1e-5
# More noise than this between two runs of one text and nothing small can be told from it.
MOST_NOISE_NATS = 0.01
# Costs that are rounded to coarser steps are no costs.
_COARSEST_NATS = 0.02
# A scorer that does not repeat itself is measured against its own noise, this many times of it.
_NOISE_FACTOR = 4.0
# Two costs are asked for again this many times before a difference counts: of a scorer that has
# always repeated itself, and of one that has not. If all of one lie above all of the other, chance
# has done that once in 2.7 million times, whatever the noise (24! / 12!^2 orders, two of them so).
_AGAIN, _OFTEN = 2, 12

# Fewer tokens leave no place that a probe could change and look behind.
MIN_TOKENS = 8
# A longer text is audited on its beginning if the budget does not hold this many questions.
_LONG_TOKENS, _QUESTIONS = 1024, 400
_FIRST_TOKENS = 256
# So often documents are made to begin elsewhere before a scorer is said not to know of it.
_MOVES = 32
# Longer texts than that of the audit take this part of the budget for one question, and no more.
_LONG_SHARE, _LONG_S = 0.002, 0.1


@dataclass(eq=False)
class Bench:
    """A scorer under audit, the text it is audited on (BOS first), and the seconds left.

    With equal `seed` a probe looks at the same places; more time only means more of them. A budget
    of 0 means the least questions, whatever they take. Not
    `thorough` means that probes end after the usual number of questions, whatever the budget.
    """

    scorer: Scorer
    text: IntArray
    seed: int = 0
    budget_s: float = 60.0
    bos_id: int = BOS_ID
    noise_nats: float = 0.0
    thorough: bool = True
    # Raw bytes of all of the text, and text of the same source that came later, where known.
    text_bytes: int | None = None
    later: IntArray | None = None
    # What the budget is measured by: seconds by the wall, or of this process.
    clock: Callable[[], float] = time.perf_counter
    # What a question about the text takes, and the step to which its costs are rounded.
    once_s: float = field(default=0.0, init=False)
    grain_nats: float = field(default=0.0, init=False)
    # The text as it was given; `text` becomes its beginning where all would take too long.
    whole: IntArray = field(init=False)
    # Excess of sums in which BOS was put at the place of a word; see `documents`.
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
        """Raise UserError for a text that is too short, or has tokens that the scorer has not."""
        size = self.scorer.vocab_size
        if len(ids) < MIN_TOKENS:
            raise UserError(
                f"{name} has {len(ids)} tokens, which is too short to audit a scorer on; it needs "
                f"{MIN_TOKENS}"
            )
        if not 0 <= int(ids.min()) <= int(ids.max()) < size:
            raise UserError(f"{name} has tokens up to {ids.max()}, the scorer knows {size}")

    def begin(self, probe: str) -> None:
        """Give a probe random numbers of its own, whatever those before it have used."""
        self.draw = np.random.default_rng([self.seed, *probe.encode()])

    def start(self) -> None:
        """Start the clock of the audit, and choose how much of a long text it takes."""
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
        """Return lengths of texts beyond that of the text: what is judged later may be long."""
        most_s = min(_LONG_SHARE * self.budget_s, _LONG_S)
        fit = [times for times in (4, 16, 64) if times * self.once_s <= most_s]
        return [len(self.text) * times for times in (2, *fit)]

    def longer(self, length: int) -> IntArray:
        """Return a natural text of another length."""
        if length <= len(self.whole):
            return self.whole[:length]
        return of_pieces(self.text, self.bos_id, length, self.draw)

    @property
    def left_s(self) -> float:
        """Return the seconds that are left of the budget, by one clock for all probes."""
        return self.budget_s - (self.clock() - self._start_s)

    @property
    def debt_s(self) -> float:
        """Return what must be left for a first step: one that is not thorough makes it always."""
        return 0.0 if self.thorough else -math.inf

    @property
    def tolerance_nats(self) -> float:
        """Return how far a cost may move when nothing it may depend on has changed."""
        return ROUNDING_NATS + _NOISE_FACTOR * self.noise_nats

    @property
    def rows(self) -> RowScorer | None:
        """Return the scorer if it shows whole distributions."""
        return self.scorer if isinstance(self.scorer, RowScorer) else None

    @cached_property
    def words(self) -> IntArray:
        """Return all tokens but BOS, which decides where documents begin."""
        return np.setdiff1d(np.arange(self.scorer.vocab_size), [self.bos_id])

    def met(self, noise_nats: float) -> None:
        """Take a difference between equal questions for noise, which is allowed from then on."""
        self.noise_nats = max(self.noise_nats, noise_nats)

    def costs(self, ids: IntArray) -> Costs:
        """Return what the scorer charges for all of a text; asked once only."""
        key = ids.tobytes()
        if key not in self._kept:
            self._kept[key] = scored(self.scorer, ids)
        return self._kept[key]

    @contextmanager
    def anew(self) -> Iterator[Scorer | None]:
        """Yield a scorer that was asked nothing yet: the same program started again, or a copy.

        None if it can neither be started again nor copied.
        """
        fresh = self._new()
        try:
            yield fresh
        finally:
            close = getattr(fresh, "close", None)
            if close is not None and fresh is not self.scorer:
                close()

    def moved_beginnings(self) -> tuple[bool, float]:
        """Put later BOS elsewhere; return whether the order before changes, and by how much costs.

        Behind a cut one document begins soon, or none at all. By turns in the text, and in one of
        few words, in which whatever is learned shows at once.
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
        """Return a text of the same documents in three words."""
        return of_few_words(self.text, self.words, self.bos_id, self.draw)

    @cached_property
    def beginnings_known(self) -> bool:
        """Return whether later beginnings of documents reach what is scored before them."""
        found = (self.moved_beginnings() for _ in range(_MOVES))
        return any(order or not nats <= self.tolerance_nats for order, nats in found)

    def differ(self, one: Callable[[], float], other: Callable[[], float]) -> bool:
        """Return whether two costs differ for certain: both are asked for again and again.

        What differs between equal questions is noise, and from then on it is allowed for.
        """
        heard: tuple[list[float], list[float]] = ([], [])
        times = _OFTEN if self.noise_nats > 0 else _AGAIN
        while len(heard[0]) < times:
            first = int(self.draw.integers(2))
            for which in (first, 1 - first):
                heard[which].append((one, other)[which]())
            if np.isnan(heard).any():
                # A token that is charged for only sometimes, or never.
                return not np.isnan(heard).all()
            spread = max(max(moved_by(np.array(h), np.array(h[:1]))) for h in heard)
            if spread > ROUNDING_NATS:
                self.met(float(spread))
                times = _OFTEN
        a, b = heard
        return max(a) < min(b) - ROUNDING_NATS or max(b) < min(a) - ROUNDING_NATS

    def changed(self, ids: IntArray, places: IntArray) -> IntArray:
        """Return a text with other tokens at some places; BOS stays what and where it is."""
        found = ids.copy()
        places = places[found[places] != self.bos_id]
        # One of the words but the last, moved up where it would be the token itself.
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
    """Return the step to which numbers are rounded, 0 if it is fine: decimals, or float16.

    Steps above 0.02 nats are no rounding that an audit could allow for.
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
    """Return what makes a scorer that has been asked nothing."""
    again = getattr(scorer, "fresh", None)
    if again is not None:
        made: Callable[[], Scorer | None] = again
        return made
    pristine = _copy(scorer)
    return lambda: None if pristine is None else _copy(pristine)


def _copy(scorer: Scorer) -> Scorer | None:
    """Return a copy; None for what has pipes or locks, or is too large, which replay says."""
    try:
        return copy.deepcopy(scorer)
    except (TypeError, AttributeError, NotImplementedError, RuntimeError, MemoryError, copy.Error):
        return None


def exercise(ids: IntArray, tokens: int) -> IntArray:
    """Return the beginning of a text, its last third replaced by a copy of what it began with.

    Caches and gates act on what they have seen before; a text that never repeats wakes none.
    """
    found = ids[:tokens].copy()
    third = len(found) // 3
    found[len(found) - third :] = found[:third]
    return found


def mean_error(values: FloatArray) -> tuple[float, float]:
    """Return the mean of some values, and its standard error."""
    return float(values.mean()), float(values.std(ddof=1)) / len(values) ** 0.5


def moved_by(a: FloatArray, b: FloatArray) -> FloatArray:
    """Return |a - b|; equal infinities have not moved, and what is no number has, infinitely."""
    with np.errstate(invalid="ignore"):
        moved = np.where(a == b, 0.0, np.abs(a - b))
    return np.where(np.isnan(moved), np.inf, moved)
