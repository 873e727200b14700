"""A call's seconds, by a clock that the tests turn."""

import time
from collections.abc import Callable

import pytest
import torch

from fairway.base import timing
from fairway.base.timing import Work, device_seconds, pace, settle, wall_seconds


class Turned:
    """A clock that goes on when work is done: by `costs` in turn, the last one ever after."""

    def __init__(self, *costs: float) -> None:
        self.costs, self.now, self.calls = list(costs), 0.0, 0

    def work(self) -> None:
        self.calls += 1
        self.now += self.costs.pop(0) if len(self.costs) > 1 else self.costs[0]

    def stopwatch(self, work: Work) -> float:
        before = self.now
        work()
        return self.now - before


def test_a_first_call_and_a_slow_start_do_not_count() -> None:
    """A compilation of 30 s, then a clock that rises: the pace is that of the warm device."""
    clock = Turned(30.0, 0.002, *[0.002] * 100, 0.001)
    found = pace(clock.work, 1.0, clock.stopwatch)
    assert found.calls == 50 and found.batches == 7
    assert found.median_s == pytest.approx(0.001) == found.least_s == found.most_s
    assert clock.calls == 2 + (3 + 7) * 50


def test_one_disturbed_batch_moves_the_most_and_not_the_median() -> None:
    clock = Turned(1.0, 0.1, *[0.1] * 4, 5.0, 0.1)
    found = pace(clock.work, 1.0, clock.stopwatch)
    assert found.calls == 1 and found.batches == 7
    assert found.median_s == pytest.approx(0.1) and found.most_s == pytest.approx(5.0)


@pytest.mark.parametrize(
    ("once_s", "calls", "batches", "done"),
    [
        (10.0, 1, 3, 5),
        (0.5, 1, 3, 5),
        (0.2, 1, 5, 7),
        (0.1001, 1, 7, 9),
        (0.0999, 1, 7, 12),
        (0.01, 10, 7, 102),
        (1e-12, 10_000, 7, 100_002),
        (0.0, 10_000, 7, 100_002),
    ],
)
def test_slow_work_is_done_a_few_times_and_fast_work_in_batches(
    once_s: float, calls: int, batches: int, done: int
) -> None:
    clock = Turned(once_s)
    found = pace(clock.work, 1.0, clock.stopwatch)
    assert (found.calls, found.batches, clock.calls) == (calls, batches, done)
    assert found.median_s == pytest.approx(once_s)


def test_without_a_gpu_the_host_s_clock_is_the_device_s() -> None:
    for stopwatch in (wall_seconds, device_seconds):
        assert 0.02 <= stopwatch(lambda: time.sleep(0.02)) < 1.0


def test_events_of_a_gpu_are_recorded_around_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """In this order: start, work, end; then the host waits for the end alone. Milliseconds."""
    seen: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing
            self.name = "end" if "made" in seen else "start"
            seen.append("made")

        def record(self) -> None:
            seen.append(f"{self.name} recorded")

        def synchronize(self) -> None:
            seen.append(f"{self.name} waited for")

        def elapsed_time(self, other: "Event") -> float:
            assert (self.name, other.name) == ("start", "end")
            return 1500.0

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    assert timing.device_seconds(lambda: seen.append("work")) == 1.5
    told = ["start recorded", "work", "end recorded", "end waited for"]
    assert seen == ["made", "made", *told]


def test_no_gpu_is_started_only_to_wait_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[Callable[[], None]] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waited.append(settle))
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    settle()
    assert waited == []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    settle()
    assert waited == [settle]
