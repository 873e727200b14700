"""The positions that a query sees: itself and earlier ones, in a window, of its own document.

The keys that a query sees are always consecutive positions, from a first one to its own. So one
number per query is enough, and every mask and bias of the attention backends is made from it.

Shapes: B rows, T positions of a row, N = B * T, A rows of a mask (1 if all rows have the same, else
B).
"""

import functools
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from fairway.config.settings import BOS_ID


@dataclass(frozen=True, eq=False)
class Documents:
    """The documents of a batch of rows, separate in attention; `documents_of` makes them.

    of_BT: int32, the number of every position's document, counted through all rows.
    first_BT: int32, the position in its row where a position's document begins.
    lengths: whether kernels may use `starts` and `longest`, which wait for the GPU once per batch.
    Recorded launches cannot wait.
    masks: masks of these documents that a backend made, kept for the next layer.
    """

    of_BT: Tensor
    first_BT: Tensor
    lengths: bool = True
    masks: dict[int, Any] = field(default_factory=dict, repr=False)

    @functools.cached_property
    def starts(self) -> Tensor:
        """The first position of every document in the flattened batch, then N; int32, [D + 1]."""
        of_N = self.of_BT.flatten()
        begins_N = torch.cat([torch.ones_like(of_N[:1]), of_N.diff()])
        end = torch.full((1,), len(of_N), device=of_N.device)
        return torch.cat([begins_N.nonzero().flatten(), end]).int()

    @functools.cached_property
    def longest(self) -> int:
        """The number of positions of the longest document."""
        return int(self.starts.diff().max())


def documents_of(ids_BT: Tensor, lengths: bool = True) -> Documents:
    """Return the documents of a batch: one begins at every BOS, and at the start of every row.

    Does not wait for a GPU. `lengths` is False for recorded launches: then only backends without
    lengths run, and the documents must be made inside the recording, from the token ids that it
    reads.
    """
    begins_BT = ids_BT == BOS_ID
    begins_BT[:, 0] = True
    position_T = torch.arange(ids_BT.shape[1], device=ids_BT.device, dtype=torch.int32)
    first_BT = (position_T * begins_BT).cummax(1).values
    of_N = begins_BT.flatten().cumsum(0, dtype=torch.int32) - 1
    return Documents(of_N.view_as(ids_BT), first_BT, lengths)


@dataclass(frozen=True)
class Seen:
    """The positions up to its own that a query sees.

    window: its own and the window - 1 positions before; 0: all of them. documents: only positions
    of its own document; None: of all.
    """

    window: int = 0
    documents: Documents | None = None

    def __post_init__(self) -> None:
        if self.window < 0:
            raise ValueError(f"a window has 0 or more positions, not {self.window}")

    def within(self, B: int, T: int) -> "Seen":
        """Return the same for B rows of T positions, with no window if it is T or more.

        Raises ValueError for documents of another batch.
        """
        if self.documents is not None and self.documents.of_BT.shape != (B, T):
            shape = list(self.documents.of_BT.shape)
            raise ValueError(f"documents of a batch {shape} cannot hide positions of {[B, T]}")
        return replace(self, window=0) if self.window >= T else self

    def first(self, T: int, device: torch.device) -> Tensor:
        """Return the first position that every query sees; int32, first_AT. It never falls."""
        position_1T = torch.arange(T, device=device, dtype=torch.int32)[None]
        first_AT = torch.zeros_like(position_1T)
        if self.documents is not None:
            first_AT = self.documents.first_BT
        if self.window:
            first_AT = first_AT.maximum(position_1T - (self.window - 1))
        return first_AT

    def hidden(self, T: int, device: torch.device) -> Tensor:
        """Return which keys every query does not see; bool, hidden_ATT (batch, query, key)."""
        hidden_ATT = torch.ones(T, T, dtype=torch.bool, device=device).triu(1)[None]
        if self == ALL:
            return hidden_ATT
        key_T = torch.arange(T, device=device)
        return hidden_ATT | (key_T < self.first(T, device)[..., None])


ALL = Seen()
