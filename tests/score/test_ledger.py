import math
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from accounts import BYTES, IDS, TEXT, Counter, V, all_events, fixed, ledger, uniform

from fairway.base.arrays import FloatArray, IntArray
from fairway.score.ledger import Ledger, LedgerError, Part, Span, Text, Witness, score_events
from fairway.score.windows import Event, Window


def test_score_equals_a_plain_account() -> None:
    counts, nats = [1.0] * V, []
    for event in all_events():
        seen = list(counts)
        for position in range(event.first, event.end):
            target = int(IDS[position + 1])
            nats.append(-math.log(seen[target] / sum(seen)))
            counts[target] += 1
    score = score_events(ledger(), Counter(), all_events(), "test")
    assert score.nats == pytest.approx(math.fsum(nats), abs=1e-12)
    assert score.bpb == pytest.approx(math.fsum(nats) / math.log(2) / BYTES.sum(), abs=1e-12)
    assert score.nats_per_token == pytest.approx(math.fsum(nats) / 12, abs=1e-12)
    assert (score.tokens, score.bytes, score.windows, score.events) == (12, BYTES.sum(), 4, 2)
    assert score.checked_positions == 12
    assert score.worst_sum_error < 1e-15 and score.worst_row_error_nats == 0.0


def test_truncated_denominator_is_the_bytes_of_the_scored_targets() -> None:
    score = score_events(ledger(num_targets=8), Counter(), all_events(8), "test")
    assert score.tokens == 8 and score.bytes == BYTES[:8].sum()


def test_context_stops_before_the_last_target() -> None:
    predictor = Counter()
    score_events(ledger(), predictor, all_events(), "test")
    for context in predictor.contexts:
        event = context.event
        for window in event.windows:
            assert context.ids[window].base is None, "a view would lead to the rest of the text"
            assert context.inputs(window).tolist() == IDS[window.start : window.end].tolist()


def test_context_of_a_later_event_is_refused() -> None:
    with pytest.raises(LedgerError, match="event 1 came too early; the next one is 0"):
        ledger().context(all_events()[1])


def test_rows_are_asked_before_the_targets_are_shown() -> None:
    book, predictor, event = ledger(), Counter(), all_events()[0]
    dist = predictor.predict(book.context(event))
    book.commit(event, dist)
    assert dist.asked == ["row"] * (event.end - event.first) + ["log_prob"]


def test_receipt_is_read_only() -> None:
    receipt = ledger().commit(all_events()[0], fixed())
    assert receipt.targets.tolist() == IDS[1:9].tolist()
    with pytest.raises(ValueError, match="read-only"):
        receipt.nats[0] = 0.0
    with pytest.raises(ValueError, match="read-only"):
        receipt.targets[0] = 0


def test_checked_positions_are_seeded_and_distinct() -> None:
    draws = [ledger(check_positions=5, seed=seed)._checked.tolist() for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]
    assert len(set(draws[0])) == 5 and draws[0] == sorted(draws[0])


def test_no_checks_when_none_are_asked() -> None:
    score = score_events(ledger(check_positions=0), Counter(), all_events(), "test")
    assert score.checked_positions == 0


@pytest.mark.parametrize(
    ("windows", "message"),
    [
        ((Window(0, 6, 1),), "event 0 skips to position 1; the next one is 0"),
        ((Window(0, 6, 0), Window(2, 8, 5)), "event 0 scores again position 5; the next one is 6"),
        ((Window(0, 6, 0), Window(2, 9, 7)), "event 0 skips to position 7"),
        ((Window(0, 13, 0),), "does not fit 12 positions"),
        ((Window(0, 0, 0),), "does not fit 12 positions"),
        ((Window(1, 6, 0),), "does not fit 12 positions"),
        ((), "event 0 has no windows"),
    ],
)
def test_windows_out_of_line_are_refused(windows: tuple[Window, ...], message: str) -> None:
    with pytest.raises(LedgerError, match=message):
        ledger().commit(Event(0, windows), fixed())


def test_a_rewrite_is_refused() -> None:
    book, event = ledger(), all_events()[0]
    book.commit(event, fixed())
    with pytest.raises(LedgerError, match="event 0 was committed already; the next one is 1"):
        book.commit(event, fixed())
    with pytest.raises(LedgerError, match="scores again position 0"):
        book.commit(replace(event, index=1), fixed())


