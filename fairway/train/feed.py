"""The micro-batches of a process, on its device."""

from typing import Any

import torch
from torch import Tensor

from fairway.data.loader import Prefetcher, ShuffledLoader
from fairway.data.shards import Tokens
from fairway.machine.ranks import Ranks


class Feed:
    """Batches of `rows` sequences; the process and a seed decide their order.

    `order` is that seed, and whether documents are shuffled. Call `close` at the end, because a
    thread gathers batches.
    """

    def __init__(
        self,
        shards: list[Tokens],
        seq_len: int,
        rows: int,
        ranks: Ranks,
        device: torch.device,
        order: tuple[int, bool] = (0, False),
    ) -> None:
        self._shards, self._seq_len = shards, seq_len
        self._ranks, self._device, self._order = ranks, device, order
        self.use(rows)

    def use(self, rows: int) -> None:
        """Set the number of sequences per batch, and start the data again."""
        self.rows = rows
        self._start(self._loader())

    def next_batch(self) -> tuple[Tensor, Tensor]:
        """Return inputs and targets, both int64 [B, T]."""
        return self._batches.next_batch()

    def state(self) -> dict[str, Any]:
        """Return the loader's state after the batch last handed out."""
        return self._batches.state()

    def go_on(self, state: dict[str, Any], drawn: int) -> None:
        """Continue where a checkpoint left the data, after this many sequences of this process.

        Rank 0 restores its state; the other ranks draw their data again.
        """
        loader = self._loader()
        if self._ranks.first:
            loader.restore(state)
        else:
            for _ in range(drawn // self.rows):
                loader.next_windows()
        self._start(loader)

    def close(self) -> None:
        """End the thread that gathers batches."""
        self._batches.close()

    def _loader(self) -> ShuffledLoader:
        among = (self._ranks.rank, self._ranks.world, *self._order)
        return ShuffledLoader(self._shards, self._seq_len, self.rows, *among)

    def _start(self, loader: ShuffledLoader) -> None:
        if hasattr(self, "_batches"):
            self.close()
        self._batches = Prefetcher(loader, self._device)
