"""Documents without learning, contexts of adapters, and what is said to be gained."""

from dataclasses import replace

import numpy as np
import pytest
from learning import LORA, SCORE, T, costs, text

from fairway.score.documents import batches, chunk_bounds, documents, unlearned_windows
from fairway.score.lora import evaluate_lora, evaluate_unlearned
from fairway.score.ways import gains, gains_told


@pytest.mark.parametrize("chunks_", ["8", "16", "3@7 5@12 7", "1@2 16", "5"])
def test_what_is_not_learned_is_seen_in_the_same_windows(chunks_: str) -> None:
    config = replace(LORA, lora_chunks=chunks_)
    found = documents(text().ids, 299)
    learned = {
        int(position): (window.start, position)
        for batch in batches(found, config, T)
        for step in batch.steps
        for window in step.event.windows
        for position in range(window.score_from, window.end)
    }
    windows = list(unlearned_windows(found, config, T))
    unlearned = {p: (w.start, p) for w in windows for p in range(w.score_from, w.end)}
    assert unlearned == learned and all(w.end - w.start <= T for w in windows)
    assert len(windows) <= sum(len(list(chunk_bounds(config, len(d)))) for d in found)


@pytest.mark.parametrize("chunks_", ["8", "3@7 5"])
def test_a_model_that_learns_nothing_costs_what_adapters_do_at_no_rate(chunks_: str) -> None:
    still = replace(LORA, lora_chunks=chunks_, lora_lr=0.0)
    wanted, found = costs(evaluate_lora, still, text()), costs(evaluate_unlearned, still, text())
    np.testing.assert_allclose(found, wanted, atol=2e-5)
    assert np.abs(costs(evaluate_lora, LORA, text()) - wanted).max() > 0.01


def test_what_is_not_learned_has_the_context_of_what_is() -> None:
    """Longer than in training, so that rotary frequencies depend on it."""
    still, score = replace(LORA, lora_lr=0.0), replace(SCORE, seq_len=24)
    wanted, found = (
        costs(way, still, text(), score) for way in (evaluate_lora, evaluate_unlearned)
    )
    np.testing.assert_allclose(found, wanted, atol=2e-5)
    assert not np.allclose(found, costs(evaluate_unlearned, still, text()), atol=1e-4)


def test_gains_are_what_other_scores_cost_more() -> None:
    stages = {"quantised": {"bpb": 1.5}, "sliding": {"bpb": 1.25}, "raw": {"bpb": 9.0}}
    assert gains(stages) is None
    assert gains({**stages, "ttt": {"bpb": 1.0}}) == {"side_by_side": 0.5, "sliding": 0.25}
    told = gains_told({**stages, "ttt": {"bpb": 1.0}})
    assert told == "0.5000 bpb over windows side by side, 0.2500 bpb over the sliding window"
    stages |= {"ttt": {"bpb": 1.0}, "documents": {"bpb": 0.75}}
    assert gains(stages) == {"side_by_side": 0.5, "sliding": 0.25, "unlearned": -0.25}