@pytest.mark.parametrize(
    ("value", "shown"), [(math.nan, "nan"), (-math.inf, "-inf"), (1e-9, "1e-09"), (math.inf, "inf")]
)
def test_costs_must_be_finite_and_not_negative(value: float, shown: str) -> None:
    def log_prob(count: int) -> FloatArray:
        costs = np.full(count, -1.0)
        costs[3] = value
        return costs

    with pytest.raises(LedgerError, match=f"position 3 has log-probability {shown}"):
        ledger(check_positions=0).commit(all_events()[0], fixed(log_prob=log_prob))


def test_costs_must_be_float64_and_complete() -> None:
    event = all_events()[0]
    with pytest.raises(LedgerError, match=r"float32\[8\].*must be float64\[8\]"):
        ledger().commit(event, fixed(log_prob=lambda n: np.full(n, -1.0, np.float32)))
    with pytest.raises(LedgerError, match=r"float128\[8\]"):
        ledger().commit(event, fixed(log_prob=lambda n: np.full(n, -1.0, np.longdouble)))
    for shape in ((7,), (9,), (8, 1), (1, 8)):
        with pytest.raises(LedgerError, match=re.escape(f"float64{list(shape)}")):
            ledger().commit(event, fixed(log_prob=lambda n, shape=shape: np.full(shape, -1.0)))


def test_a_sum_that_is_not_one_is_refused() -> None:
    row = np.full(V, -math.log(V) + 1e-6)
    with pytest.raises(
        LedgerError, match="position 0 sum to 1 with an error of 1e-06; at most 1e-09"
    ):
        ledger().commit(all_events()[0], fixed(row=lambda: row))


def test_a_row_of_nan_or_of_another_vocabulary_is_refused() -> None:
    with pytest.raises(LedgerError, match="sum to 1 with an error of nan"):
        ledger().commit(all_events()[0], fixed(row=lambda: np.full(V, math.nan)))
    with pytest.raises(LedgerError, match=r"must be float64\[7\]"):
        ledger().commit(all_events()[0], fixed(row=lambda: np.full(V + 1, -math.log(V + 1))))


def test_a_cost_that_is_not_the_rows_is_refused() -> None:
    cheap = fixed(log_prob=lambda n: np.full(n, -math.log(V) + 0.01))
    with pytest.raises(LedgerError, match=r"position 0 was committed at 1\.93591015 nats"):
        ledger().commit(all_events()[0], cheap)
    ledger(row_tolerance_nats=0.011).commit(all_events()[0], cheap)


def test_a_row_that_calls_the_target_impossible_is_refused() -> None:
    row = np.full(V, -math.log(V - 1))
    row[IDS[1]] = -math.inf
    with pytest.raises(LedgerError, match="its row says inf"):
        ledger().commit(all_events()[0], fixed(row=lambda: row))


def test_finish_needs_every_position_and_closes() -> None:
    book = ledger()
    first, second = all_events()
    book.commit(first, fixed())
    with pytest.raises(LedgerError, match="only 8 of 12 positions"):
        book.finish()
    book.commit(second, fixed())
    book.finish()
    with pytest.raises(LedgerError, match="closed already"):
        book.finish()
    with pytest.raises(LedgerError, match="after the account was closed"):
        book.commit(Event(2, (Window(0, 1, 0),)), fixed())


def parts() -> list[Part]:
    """Return the parts of two ledgers with an event each."""
    books = []
    for event in all_events():
        book = ledger(spans=[Span(event.index, range(event.first, event.end))])
        book.commit(event, fixed())
        books.append(book)
    return [book._closed[0] for book in books]


def test_ledgers_that_share_a_text_give_one_score() -> None:
    whole = ledger()
    for event in all_events():
        whole.commit(event, fixed())
    book = ledger(spans=[Span(1, range(8, 12))])
    book.commit(all_events()[1], fixed())
    first, second = parts()
    assert (first.checked_positions, second.checked_positions) == (8, 4)
    assert book.finish(lambda own: [first, *own]) == whole.finish()


