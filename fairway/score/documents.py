"""Documents scored side by side: the positions of each event and their order. Integers only.

A document goes from its BOS to the next BOS, which is its last target. So every position of the
text belongs to one document. Batches take documents in the order of the text. A batch moves through
its documents together, chunk by chunk, and those that have ended drop out. No event needs a
document's length before its last chunk, so a decoder that learns the end only there makes the same
events.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fairway.config.checks import lora_chunks
from fairway.config.settings import BOS_ID, TttConfig
from fairway.score.ledger import Text
from fairway.score.windows import Event, Window


@dataclass(frozen=True, slots=True)
class Step:
    """One event of a batch: the chunk first..end-1 of the documents in `rows`, one window each.

    `going_on` are the rows that have positions after this chunk.
    """

    event: Event
    rows: tuple[int, ...]
    going_on: tuple[int, ...]
    first: int
    end: int


@dataclass(frozen=True, slots=True)
class Batch:
    """Documents scored side by side, and their events; `positions` are those of all of them."""

    index: int
    documents: tuple[range, ...]
    steps: tuple[Step, ...]

    @property
    def positions(self) -> range:
        """Return all positions of the batch, which follow one another."""
        return range(self.documents[0].start, self.documents[-1].stop)


def documents(ids: NDArray[np.integer], targets: int) -> list[range]:
    """Return the positions of every document; text before a first BOS is a document too."""
    starts = np.flatnonzero(np.asarray(ids[:targets]) == BOS_ID).tolist()
    bounds = [*([] if starts[:1] == [0] else [0]), *starts, targets]
    return [range(first, end) for first, end in itertools.pairwise(bounds)]


def chunk_bounds(config: TttConfig, length: int) -> Iterator[tuple[int, int]]:
    """Yield (first, end) of the chunks of a document, the last one whole even if it ends sooner."""
    first, sizes = 0, lora_chunks(config)
    while first < length:
        size = next(n for n, until in sizes if until is None or first < until)
        yield first, first + size
        first += size


def batches(found: Sequence[range], config: TttConfig, seq_len: int) -> list[Batch]:
    """Return the batches of some documents; the numbers of their events continue across batches."""
    made: list[Batch] = []
    index = 0
    for first in range(0, len(found), config.lora_documents):
        group = tuple(found[first : first + config.lora_documents])
        steps = tuple(_steps(group, config, seq_len, index))
        made.append(Batch(len(made), group, steps))
        index += len(steps)
    return made


def _steps(group: tuple[range, ...], config: TttConfig, seq_len: int, index: int) -> Iterator[Step]:
    for first, end in chunk_bounds(config, max(map(len, group))):
        rows = tuple(n for n, document in enumerate(group) if len(document) > first)
        going_on = tuple(n for n in rows if len(group[n]) > end)
        # The start of a window must not depend on the end of its document.
        start = max(0, end - seq_len)
        windows = tuple(
            Window(d.start + start, d.start + min(end, len(d)), d.start + first)
            for d in (group[n] for n in rows)
        )
        yield Step(Event(index, windows), rows, going_on, first, end)
        index += 1


def unlearned_windows(found: Sequence[range], config: TttConfig, seq_len: int) -> Iterator[Window]:
    """Yield windows that give a frozen model the same contexts as documents side by side.

    Documents follow one another. Chunks whose windows begin with their document are one window.
    """
    for document in found:
        bounds = list(chunk_bounds(config, len(document)))
        whole = max(end for _, end in bounds if end <= seq_len)
        at, count = document.start, len(document)
        yield Window(at, at + min(whole, count), at)
        for first, end in bounds:
            if end > whole:
                yield Window(at + end - seq_len, at + min(end, count), at + first)


def longest_first(text: Text, targets: int) -> Text:
    """Return the documents in order of decreasing length; the last one stays in place.

    This reads lengths of text that has not been scored. The last document may be cut off, and does
    not end in a BOS, so it stays where it is.
    """
    found = documents(text.ids, targets)
    order = sorted(found[:-1], key=len, reverse=True)
    ids, target_bytes = np.array(text.ids), np.array(text.target_bytes)
    at = 0
    for document in order:
        ids[at : at + len(document)] = text.ids[document.start : document.stop]
        target_bytes[at : at + len(document)] = text.target_bytes[document.start : document.stop]
        at += len(document)
    return Text(ids, target_bytes, text.text_bytes, text.vocab_size)
