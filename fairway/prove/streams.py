"""A text's tokens in parts that are coded side by side."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fairway.data.tokens import Tokenizer

IntArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Stream:
    """Tokens from a BOS on; `joined` says that they go on within a document, behind a new BOS."""

    ids: IntArray
    joined: bool


def cut_evenly(ids: IntArray, count: int, tokenizer: Tokenizer) -> list[Stream]:
    """Return documents, each behind its BOS, as up to `count` streams of about equal length.

    A stream begins with a document, or within one at a token that is no byte and has no space
    before it, so that behind its new BOS it stands for the same bytes as before.
    """
    table, bos = tokenizer.table, tokenizer.bos_id
    apart = np.isin(np.arange(tokenizer.vocab_size), tokenizer.byte_ids)
    free = ~(table.leading | table.boundary | apart)[ids]
    free[1:] &= ids[:-1] != bos
    places = np.flatnonzero(free | (ids == bos))
    ideal = len(ids) * np.arange(1, count) / count
    nearest = {int(places[np.abs(places - at).argmin()]) for at in ideal}
    starts = sorted({0} | nearest)
    parts = [ids[a:b] for a, b in zip(starts, [*starts[1:], len(ids)], strict=True)]
    return [
        Stream(part, False) if part[0] == bos else Stream(np.insert(part, 0, bos), True)
        for part in parts
    ]
