"""Documents side by side: slots, matrices, rows and lessons, each against a plain one."""

import math
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from tiny import TINY
from tiny import alive as alive_with

from fairway.base.errors import LedgerError
from fairway.config.settings import ScoreConfig, TttConfig
from fairway.model.gpt import GPT
from fairway.model.operations import Operations
from fairway.score import lora
from fairway.score.documents import batches, documents
from fairway.score.evaluation import ALONE, Evaluation
from fairway.score.ledger import Ledger, Text, Witness
from fairway.score.lora import DocumentDistribution, Documents, Lanes, evaluate_lora, phase_bounds
from fairway.score.predictor import Context, Lesson
from fairway.score.sgd import Sgd
from fairway.score.unadapted import read_from
from fairway.score.windows import Event, Window

V, T = 260, 16
MODEL = replace(TINY, num_layers=2, loop_first=0, loop_last=0, rope_train_len=8)
CONFIG = TttConfig(
    method="lora", lora_rank=2, lora_alpha=3.0, lora_lr=0.01, lora_wd=0.1, lora_chunks="8",
    lora_documents=4, lora_lanes=2, lora_targets="q head",
)  # fmt: skip
SCORE = ScoreConfig(seq_len=T, stride=4, batch_windows=3, check_positions=9, truncate=False)


def alive() -> GPT:
    model = alive_with(MODEL)
    model.set_compute(torch.float32, "plain")
    return model


def lane(rows: int = 4, share: float = 0.0) -> tuple[Documents, list[torch.Tensor]]:
    """Return the documents of a batch of four slots, and the matrices A kept beyond it."""
    found = Documents(alive(), replace(CONFIG, lora_frozen_share=share), T, 4, False)
    inner = found.adapters.zeros(4)[::2]
    for number, kept in enumerate(inner):
        for row in range(4):
            kept[:, row] = 10 * number + row
    found.start(rows, inner)
    return found, inner


def assert_close(found: torch.Tensor, wanted: torch.Tensor, apart: float = 1e-5) -> None:
    torch.testing.assert_close(found, wanted, atol=apart, rtol=0)


def marks(found: list[torch.Tensor]) -> list[list[float]]:
    """Return the one value that every row of every tensor is full of."""
    return [[float(row.unique()) for row in tensor.unbind(1)] for tensor in found]


def test_a_batch_begins_with_the_matrices_kept_for_its_rows() -> None:
    found, _ = lane()
    for value in (*found.adam.values, *found.adam.squares):
        value.fill_(7.0)
    version = found.version
    inner = found.adapters.zeros(4)[::2]
    for kept in inner:
        kept.fill_(0.5)
    found.start(3, inner)
    assert marks(found.adam.values[::2]) == [[0.5, 0.5, 0.5, 7.0]] * 2
    assert marks(found.adam.values[1::2]) == [[0.0, 0.0, 0.0, 7.0]] * 2
    assert marks(found.adam.squares) == [[0.0, 0.0, 0.0, 7.0]] * 4
    assert (found.rows, found.adam.count, found.version) == ([0, 1, 2], 3, version + 1)


@pytest.mark.parametrize("kept", [(0, 1, 2, 3), (1, 3), (0,), (3,), (0, 2, 3), ()])
def test_those_that_go_on_keep_what_is_theirs(kept: tuple[int, ...]) -> None:
    found, inner = lane()
    for number, tensor in enumerate((*found.adam.values, *found.adam.squares)):
        for row in range(4):
            tensor[:, row] = 100 * number + row
    version = found.version
    found.keep(kept)
    assert sorted(found.rows) == list(kept) and found.adam.count == len(kept)
    assert found.version == version + 4 - len(kept)
    # What is in a slot belongs to the row of the slot.
    for number, tensor in enumerate((*found.adam.values, *found.adam.squares)):
        assert marks([tensor])[0][: len(kept)] == [100 * number + row for row in found.rows]
    assert marks(found.values_of(kept)) == [[100.0 * n + row for row in kept] for n in range(4)]
    # Those that have ended leave A, which are the values 0 and 2.
    expected = [[(200 * n if r not in kept else 10 * n) + r for r in range(4)] for n in range(2)]
    assert marks(inner) == expected
    found.save()
    assert marks(inner) == [[200.0 * n + r for r in range(4)] for n in range(2)]


