"""Seconds of a call, measured after a warm-up and after the device has finished."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

Work = Callable[[], object]
# Returns the seconds of some work.
Stopwatch = Callable[[Work], float]

# Batches that are measured, and as many as go before them, in which a GPU's clock rises.
_BATCHES, _WARM = 7, 3
_FEWEST = 3
_MOST_CALLS = 10_000


def settle() -> None:
    """Wait until the device has finished what it was given."""
    # Where nothing has used a GPU, asking would start one.
    if _gpu_used():
        torch.cuda.synchronize()


def _gpu_used() -> bool:
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


def wall_seconds(work: Work) -> float:
    """Return the seconds of some work by the host's clock, the device's part included."""
    settle()
    start_s = time.perf_counter()
    work()
    settle()
    return time.perf_counter() - start_s


def device_seconds(work: Work) -> float:
    """Return the seconds between the first and the last thing a GPU does of some work.

    By marks that the GPU itself sets, so that launching and waiting do not count unless the GPU
    waits for them too. Without a GPU this is `wall_seconds`.
    """
    if not _gpu_used():
        return wall_seconds(work)
    make: Callable[..., torch.cuda.Event] = torch.cuda.Event
    start, end = make(enable_timing=True), make(enable_timing=True)
    start.record()
    work()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds of one call: median, least and most of some batches of this many calls."""

    median_s: float
    least_s: float
    most_s: float
    batches: int
    calls: int


def pace(work: Work, allowance_s: float, stopwatch: Stopwatch = wall_seconds) -> Pace:
    """Return what a call of some work takes, in about `allowance_s`, by batches of calls.

    Two calls come first, of which one may compile and the other says how many fill a batch. Work of
    which few fit is measured three times at least, whatever is allowed.
    """
    stopwatch(work)
    once_s = max(stopwatch(work), 1e-9)
    fitting = int(allowance_s / once_s)
    calls = max(1, min(_MOST_CALLS, fitting // (_BATCHES + _WARM)))

    def batch() -> None:
        for _ in range(calls):
            work()

    if fitting >= _BATCHES + _WARM:
        for _ in range(_WARM):
            stopwatch(batch)
    count = max(_FEWEST, min(_BATCHES, fitting))
    taken_s = sorted(stopwatch(batch) / calls for _ in range(count))
    return Pace(statistics.median(taken_s), taken_s[0], taken_s[-1], count, calls)