def test_a_share_is_no_more_and_no_less() -> None:
    first, second = all_events()
    with pytest.raises(LedgerError, match="event 0 was committed already; the next one is 1"):
        ledger(spans=[Span(1, range(8, 12))]).context(first)
    with pytest.raises(LedgerError, match="scores again position 8; the next one is 9"):
        ledger(spans=[Span(1, range(9, 12))]).context(second)
    with pytest.raises(LedgerError, match="does not fit 7 positions"):
        ledger(spans=[Span(0, range(7))]).context(first)
    with pytest.raises(LedgerError, match="only 0 of 4 positions"):
        ledger(spans=[Span(1, range(8, 12))]).finish()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a, b: [a], "the parts account for 8 of 12 positions"),
        (lambda a, b: [b], "event 1 at position 8 does not follow event 0 at position 0"),
        (lambda a, b: [b, a], "event 1 at position 8 does not follow event 0 at position 0"),
        (lambda a, b: [a, a, b], "event 0 at position 0 does not follow event 1 at position 8"),
        (lambda a, b: [a, replace(b, first=9)], "event 1 at position 9 does not follow event 1"),
        (lambda a, b: [a, replace(b, first_event=2)], "event 2 at position 8 does not follow"),
        (lambda a, b: [a, replace(b, end=11)], "the parts account for 11 of 12 positions"),
        (lambda a, b: [a, replace(b, end=13)], "the parts account for 13 of 12 positions"),
        (lambda a, b: [a, replace(b, checked_positions=3)], "11 of 12 drawn positions were"),
        (lambda a, b: [a, replace(b, checked_positions=5)], "13 of 12 drawn positions were"),
    ],
)
def test_parts_that_do_not_add_up_are_refused(
    change: Callable[[Part, Part], list[Part]], message: str
) -> None:
    book = ledger(spans=[Span(0, range(8))])
    book.commit(all_events()[0], fixed())
    first, second = parts()
    with pytest.raises(LedgerError, match=message):
        book.finish(lambda own: change(first, second))


@pytest.mark.parametrize(
    ("text", "targets", "message"),
    [
        (replace(TEXT, text_bytes=19), 12, "the tokens' bytes sum to 18, but the text has 19"),
        (replace(TEXT, text_bytes=17), 8, "the tokens' bytes sum to 18, but the text has 17"),
        (replace(TEXT, target_bytes=BYTES[:-1]), 12, "11 byte counts for 12 targets"),
        (replace(TEXT, vocab_size=6), 12, "from 0 to 6, outside the vocabulary of 6"),
        (replace(TEXT, target_bytes=BYTES - 1), 12, "negative number of bytes"),
        (TEXT, 13, "13 targets were asked of a text that has 12"),
        (TEXT, 0, "0 targets were asked"),
    ],
)
def test_a_text_that_does_not_add_up_is_refused(text: Text, targets: int, message: str) -> None:
    with pytest.raises(LedgerError, match=message):
        Ledger(text, targets)


def test_nats_are_added_without_rounding() -> None:
    # In float32, or in float64 one by one, the small costs vanish beside the large one.
    costs = np.full(12, 1e-16)
    costs[0] = 1.0
    book = ledger(check_positions=0)
    for event in all_events():
        part = -costs[event.first : event.end]
        book.commit(event, fixed(log_prob=lambda n, part=part: part))
    assert book.finish().nats == math.fsum(costs) > 1.0


# ---------------------------------------------------------------------------------------------
# Both sides of every check, and where each bound lies


@pytest.mark.parametrize("error", [9e-10, -9e-10])
def test_a_sum_within_its_bound_is_kept_and_told(error: float) -> None:
    book = ledger()
    for event in all_events():
        book.commit(event, fixed(row=lambda: uniform(1 + error)))
    assert book.finish().worst_sum_error == pytest.approx(9e-10, rel=1e-5)


@pytest.mark.parametrize("error", [1.1e-9, -1.1e-9, 0.5, -0.5])
def test_a_sum_outside_its_bound_is_refused(error: float) -> None:
    with pytest.raises(
        LedgerError, match="the probabilities at position 0 sum to 1 with an error of"
    ):
        ledger().commit(all_events()[0], fixed(row=lambda: uniform(1 + error)))


@pytest.mark.parametrize("apart", [9.9e-4, -9.9e-4])
def test_a_cost_within_its_rows_bound_is_kept_and_told(apart: float) -> None:
    book = ledger()
    for event in all_events():
        book.commit(event, fixed(log_prob=lambda n: np.full(n, -math.log(V) + apart)))
    assert book.finish().worst_row_error_nats == pytest.approx(9.9e-4, rel=1e-9)


@pytest.mark.parametrize("apart", [1.01e-3, -1.01e-3, -5.0])
def test_a_cost_outside_its_rows_bound_is_refused(apart: float) -> None:
    given = fixed(log_prob=lambda n: np.full(n, -math.log(V) + apart))
    with pytest.raises(LedgerError, match="they may differ by 0.001"):
        ledger().commit(all_events()[0], given)


def test_costs_that_are_the_rows_need_no_tolerance() -> None:
    ledger(row_tolerance_nats=0.0).commit(all_events()[0], fixed())


