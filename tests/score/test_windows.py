import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairway.base.errors import UserError
from fairway.score.windows import (
    Event,
    Window,
    events,
    sliding_windows,
    usable_targets,
)


def plain_sliding(targets: int, seq_len: int, stride: int) -> list[Window]:
    """The rule of #1493, word by word."""
    context = seq_len - stride
    found = []
    for start in itertools.count(0, stride):
        if start > 0 and start + context >= targets:
            return found
        end = min(start + seq_len, targets)
        found.append(Window(start, end, 0 if start == 0 else start + context))
        if start == 0 and end == targets:
            return found


def test_gold_sliding_windows() -> None:
    assert list(sliding_windows(16, 8, 2)) == [
        Window(0, 8, 0),
        Window(2, 10, 8),
        Window(4, 12, 10),
        Window(6, 14, 12),
        Window(8, 16, 14),
    ]


def test_gold_tail_that_is_no_multiple() -> None:
    assert list(sliding_windows(13, 8, 4)) == [
        Window(0, 8, 0),
        Window(4, 12, 8),
        Window(8, 13, 12),
    ]


def test_gold_text_shorter_than_a_window() -> None:
    assert list(sliding_windows(5, 8, 2)) == [Window(0, 5, 0)]


def test_gold_windows_side_by_side() -> None:
    assert list(sliding_windows(10, 4, 4)) == [Window(0, 4, 0), Window(4, 8, 4), Window(8, 10, 8)]


def test_full_validation_set_has_the_known_number_of_windows() -> None:
    targets = usable_targets(40_540_803, 2048, truncate=True)
    assert targets == 40_540_160
    count = sum(1 for _ in sliding_windows(targets, 2048, 64))
    assert count == (targets - 2048) // 64 + 1 == 633_409


@given(st.integers(1, 400), st.integers(1, 60), st.data())
def test_every_position_is_scored_once_in_order(
    targets: int, seq_len: int, data: st.DataObject
) -> None:
    stride = data.draw(st.integers(1, seq_len))
    windows = list(sliding_windows(targets, seq_len, stride))
    scored = [p for w in windows for p in range(w.score_from, w.end)]
    assert scored == list(range(targets))
    assert windows == plain_sliding(targets, seq_len, stride)
    for window in windows:
        assert 0 < window.end - window.start <= seq_len
        assert window.start == 0 or window.score_from - window.start == seq_len - stride


@given(st.integers(1, 100), st.integers(1, 9))
def test_events_keep_every_window(targets: int, size: int) -> None:
    windows = list(sliding_windows(targets, 7, 3))
    groups = list(events(iter(windows), size))
    assert [w for group in groups for w in group.windows] == windows
    assert [group.index for group in groups] == list(range(len(groups)))
    assert all(len(group.windows) == size for group in groups[:-1])
    assert groups[0].first == 0 and groups[-1].end == targets


def test_window_of_a_position() -> None:
    event = Event(0, (Window(0, 4, 0), Window(2, 6, 4)))
    assert event.window_of(3) == Window(0, 4, 0)
    assert event.window_of(4) == Window(2, 6, 4)
    with pytest.raises(ValueError, match="position 6"):
        event.window_of(6)


def test_usable_targets() -> None:
    assert usable_targets(10, 4, truncate=False) == 9
    assert usable_targets(10, 4, truncate=True) == 8
    assert usable_targets(3, 4, truncate=False) == 2
    assert usable_targets(2, 4, truncate=False) == 1
    assert usable_targets(5, 4, truncate=True) == 4
    with pytest.raises(UserError, match="one window needs 5"):
        usable_targets(4, 4, truncate=True)
    with pytest.raises(UserError, match="too short to score"):
        usable_targets(1, 4, truncate=False)


@pytest.mark.parametrize("stride", [0, 9, -1])
def test_a_stride_outside_the_window_is_refused(stride: int) -> None:
    with pytest.raises(UserError, match=f"stride {stride} must be between 1"):
        sliding_windows(20, 8, stride)


def test_nothing_to_score_is_refused() -> None:
    with pytest.raises(UserError, match="0 positions"):
        sliding_windows(0, 8, 2)
    with pytest.raises(UserError, match="at least 1 window"):
        list(events([], 0))
