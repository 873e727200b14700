"""Windows: they define which position is scored with which context. Integers only, no model.

A text of N tokens x[0..N-1] has N - 1 targets. Position p reads x[p] and predicts x[p + 1], so
target indices are position indices plus one and x[0] is never predicted.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fairway.base.errors import UserError


@dataclass(frozen=True, slots=True)
class Window:
    """One forward pass: inputs x[start:end], of which positions score_from..end-1 are scored."""

    start: int
    end: int
    score_from: int


@dataclass(frozen=True, slots=True)
class Event:
    """Windows that are all predicted before anything learns from their targets.

    Their scored positions follow one another, unless the windows belong to documents that are
    scored side by side.
    """

    index: int
    windows: tuple[Window, ...]

    @property
    def first(self) -> int:
        """Return the first scored position of the first window."""
        return self.windows[0].score_from

    @property
    def end(self) -> int:
        """Return one past the last scored position of the last window."""
        return self.windows[-1].end

    @property
    def positions(self) -> NDArray[np.int64]:
        """Return the scored positions, window by window."""
        return np.concatenate([np.arange(w.score_from, w.end) for w in self.windows])

    def window_of(self, position: int) -> Window:
        """Return the window of this event that scores a position; ValueError if there is none."""
        for window in self.windows:
            if window.score_from <= position < window.end:
                return window
        raise ValueError(f"position {position} is not scored by event {self.index}")


def usable_targets(num_tokens: int, seq_len: int, truncate: bool) -> int:
    """Return how many targets of a text are scored.

    All targets count; with `truncate`, only those in whole windows of seq_len, as in the challenge.
    Raises UserError if none is left.
    """
    targets = num_tokens - 1
    if targets < 1:
        raise UserError(f"a text of {num_tokens} tokens is too short to score; it needs at least 2")
    if not truncate:
        return targets
    if targets < seq_len:
        raise UserError(
            f"the validation text has {num_tokens} tokens, but one window needs {seq_len + 1}; "
            "lower score.seq_len, set score.truncate=false, or use more validation text"
        )
    return targets // seq_len * seq_len


def sliding_windows(num_targets: int, seq_len: int, stride: int) -> Iterator[Window]:
    """Yield overlapping windows that score every position 0..num_targets-1 once, in order.

    The first window scores all of its positions. Each later one starts `stride` further and scores
    the positions after the previous window: `stride` of them, fewer at the end of the text. So
    every position except the first seq_len has at least seq_len - stride tokens of context. Raises
    UserError if the stride is not within 1..seq_len or there is nothing to score.
    """
    if not 1 <= stride <= seq_len:
        raise UserError(
            f"stride {stride} must be between 1 and the window length {seq_len}, "
            "or some positions would never be scored"
        )
    if num_targets < 1:
        raise UserError(f"there are {num_targets} positions to score; at least 1 is needed")
    return _windows(num_targets, seq_len, stride)


def _windows(num_targets: int, seq_len: int, stride: int) -> Iterator[Window]:
    scored = 0
    for start in range(0, num_targets, stride):
        if scored == num_targets:
            return
        end = min(start + seq_len, num_targets)
        yield Window(start, end, scored)
        scored = end


def events(windows: Iterable[Window], windows_per_event: int, index: int = 0) -> Iterator[Event]:
    """Yield the windows in order, in events of up to `windows_per_event` windows.

    The first event has number `index`.
    """
    if windows_per_event < 1:
        raise UserError(f"an event needs at least 1 window, got {windows_per_event}")
    group: list[Window] = []
    for window in windows:
        group.append(window)
        if len(group) == windows_per_event:
            yield Event(index, tuple(group))
            group, index = [], index + 1
    if group:
        yield Event(index, tuple(group))
