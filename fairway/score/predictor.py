"""The messages between ledger and predictor, and the interface of a predictor."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from fairway.base.arrays import FloatArray, IntArray
from fairway.score.windows import Event, Window


@dataclass(frozen=True, slots=True, eq=False)
class Context:
    """What a predictor may see of an event: the inputs of its windows, and no later token."""

    event: Event
    ids: dict[Window, IntArray]

    def inputs(self, window: Window, end: int | None = None) -> IntArray:
        """Return the inputs x[window.start:end] of a window; `end` defaults to the window's."""
        return self.ids[window][: None if end is None else end - window.start]


@dataclass(frozen=True, slots=True, eq=False)
class Receipt:
    """A committed event: its targets (int64) and their cost in nats (float64), read-only.

    Entry i belongs to event.positions[i]. Whatever a predictor learns, it learns from here.
    """

    event: Event
    targets: IntArray
    nats: FloatArray


@dataclass(frozen=True, slots=True, eq=False)
class Lesson:
    """What may be learned from: consecutive targets that have all been scored, and their cost.

    inputs: the token before each target; the first of them is the target of the position before.
    """

    inputs: IntArray
    targets: IntArray
    nats: FloatArray


class Distribution(Protocol):
    """The frozen prediction of one event; both methods must answer from the same state."""

    def log_prob(self, targets: IntArray) -> FloatArray:
        """Return the natural log-probability of the target of every scored position, in order."""

    def row(self, position: int) -> FloatArray:
        """Return the natural log-probabilities of all V tokens at one scored position."""


@runtime_checkable
class Stepwise(Protocol):
    """A prediction that moves on with every token inside its event, as adaptive experts do."""

    def advance(self, targets: IntArray) -> FloatArray:
        """Return the natural log-probabilities of the next targets, and move behind them.

        Each is fixed before the target is used for anything that comes after.
        """

    def row(self, position: int) -> FloatArray:
        """Return the natural log-probabilities of all V tokens at the next position."""


class Predictor(Protocol):
    """Anything that predicts text: a frozen model, one that adapts, a table of counts."""

    def predict(self, context: Context) -> "Distribution | Stepwise":
        """Return a distribution for the event: frozen, or one that moves on within it."""

    def adapt(self, receipt: Receipt) -> None:
        """Learn from a committed event, or do nothing."""


# What experts make of a predictor: another one that has them beside it.
Helped = Callable[[Predictor], Predictor]


def alone(predictor: Predictor) -> Predictor:
    """Return the predictor as it is."""
    return predictor
