"""A small text and a ledger of it, for tests of what a ledger checks."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fairway.base.arrays import FloatArray, IntArray
from fairway.score.ledger import Ledger, Text
from fairway.score.predictor import Context, Receipt
from fairway.score.windows import Event, events, sliding_windows

V = 7

IDS = np.array([1, 3, 4, 0, 6, 2, 2, 5, 3, 1, 0, 4, 6], dtype=np.uint16)

BYTES = np.array([2, 1, 0, 3, 1, 1, 2, 2, 0, 4, 1, 1])

TEXT = Text(IDS, BYTES, int(BYTES.sum()), V)


class Counter:
    """Predicts by the counts of the tokens in its receipts: adaptive, and easy to redo by hand."""

    def __init__(self) -> None:
        self.counts = np.ones(V)
        self.contexts: list[Context] = []

    def predict(self, context: Context) -> "Counted":
        self.contexts.append(context)
        return Counted(np.log(self.counts / self.counts.sum()), context)

    def adapt(self, receipt: Receipt) -> None:
        np.add.at(self.counts, receipt.targets, 1)


class Counted:
    """One table for all positions of the event."""

    def __init__(self, table: FloatArray, context: Context) -> None:
        self.table, self.context = table, context
        self.asked: list[str] = []

    def log_prob(self, targets: IntArray) -> FloatArray:
        self.asked.append("log_prob")
        return self.table[targets]

    def row(self, position: int) -> FloatArray:
        self.asked.append("row")
        return self.table


def all_events(targets: int = 12) -> list[Event]:
    return list(events(sliding_windows(targets, 6, 2), 2))


def fixed(**changes: Any) -> Any:
    """A uniform distribution with some of its answers replaced."""

    class Fixed:
        def log_prob(self, targets: IntArray) -> NDArray[Any]:
            return changes.get("log_prob", lambda n: np.full(n, -math.log(V)))(len(targets))

        def row(self, position: int) -> NDArray[Any]:
            return changes.get("row", lambda: np.full(V, -math.log(V)))()

    return Fixed()


def ledger(**changes: Any) -> Ledger:
    return Ledger(**{"text": TEXT, "num_targets": 12, "check_positions": 12, **changes})


def uniform(factor: float = 1.0) -> FloatArray:
    """Return a row whose probabilities sum to `factor`."""
    return np.full(V, math.log(factor / V))
