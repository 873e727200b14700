"""A scorer that is one table of probabilities, and a place in a short text at which it is asked."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from fairway.audit.scorers.bench import Bench
from fairway.audit.scorers.sums import Place

BOS, AT = 1, 4
IDS = np.array([1, 2, 3, 4, 5, 2, 3, 6, 7])


class Table:
    """Charges by one table of probabilities, shows another, and notes which tokens it saw at AT."""

    row_tolerance_nats = 0.01
    # Where BOS alone makes a sum wrong, it is also put behind the place.
    ends_documents = False

    def __init__(self, charged: np.ndarray, shown: np.ndarray | None = None) -> None:
        self.vocab_size, self.charged, self.shown = len(charged), charged, shown
        self.seen: list[int] = []

    def score(self, ids: np.ndarray) -> Iterator[tuple[int, float]]:
        self.seen.append(int(ids[AT]))
        if not self.ends_documents:
            assert [*ids[:AT], *ids[AT + 1 :]] == [*IDS[:AT], *IDS[AT + 1 :]], "one place changes"
        for t in range(1, len(ids)):
            assert t <= AT, "nothing is asked beyond the place"
            yield t, -math.log(self.charged[ids[t]])

    def row(self, ids: np.ndarray, index: int) -> np.ndarray:
        assert index == AT and np.array_equal(ids, IDS)
        assert self.shown is not None
        return np.asarray(np.log(self.shown))


def place(scorer: Any, **changes: Any) -> Place:
    return Place(Bench(scorer, IDS, **{"budget_s": 0.0, **changes}), IDS.copy(), AT)


def summing_to(whole: float, words: float = 0.9) -> np.ndarray:
    """Return 8 probabilities: those of the 7 words sum to `words`, and all to `whole`."""
    p = np.full(8, words / 7)
    p[BOS] = whole - words
    return p
