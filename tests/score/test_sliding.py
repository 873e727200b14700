import math
import threading
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch

from fairway.base.errors import UserError
from fairway.config.settings import ScoreConfig
from fairway.data.tokens import ByteTable
from fairway.machine.ranks import Ranks
from fairway.model.gpt import GPT
from fairway.model.need import passing_bytes, way_of
from fairway.score import sliding
from fairway.score.evaluation import Evaluation
from fairway.score.ledger import Ledger, LedgerError, Text, Witness
from fairway.score.predictor import Context
from fairway.score.sliding import (
    FrozenDistribution,
    FrozenPredictor,
    evaluate_frozen,
    text_of,
)
from fairway.score.windows import Event, Window, events, sliding_windows

V, T = 260, 16
# rope_train_len is below the window: the rotary base then depends on the padded length.
TINY = replace(tiny.TINY, rope_train_len=8)
CONFIG = ScoreConfig(seq_len=T, stride=4, batch_windows=3, check_positions=20, truncate=False)


def alive(dtype: torch.dtype = torch.float32) -> GPT:
    model = tiny.alive(TINY)
    model.set_compute(dtype, "plain")
    return model


def text(tokens: int = 91) -> Text:
    ids = np.random.default_rng(0).integers(0, V, tokens).astype(np.uint16)
    target_bytes = np.random.default_rng(1).integers(0, 7, tokens - 1)
    return Text(ids, target_bytes, int(target_bytes.sum()), V)


def plain_nats(model: GPT, ids: np.ndarray, stride: int) -> list[float]:
    """One window at a time, all logits, float64 softmax; windows by the words of section 5.2."""
    targets, nats = len(ids) - 1, []
    for start in range(0, targets, stride):
        end = min(start + T, targets)
        padded = np.zeros(T, np.int64)
        padded[: end - start] = ids[start:end]
        with torch.no_grad():
            logits = model.logits(model.hidden(torch.tensor(padded)[None])[0]).double()
        for position in range(max(start, len(nats)), end):
            row = logits[position - start].log_softmax(0)
            nats.append(-float(row[int(ids[position + 1])]))
        if end == targets:
            return nats
    raise AssertionError


@pytest.mark.parametrize("slides", [True, False])
@pytest.mark.parametrize("tokens", [2, 9, 17, 18, 33, 91])
def test_equals_one_window_at_a_time(tokens: int, slides: bool) -> None:
    model, source = alive(), text(tokens)
    score = evaluate_frozen(model, Evaluation(source, CONFIG), sliding=slides)
    nats = plain_nats(model, source.ids, CONFIG.stride if slides else T)
    assert score.nats == pytest.approx(math.fsum(nats), rel=1e-6)
    assert score.tokens == tokens - 1 and score.bytes == source.text_bytes
    assert score.bpb == pytest.approx(math.fsum(nats) / math.log(2) / source.text_bytes, rel=1e-6)
    assert score.checked_positions == min(20, tokens - 1)
    assert score.worst_sum_error < 1e-12 and score.worst_row_error_nats < 1e-4


def test_truncation_scores_whole_windows_only() -> None:
    model, source = alive(), text(91)
    cut = evaluate_frozen(model, Evaluation(source, replace(CONFIG, truncate=True)), sliding=True)
    assert cut.tokens == 80 and cut.bytes == source.target_bytes[:80].sum()
    nats = plain_nats(model, source.ids[:81], CONFIG.stride)
    assert cut.nats == pytest.approx(math.fsum(nats), rel=1e-6)
    with pytest.raises(UserError, match="one window needs 17"):
        evaluate_frozen(model, Evaluation(text(16), replace(CONFIG, truncate=True)), sliding=True)


def test_sliding_and_standard_are_different_measurements() -> None:
    model, source = alive(), text(91)
    scores = [
        evaluate_frozen(model, Evaluation(source, CONFIG), sliding=slides).nats
        for slides in (True, False)
    ]
    assert scores[0] != scores[1]


