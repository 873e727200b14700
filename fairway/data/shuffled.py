"""A shard with its documents in another order, without a copy of it.

Shapes: D documents.
"""

import numpy as np
import numpy.typing as npt

from fairway.config.settings import BOS_ID
from fairway.data.shards import Tokens

# The number of tokens that are compared at once; a comparison needs a byte for each.
_AT_ONCE = 1 << 24


def document_starts(tokens: Tokens) -> npt.NDArray[np.int64]:
    """Return where documents begin: at every BOS, and at the beginning of the shard."""
    pieces = range(0, len(tokens), _AT_ONCE)
    found = [np.flatnonzero(tokens[at : at + _AT_ONCE] == BOS_ID) + at for at in pieces]
    return np.union1d(np.concatenate(found), [0])


class Shuffled:
    """The tokens of a shard, with its documents in a random order."""

    def __init__(
        self, tokens: Tokens, starts_D: npt.NDArray[np.int64], rng: np.random.Generator
    ) -> None:
        order_D = rng.permutation(len(starts_D))
        self._tokens, self._starts_D = tokens, starts_D[order_D]
        self._ends_D = np.cumsum(np.diff(starts_D, append=len(tokens))[order_D])

    def __len__(self) -> int:
        return len(self._tokens)

    def read(self, first: int, count: int) -> Tokens:
        """Return `count` tokens from `first` on."""
        place = int(np.searchsorted(self._ends_D, first, "right"))
        parts, end = [], first + count
        while first < end:
            # Counted from the end: a document's tokens are contiguous in the shard.
            length = int(self._ends_D[place] - (self._ends_D[place - 1] if place else 0))
            begin = int(self._starts_D[place]) + length - int(self._ends_D[place]) + first
            take = min(end, int(self._ends_D[place])) - first
            parts.append(self._tokens[begin : begin + take])
            first, place = first + take, place + 1
        return np.concatenate(parts)
