"""The rank of this process in a run, and messages between ranks."""

import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from fairway.base.errors import UserError

# A function that ends a collective: after it the device's stream (or the CPU) has the result.
Wait = Callable[[], object]
# torch 2.13 renamed these two and warns about the old names; torch 2.11 has only the old ones.
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


@dataclass(frozen=True, slots=True)
class Ranks:
    """The number of this process, `rank`, among `world` processes, one per device."""

    rank: int = 0
    world: int = 1
    local: int = 0

    @property
    def first(self) -> bool:
        """Return whether this is the process that prints and writes."""
        return self.rank == 0

    def broadcast(self, value: float) -> float:
        """Return rank 0's value on every rank, so that all take the same decisions."""
        return self.broadcast_all((value,))[0]

    def broadcast_all(self, values: Sequence[float]) -> list[float]:
        """Return rank 0's values on every rank, by one message between the hosts.

        They are sent from CPU to CPU, so no device has to finish its work first.
        """
        box = torch.tensor(values, dtype=torch.float64)
        if self.world > 1:
            dist.broadcast(box, src=0)
        return box.tolist()

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set on some rank; every rank gets the same answer."""
        box = torch.tensor(float(flag))
        if self.world > 1:
            dist.all_reduce(box, dist.ReduceOp.MAX)
        return bool(box.item())

    def start_sum(self, tensor: torch.Tensor) -> Wait:
        """Begin to replace a tensor by its sum over the ranks; the result waits for the end."""
        return self._wait(lambda: dist.all_reduce(tensor, async_op=True))

    def shard(self, whole: torch.Tensor) -> torch.Tensor:
        """Return this rank's equal part of a tensor's first dimension, as a view."""
        return whole.chunk(self.world)[self.rank]

    def start_scatter(self, whole: torch.Tensor) -> Wait:
        """Begin to replace this rank's shard by its sum over the ranks; the rest is then undefined.

        The sum is in place, which NCCL allows at exactly this offset. Gloo has a reduce-scatter of
        equal parts since torch 2.3; it sums everything and keeps one part.
        """
        own = self.shard(whole)
        return self._wait(lambda: _reduce_scatter(own, whole, async_op=True))

    def start_gather(self, whole: torch.Tensor) -> Wait:
        """Begin to fill a tensor, in place, with every rank's shard of it."""
        own = self.shard(whole)
        return self._wait(lambda: _all_gather(whole, own, async_op=True))

    def _wait(self, begin: Callable[[], dist.Work | None]) -> Wait:
        work = begin() if self.world > 1 else None
        return work.wait if work is not None else lambda: True

    def total(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return the float64 sum of an array over the ranks, the same on every rank."""
        box = torch.tensor(values, dtype=torch.float64)
        if self.world > 1:
            dist.all_reduce(box)
        return np.asarray(box.numpy(), dtype=np.float64)


# A single process.
ALONE = Ranks()


def join_ranks() -> Ranks:
    """Return this process's ranks: those `torchrun` set, else a single one.

    Raises UserError for variables that `torchrun` does not set so.
    """
    world = _variable("WORLD_SIZE", "1")
    if world == 1:
        return Ranks()
    ranks = Ranks(_variable("RANK"), world, _variable("LOCAL_RANK", "0"))
    if ranks.local < torch.cuda.device_count():
        torch.cuda.set_device(ranks.local)
    if not dist.is_initialized():
        # Gloo is kept for decisions of the hosts; NCCL would wait for the device.
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    return ranks


def _variable(name: str, usual: str = "") -> int:
    value = os.environ.get(name, usual)
    if not (value.isascii() and value.isdigit() and len(value) < 9):
        raise UserError(
            f"the variable {name} is '{value}' and not a number; start the processes with "
            "torchrun, or unset WORLD_SIZE"
        )
    return int(value)


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch.

    The order of the data does not depend on this seed, as in #1493.
    """
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