def test_the_way_is_the_fast_one_where_asked_and_a_batch_begins_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("Fused", "Plain"):
        monkeypatch.setattr(lora, name, lambda *_, name=name: name)
    assert [Documents(alive(), CONFIG, T, 4, fast).way for fast in (True, False)] == [
        "Fused", "Plain",
    ]  # fmt: skip
    monkeypatch.undo()
    found, inner = lane()
    begun: list[str] = []
    monkeypatch.setattr(found.way, "renew", lambda: begun.append("way"))
    monkeypatch.setattr(found.halving, "begin", lambda: begun.append("halving"))
    found.start(2, inner)
    assert begun == ["way", "halving"]


def test_recordings_follow_the_last_row_into_the_slot_that_is_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found, _ = lane()
    moved: list[tuple[int, int]] = []
    monkeypatch.setattr(found.way, "move", lambda *slots: moved.append(slots))
    found.keep((1, 3))
    assert moved == [(3, 0)] and found.rows == [3, 1]
    found.keep((1,))
    assert moved == [(3, 0), (1, 0)] and found.rows == [1]


def test_memory_is_shared_out_unless_it_is_fixed() -> None:
    assert not lane()[0].halving._fixed
    assert not Lanes(alive(), CONFIG, T, 0)._documents.halving._fixed
    assert Lanes(alive(), CONFIG, T, 0, True)._documents.halving._fixed


def test_rope_is_of_a_window_or_its_beginning() -> None:
    found, _ = lane()
    (cos, sin), (part, _) = found.rope(), found.rope(3)
    assert len(cos) == len(sin) == T and torch.equal(part, cos[:3])
    assert torch.equal(cos[0], torch.ones_like(cos[0])) and float(sin[0].abs().max()) == 0.0


def predicted(share: float = 0.0) -> tuple[Documents, DocumentDistribution, Context]:
    """Return a prediction of three documents, one of them shorter, with adapters that matter."""
    found, _ = lane(3, share)
    generator = torch.Generator().manual_seed(0)
    for value in found.adam.values:
        value.copy_(torch.randn(value.shape, generator=generator) * 0.3)
    # Row 0 has ended: the last row is in its slot.
    found.keep((1, 2))
    windows = (Window(20, 30, 24), Window(40, 47, 44))
    ids = np.random.default_rng(0).integers(2, V, 60)
    inputs = {w: ids[w.start : w.end] for w in windows}
    context = Context(Event(0, windows), inputs)
    return found, found.predict(context, 4), context


