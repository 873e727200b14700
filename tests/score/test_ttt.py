"""Test-time training: scored before learned, in one order, the same for every number of ranks."""

import functools
import math
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from learning import LORA, SCORE, SGD, STARTS, Evaluate, T, V, alive, costs, text

from fairway.base.errors import LedgerError, UserError
from fairway.config.checks import lora_chunks, lora_factors
from fairway.config.settings import TttConfig
from fairway.machine.ranks import Ranks
from fairway.model.gpt import GPT
from fairway.score.adam import AdamW
from fairway.score.documents import (
    batches,
    chunk_bounds,
    documents,
    longest_first,
)
from fairway.score.evaluation import Evaluation
from fairway.score.ledger import Ledger, Score, Span, Text
from fairway.score.lora import (
    evaluate_lora,
    phase_bounds,
)
from fairway.score.sgd import chunk_rate, chunks, evaluate_sgd
from fairway.score.sliding import FrozenPredictor, evaluate_frozen
from fairway.score.windows import Event, Window

# ---------------------------------------------------------------------------------------------
# The ledger's lessons


def test_nothing_may_be_learned_before_it_is_scored() -> None:
    book, model = Ledger(text(), 299), alive()
    event = Event(0, (Window(0, 16, 0),))
    with pytest.raises(LedgerError, match="position 0 is not scored yet; nothing may be learned"):
        book.lesson(0, 16)
    book.commit(event, FrozenPredictor(model, T).predict(book.context(event)))
    lesson = book.lesson(3, 16)
    assert lesson.inputs.tolist() == text().ids[3:16].tolist()
    assert lesson.targets.tolist() == text().ids[4:17].tolist()
    for first, end in ((0, 17), (16, 20), (5, 5), (9, 3)):
        with pytest.raises(LedgerError, match="nothing may be learned from it"):
            book.lesson(first, end)


def test_what_another_process_scored_twice_is_no_lesson() -> None:
    book = Ledger(text(), 299)
    event = Event(0, (Window(0, 16, 0),))
    book.commit(event, FrozenPredictor(alive(), T).predict(book.context(event)))
    with pytest.raises(LedgerError, match="position 0 is not scored"):
        book.lesson(0, 16, lambda values: 2 * values)


def side_by_side(*windows: Window) -> tuple[Ledger, Event]:
    return Ledger(text(), 299, spans=[Span(0, range(0, 100))], side_by_side=True), Event(0, windows)


@pytest.mark.parametrize(
    ("windows", "message"),
    [
        ((Window(0, 8, 0), Window(0, 8, 4)), "scores again position 4"),
        ((Window(0, 8, 4),), "with a context from 0 on, part of which has not been scored"),
        ((Window(96, 104, 96),), "does not fit 100 positions"),
    ],
)
def test_documents_side_by_side_must_add_up(windows: tuple[Window, ...], message: str) -> None:
    book, event = side_by_side(*windows)
    with pytest.raises(LedgerError, match=message):
        book.context(event)


def test_documents_side_by_side_come_in_any_order_but_all() -> None:
    book, event = side_by_side(Window(40, 50, 40), Window(0, 16, 0))
    predictor = FrozenPredictor(alive(), T)
    assert book.commit(event, predictor.predict(book.context(event))).targets.shape == (26,)
    with pytest.raises(LedgerError, match="only 26 of 100"):
        book.finish()


def test_a_prediction_dies_with_the_weights_that_made_it() -> None:
    book, model = Ledger(text(), 299), alive()
    event = Event(0, (Window(0, 16, 0),))
    dist = FrozenPredictor(model, T).predict(book.context(event))
    with torch.no_grad():
        model.blocks[0].attn.c_q.weight.mul_(1.01)
    with pytest.raises(LedgerError, match="weights have changed since"):
        book.commit(event, dist)


# ---------------------------------------------------------------------------------------------
# All weights, chunk by chunk


def test_chunks_own_the_windows_that_score_them() -> None:
    plan = list(chunks(299, SCORE, 64))
    assert [(c.first, c.end) for c in plan] == [
        (0, 64),
        (64, 128),
        (128, 192),
        (192, 256),
        (256, 299),
    ]
    events = [event for chunk in plan for event in chunk.events]
    assert [event.index for event in events] == list(range(len(events)))
    for chunk in plan:
        positions = np.concatenate([event.positions for event in chunk.events])
        assert positions.tolist() == list(range(chunk.first, chunk.end))


def test_the_rate_falls_along_half_a_cosine() -> None:
    assert [chunk_rate(0.005, c, 3) for c in range(3)] == pytest.approx([0.005, 0.0025, 0.0])


