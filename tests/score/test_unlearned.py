"""Documents without learning, contexts of adapters, and what is said to be gained."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from learning import LORA, MODEL, SCORE, T, costs, text

from fairway.model.gpt import rope_table
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


@pytest.mark.parametrize("rope", ["ntk", "plain"])
def test_what_is_not_learned_has_the_context_of_what_is(rope: str) -> None:
    still = replace(LORA, lora_context=24, lora_rope=rope, lora_lr=0.0)
    wanted, found = costs(evaluate_lora, still, text()), costs(evaluate_unlearned, still, text())
    np.testing.assert_allclose(found, wanted, atol=2e-5)


def test_a_context_of_its_own_is_that_of_the_score() -> None:
    today = costs(evaluate_lora, LORA, text())
    same = costs(evaluate_lora, replace(LORA, lora_context=T), text())
    assert np.array_equal(same, today)
    longer = costs(evaluate_lora, replace(LORA, lora_context=24), text())
    assert not np.allclose(longer, today, atol=1e-4)
    score = replace(SCORE, seq_len=24)
    assert np.array_equal(costs(evaluate_lora, LORA, text(), score), longer)


def test_frequencies_as_trained_leave_short_documents_as_they_are() -> None:
    """By NTK they depend on the context; the plain table's beginning is always the same."""
    found = {
        (rope, context): costs(
            evaluate_lora, replace(LORA, lora_rope=rope, lora_context=context), text()
        )
        for rope in ("ntk", "plain")
        for context in (64, 80)
    }
    # Documents of up to 64 tokens, in batches of their own: those up to 99.
    assert np.array_equal(found["plain", 64][:100], found["plain", 80][:100])
    assert not np.allclose(found["ntk", 64][:100], found["ntk", 80][:100], atol=1e-6)
    for context in (64, 80):
        short = replace(MODEL, rope_train_len=context)
        assert torch.equal(rope_table(context, MODEL, False)[0], rope_table(context, short)[0])


def test_gains_are_what_other_scores_cost_more() -> None:
    stages = {"quantised": {"bpb": 1.5}, "sliding": {"bpb": 1.25}, "raw": {"bpb": 9.0}}
    assert gains(stages) is None
    assert gains({**stages, "ttt": {"bpb": 1.0}}) == {"side_by_side": 0.5, "sliding": 0.25}
    told = gains_told({**stages, "ttt": {"bpb": 1.0}})
    assert told == "0.5000 bpb over windows side by side, 0.2500 bpb over the sliding window"
    stages |= {"ttt": {"bpb": 1.0}, "documents": {"bpb": 0.75}}
    assert gains(stages) == {"side_by_side": 0.5, "sliding": 0.25, "unlearned": -0.25}
