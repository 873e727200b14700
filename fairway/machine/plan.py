"""The machine plan of a run: device, precision, threads.

A `Plan` has the values of all `auto` settings. It is printed, kept with the checkpoint and recorded
in the results, because a score depends on it.
"""

import ctypes
import functools
import importlib.util
import os
import platform
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from fairway.base.cores import usable_cores
from fairway.base.errors import UserError
from fairway.base.timing import pace
from fairway.config.settings import RuntimeConfig
from fairway.machine.ranks import Ranks
from fairway.model import attention
from fairway.model.need import Way

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


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

    def way(self) -> Way:
        """Return the settings of this plan that affect a model's memory."""
        return Way(self.kernels == "fused", DTYPES[self.dtype].itemsize, self.attention == "plain")

    def as_dict(self) -> dict[str, str | int]:
        """Return the plan for JSON."""
        return asdict(self)

    @classmethod
    def recalled(cls, record: Mapping[str, Any]) -> "Plan":
        """Return the plan in a run's record; a digest of its inputs is stored with it."""
        return cls(**{name: value for name, value in record.items() if name != "key"})

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
        """Use the settings of a plan inside, and restore those of the caller afterwards.

        Raises UserError in a forked process that would hang.
        """
        with unaffected():
            before = torch.get_num_threads(), torch.get_float32_matmul_precision()
            if self.device == "cpu" and self.threads > 1:
                _require_threads()
            self._set()
            try:
                yield
            finally:
                torch.set_num_threads(before[0])
                torch.set_float32_matmul_precision(before[1])


# Threads of a process take turns, because a plan's settings and a model's modes are global. There
# is a lock per process: nobody would release a lock that a fork copied.
_turns: dict[int, threading.RLock] = {}
# Processes in which torch has started threads: this one, or those from which it was forked.
_threaded: set[int] = set()


@contextmanager
def unaffected() -> Iterator[None]:
    """Compute inside as a fresh process does, whatever the caller has set in torch; one thread at a
    time."""
    with _turns.setdefault(os.getpid(), threading.RLock()), ExitStack() as inside:
        inside.callback(torch.set_default_dtype, torch.get_default_dtype())
        torch.set_default_dtype(torch.float32)
        inside.enter_context(torch.inference_mode(False))
        inside.enter_context(torch.enable_grad())
        for device in filter(torch.is_autocast_enabled, ("cpu", "cuda", "mps")):
            inside.enter_context(torch.autocast(device, enabled=False))
        # Only when necessary: it makes every call of torch pass through Python.
        if torch.get_default_device().type != "cpu":
            inside.enter_context(torch.device("cpu"))
        yield


def _require_threads() -> None:
    """Raise UserError if torch would wait for threads that a fork did not copy."""
    if _threaded - {os.getpid()}:
        raise UserError(
            "this process was forked from one in which torch had started threads, and a fork does "
            "not copy threads; start it with the method 'spawn', or load the model with "
            "runtime=RuntimeConfig(threads=1)"
        )
    _threaded.add(os.getpid())


