"""The machine and the clock: ranks, seeds, device, precision, and what drives a run.

What `auto` settings resolve to is a `Plan`; it is printed, kept with the checkpoint and recorded in
the results, because a score is a function of it.
"""

import ctypes
import importlib.util
import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from fairway.base.errors import UserError
from fairway.config.settings import Config, RuntimeConfig
from fairway.model import attention

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
# Ends a collective: afterwards the device's stream (or the CPU) sees the result.
Wait = Callable[[], object]
# torch 2.13 renamed these two and warns about the old names, which are the only ones of 2.11.
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


# ---------------------------------------------------------------------------------------------
# Ranks


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among its equals: `rank` of `world`, one process per device."""

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

        The numbers travel from CPU to CPU, so that no device has to finish its work first.
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

        In place, which NCCL allows at exactly this offset. Gloo has a reduce-scatter of equal parts
        since torch 2.3; it sums everything and keeps a part.
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


def join_ranks() -> Ranks:
    """Return this process's ranks: those `torchrun` set, else a single one."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        return Ranks()
    ranks = Ranks(int(os.environ["RANK"]), world, int(os.environ.get("LOCAL_RANK", "0")))
    if ranks.local < torch.cuda.device_count():
        torch.cuda.set_device(ranks.local)
    if not dist.is_initialized():
        # Gloo stays for what the hosts agree on: asking NCCL would wait for the device.
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    return ranks


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch. The data order ignores this seed by design, as in #1493."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


# ---------------------------------------------------------------------------------------------
# Device and precision


@dataclass(frozen=True, slots=True)
class Plan:
    """What the machine will use: every `auto` resolved."""

    device: str
    dtype: str
    matmul: str
    threads: int
    attention: str
    kernels: str = "plain"

    def describe(self) -> str:
        """Return the plan as one line for people."""
        threads = f", {self.threads} threads" if self.device == "cpu" else ""
        return (
            f"{self.device}{threads}, {self.dtype} activations, float32 products "
            f"'{self.matmul}', {self.attention} attention, {self.kernels} kernels"
        )

    def as_dict(self) -> dict[str, str | int]:
        """Return the plan for JSON."""
        return asdict(self)

    def apply(self) -> None:
        """Set threads and matmul precision of this process."""
        if self.device == "cpu":
            _keep_freed_memory()
        self._set()

    def _set(self) -> None:
        torch.set_num_threads(self.threads)
        torch.set_float32_matmul_precision(self.matmul)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Compute as planned inside, and as the caller of this library has it outside."""
        before = torch.get_num_threads(), torch.get_float32_matmul_precision()
        self._set()
        try:
            yield
        finally:
            torch.set_num_threads(before[0])
            torch.set_float32_matmul_precision(before[1])


def _keep_freed_memory() -> None:
    """Ask glibc to reuse freed blocks of any size instead of returning them to the system.

    Fresh pages cost a fault each: without this a step of the demo takes up to 1.4 times as long
    (benchmarks/cpu_step.py).
    Other C libraries are left alone.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    mmap_threshold, trim_threshold = -3, -1
    libc.mallopt(mmap_threshold, 1 << 30)
    libc.mallopt(trim_threshold, (1 << 31) - 1)


def make_plan(config: RuntimeConfig) -> Plan:
    """Resolve every `auto`; on a CPU by a probe of about two seconds.

    Raises UserError for a CUDA device that is not there, or attention that does not run on it.
    """
    has_cuda = torch.cuda.is_available()
    if config.device == "cuda" and not has_cuda:
        raise UserError("runtime.device is cuda, but torch sees no GPU; set runtime.device=cpu")
    device = config.device if config.device != "auto" else ("cuda" if has_cuda else "cpu")
    if device == "cuda":
        dtype = "bfloat16" if config.dtype == "auto" else config.dtype
        matmul = "high" if config.matmul == "auto" else config.matmul
        threads = config.threads or torch.get_num_threads()
    else:
        threads, dtype, matmul = _probe_cpu(config)
    backend = attention.choose(config.attention, device, DTYPES[dtype])
    return Plan(device, dtype, matmul, threads, backend, _kernels(config.kernels, device, dtype))