def plain_sgd(model: GPT, source: Text) -> list[float]:
    """The words of algorithms.md 5.3 for one process, as loops."""
    targets, nats = len(source.ids) - 1, []
    ids = torch.tensor(source.ids)
    momenta = [torch.zeros_like(w) for w in model.parameters()]
    count = -(-targets // 64)
    for c in range(count):
        for start in range(0, targets, 4):
            end = min(start + T, targets)
            scored = range(0 if start == 0 else start + T - 4, end)
            if (start and start + T - 4 >= targets) or min(scored.start // 64, count - 1) != c:
                continue
            padded = torch.zeros(1, T, dtype=torch.long)
            padded[0, : end - start] = ids[start:end]
            with torch.no_grad():
                logits = model.logits(model.hidden(padded)[0]).double()
            for p in scored:
                nats.append(-float(logits[p - start].log_softmax(0)[ids[p + 1]]))
        if c == count - 1:
            break
        lr = 0.05 * 0.5 * (1 + math.cos(math.pi * c / (count - 1)))
        x, y = (ids[64 * c + d : 64 * c + d + 64].view(4, T) for d in (0, 1))
        for _ in range(2):
            loss = F.cross_entropy(model.logits(model.hidden(x)).flatten(0, 1), y.flatten())
            grads = torch.autograd.grad(loss, list(model.parameters()))
            norm = torch.sqrt(sum(g.float().square().sum() for g in grads))
            scale = min(1.0, 1.0 / (float(norm) + 1e-6))
            with torch.no_grad():
                for weight, grad, momentum in zip(model.parameters(), grads, momenta, strict=True):
                    momentum.mul_(0.9).add_(grad * scale)
                    weight.sub_(momentum, alpha=lr)
    return nats


def test_sgd_equals_the_words_of_the_seed() -> None:
    wanted = plain_sgd(alive(), text())
    found = costs(evaluate_sgd, SGD, text())
    np.testing.assert_allclose(found, wanted, rtol=2e-3, atol=2e-4)


def test_chunk_0_is_as_without_learning_and_later_ones_are_not() -> None:
    learned = costs(evaluate_sgd, SGD, text())
    still = costs(evaluate_sgd, replace(SGD, lr=0.0), text())
    assert np.array_equal(learned[:64], still[:64])
    assert not np.isclose(learned[64:], still[64:]).all()
    assert learned.sum() < still.sum()
    frozen = evaluate_frozen(alive(), Evaluation(text(), SCORE), sliding=True)
    assert math.fsum(still) == pytest.approx(frozen.nats, rel=1e-6)


def test_the_last_chunk_is_never_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []
    plain = Ledger.lesson
    monkeypatch.setattr(
        Ledger, "lesson", lambda self, a, b, *more: asked.append((a, b)) or plain(self, a, b, *more)
    )
    evaluate_sgd(alive(), Evaluation(text(), SCORE, SGD))
    assert asked == [(0, 64), (64, 128), (128, 192), (192, 256)]


# ---------------------------------------------------------------------------------------------
# Documents


def test_documents_and_their_batches_cover_the_text_once() -> None:
    found = documents(text().ids, 299)
    assert [d.start for d in found] == STARTS and found[-1].stop == 299
    plan = batches(found, replace(LORA, lora_chunks="2@4 8"), T)
    steps = [step for batch in plan for step in batch.steps]
    assert [step.event.index for step in steps] == list(range(len(steps)))
    positions = np.concatenate([step.event.positions for step in steps])
    assert sorted(positions.tolist()) == list(range(299))
    for batch in plan:
        for step in batch.steps:
            for row, window in zip(step.rows, step.event.windows, strict=True):
                document = batch.documents[row]
                assert document.start <= window.start and window.end <= document.stop
                assert window.end - window.start <= T
                assert (row in step.going_on) == (window.end < document.stop)


def test_chunks_grow_with_the_position_alone() -> None:
    config = replace(LORA, lora_chunks="2@4 8")
    whole = list(chunk_bounds(config, 30))
    assert whole == [(0, 2), (2, 4), (4, 12), (12, 20), (20, 28), (28, 36)]
    assert list(chunk_bounds(config, 13)) == whole[:4]


def test_longest_first_keeps_documents_whole() -> None:
    ordered = longest_first(text(), 299)
    lengths = [len(d) for d in documents(ordered.ids, 299)]
    assert lengths[:-1] == sorted(lengths[:-1], reverse=True) and lengths[-1] == 299 - 290
    assert sorted(ordered.ids.tolist()) == sorted(text().ids.tolist())
    assert int(ordered.target_bytes.sum()) == ordered.text_bytes


@pytest.mark.parametrize(
    "words", ["", "0", "8@", "8@4", "8 4", "8@4 2@4 1", "8@9 2@4 1", "x", "8@4 x"]
)
def test_chunks_that_make_no_sense_are_refused(words: str) -> None:
    with pytest.raises(UserError, match="write one size, such as '48', or several"):
        lora_chunks(replace(LORA, lora_chunks=words))


def test_factors_are_read_by_target() -> None:
    assert lora_factors(LORA) == {}
    assert lora_factors(replace(LORA, lora_factors="mlp 0.25 head 2")) == {"mlp": 0.25, "head": 2.0}


@pytest.mark.parametrize(
    "words",
    ["mlp", "mlp 0", "mlp -1", "mlp nan", "mlp inf", "mlp 1001", "mlp x", "q 1 q 2", "mlp 1 q"],
)
def test_factors_that_make_no_sense_are_refused(words: str) -> None:
    with pytest.raises(UserError, match="write each matrix once with a number above 0 and at most"):
        lora_factors(replace(LORA, lora_factors=words))


def test_a_factor_of_all_targets_is_another_alpha() -> None:
    every = " ".join(f"{target} 3" for target in LORA.lora_targets.split())
    wanted = costs(evaluate_lora, replace(LORA, lora_alpha=3 * LORA.lora_alpha), text())
    np.testing.assert_allclose(
        costs(evaluate_lora, replace(LORA, lora_factors=every), text()), wanted
    )
    one = costs(evaluate_lora, replace(LORA, lora_factors="head 3"), text())
    assert not np.allclose(one, wanted)


def test_a_step_is_that_of_the_formula() -> None:
    """Adam without first moments, written out."""
    grads = torch.randn(4, 1, 2, 3, 5, generator=torch.Generator().manual_seed(0)).double()
    adam = AdamW(replace(LORA, lora_lr=0.03, lora_wd=0.5), [torch.ones(1, 2, 3, 5).double()])
    adam.start(2)
    wanted, square = torch.ones(1, 2, 3, 5).double(), torch.zeros(1, 2, 3, 5).double()
    for n, grad in enumerate(grads, 1):
        adam.count_step()
        adam.step([grad])
        square = 0.999 * square + 0.001 * grad**2
        root = (square / (1 - 0.999**n)).sqrt()
        wanted = wanted * (1 - 0.03 * 0.5) - 0.03 * grad / root
        torch.testing.assert_close(adam.values[0], wanted)


@pytest.mark.parametrize("factor", [1.0, 0.5])
def test_without_a_rate_every_document_costs_what_it_costs_alone(factor: float) -> None:
    still = replace(LORA, lora_lr=0.0, lora_logit_factor=factor)
    nats = costs(evaluate_lora, still, text())
    model, ids = alive(), torch.tensor(text().ids)
    for document in documents(text().ids, 299):
        for p in (document.start, document.stop - 1):
            # The chunk of 8 that p is in ends its window.
            end = (p - document.start) // 8 * 8 + 8
            start = document.start + max(0, end - T)
            with torch.no_grad():
                logits = model.logits(_states(model, ids[start : p + 1])[-1]).double()
                row = (factor * logits).log_softmax(0)
            assert nats[p] == pytest.approx(-float(row[ids[p + 1]]), abs=1e-4)


@pytest.mark.parametrize("change", [{}, {"lora_phases": 1, "chunk_tokens": 64}, {"lora_lanes": 1}])
@pytest.mark.parametrize("share", [0.3, 0.99])
def test_a_share_averages_probabilities_with_those_of_the_model_itself(
    change: dict[str, Any], share: float
) -> None:
    """In documents shorter and longer than a window, and after phases."""
    config = replace(LORA, **change)
    adapted = costs(evaluate_lora, config, text())
    itself = costs(evaluate_lora, replace(config, lora_lr=0.0), text())
    wanted = -np.log((1 - share) * np.exp(-adapted) + share * np.exp(-itself))
    found = costs(evaluate_lora, replace(config, lora_frozen_share=share), text())
    np.testing.assert_allclose(found, wanted, atol=2e-5)
    assert not np.allclose(found, adapted, atol=1e-3)


def test_the_model_itself_reads_a_long_document_again_every_quarter_of_a_window() -> None:
    """In chunks of 2: from a multiple of 4, at most 16 tokens before the end of the chunk."""
    config = replace(LORA, lora_chunks="2", lora_rank=1)
    adapted = costs(evaluate_lora, config, text())
    found = costs(evaluate_lora, replace(config, lora_frozen_share=0.5), text())
    model, ids = alive(), torch.tensor(text().ids)
    for p in (101, 115, 116, 117, 118, 119, 131, 200, 231):
        end = (p - 100) // 2 * 2 + 2
        start = 100 + max(0, -(-(end - T) // 4) * 4)
        with torch.no_grad():
            row = model.logits(_states(model, ids[start : p + 1])[-1]).double().log_softmax(0)
        itself = -float(row[ids[p + 1]])
        wanted = -np.log((np.exp(-adapted[p]) + np.exp(-itself)) / 2)
        assert found[p] == pytest.approx(wanted, abs=1e-4), p


def _states(model: GPT, ids_T: torch.Tensor) -> torch.Tensor:
    """Return states under the rotary table of a whole window."""
    padded_T = torch.zeros(T, dtype=torch.long)
    padded_T[: len(ids_T)] = ids_T
    return model.hidden(padded_T[None])[0, : len(ids_T)]


def test_documents_learn_and_from_themselves_alone() -> None:
    still = costs(evaluate_lora, replace(LORA, lora_lr=0.0), text())
    learned = costs(evaluate_lora, LORA, text())
    assert learned.sum() < still.sum()
    for document in documents(text().ids, 299):
        first = slice(document.start, min(document.stop, document.start + 8))
        np.testing.assert_allclose(learned[first], still[first], atol=1e-5)


def test_phases_change_what_comes_after_them_alone() -> None:
    without, one = (
        costs(evaluate_lora, replace(LORA, lora_phases=n, chunk_tokens=64), text()) for n in (0, 1)
    )
    after = documents(text().ids, 299)[3].start
    assert np.array_equal(without[:after], one[:after])
    assert not np.isclose(without[after:], one[after:]).all()
    assert phase_bounds(3, 1) == [0, 1, 3] and phase_bounds(2, 5) == [0, 1, 2]


# ---------------------------------------------------------------------------------------------
# Both


WAYS: list[tuple[Evaluate, TttConfig]] = [
    (evaluate_sgd, SGD), (evaluate_lora, LORA), (evaluate_lora, replace(LORA, lora_phases=1)),
]  # fmt: skip


@pytest.mark.parametrize(("way", "config"), WAYS)
def test_a_flipped_token_changes_no_earlier_cost(way: Evaluate, config: TttConfig) -> None:
    source = text()
    ids = source.ids.copy()
    ids[200] = (ids[200] + 1) % V
    before, after = costs(way, config, source), costs(way, config, replace(source, ids=ids))
    changed = np.flatnonzero(before != after)
    # Side by side, documents of one batch are scored together: 100..232 is the first of its batch.
    assert changed.min() == 199
    # Nor does it change what scores it: the same row, another entry.
    assert len(changed) > 10


@pytest.mark.parametrize(("way", "config"), WAYS)
def test_two_runs_are_the_same_to_the_bit(way: Evaluate, config: TttConfig) -> None:
    first, second = (way(alive(), Evaluation(text(), SCORE, config)) for _ in range(2))
    assert first == second and first.checked_positions == 30


class Meeting(Ranks):
    """Ranks that are threads, and meet for every sum."""

    def join(self, tables: list[list[Any]], gate: threading.Barrier) -> "Meeting":
        object.__setattr__(self, "meeting", (tables, gate))
        return self

    def _sum(self, value: Any) -> Any:
        tables, gate = self.meeting  # type: ignore[attr-defined]
        tables[self.rank] = value
        gate.wait(60)
        total = sum(tables[1:], start=tables[0])
        gate.wait(60)
        return total

    def total(self, values: np.ndarray) -> np.ndarray:
        found: np.ndarray = self._sum(values)
        return found

    def start_sum(self, tensor: torch.Tensor) -> Callable[[], object]:
        total = self._sum(tensor.clone())
        return lambda: tensor.copy_(total)


@functools.cache
def alone(way: Evaluate, config: TttConfig) -> Score:
    return way(alive(), Evaluation(text(), SCORE, config, 3))


@pytest.mark.parametrize(("way", "config"), WAYS)
@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_the_work_and_agree(way: Evaluate, config: TttConfig, world: int) -> None:
    whole = alone(way, config)
    tables: list[Any] = [None] * world
    gate, scores = threading.Barrier(world), {}

    def work(rank: int) -> None:
        ranks = Meeting(rank, world).join(tables, gate)
        scores[rank] = way(alive(), Evaluation(text(), SCORE, config, 3, ranks=ranks))

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert [scores[rank].bpb for rank in range(world)] == [scores[0].bpb] * world
    assert scores[0].nats == pytest.approx(whole.nats, rel=1e-4)
    assert scores[0].events == whole.events and scores[0].windows == whole.windows
