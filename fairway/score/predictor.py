"""The messages between ledger and predictor, and the interface of a predictor."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from fairway.base.arrays import FloatArray, IntArray
from fairway.score.windows import Event, Window


@dataclass(frozen=True, slots=True, eq=False)
class Context:
    """The part of an event that a predictor may read: the inputs of its windows, and no later
    token."""

    event: Event
    ids: dict[Window, IntArray]

    def inputs(self, window: Window, end: int | None = None) -> IntArray:
        """Return the inputs x[window.start:end] of a window; `end` defaults to the window's."""
        return self.ids[window][: None if end is None else end - window.start]


@dataclass(frozen=True, slots=True, eq=False)
class Receipt:
    """A committed event: its targets (int64) and their cost in nats (float64), read-only.

    Entry i belongs to event.positions[i]. A predictor learns only from receipts and lessons.
    """

    event: Event
    targets: IntArray
    nats: FloatArray


@dataclass(frozen=True, slots=True, eq=False)
class Lesson:
    """Tokens for learning: consecutive targets that have all been scored.

    inputs: the token before each target; the first of them is the target of the position before.
    """

    inputs: IntArray
    targets: IntArray


class Distribution(Protocol):
    """The frozen prediction of one event; both methods must answer from the same state."""

    def log_prob(self, targets: IntArray) -> FloatArray:
        """Return the natural log-probability of the target of every scored position, in order."""

    def row(self, position: int) -> FloatArray:
        """Return the natural log-probabilities of all V tokens at one scored position."""


@runtime_checkable
class Stepwise(Protocol):
    """A prediction that advances with every token inside its event, as adaptive experts need."""

    def advance(self, targets: IntArray) -> FloatArray:
        """Return the natural log-probabilities of the next targets, and advance past them.

        Each is fixed before its target influences any later prediction.
        """

    def row(self, position: int) -> FloatArray:
        """Return the natural log-probabilities of all V tokens at the next position."""


class Predictor(Protocol):
    """Anything that predicts text: a frozen model, one that adapts, a table of counts."""

    def predict(self, context: Context) -> "Distribution | Stepwise":
        """Return a distribution for the event, either frozen or stepwise."""

    def adapt(self, receipt: Receipt) -> None:
        """Learn from a committed event, or do nothing."""


# Maps a predictor to a predictor with experts added.
Helped = Callable[[Predictor], Predictor]


def alone(predictor: Predictor) -> Predictor:
    """Return the predictor unchanged."""
    return predictor
