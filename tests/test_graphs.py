"""Before a recording memory goes back to the device where it would be short, and only there."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch

from fairway.base import graphs
from fairway.base.graphs import recording


class Launches:
    """A stream and a graph that note what is asked of them."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def wait_stream(self, other: Any) -> None: ...

    def capture_begin(self, **named: Any) -> None:
        self.asked.append("begin")

    def capture_end(self) -> None:
        self.asked.append("end")


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Launches:
    made = Launches()
    for name in ("Stream", "CUDAGraph", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, lambda: made)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: made.asked.append("give back"))
    monkeypatch.setattr(graphs, "untaken_bytes", lambda device: 1000.0)
    return made


@pytest.mark.parametrize(
    ("room", "given_back"), [((), True), ((1001.0,), True), ((1000.0,), False), ((0.0,), False)]
)
def test_memory_goes_back_where_a_recording_needs_more(
    launches: Launches, room: tuple[float, ...], given_back: bool
) -> None:
    with recording(None, None, *room):
        launches.asked.append("work")
    assert launches.asked == ["give back"] * given_back + ["begin", "work", "end"]


def test_an_error_inside_ends_the_recording(launches: Launches) -> None:
    with pytest.raises(KeyError), recording(room_bytes=0.0):
        raise KeyError
    assert launches.asked == ["begin", "end"]
