"""Micro-batches of a process: what its loader draws, joined to what goes through the model at once.

Steps of a run may differ in size (`train.batches`). The loader draws in pieces that make up every
micro-batch, so that the order of the sequences depends on nothing but the process.

Shapes: B sequences, T time.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fairway.data.loader import Prefetcher, ShuffledLoader
from fairway.data.shards import Tokens
from fairway.machine.ranks import Ranks


class Feed:
    """Sequences on the device, for steps of any of the `counts` a process.

    `order` is the seed of it, and whether documents are shuffled. `close` it: a thread gathers
    them.
    """

    def __init__(
        self,
        shards: list[Tokens],
        seq_len: int,
        counts: Sequence[int],
        rows: int,
        ranks: Ranks,
        device: torch.device,
        order: tuple[int, bool] = (0, False),
    ) -> None:
        self._shards, self._seq_len, self._counts = shards, seq_len, counts
        self._ranks, self._device, self._order = ranks, device, order
        self.use(rows)

    def use(self, rows: int) -> None:
        """Let at most so many sequences go together, and begin the data again."""
        self.rows = rows
        self._start(self._loader())

    def at_once(self, count: int) -> int:
        """Return the sequences of a micro-batch, of a step of so many."""
        return next(n for n in range(min(count, self.rows), 0, -1) if count % n == 0)

    def next_batch(self, rows: int, length: int) -> tuple[Tensor, Tensor]:
        """Return inputs and targets of so many sequences, each cut into pieces of a length."""
        ids_BT, targets_BT = self._batches.next_batch(rows // self._unit)
        return ids_BT.view(-1, length), targets_BT.view(-1, length)

    def state(self) -> dict[str, Any]:
        """Return the loader's state after the batch last handed out."""
        return self._batches.state()

    def go_on(self, state: dict[str, Any], drawn: int) -> None:
        """Stand where a checkpoint left the data: rank 0 by its state, others by drawing again."""
        loader = self._loader()
        if self._ranks.first:
            loader.restore(state)
        else:
            for _ in range(drawn // self._unit):
                loader.next_windows()
        self._start(loader)

    def close(self) -> None:
        """End the thread that gathers batches."""
        self._batches.close()

    def _loader(self) -> ShuffledLoader:
        self._unit = math.gcd(*map(self.at_once, self._counts))
        among = (self._ranks.rank, self._ranks.world, *self._order)
        return ShuffledLoader(self._shards, self._seq_len, self._unit, *among)

    def _start(self, loader: ShuffledLoader) -> None:
        if hasattr(self, "_batches"):
            self.close()
        depth = 2 * max(map(self.at_once, self._counts)) // self._unit
        self._batches = Prefetcher(loader, self._device, depth)
