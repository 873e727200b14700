"""A text scored by several processes: their messages, and the joined score."""

from collections.abc import Sequence

import numpy as np

from fairway.base.arrays import FloatArray
from fairway.machine.ranks import Ranks
from fairway.score.ledger import Gather, Part

# The numbers sent for a part besides the nats of its events.
_PART_NUMBERS = 8


def share(count: int, ranks: Ranks) -> range:
    """Return which of `count` items in a row belong to this process."""
    first, end = (count * rank // ranks.world for rank in (ranks.rank, ranks.rank + 1))
    return range(first, end)


def gathering(ranks: Ranks, own: Sequence[int], parts: int, events: int) -> Gather:
    """Return a function that collects all `parts` of a text, which have `events` events in all.

    `own` are the indices of the parts that this process made. The collection is one float64 sum
    over the processes; each adds its own numbers to zeros, so nothing is rounded. A part's row has
    the number of its events; their nats follow after all rows.
    """
    rows = parts * _PART_NUMBERS

    def gather(made: list[Part]) -> list[Part]:
        sent = np.zeros(rows + events)
        for number, part in zip(own, made, strict=True):
            first = part.first_event
            sent[number * _PART_NUMBERS :][:_PART_NUMBERS] = [
                *(first, part.first, part.end, len(part.event_nats), part.windows),
                *(part.checked_positions, part.worst_sum_error, part.worst_row_error_nats),
            ]
            sent[rows + first :][: len(part.event_nats)] = part.event_nats
        received = ranks.total(sent)
        return [_part(row, received[rows:]) for row in received[:rows].reshape(parts, -1)]

    return gather


def _part(row: FloatArray, event_nats: FloatArray) -> Part:
    first_event, first, end, own, windows, checked = (int(number) for number in row[:6])
    nats = tuple(event_nats[first_event : first_event + own].tolist())
    return Part(first_event, first, end, nats, windows, checked, float(row[6]), float(row[7]))
