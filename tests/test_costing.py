"""Windows of continuations beside a plain rule, and their costs beside one window at a time."""

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from tiny import alive

from fairway.api import LanguageModel
from fairway.costing import Continuation, Cost, Coster, windows


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


@pytest.mark.parametrize(("rows", "stride"), [(None, 4), (None, 99), (1, 4), (3, 7)])
def test_costs_in_passes_are_those_of_one_window_at_a_time(rows: int | None, stride: int) -> None:
    length, draw = 16, np.random.default_rng(1)
    model = alive()
    score = SimpleNamespace(seq_len=length, stride=stride, batch_windows=2)
    plan = SimpleNamespace(applied=nullcontext)
    language = SimpleNamespace(score_config=score, model=model, plan=plan)
    sizes = [(1, 0), (40, 3), (16, 0), (17, 0), (3, 3), (5, 2), (9, 8), (30, 25), (2, 0), (33, 33)]
    asked = [Continuation(draw.integers(0, 260, n + 1), first) for n, first in sizes]
    found, shapes, states = {}, [], model.states

    def judged(ids: np.ndarray, start: int, end: int, first: int) -> Cost:
        """Return the cost by the whole model over one window, filled up to its length."""
        padded = np.zeros((1, length), np.int64)
        padded[0, : end - start] = ids[start:end]
        with torch.no_grad():
            logits = model.logits(model.hidden(torch.from_numpy(padded))[0]).double()
        rows = logits.log_softmax(1).numpy()[first - start : end - start]
        wanted = ids[first + 1 : end + 1]
        right = bool((rows.argmax(1) == wanted).all())
        return Cost(float(rows[np.arange(len(wanted)), wanted].sum()), right)

    # The first token after the context of one is the likeliest.
    last = asked[6].ids
    last[9] = next(t for t in range(260) if judged(np.append(last[:9], t), 0, 9, 8).greedy)

    def counted(x_BTD: torch.Tensor, rope: Any) -> torch.Tensor:
        shapes.append(tuple(x_BTD.shape[:2]))
        return states(x_BTD, rope)

    model.states = counted  # type: ignore[method-assign]
    for number, cost in Coster(cast(LanguageModel, language), length, rows).costs(asked):
        assert number not in found
        found[number] = cost
    model.states = states  # type: ignore[method-assign]
    for number, item in enumerate(asked):
        parts = windows(item, length, min(stride, length))
        whole = [judged(item.ids, w.start, w.end, w.score_from) for w in parts]
        assert found[number].nats == pytest.approx(sum(cost.nats for cost in whole), rel=1e-5)
        assert found[number].greedy == all(cost.greedy for cost in whole)
    assert found[6].greedy and not found[1].greedy
    # The longest first; as many together as were asked for, or as fill a pass of the scorer.
    lengths = [T for _, T in shapes]
    assert lengths == sorted(lengths, reverse=True)
    assert len(shapes) > 2 and all((rows or 2 * length // T) == B for B, T in shapes[:-1])
