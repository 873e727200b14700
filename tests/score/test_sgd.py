"""Learning chunk by chunk: its plan, rates, steps and gradients, each against a plain one."""

import math
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tiny import TINY
from tiny import alive as alive_with

from fairway.config.settings import ScoreConfig, TttConfig
from fairway.machine.ranks import Ranks
from fairway.model.gpt import GPT
from fairway.score import sgd
from fairway.score.evaluation import Evaluation
from fairway.score.ledger import Ledger, Text, Witness
from fairway.score.predictor import Lesson
from fairway.score.sgd import Sgd, chunk_rate, chunks, evaluate_sgd
from fairway.score.sliding import FrozenPredictor
from fairway.score.windows import Event

V, T = 260, 8
MODEL = replace(TINY, num_layers=2, loop_first=0, loop_last=0)
CONFIG = TttConfig(method="sgd", chunk_tokens=16, lr=0.05, epochs=1)
SCORE = ScoreConfig(seq_len=T, stride=4, batch_windows=2, check_positions=5, truncate=False)


def alive() -> GPT:
    model = alive_with(MODEL)
    model.set_compute(torch.float32, "plain")
    return model


def lesson(tokens: int, seed: int = 0) -> Lesson:
    draw = np.random.default_rng(seed)
    ids = draw.integers(2, V, tokens + 1)
    return Lesson(ids[:-1], ids[1:])


def gradients(model: GPT) -> list[torch.Tensor]:
    return [w.grad.clone() for w in model.parameters() if w.grad is not None]


def assert_near(found: torch.Tensor, wanted: torch.Tensor) -> None:
    """A head's gradient is summed up in bfloat16."""
    assert float((found - wanted).norm()) <= 0.01 * float(wanted.norm())


def test_the_windows_of_chunks_by_hand() -> None:
    score = replace(SCORE, seq_len=8, stride=4, batch_windows=2)
    found = [
        (c.index, c.first, c.end, [[(w.start, w.end, w.score_from) for w in e.windows]
         for e in c.events], [e.index for e in c.events])
        for c in chunks(21, score, 12)
    ]  # fmt: skip
    assert found == [
        (0, 0, 12, [[(0, 8, 0), (4, 12, 8)]], [0]),
        (1, 12, 21, [[(8, 16, 12), (12, 20, 16)], [(16, 21, 20)]], [1, 2]),
    ]
    assert [(c.first, c.end) for c in chunks(24, score, 12)] == [(0, 12), (12, 24)]
    assert [(c.first, c.end) for c in chunks(5, score, 12)] == [(0, 5)]


def test_rates_by_hand() -> None:
    assert chunk_rate(0.1, 0, 1) == 0.1
    assert chunk_rate(0.1, 1, 2) == pytest.approx(0.0, abs=1e-18)
    assert chunk_rate(0.1, 1, 4) == pytest.approx(0.075)
    assert chunk_rate(0.1, 2, 5) == pytest.approx(0.05)


def test_steps_are_of_so_many_sequences_and_leave_out_what_fills_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    learner = Sgd(alive(), CONFIG, T)
    steps: list[tuple[range, float]] = []
    rate = learner.optimiser.param_groups[0]
    monkeypatch.setattr(learner, "_step", lambda _, found: steps.append((found, rate["lr"])))
    learner.learn(lesson(70 * T + T - 1), 0.25, 2)
    assert steps == [(range(0, 32), 0.25), (range(32, 64), 0.25), (range(64, 70), 0.25)] * 2
    steps.clear()
    learner.learn(lesson(64 * T), 0.5, 1)
    assert steps == [(range(0, 32), 0.5), (range(32, 64), 0.5)]
    steps.clear()
    learner.learn(lesson(T - 1), 0.5, 1)
    assert steps == []


