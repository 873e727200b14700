"""Seconds of a call, measured after a warm-up and after the device has finished."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

Work = Callable[[], object]
# A function that returns the seconds of some work.
Stopwatch = Callable[[Work], float]

# Batches that are measured, and as many before them, in which a GPU's clock rises.
_BATCHES, _WARM = 7, 3
_FEWEST = 3
_MOST_CALLS = 10_000


def settle() -> None:
    """Wait until the device has finished its work."""
    # If nothing has used a GPU yet, the question would initialise it.
    if _gpu_used():
        torch.cuda.synchronize()


def _gpu_used() -> bool:
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


def wall_seconds(work: Work) -> float:
    """Return the seconds of some work by the host's clock, including the device's work."""
    settle()
    start_s = time.perf_counter()
    work()
    settle()
    return time.perf_counter() - start_s


def device_seconds(work: Work) -> float:
    """Return the seconds between the first and the last operation of some work on a GPU.

    The GPU itself records both times, so launching and waiting count only if the GPU waits for
    them. Without a GPU this is `wall_seconds`.
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
    """Seconds of one call: median, minimum and maximum of several batches of `calls` calls."""

    median_s: float
    least_s: float
    most_s: float
    batches: int
    calls: int


def pace(work: Work, allowance_s: float, stopwatch: Stopwatch = wall_seconds) -> Pace:
    """Measure a call of some work in batches of calls, in about `allowance_s`.

    Of the two calls before, the first may compile, and the second gives the number of calls in a
    batch. At least three calls are measured, even if that exceeds the allowance.
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