@pytest.mark.parametrize("share", [0.0, 0.4])
def test_the_three_ways_to_ask_agree_at_every_position(share: float) -> None:
    found, dist, context = predicted(share)
    assert found.rows == [2, 1] and dist.places == [1, 0]
    positions = context.event.positions.tolist()
    tables = dist.tables(0, len(positions))
    assert tables.dtype == torch.float64 and tables.shape == (9, V)
    targets = np.arange(3, 12)
    nats = dist.log_prob(targets)
    assert nats.dtype == np.float64 and nats.shape == (9,)
    for n, position in enumerate(positions):
        row = dist.row(position)
        assert np.exp(row).sum() == pytest.approx(1.0, abs=1e-12)
        assert row == pytest.approx(tables[n].numpy(), abs=1e-4)
        assert row[targets[n]] == pytest.approx(nats[n], abs=1e-4)
        # The unadapted model's logits are another product for another number of positions.
        assert_close(dist.tables(n, n + 1), tables[n : n + 1], 1e-5 if share else 0.0)
    # The adapters of a document are its own.
    one, other = (found.values_of([row]) for row in (1, 2))
    assert not any(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_the_model_itself_keeps_what_it_has_read_of_each_document() -> None:
    """After a row took the place of another, chunk by chunk as at once; also what was not asked."""
    found, _ = lane(3, 0.5)
    beside, ids = found.unadapted, np.random.default_rng(0).integers(2, V, (3, T))
    wanted = beside.frozen.hidden(list(ids))
    assert_close(beside.states(ids[:, :5], 0, 0), wanted[:, :5])
    found.keep((1, 2))
    assert_close(beside.states(ids[[2, 1], :8], 0, 5), wanted[[2, 1], 5:8])
    assert beside.reading.cache.filled == 8
    # Positions 8 to 10 were not asked for; what comes again is computed again.
    assert_close(beside.states(ids[[2, 1], :14], 0, 11), wanted[[2, 1], 11:14])
    assert_close(beside.states(ids[[2, 1], :14], 0, 11), wanted[[2, 1], 11:14])
    # From a later position on, nothing is known of what was read.
    assert_close(beside.states(ids[[2, 1], :14], 20, 31), wanted[[2, 1], 11:14])
    assert_close(beside.states(ids[[2, 1]], 20, 34), wanted[[2, 1], 14:])


@pytest.mark.parametrize("seq_len", [16, 30, 2048])
@pytest.mark.parametrize("chunk", [1, 2, 7, 16])
def test_contexts_of_the_model_itself_are_three_quarters_of_a_window(
    seq_len: int, chunk: int
) -> None:
    begins = set()
    for at in range(0, 4 * seq_len, chunk):
        start = max(0, at + chunk - seq_len)
        begin = read_from(start, at, seq_len)
        assert start <= begin <= at
        if not start:
            assert begin == 0
        elif chunk <= seq_len // 4:
            assert at + chunk - begin > seq_len - seq_len // 4
        begins.add(begin)
    if chunk <= seq_len // 4:
        assert len(begins) <= 4 * seq_len // (seq_len // 4) + 1


def test_without_a_share_the_model_itself_takes_no_memory() -> None:
    found, dist, _ = predicted()
    dist.log_prob(np.arange(9)), dist.tables(0, 9), dist.row(24)
    assert "reading" not in vars(found.unadapted)


def test_what_is_certain_costs_nothing() -> None:
    _, dist, _ = predicted()
    dist.log_probs_BCV = torch.full_like(dist.log_probs_BCV, 1e-6)
    assert dist.log_prob(np.arange(3, 12)).tolist() == [0.0] * 9


@pytest.mark.parametrize("ask", ["log_prob", "tables", "row"])
@pytest.mark.parametrize("change", ["predict", "learn and predict", "keep", "learn", "start"])
def test_a_prediction_is_good_until_something_changes(ask: str, change: str) -> None:
    found, dist, context = predicted()
    arguments = {"log_prob": (np.arange(9),), "tables": (0, 9), "row": (24,)}[ask]
    getattr(dist, ask)(*arguments)
    match change:
        case "predict":
            found.predict(context, 4)
        case "learn and predict":
            found.learn(dist, dist.rectangle(np.arange(9)), [0])
            found.predict(context, 4)
        case "keep":
            found.keep((1,))
        case "learn":
            found.learn(dist, dist.rectangle(np.arange(9)), [0])
        case "start":
            found.start(2, found.adapters.zeros(4)[::2])
    with pytest.raises(LedgerError, match="have learned or predicted since"):
        getattr(dist, ask)(*arguments)


def test_targets_stand_in_the_slots_of_their_rows() -> None:
    _, dist, _ = predicted()
    found = dist.rectangle(np.arange(1, 10))
    # Places 0 and 1 have 6 and 3 positions; the slots hold place 1, then 0.
    assert found.tolist() == [[7, 8, 9, 0, 0, 0], [1, 2, 3, 4, 5, 6]]
    assert found.dtype == torch.int64


@pytest.mark.parametrize(
    ("going_on", "share"), [([0, 1], [1, 1]), ([0], [0, 1]), ([1], [1, 0]), ([], [0, 0])]
)
def test_only_those_that_go_on_learn(
    going_on: list[int], share: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    found, dist, _ = predicted()
    told: list[Any] = []
    monkeypatch.setattr(found.halving, "learn", lambda *given: told.append(given))
    targets, steps, version = dist.rectangle(np.arange(9)), found.adam.steps, found.version
    found.learn(dist, targets, going_on)
    ((given, share_B),) = told
    assert given is targets and share_B.tolist() == share
    assert (found.adam.steps, found.version) == (steps + 1, version + 1)


def test_a_step_is_that_of_the_costs() -> None:
    """Beside a plain one: the second moments are those of the gradients of what the chunk cost."""
    found, dist, context = predicted()
    assert len(context.event.windows) == 2
    # Row 1 goes on, which has six positions and stands in slot 1.
    targets_BC = dist.rectangle(np.arange(3, 12))
    leaves = [value.clone().requires_grad_() for value in found.values_of([1])]
    ids_BT = torch.from_numpy(context.inputs(context.event.windows[0])[None])
    states = found.adapters.states(leaves, ids_BT, found.rope(10))[:, 4:]
    logits = found.model.logits(states, found.adapters.added("head", 0, states))
    torch.nn.functional.cross_entropy(logits[0], targets_BC[1]).backward()
    squares = [leaf.grad.square() for leaf in leaves if leaf.grad is not None]
    found.learn(dist, targets_BC, [0])
    for square, moment in zip(squares, found.adam.squares, strict=True):
        torch.testing.assert_close(moment[:, 1], 0.001 * square[:, 0], rtol=2e-2, atol=1e-9)


# ---------------------------------------------------------------------------------------------
# Lanes


def drawn(seed: int) -> list[torch.Tensor]:
    adapters = Documents(alive(), CONFIG, T, 1, False).adapters
    return adapters.drawn(torch.Generator().manual_seed(seed))


def test_lanes_draw_by_their_number() -> None:
    lanes = Lanes(alive(), CONFIG, T, 5)
    for batch, seed in ((0, 5_000_015), (1, 5_000_016), (3, 5_000_016)):
        found = lanes.start(batch, 4)
        for value, wanted in zip(found.adam.values[::2], drawn(seed), strict=True):
            assert torch.equal(value, wanted.expand_as(value)), batch
        assert found.rows == [0, 1, 2, 3]


def test_a_lane_that_begins_late_draws_by_its_number() -> None:
    found = Lanes(alive(), CONFIG, T, 5).start(3, 4)
    assert torch.equal(found.adam.values[0][:, :1], drawn(5_000_016)[0])


@pytest.mark.parametrize("fused", [False, True])
def test_lanes_are_fast_where_the_model_is(fused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    monkeypatch.setattr(lora, "Documents", lambda *arguments: given.append(arguments))
    model = alive()
    model.operations = cast(Operations, SimpleNamespace(fused=fused))
    Lanes(model, CONFIG, T, 0, True)
    assert given == [(model, CONFIG, T, 4, fused, True)]


def test_matrices_wait_where_eight_times_their_memory_is_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Tensors without memory cannot go to the host, which tells the two places apart."""
    lanes = Lanes(alive(), CONFIG, T, 0)
    inner = [torch.empty(2, 1, 3, 5, device="meta"), torch.empty(1, 1, 3, 7, device="meta")]
    # Four rows of 30 and of 21 numbers of four bytes.
    for free, stays in ((8 * 816, True), (8 * 816 - 1, False), (0, False), (1 << 40, True)):
        monkeypatch.setattr(lora, "free_bytes", lambda device, free=free: free)
        if stays:
            made = lanes._for_all_rows(inner)
            assert [tuple(m.shape) for m in made] == [(2, 4, 3, 5), (1, 4, 3, 7)]
        else:
            with pytest.raises(NotImplementedError, match="meta"):
                lanes._for_all_rows(inner)


def test_what_a_lane_has_learned_it_keeps() -> None:
    lanes = Lanes(alive(), CONFIG, T, 0)
    found = lanes.start(0, 3)
    for value in found.adam.values[::2]:
        value.fill_(2.0)
    found.save()
    other = lanes.start(1, 4).adam.values[0].clone()
    again = lanes.start(2, 4).adam.values[0]
    assert not torch.equal(other, again)
    assert float(again[:, :3].unique()) == 2.0
    # Row 3 was not in use, and has what it began with.
    assert torch.equal(again[:, 3], drawn(0)[0][:, 0])


# ---------------------------------------------------------------------------------------------
# The evaluation


STARTS = [0, 20, 21, 50]


def text(tokens: int = 70) -> Text:
    generator = np.random.default_rng(0)
    ids = generator.integers(2, V, 8)[generator.integers(0, 8, tokens)]
    ids[STARTS] = 1
    target_bytes = generator.integers(1, 7, tokens - 1)
    return Text(ids, target_bytes, int(target_bytes.sum()), V)


class Hearing(Witness):
    def __init__(self) -> None:
        self.events: list[Event] = []
        self.lessons: list[tuple[int, int]] = []

    def read(self, event: Event) -> None:
        self.events.append(event)

    def learned(self, first: int, end: int) -> None:
        self.lessons.append((first, end))


def test_documents_learn_from_what_they_go_on_from(monkeypatch: pytest.MonkeyPatch) -> None:
    books: list[Ledger] = []
    finish = Ledger.finish
    monkeypatch.setattr(Ledger, "finish", lambda self, *a: books.append(self) or finish(self, *a))
    counted: list[Any] = []

    @contextmanager
    def counting(description: str, total: int) -> Any:
        counted.append((description, total))
        yield counted.append

    monkeypatch.setattr(lora, "progress", counting)
    witness, helped = Hearing(), []
    config = replace(CONFIG, lora_documents=2)
    found = evaluate_lora(
        alive(),
        Evaluation(
            text(),
            SCORE,
            config,
            seed=3,
            description="x",
            witness=witness,
            helped=lambda predictor: helped.append(1) or predictor,
        ),
    )
    plan = batches(documents(text().ids, 69), config, T)
    steps = [step for batch in plan for step in batch.steps]
    assert witness.events == [step.event for step in steps] and len(helped) == len(steps)
    (book,) = books
    assert (book.seed, book.check_positions, book.row_tolerance_nats) == (3, 9, 0.02)
    assert book.side_by_side and counted[0] == ("x", 69) and sum(counted[1:]) == 69
    assert (found.tokens, found.events, found.checked_positions) == (69, len(steps), 9)
    assert found.worst_row_error_nats < 1e-4


def test_a_lesson_is_the_chunk_of_every_row_and_no_more() -> None:
    witness = Hearing()
    evaluate_lora(
        alive(), Evaluation(text(), SCORE, replace(CONFIG, lora_documents=2), witness=witness)
    )
    expected = [(0, 8), (20, 21), (8, 16)]
    expected += [(21, 29), (50, 58), (29, 37), (58, 66), (37, 45), (66, 69)]
    assert witness.lessons == expected


def test_longest_first_is_another_order_of_the_same_text(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Text] = []
    made = Ledger.__post_init__
    monkeypatch.setattr(Ledger, "__post_init__", lambda self: kept.append(self.text) or made(self))
    for sort in (False, True):
        config = replace(CONFIG, lora_sort=sort)
        evaluate_lora(alive(), Evaluation(text(), SCORE, config))
    assert kept[0].ids.tolist() == text().ids.tolist()
    assert [len(d) for d in documents(kept[1].ids, 69)] == [29, 20, 1, 19]


@pytest.mark.parametrize(
    ("count", "phases", "bounds"),
    [
        (3, 0, [0, 3]),
        (3, 1, [0, 1, 3]),
        (8, 3, [0, 2, 4, 6, 8]),
        (16, 3, [0, 4, 8, 12, 16]),
        (2, 5, [0, 1, 2]),
        (1, 4, [0, 1]),
    ],
)
def test_phases_divide_the_batches_evenly(count: int, phases: int, bounds: list[int]) -> None:
    assert phase_bounds(count, phases) == bounds


def test_a_phase_learns_all_that_is_scored_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the second of two batches: positions 0 to 20, in chunks of 16, at falling rates."""
    learned: list[Any] = []

    def learn(self: Sgd, lesson: Lesson, lr: float, epochs: int) -> None:
        assert (self.seq_len, self.ranks, self.config) == (T, ALONE, config)
        learned.append((lesson.targets.tolist(), lr, epochs))

    monkeypatch.setattr(Sgd, "learn", learn)
    config = replace(CONFIG, lora_documents=2, lora_phases=1, chunk_tokens=16, lr=0.001)
    evaluate_lora(alive(), Evaluation(text(), SCORE, config))
    ids = text().ids
    assert learned == [
        (ids[1:17].tolist(), 0.001, 1), (ids[17:22].tolist(), pytest.approx(0.0, abs=1e-18), 1)
    ]  # fmt: skip


def test_what_fills_no_window_is_left_out_if_truncated() -> None:
    score = replace(SCORE, truncate=True)
    found = evaluate_lora(alive(), Evaluation(text(), score, CONFIG))
    assert found.tokens == 64 and math.isfinite(found.nats)