def _keep_freed_memory() -> None:
    """Ask glibc to reuse freed blocks of any size instead of returning them to the system.

    Each new page costs a page fault: without this a step of the demo takes up to 1.4 times as long
    (benchmarks/cpu_step.py). Other C libraries are left alone.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    mmap_threshold, trim_threshold = -3, -1
    libc.mallopt(mmap_threshold, 1 << 30)
    libc.mallopt(trim_threshold, (1 << 31) - 1)


def make_plan(config: RuntimeConfig) -> Plan:
    """Resolve every `auto`; on a CPU by a probe of about two seconds, once in a process.

    Raises UserError for a missing device, or a dtype or attention that it does not support.
    """
    if config.device == "cuda":
        require_gpus(1, "runtime.device is cuda", "set runtime.device=cpu")
    has_cuda = torch.cuda.is_available()
    device = config.device if config.device != "auto" else ("cuda" if has_cuda else "cpu")
    if device == "cuda":
        dtype = "bfloat16" if config.dtype == "auto" else config.dtype
        matmul = "high" if config.matmul == "auto" else config.matmul
        threads = config.threads or torch.get_num_threads()
    elif device == "mps":
        dtype, matmul, threads = _apple(config)
    else:
        threads, dtype, matmul = _probe_cpu(config)
    backend = attention.choose(config.attention, device, DTYPES[dtype])
    return Plan(device, dtype, matmul, threads, backend, _kernels(config.kernels, device, dtype))


def _apple(config: RuntimeConfig) -> tuple[str, str, int]:
    """Return (dtype, matmul, threads) of an Apple GPU: float32, by plain formulas."""
    if not torch.backends.mps.is_available():
        raise UserError(
            "runtime.device is mps, but torch sees no Apple GPU; set runtime.device=cpu"
        )
    if config.dtype == "bfloat16":
        raise UserError(
            "runtime.dtype is bfloat16, which not every Apple GPU has; set runtime.dtype=float32"
        )
    matmul = "highest" if config.matmul == "auto" else config.matmul
    return "float32", matmul, config.threads or torch.get_num_threads()


def require_gpus(count: int, why: str, remedy: str) -> None:
    """Raise UserError unless torch finds this many GPUs for a purpose."""
    seen = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if seen < count:
        gpus = "no GPU" if not seen else "1 GPU" if seen == 1 else f"{seen} GPUs"
        raise UserError(f"{why}, but torch sees {gpus}; {remedy}")


def device_name(plan: Plan) -> str:
    """Return the name of this process's device: the model of a GPU, the architecture of a CPU."""
    if plan.device == "cuda":
        return str(torch.cuda.get_device_name())
    about = Path("/proc/cpuinfo")
    lines = about.read_text(errors="replace").splitlines() if about.is_file() else []
    named = (text.partition(":")[2].strip() for text in lines if text.startswith("model name"))
    return next(named, "") or platform.machine()


def own_device(plan: Plan, ranks: Ranks) -> torch.device:
    """Return the device of this process; UserError for more processes on a host than GPUs."""
    if plan.device != "cuda":
        if plan.device == "mps" and ranks.world > 1:
            raise UserError(
                f"{ranks.world} processes cannot share an Apple GPU; start one, or set "
                "runtime.device=cpu"
            )
        return torch.device(plan.device)
    require_gpus(
        ranks.local + 1,
        f"{ranks.local + 1} processes or more of this host need a GPU each",
        f"start at most --nproc-per-node={max(1, torch.cuda.device_count())}",
    )
    return torch.device("cuda", ranks.local)


def _kernels(name: str, device: str, dtype: str) -> str:
    missing = ""
    if device != "cuda" or dtype != "bfloat16":
        missing = f"they need a GPU and bfloat16, and this is {device} with {dtype}"
    elif importlib.util.find_spec("triton") is None:
        missing = "they need the package triton, which is not installed"
    if name == "fused" and missing:
        raise UserError(f"runtime.kernels is fused, but {missing}; set runtime.kernels=plain")
    return "plain" if missing or name == "plain" else "fused"


def _probe_cpu(config: RuntimeConfig) -> tuple[int, str, str]:
    """Return the fastest (threads, dtype, matmul) among those the config leaves open."""
    cores = usable_cores()
    counts = [config.threads] if config.threads else sorted({1, max(1, cores // 2), cores})
    dtypes = [config.dtype] if config.dtype != "auto" else ["bfloat16", "float32"]
    matmuls = [config.matmul] if config.matmul != "auto" else ["highest", "medium"]
    options = [
        (threads, dtype, matmul)
        for threads in counts
        for dtype in dtypes
        # The precision of float32 products has no effect on bfloat16 ones, so one is tried.
        for matmul in (matmuls if dtype == "float32" else matmuls[:1])
    ]
    return _fastest(tuple(options))


@functools.cache
def _fastest(options: tuple[tuple[int, str, str], ...]) -> tuple[int, str, str]:
    """Return the fastest of some settings, measured once in a process.

    A second measurement might choose another one by chance, and a process that loads many models
    would wait two seconds for each.
    """
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
        return pace(work, allowance_s).median_s