@pytest.mark.parametrize("rows", [[0, 1, 2, 3, 4], [3], [2, 4]])
def test_gradients_are_those_of_the_mean_loss(
    rows: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, learned = alive(), lesson(5 * T + 3)
    ids, targets = (
        torch.from_numpy(x[: 5 * T].reshape(5, T)[rows]) for x in (learned.inputs, learned.targets)
    )
    logits = model.logits(model.hidden(ids)).flatten(0, 1).log_softmax(-1)
    nats = -logits[torch.arange(len(logits)), targets.flatten()]
    wanted = torch.autograd.grad(nats.mean(), list(model.parameters()))
    learner = Sgd(model, CONFIG, T)
    first = rows[0]
    sequences = range(first, rows[-1] + 1, 2 if rows == [2, 4] else 1)
    assert list(sequences) == rows
    for at_once in (16, 2):
        monkeypatch.setattr(sgd, "ROWS_AT_ONCE", at_once)
        # What was there before is forgotten.
        learner.gradients(learned, sequences)
        for grad, expected in zip(gradients(model), wanted, strict=True):
            assert_near(grad, expected)


@pytest.mark.parametrize(("fixed", "passes"), [(False, [1] * 18), (True, [16, 2])])
def test_free_memory_decides_only_where_nobody_must_repeat_the_sums(
    fixed: bool, passes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    learner, found = Sgd(alive(), CONFIG, T, fixed=fixed), list[int]()
    mean_loss = learner._mean_loss
    monkeypatch.setattr(sgd, "free_bytes", lambda _: 1)
    monkeypatch.setattr(learner, "_mean_loss", lambda *a: found.append(len(a[1])) or mean_loss(*a))
    learner.gradients(lesson(18 * T), range(18))
    assert found == passes


def test_the_gradient_is_clipped_to_its_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    learned = lesson(4 * T)
    norms, moved = [], []
    for clip in (2e9, 1.0, 1e9):
        monkeypatch.setattr(sgd, "_CLIP", clip)
        model = alive()
        before = [w.detach().clone() for w in model.parameters()]
        learner = Sgd(model, CONFIG, T)
        learner.learn(learned, 0.5, 1)
        norms.append(float(torch.cat([g.flatten() for g in gradients(model)]).norm()))
        pairs = zip(before, model.parameters(), strict=True)
        moved.append(float(torch.cat([(a - b).detach().flatten() for a, b in pairs]).norm()))
    assert norms[0] == norms[2] > 2.0 and norms[1] == pytest.approx(1.0, rel=1e-3)
    assert moved == pytest.approx([0.5 * norm for norm in norms], rel=1e-2)


def test_momentum_is_kept_from_step_to_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two equal gradients the second moves 1.75 times as far."""
    model = alive()
    monkeypatch.setattr(sgd, "_MOMENTUM", 0.75)
    monkeypatch.setattr(sgd, "_CLIP", 1e9)
    learner = Sgd(model, CONFIG, T)
    weight = model.tok_emb.weight
    places = [weight.detach().clone()]

    def ones(*_: object) -> None:
        for each in learner.weights:
            each.grad = torch.ones_like(each)

    monkeypatch.setattr(learner, "gradients", ones)
    for _ in range(2):
        learner.learn(lesson(T), 0.5, 1)
        places.append(weight.detach().clone())
    torch.testing.assert_close(places[0] - places[1], torch.full_like(weight, 0.5))
    torch.testing.assert_close(places[1] - places[2], torch.full_like(weight, 0.875))


def test_who_keeps_copies_of_weights_sees_them_change(monkeypatch: pytest.MonkeyPatch) -> None:
    model = alive()
    before = [w._version for w in model.parameters()]
    told: list[Any] = []
    # Fused steps do not raise versions by themselves.
    monkeypatch.setattr(torch.autograd.graph, "increment_version", told.append)
    learner = Sgd(model, CONFIG, T)
    learner.learn(lesson(T), 0.1, 1)
    assert len(told) == 1 and told[0] is learner.weights
    monkeypatch.undo()
    learner.learn(lesson(T), 0.1, 1)
    assert all(w._version > b for w, b in zip(model.parameters(), before, strict=True))


class Others(Ranks):
    """One of several processes, whose sums are noted and left as they are."""

    def note(self, sums: list[torch.Tensor]) -> "Others":
        object.__setattr__(self, "sums", sums)
        return self

    def start_sum(self, tensor: torch.Tensor) -> Callable[[], object]:
        self.sums.append(tensor)  # type: ignore[attr-defined]
        return lambda: tensor.add_(1.0)


@pytest.mark.parametrize(("rank", "world"), [(0, 2), (1, 2), (0, 3), (1, 3), (2, 3)])
def test_every_process_adds_its_share_of_the_whole_step(rank: int, world: int) -> None:
    learned, sums = lesson(world * T), []
    model, alone_ = alive(), alive()
    Sgd(model, CONFIG, T, Others(rank, world).note(sums)).gradients(learned, range(world))
    assert len(sums) == len(list(model.parameters()))
    Sgd(alone_, CONFIG, T).gradients(learned, range(rank, rank + 1))
    for grad, expected in zip(gradients(model), gradients(alone_), strict=True):
        assert_near(grad, expected / world + 1.0)


def test_a_process_without_sequences_adds_zeros() -> None:
    model, sums = alive(), []
    Sgd(model, CONFIG, T, Others(0, 3).note(sums)).gradients(lesson(3 * T), range(1, 2))
    assert all(bool((w.grad == 1.0).all()) for w in model.parameters())
    assert len(sums) == len(list(model.parameters()))


def source(tokens: int = 40) -> Text:
    ids = np.random.default_rng(2).integers(2, V, tokens)
    target_bytes = np.random.default_rng(3).integers(0, 5, tokens - 1)
    return Text(ids, target_bytes, int(target_bytes.sum()), V)


def test_an_evaluation_asks_for_lessons_and_rates_in_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """39 targets in chunks of 16: two are learned, at the full rate and at half of it."""
    learned: list[tuple[int, float, int]] = []
    monkeypatch.setattr(Sgd, "learn", lambda self, a, b, c: learned.append((len(a.targets), b, c)))
    told: list[int] = []
    witness = Hearing()
    books: list[Ledger] = []
    finish = Ledger.finish
    monkeypatch.setattr(Ledger, "finish", lambda self, *a: books.append(self) or finish(self, *a))
    model = alive().train()
    found = evaluate_sgd(
        model,
        Evaluation(
            source(),
            SCORE,
            replace(CONFIG, epochs=3),
            seed=4,
            description="x",
            witness=witness,
            helped=lambda predictor: told.append(1) or predictor,
        ),
    )
    assert learned == [(16, 0.05, 3), (16, pytest.approx(0.025), 3)] and told == [1]
    assert witness.learned_ == [(0, 16), (16, 32)] and witness.read_ == list(range(found.events))
    assert model.training, "as it was before"
    (book,) = books
    assert (book.seed, book.check_positions, book.row_tolerance_nats) == (4, 5, 0.02)
    assert (found.tokens, found.windows, found.checked_positions) == (39, 9, 5)
    frozen = FrozenPredictor(model.eval(), T)
    again = Ledger(source(), 39)
    for chunk in chunks(39, SCORE, 16):
        for event in chunk.events:
            again.commit(event, frozen.predict(again.context(event)))
    assert found.nats == pytest.approx(again.finish().nats, rel=1e-12)


class Hearing(Witness):
    def __init__(self) -> None:
        self.read_: list[int] = []
        self.learned_: list[tuple[int, int]] = []

    def read(self, event: Event) -> None:
        self.read_.append(event.index)

    def learned(self, first: int, end: int) -> None:
        self.learned_.append((first, end))


def test_what_fills_no_window_is_left_out_if_truncated() -> None:
    found = evaluate_sgd(alive(), Evaluation(source(), replace(SCORE, truncate=True), CONFIG))
    assert found.tokens == 32 and math.isfinite(found.nats)


def test_progress_counts_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []

    @contextmanager
    def counting(description: str, total: int) -> Any:
        told.append((description, total))
        yield told.append

    monkeypatch.setattr(sgd, "progress", counting)
    evaluate_sgd(alive(), Evaluation(source(), SCORE, CONFIG, description="what"))
    assert told[0] == ("what", 39) and sum(told[1:]) == 39