def test_batches_do_not_change_the_score_and_events_do_not_leak() -> None:
    model, source = alive(), text(91)
    scores = [
        evaluate_frozen(
            model, Evaluation(source, replace(CONFIG, batch_windows=size)), sliding=True
        )
        for size in (1, 2, 32)
    ]
    for score in scores[1:]:
        assert score.nats == pytest.approx(scores[0].nats, rel=1e-6)
    assert [score.events for score in scores] == [20, 10, 1]


def test_a_later_token_changes_no_earlier_cost() -> None:
    model, source = alive(), text(60)
    other = source.ids.copy()
    other[40:] = (other[40:] + 1) % V
    costs = []
    for ids in (source.ids, other):
        ledger = Ledger(replace(source, ids=ids), 59)
        predictor, kept = FrozenPredictor(model, T), []
        for event in events(sliding_windows(59, T, 4), 2):
            kept.append(ledger.commit(event, predictor.predict(ledger.context(event))).nats)
        costs.append(np.concatenate(kept))
    assert np.array_equal(costs[0][:39], costs[1][:39])
    assert not np.array_equal(costs[0][39:], costs[1][39:])


@pytest.mark.parametrize(("most", "rows"), [(0, 1), (3 * T - 1, 1), (3 * T, 3)])
def test_row_is_a_path_of_its_own(most: int, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """It runs alone, or in a batch of the event's size whose other windows are empty."""
    monkeypatch.setattr(sliding, "_SAME_SIZE_TOKENS", {"cpu": most})
    model, source = alive(), text(40)
    event = Event(0, (Window(0, 16, 0), Window(4, 20, 16), Window(8, 23, 20)))
    dist = FrozenPredictor(model, T).predict(Ledger(source, 23).context(event))
    targets = source.ids[1:24].astype(np.int64)
    nats = dist.log_prob(targets)
    asked: list[list[np.ndarray]] = []
    hidden = FrozenPredictor.hidden
    monkeypatch.setattr(
        FrozenPredictor, "hidden", lambda self, ids: asked.append(ids) or hidden(self, ids)
    )
    for position in range(23):
        row = dist.row(position)
        window = event.windows.index(event.window_of(position))
        lengths = [0] * rows
        lengths[min(window, rows - 1)] = position + 1 - event.windows[window].start
        assert [len(ids) for ids in asked[-1]] == lengths
        assert row.dtype == np.float64 and row.shape == (V,)
        assert math.fsum(np.exp(row)) == pytest.approx(1.0, abs=1e-12)
        assert row[targets[position]] == pytest.approx(nats[position], abs=1e-5)


def test_a_model_that_sees_the_future_is_caught() -> None:
    class Peeking(GPT):
        def hidden(self, ids_BT: torch.Tensor) -> torch.Tensor:
            return super().hidden(ids_BT.roll(-1, dims=1))

    model = Peeking(TINY)
    model.load_state_dict(alive().state_dict())
    with pytest.raises(LedgerError, match="was committed at"):
        evaluate_frozen(model, Evaluation(text(), CONFIG), sliding=True)


@pytest.mark.parametrize(
    ("dtype", "bound_nats"), [(torch.float32, 0.02), (torch.bfloat16, 0.25)], ids=str
)
def test_the_tolerance_of_a_type_is_enough_and_not_too_much(
    dtype: torch.dtype, bound_nats: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, source = alive(dtype), text(30)
    config = replace(CONFIG, check_positions=29)
    score = evaluate_frozen(model, Evaluation(source, config), sliding=True)
    assert score.worst_row_error_nats < bound_nats / 10
    plain, moves = FrozenDistribution.row, iter((0.9, -0.9, 1.1, -1.1))

    def off(self: FrozenDistribution, position: int) -> np.ndarray:
        """Return the row with its entry of the target this much too high, all others less."""
        row, target = plain(self, position), int(source.ids[position + 1])
        rest = np.log1p(-np.exp(row[target] + apart)) - np.log1p(-np.exp(row[target]))
        moved = row + rest
        moved[target] = row[target] + apart
        return moved

    monkeypatch.setattr(FrozenDistribution, "row", off)
    for _ in range(2):
        apart = bound_nats * next(moves)
        evaluate_frozen(model, Evaluation(source, config), sliding=True)
    for _ in range(2):
        apart = bound_nats * next(moves)
        with pytest.raises(LedgerError, match=f"they may differ by {bound_nats}"):
            evaluate_frozen(model, Evaluation(source, config), sliding=True)


def test_a_prediction_is_refused_once_its_weights_have_changed() -> None:
    model = alive()
    event = Event(0, (Window(0, 16, 0),))
    dist = FrozenPredictor(model, T).predict(Ledger(text(), 90).context(event))
    asks: list[Callable[[], object]] = [
        lambda: dist.log_prob(np.arange(16)), lambda: dist.row(3), lambda: dist.tables(0, 2)
    ]  # fmt: skip
    for ask in asks:
        ask()
    with torch.no_grad():
        model.tok_emb.weight.mul_(1.0)
    for ask in asks:
        with pytest.raises(LedgerError, match="weights have changed since"):
            ask()


def test_tables_are_the_rows_of_some_positions() -> None:
    event = Event(0, (Window(0, 6, 2), Window(4, 16, 9)))
    inputs = {w: text().ids[w.start : w.end].astype(np.int64) for w in event.windows}
    dist = FrozenPredictor(alive(), T).predict(Context(event, inputs))
    tables = dist.tables(2, 7)
    assert tables.shape == (5, V) and tables.dtype == torch.float64
    for row, position in zip(tables, event.positions[2:7], strict=True):
        assert row.numpy() == pytest.approx(dist.row(int(position)), abs=1e-4)


def test_costs_are_never_negative_and_rows_never_overflow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    predictor = FrozenPredictor(alive(), T)
    dist = predictor.predict(Ledger(text(), 90).context(Event(0, (Window(0, 2, 0),))))
    monkeypatch.setattr(predictor, "log_prob", lambda *_: torch.tensor([1e-7, -1.5]))
    assert dist.log_prob(np.array([3, 4])).tolist() == [0.0, -1.5]
    row = sliding.whole_row(torch.tensor([1000.0, 0.0, -1000.0]))
    assert row.tolist() == [0.0, -1000.0, -2000.0]
    row = sliding.whole_row(torch.tensor([-1000.0, -1000.0]))
    assert row.tolist() == pytest.approx([-math.log(2)] * 2)


def test_a_frozen_model_may_be_asked_in_groups() -> None:
    assert FrozenPredictor.separable


def test_a_witness_hears_of_an_evaluation() -> None:
    heard: list[int] = []

    class Hearing(Witness):
        def read(self, event: Event) -> None:
            heard.append(event.index)

    score = evaluate_frozen(alive(), Evaluation(text(), CONFIG, witness=Hearing()), sliding=True)
    assert heard == list(range(score.events))


def test_logits_come_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    model, source, seen = alive(), text(91), []
    whole = evaluate_frozen(model, Evaluation(source, CONFIG), sliding=True)
    monkeypatch.setattr(sliding, "_ROWS_AT_ONCE", 7)
    plain = model.logits
    monkeypatch.setattr(model, "logits", lambda x: seen.append(x.shape) or plain(x))
    config = replace(CONFIG, check_positions=0)
    sliced = evaluate_frozen(model, Evaluation(source, config), sliding=True)
    assert sliced.nats == pytest.approx(whole.nats, rel=1e-7)
    assert max(len(shape) and shape[0] for shape in seen) == 7
    assert sum(shape[0] for shape in seen) == 90, "only scored positions reach the head"


def test_model_is_left_as_it_was() -> None:
    model = alive().train()
    model.set_looping(False)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    evaluate_frozen(model, Evaluation(text(), CONFIG), sliding=True)
    assert model.training and not model.looping
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    # A rotary table built under inference mode would break this.
    model(torch.zeros(1, T, dtype=torch.long), torch.zeros(1, T, dtype=torch.long)).backward()


def test_looping_state_is_the_callers() -> None:
    model, source = alive(), text()
    nats = []
    for on in (True, False):
        model.set_looping(on)
        nats.append(evaluate_frozen(model, Evaluation(source, CONFIG), sliding=True).nats)
    assert nats[0] != nats[1]


def test_repeats_bit_for_bit() -> None:
    scores = [
        evaluate_frozen(alive(), Evaluation(text(), CONFIG, seed=5), sliding=True) for _ in range(2)
    ]
    assert scores[0] == scores[1]


class Together(Ranks):
    """Ranks that are threads: the last to bring its numbers adds all."""

    def join(self, board: list[np.ndarray], gate: threading.Barrier) -> "Together":
        object.__setattr__(self, "meeting", (board, gate))
        return self

    def total(self, values: np.ndarray) -> np.ndarray:
        board, gate = self.meeting  # type: ignore[attr-defined]
        board.append(values)
        gate.wait(30)
        return np.sum(board, axis=0)


@pytest.mark.parametrize("world", [2, 3, 8])
def test_ranks_share_the_events_and_get_the_same_score(world: int) -> None:
    # Seven events: eight ranks leave one without any.
    asked = Evaluation(text(), CONFIG, seed=3)
    whole = evaluate_frozen(alive(), asked, sliding=True)
    assert whole.events == 7 and whole.checked_positions == 20
    board: list[np.ndarray] = []
    gate, scores = threading.Barrier(world), {}

    def work(rank: int) -> None:
        ranks = Together(rank, world).join(board, gate)
        scores[rank] = evaluate_frozen(alive(), replace(asked, ranks=ranks), sliding=True)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [scores[rank] for rank in range(world)] == [whole] * world
    # Nobody did another's work.
    numbers = np.array(board)[:, world * 8 :]
    assert np.count_nonzero(numbers) == np.count_nonzero(numbers.sum(0)) == 7


def test_a_model_gone_wrong_gives_no_score() -> None:
    model = alive()
    with torch.no_grad():
        model.tok_emb.weight[3, 0] = math.nan
    with pytest.raises(LedgerError, match="position"):
        evaluate_frozen(model, Evaluation(text(), CONFIG), sliding=True)


def test_text_of_counts_every_targets_bytes() -> None:
    base = np.array([0, 3, 1, 2], np.int16)
    leading = np.array([False, True, False, True])
    boundary = np.array([True, False, False, False])
    ids = np.array([0, 1, 3, 2, 0, 3], np.uint16)
    source = text_of(ids, ByteTable(base, leading, boundary), 3 + 3 + 1 + 0 + 2)
    assert source.target_bytes.tolist() == [3, 3, 1, 0, 2]
    assert source.vocab_size == 4
    Ledger(source, 5)


def test_as_many_windows_run_together_as_the_memory_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the states are those of all windows at once."""
    model = alive()
    asked: list[tuple[float, int]] = []

    def together(each_bytes: float, free_bytes: int) -> int:
        asked.append((each_bytes, free_bytes))
        return 2

    each_bytes = T * passing_bytes(model.config, way_of(model), model.looping, T)
    rows = [text().ids[first : first + T].astype(np.int64) for first in range(5)]
    whole = FrozenPredictor(model, T).hidden(rows)
    monkeypatch.setattr(sliding, "together", together)
    monkeypatch.setattr(sliding, "free_bytes", lambda device: 77)
    parts = FrozenPredictor(model, T).hidden(rows)
    assert asked == [(each_bytes, 77)]
    torch.testing.assert_close(parts, whole)
