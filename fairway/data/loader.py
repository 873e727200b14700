"""Batches of shuffled sequences in a fixed order (#1394) or by a seed; they can be resumed.

Rank r of W reads shards[r::W] with a PCG64 generator seeded only by the rank: the order of the data
does not depend on the run's seed. If the order has its own seed (`data.order_seed`), that seed
distributes the shards anew, equally on every rank, and also seeds the generator. Every shard is cut
into sequences at a random phase. Each row of a batch takes one sequence from a shard that is drawn
in proportion to its remaining sequences. With `data.shuffle_documents` every pass first puts the
documents of every shard into a new order, so that each follows other documents.

Shapes: B sequences, T time, S = T + 1 tokens of a sequence and its last target.
"""

import queue
import threading
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fairway.base.errors import UserError
from fairway.data.shards import Tokens
from fairway.data.shuffled import Shuffled, document_starts

Batch = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]


class ShuffledLoader:
    """Batches of `rows` sequences of `seq_len` tokens for one rank.

    `shards` are all shards in name order; the loader takes its rank's own. With `order_seed` 0 the
    order is the common one. Raises UserError if there are fewer shards than ranks, or if one is too
    short for a single sequence.
    """

    def __init__(
        self,
        shards: list[Tokens],
        seq_len: int,
        rows: int,
        rank: int = 0,
        world: int = 1,
        order_seed: int = 0,
        shuffle: bool = False,
    ):
        if world > len(shards):
            raise UserError(
                f"{len(shards)} training shards cannot feed {world} ranks; use fewer ranks, or "
                "more and smaller shards (fairway data build --shard-tokens, train.shards)"
            )
        # NumPy pads seeds with zeros, so a second number must be above 0 to give another seed.
        own = [order_seed, 1 + rank] if order_seed else rank
        if order_seed:
            dealt = np.random.Generator(np.random.PCG64(order_seed)).permutation(len(shards))
            shards = [shards[at] for at in dealt]
        self._shards = shards[rank::world]
        shortest = min(len(shard) for shard in self._shards)
        if shortest < seq_len + 1:
            raise UserError(
                f"a training shard has {shortest} tokens, but one sequence needs {seq_len + 1}; "
                "lower train.seq_len or use larger shards"
            )
        self._seq_len, self._rows = seq_len, rows
        self._starts = [document_starts(shard) for shard in self._shards] if shuffle else []
        self._shuffled: list[Shuffled] = []
        self._phases: list[int]
        self._orders: list[npt.NDArray[np.int64]]
        self._remaining: npt.NDArray[np.int64]
        self._rng = np.random.Generator(np.random.PCG64(own))
        self._reset()

    def next_batch(self) -> Batch:
        """Return inputs x and targets y, both int64 (rows, seq_len); y is x one token later."""
        windows_BS = self.next_windows()
        return windows_BS[:, :-1].astype(np.int64), windows_BS[:, 1:].astype(np.int64)

    def next_windows(self) -> npt.NDArray[np.int32]:
        """Return the next batch as (rows, seq_len + 1) tokens: inputs and last target in one."""
        windows_BS = np.empty((self._rows, self._seq_len + 1), np.int32)
        for row in range(self._rows):
            shard, start = self._draw()
            windows_BS[row] = self._read(shard, start, self._seq_len + 1)
        return windows_BS

    def _read(self, shard: int, start: int, count: int) -> Tokens:
        if self._shuffled:
            return self._shuffled[shard].read(start, count)
        return self._shards[shard][start : start + count]

    def state(self) -> dict[str, Any]:
        """Return the state that `restore` needs to continue with the next batch, ready for JSON.

        The orders are not stored: the generator's state before the last reset determines them.
        """
        return {
            "epoch_rng": self._epoch_rng,
            "remaining": self._remaining.tolist(),
            "rng": self._rng.bit_generator.state,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue exactly at a state; UserError for a state of other shards."""
        try:
            self._rng.bit_generator.state = state["epoch_rng"]
            self._reset()
            remaining = np.array(state["remaining"], np.int64)
            fits = remaining.shape == self._remaining.shape
            if not fits or np.any((remaining < 0) | (remaining > self._remaining)):
                raise ValueError(f"{state['remaining']} sequences left do not fit the shards")
            self._rng.bit_generator.state = state["rng"]
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise UserError(
                f"the loader's saved state does not fit this data ({error}); train from the start"
            ) from None
        self._remaining = remaining

    def _reset(self) -> None:
        """Cut every shard anew, in order: one draw for its phase, and one permutation."""
        self._epoch_rng = self._rng.bit_generator.state
        self._shuffled = [
            Shuffled(shard, starts, self._rng)
            for shard, starts in zip(self._shards, self._starts, strict=False)
        ]
        self._phases, self._orders = [], []
        for shard in self._shards:
            room = min(self._seq_len - 1, max(0, len(shard) - self._seq_len - 1))
            phase = int(self._rng.integers(room, endpoint=True)) if room else 0
            self._phases.append(phase)
            self._orders.append(self._rng.permutation((len(shard) - 1 - phase) // self._seq_len))
        lengths = [len(order) for order in self._orders]
        self._remaining = np.array(lengths, np.int64)

    def _draw(self) -> tuple[int, int]:
        """Return (shard, first token) of the next sequence."""
        if not self._remaining.any():
            self._reset()
        weights = self._remaining / self._remaining.sum()
        shard = int(self._rng.choice(len(self._shards), p=weights))
        self._remaining[shard] -= 1
        order = self._orders[shard][self._remaining[shard]]
        return shard, self._phases[shard] + self._seq_len * int(order)


class Prefetcher:
    """Batches on the device, prepared in advance by one thread; close it when done.

    At most two batches wait. An error of the thread is raised at the request of a batch. The thread
    owns the loader from here on: `state` is the state after the last returned batch.
    """

    def __init__(self, loader: ShuffledLoader, device: torch.device) -> None:
        self._loader, self._device = loader, device
        self._state = loader.state()
        self._ready: queue.SimpleQueue[tuple[Tensor, dict[str, Any]] | Exception]
        self._ready = queue.SimpleQueue()
        self._room = threading.Semaphore(2)
        self._closed = False
        self._thread = threading.Thread(target=self._gather, name="batches", daemon=True)
        self._thread.start()

    def next_batch(self) -> tuple[Tensor, Tensor]:
        """Return inputs and targets, both int64 [B, T], without waiting for the device."""
        item = self._ready.get()
        if isinstance(item, Exception):
            self._ready.put(item)
            raise item
        windows_BS, self._state = item
        self._room.release()
        # Half the bytes are copied; ids become int64 on the device.
        windows_BS = windows_BS.to(self._device, non_blocking=True)
        return windows_BS[:, :-1].long(), windows_BS[:, 1:].long()

    def state(self) -> dict[str, Any]:
        """Return the loader's state after the last returned batch."""
        return self._state

    def close(self) -> None:
        """End the thread; waiting batches are dropped."""
        self._closed = True
        self._room.release()
        self._thread.join()

    def _gather(self) -> None:
        try:
            cuda = self._device.type == "cuda"
            if cuda:
                # Threads start on the first device; pinning there would open it once per rank.
                torch.cuda.set_device(self._device)
            while self._room.acquire() and not self._closed:
                windows_BS = torch.from_numpy(self._loader.next_windows())
                windows_BS = windows_BS.pin_memory() if cuda else windows_BS
                self._ready.put((windows_BS, self._loader.state()))
        except Exception as error:
            self._ready.put(error)
