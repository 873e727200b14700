"""Which windows score a continuation; what they cost is tested through the harness."""

import numpy as np
import pytest

from fairway.costing import Continuation, Cost, windows


@pytest.mark.parametrize("stride", [1, 3, 8])
@pytest.mark.parametrize("targets", [0, 1, 7, 8, 9, 16, 31])
def test_every_position_is_scored_once_with_the_context_of_its_window(
    targets: int, stride: int
) -> None:
    length = 8
    for first in range(targets + 1):
        asked = Continuation(np.zeros(targets + 1, np.int64), first)
        assert asked.count == targets - first
        starts = {}
        for window in windows(asked, length, stride):
            assert 0 <= window.start <= window.score_from < window.end <= window.start + length
            for place in range(window.score_from, window.end):
                assert place not in starts
                starts[place] = window.start
        if asked.count <= length:
            # All of it with as much context as there is room for.
            wanted = dict.fromkeys(range(first, targets), max(0, targets - length))
        else:
            # The first of the windows 0, stride, 2 stride... that reaches the place.
            wanted = {
                p: max(0, -((length - p - 1) // stride)) * stride for p in range(first, targets)
            }
        assert starts == wanted


def test_parts_of_a_continuation_add_up() -> None:
    assert Cost() == Cost(0.0, True)
    assert Cost(-1.5, True) + Cost(-2.0, True) == Cost(-3.5, True)
    for one, other in ((True, False), (False, True), (False, False)):
        assert not (Cost(0.0, one) + Cost(0.0, other)).greedy