def test_the_worst_figures_are_those_of_the_worst_position() -> None:
    """The largest of several, and neither the first nor the last of them."""
    sums, costs = [1e-10, 7e-10, 3e-10], [2e-4, 5e-4, 1e-4]

    class Spoiled:
        def log_prob(self, targets: IntArray) -> FloatArray:
            return np.full(3, -math.log(V)) - costs

        def row(self, position: int) -> FloatArray:
            return uniform(1 + sums[position % 3])

    windows = [Window(n, n + 3, n) for n in range(0, 12, 3)]
    own = []
    for number, window in enumerate(windows):
        book = ledger(spans=[Span(number, range(window.score_from, window.end))])
        book.commit(Event(number, (window,)), Spoiled() if number == 1 else fixed())
        own += book._closed
    assert [part.worst_sum_error > 1e-12 for part in own] == [False, True, False, False]
    book = ledger(spans=[Span(0, range(3))])
    book.commit(Event(0, windows[:1]), fixed())
    found = book.finish(lambda _: own)
    assert found.worst_sum_error == pytest.approx(7e-10, rel=1e-5)
    assert found.worst_row_error_nats == pytest.approx(5e-4, rel=1e-5)
    assert (found.windows, found.events, found.checked_positions) == (4, 4, 12)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int64, np.longdouble])
def test_a_row_of_another_type_is_refused(dtype: Any) -> None:
    with pytest.raises(LedgerError, match=rf"the row at position 0 is {np.dtype(dtype)}\[7\]"):
        ledger().commit(all_events()[0], fixed(row=lambda: uniform().astype(dtype)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (replace(TEXT, ids=np.where(IDS == 0, -1, IDS.astype(int))), "from -1 to 6, outside"),
        (replace(TEXT, ids=np.where(IDS == 6, 7, IDS)), "from 0 to 7, outside"),
        (replace(TEXT, target_bytes=np.append(BYTES, 0)), "13 byte counts for 12 targets"),
        (replace(TEXT, ids=IDS[:-1], target_bytes=BYTES[:-1]), "12 targets were asked of .* 11"),
    ],
)
def test_a_text_outside_its_vocabulary_or_its_bytes_is_refused(text: Text, message: str) -> None:
    with pytest.raises(LedgerError, match=message):
        Ledger(text, 12)


def test_bytes_and_counts_of_a_narrow_type_do_not_overflow() -> None:
    bytes_ = np.full(12, 100, np.int8)
    book = Ledger(Text(IDS, bytes_, 1200, V), 12)
    book.commit(Event(0, (Window(0, 12, 0),)), fixed())
    assert book.finish().bytes == 1200


def test_one_target_and_one_position_are_enough() -> None:
    book = Ledger(Text(IDS[:2], BYTES[:1], 2, V), 1, check_positions=5)
    book.commit(Event(0, (Window(0, 1, 0),)), fixed())
    score = book.finish()
    assert (score.tokens, score.checked_positions, score.bytes) == (1, 1, 2)


def test_nothing_is_checked_unless_asked() -> None:
    book = Ledger(TEXT, 12)
    book.commit(Event(0, (Window(0, 12, 0),)), fixed(row=lambda: uniform(2.0)))
    assert book.finish().checked_positions == 0
    assert book.remaining == 0 and ledger().remaining == 12


def test_checked_positions_are_those_of_the_seed_zero_unless_told() -> None:
    first, second = ledger(check_positions=5), ledger(check_positions=5, seed=0)
    assert first._checked.tolist() == second._checked.tolist()
    assert {*ledger(check_positions=12)._checked.tolist()} == {*range(12)}


def test_inputs_of_a_window_end_where_asked() -> None:
    context = ledger().context(all_events()[0])
    window = Window(2, 8, 6)
    assert context.inputs(window).tolist() == IDS[2:8].tolist()
    assert context.inputs(window, 5).tolist() == IDS[2:5].tolist()
    assert context.inputs(window).dtype == np.int64, "a model's embedding takes no uint16"
    assert ledger().commit(all_events()[0], fixed()).targets.dtype == np.int64


def test_events_and_costs_are_refused_by_their_place() -> None:
    event = Event(0, (Window(0, 2, 0), Window(2, 4, 2)))
    with pytest.raises(LedgerError, match="position 3 has log-probability nan"):
        ledger().commit(event, fixed(log_prob=lambda n: np.array([-1, -1, -1, np.nan])))
    free = ledger(check_positions=0).commit(event, fixed(log_prob=np.zeros))
    assert free.nats.tolist() == [0.0] * 4, "what is certain costs nothing"


def test_a_witness_gets_the_text_of_the_account() -> None:
    class Opened(Witness):
        text: Text | None = None

        def opened(self, text: Text) -> None:
            self.text = text

    witness = Opened()
    Ledger(TEXT, len(IDS) - 1, witness=witness)
    assert witness.text is TEXT
