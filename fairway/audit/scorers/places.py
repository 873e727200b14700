"""The order in which a probe visits places: likely leaks and borders first, then all others."""

from collections.abc import Iterator

import numpy as np

from fairway.audit.scorers.bench import Bench
from fairway.audit.scorers.scorer import Costs
from fairway.base.arrays import IntArray

# Chunks and windows are mostly multiples of these; probes visit both sides of every border.
_BORDERS = (64, 32, 16, 8, 100, 50, 10)
_DENSE = 48


def cuts(bench: Bench, ids: IntArray, count: int) -> list[int]:
    """Return the numbers of scored tokens to cut after, 1 to count - 1, each one once.

    Order: a dozen random places and beginnings of documents, both sides of chunk borders, a run of
    neighbouring places, and the rest at random.
    """
    if count < 2:
        return []
    draw = bench.draw
    starts = np.flatnonzero(ids[1:] == bench.bos_id)
    anywhere = draw.integers(1, count, 4).tolist()
    found = [*anywhere[:2], count - 1, 3, 1, 8, *starts[:2].tolist(), count // 2, *anywhere[2:]]
    first = int(draw.integers(1, count))
    found += [edge + side for edge in borders(count, draw) for side in (0, 1, -1)]
    found += range(first, min(count, first + _DENSE))
    found += draw.permutation(np.arange(1, count)).tolist()
    return [cut for cut in dict.fromkeys(found) if 0 < cut < count]


def borders(count: int, draw: np.random.Generator) -> list[int]:
    """Return borders of chunks of usual sizes: powers of two, and a few multiples of each size."""
    found = [2**k for k in range(2, 24) if 2**k < count]
    for size in _BORDERS:
        multiples = np.arange(size, count, size)
        found += draw.permutation(multiples)[:4].tolist()
    return found


def places(bench: Bench, ids: IntArray, costs: Costs) -> list[int]:
    """Return the tokens to visit, every one but BOS once.

    Order: the cheapest, where cheating gains most; one of the second half; tokens by deciles of
    cost, after BOS, at borders and at both ends; then the rest at random.
    """
    words = np.flatnonzero(ids[costs.index] != bench.bos_id)
    if not len(words):
        return []
    sorted_by_cost = costs.index[words[np.argsort(costs.nats[words], kind="stable")]]
    late = costs.index[words[len(words) // 2 :]]
    draw = bench.draw
    deciles = [int(sorted_by_cost[len(words) * k // 10]) for k in (9, 3, 6, 2, 8, 4, 7, 5)]
    found = [
        int(sorted_by_cost[0]),
        int(draw.choice(late)),
        int(sorted_by_cost[len(words) // 10]),
        *draw.choice(costs.index[words], 3).tolist(),
        int(costs.index[words[-1]]),
        int(costs.index[words[0]]),
        *deciles,
        *(np.flatnonzero(ids[:-1] == bench.bos_id)[:6] + 1).tolist(),
        *borders(len(ids), draw),
        *draw.permutation(costs.index[words]).tolist(),
    ]
    known = set(costs.index[words].tolist())
    return [place for place in dict.fromkeys(found) if place in known]


def in_turn(*queues: Iterator[None]) -> Iterator[None]:
    """Run the iterators in turn, one step each, until all have ended."""
    left = list(queues)
    while left:
        for queue in list(left):
            try:
                next(queue)
            except StopIteration:
                left.remove(queue)
            else:
                yield