def _kernels(name: str, device: str, dtype: str) -> str:
    missing = ""
    if device != "cuda" or dtype != "bfloat16":
        missing = f"they need a GPU and bfloat16, and this is {device} with {dtype}"
    elif importlib.util.find_spec("triton") is None:
        missing = "they need the package triton, which is not installed"
    if name == "fused" and missing:
        raise UserError(f"runtime.kernels is fused, but {missing}; set runtime.kernels=plain")
    return "plain" if missing or name == "plain" else "fused"


def _usable_cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _probe_cpu(config: RuntimeConfig) -> tuple[int, str, str]:
    """Return the fastest (threads, dtype, matmul) among those the config leaves open."""
    cores = _usable_cores()
    counts = [config.threads] if config.threads else sorted({1, max(1, cores // 2), cores})
    dtypes = [config.dtype] if config.dtype != "auto" else ["bfloat16", "float32"]
    matmuls = [config.matmul] if config.matmul != "auto" else ["highest", "medium"]
    options = [
        (threads, dtype, matmul)
        for threads in counts
        for dtype in dtypes
        # The precision of float32 products has no bearing on bfloat16 ones: try it once.
        for matmul in (matmuls if dtype == "float32" else matmuls[:1])
    ]
    if len(options) == 1:
        return options[0]
    return min(options, key=lambda option: _probe_seconds(option, 2.0 / len(options)))


def _probe_seconds(option: tuple[int, str, str], allowance_s: float) -> float:
    """Return the median seconds of an MLP forward and backward under these settings."""
    threads, dtype, matmul = option
    x_ND = torch.randn(2048, 256).to(DTYPES[dtype]).requires_grad_()
    up_FD = torch.randn(1024, 256).to(DTYPES[dtype])

    def work() -> None:
        torch.autograd.backward(((x_ND @ up_FD.T).square() @ up_FD).sum())

    with Plan("cpu", dtype, matmul, threads, "plain").applied():
        taken_s = [_timed(work)]
        while sum(taken_s) < allowance_s or len(taken_s) < 3:
            taken_s.append(_timed(work))
    return statistics.median(taken_s[1:])


def _timed(work: Callable[[], None]) -> float:
    start_s = time.perf_counter()
    work()
    return time.perf_counter() - start_s


# ---------------------------------------------------------------------------------------------
# The clock


class Clock:
    """Training progress in [0, 1], from elapsed seconds, from steps, or from a recorded run.

    wall: elapsed training seconds over the budget net of its reserve; only the time between
    `start` and `stop` counts, so validation and checkpoints stand outside.
    steps: step over steps. replay: the recorded progress of each step of another run.
    """

    def __init__(self, config: Config, recorded: list[float] | None = None) -> None:
        train = config.train
        self.mode = train.clock
        self.budget_s, self.allowance_s = train.budget_s, train.budget_s - train.reserve_s
        # What the last step took. The device may be one step behind the host's decisions.
        self.step_s = 0.0
        # Calibration has no way back: about half of what training on its tokens takes.
        self.left_steps = 2 + config.quant.calibration_tokens / train.batch_tokens / 2
        self.total_steps = len(recorded) - 1 if recorded is not None else train.steps
        self.recorded = recorded
        self.elapsed_s = 0.0
        self._since_s: float | None = None

    def start(self) -> None:
        """Let time count."""
        _settle()
        self._since_s = time.perf_counter()

    def stop(self) -> None:
        """Stop counting, once the device has finished what it was given."""
        _settle()
        if self._since_s is not None:
            self.elapsed_s += time.perf_counter() - self._since_s
        self._since_s = None

    def seconds(self) -> float:
        """Return the training seconds counted so far."""
        running_s = 0.0 if self._since_s is None else time.perf_counter() - self._since_s
        return self.elapsed_s + running_s

    def progress(self, step: int) -> float:
        """Return the share of the run behind us when `step` is about to start.

        With wall time the run is over, whatever its share, when the step in flight, one more and
        calibration would not end within the budget: this matters where the reserve is too short.
        """
        if self.mode == "wall":
            seconds = self.seconds()
            over = seconds + self.left_steps * self.step_s > self.budget_s
            return 1.0 if over else min(1.0, seconds / self.allowance_s)
        if self.recorded is not None:
            return self.recorded[step]
        return min(1.0, step / self.total_steps)

    def done(self, step: int, progress: float) -> bool:
        """Return whether the run ends before `step`, whose progress is given."""
        return progress >= 1.0 if self.mode == "wall" else step >= self.total_steps


def _settle() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
