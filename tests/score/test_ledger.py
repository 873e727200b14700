import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fairway.base.arrays import FloatArray, IntArray
from fairway.score.ledger import Ledger, LedgerError, Part, Span, Text, Witness, score_events
from fairway.score.predictor import Context, Receipt, alone
from fairway.score.windows import Event, Window, events, sliding_windows

V = 7
IDS = np.array([1, 3, 4, 0, 6, 2, 2, 5, 3, 1, 0, 4, 6], dtype=np.uint16)
BYTES = np.array([2, 1, 0, 3, 1, 1, 2, 2, 0, 4, 1, 1])
TEXT = Text(IDS, BYTES, int(BYTES.sum()), V)


class Counter:
    """Predicts by the counts of the tokens in its receipts: adaptive, and easy to redo by hand."""

    def __init__(self) -> None:
        self.counts = np.ones(V)
        self.contexts: list[Context] = []

    def predict(self, context: Context) -> "Counted":
        self.contexts.append(context)
        return Counted(np.log(self.counts / self.counts.sum()), context)

    def adapt(self, receipt: Receipt) -> None:
        np.add.at(self.counts, receipt.targets, 1)


class Counted:
    """One table for all positions of the event."""

    def __init__(self, table: FloatArray, context: Context) -> None:
        self.table, self.context = table, context
        self.asked: list[str] = []

    def log_prob(self, targets: IntArray) -> FloatArray:
        self.asked.append("log_prob")
        return self.table[targets]

    def row(self, position: int) -> FloatArray:
        self.asked.append("row")
        return self.table


def all_events(targets: int = 12) -> list[Event]:
    return list(events(sliding_windows(targets, 6, 2), 2))


def fixed(**changes: Any) -> Any:
    """A uniform distribution with some of its answers replaced."""

    class Fixed:
        def log_prob(self, targets: IntArray) -> NDArray[Any]:
            return changes.get("log_prob", lambda n: np.full(n, -math.log(V)))(len(targets))

        def row(self, position: int) -> NDArray[Any]:
            return changes.get("row", lambda: np.full(V, -math.log(V)))()

    return Fixed()


def ledger(**changes: Any) -> Ledger:
    return Ledger(**{"text": TEXT, "num_targets": 12, "check_positions": 12, **changes})


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
    with pytest.raises(LedgerError, match="position 0 miss 1 by 1e-06; at most 1e-09"):
        ledger().commit(all_events()[0], fixed(row=lambda: row))


def test_a_row_of_nan_or_of_another_vocabulary_is_refused() -> None:
    with pytest.raises(LedgerError, match="miss 1 by nan"):
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


def uniform(factor: float = 1.0) -> FloatArray:
    """Return a row whose probabilities sum to `factor`."""
    return np.full(V, math.log(factor / V))


@pytest.mark.parametrize("error", [9e-10, -9e-10])
def test_a_sum_within_its_bound_is_kept_and_told(error: float) -> None:
    book = ledger()
    for event in all_events():
        book.commit(event, fixed(row=lambda: uniform(1 + error)))
    assert book.finish().worst_sum_error == pytest.approx(9e-10, rel=1e-5)


@pytest.mark.parametrize("error", [1.1e-9, -1.1e-9, 0.5, -0.5])
def test_a_sum_outside_its_bound_is_refused(error: float) -> None:
    with pytest.raises(LedgerError, match="the probabilities at position 0 miss 1 by"):
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


# ---------------------------------------------------------------------------------------------
# Documents side by side


def side_by_side(**changes: Any) -> Ledger:
    return ledger(side_by_side=True, check_positions=0, **changes)


def test_side_by_side_any_order_covers_the_text() -> None:
    book = side_by_side()
    book.commit(Event(0, (Window(6, 8, 6), Window(0, 3, 0))), fixed())
    book.commit(Event(1, (Window(6, 12, 8), Window(1, 6, 3))), fixed())
    score = book.finish()
    assert (score.tokens, score.windows) == (12, 4)
    assert score.nats == pytest.approx(12 * math.log(V), rel=1e-12)


@pytest.mark.parametrize(
    ("windows", "message"),
    [
        ((Window(2, 5, 2),), "event 1 scores again position 2"),
        ((Window(6, 8, 6), Window(7, 9, 7)), "event 1 scores again position 7"),
        ((Window(5, 7, 5), Window(5, 7, 5)), "event 1 scores again position 5"),
        ((Window(2, 8, 7),), "event 1 scores position 7 with a context from 2 on, part of which"),
        ((Window(3, 8, 4),), "event 1 scores position 4 with a context from 3 on"),
        ((Window(0, 13, 3),), "does not fit 12 positions"),
    ],
)
def test_side_by_side_nothing_is_scored_twice_or_read_unscored(
    windows: tuple[Window, ...], message: str
) -> None:
    book = side_by_side()
    book.commit(Event(0, (Window(0, 3, 0),)), fixed())
    with pytest.raises(LedgerError, match=message):
        book.commit(Event(1, windows), fixed())


def test_side_by_side_a_context_may_not_reach_before_its_span() -> None:
    book = side_by_side(spans=[Span(0, range(2)), Span(1, range(2, 12))])
    book.commit(Event(0, (Window(0, 2, 0),)), fixed())
    with pytest.raises(LedgerError, match="with a context from 1 on"):
        book.context(Event(1, (Window(1, 4, 2),)))
    book.context(Event(1, (Window(2, 4, 2),)))


def test_scored_twice_is_no_coverage() -> None:
    """As many places as the text has, but one of them twice and another never."""
    book = side_by_side()
    book.commit(Event(0, (Window(0, 11, 0),)), fixed())
    with pytest.raises(LedgerError, match="scores again position 10"):
        book.commit(Event(1, (Window(10, 11, 10),)), fixed())
    assert book.remaining == 1


def test_spans_are_entered_in_turn_and_empty_ones_passed_over() -> None:
    spans = [Span(0, range(0)), Span(0, range(4)), Span(1, range(4, 4)), Span(1, range(4, 12))]
    book = ledger(spans=spans)
    assert book.remaining == 12
    book.commit(Event(0, (Window(0, 4, 0),)), fixed())
    assert book.remaining == 8
    book.commit(Event(1, (Window(4, 12, 4),)), fixed())
    assert [(p.first_event, p.first, p.end) for p in book._closed] == [
        (0, 0, 0), (0, 0, 4), (1, 4, 4), (1, 4, 12),
    ]  # fmt: skip
    score = book.finish()
    assert (score.events, score.windows, score.checked_positions) == (2, 2, 12)


# ---------------------------------------------------------------------------------------------
# Lessons and witnesses


def test_a_lesson_is_what_has_been_scored() -> None:
    book = ledger(check_positions=0)
    book.commit(Event(0, (Window(0, 5, 0),)), fixed(log_prob=lambda n: -np.arange(1.0, n + 1)))
    lesson = book.lesson(1, 4)
    assert lesson.inputs.tolist() == IDS[1:4].tolist()
    assert lesson.targets.tolist() == IDS[2:5].tolist()
    assert lesson.nats.tolist() == [2.0, 3.0, 4.0]
    assert lesson.inputs.dtype == lesson.targets.dtype == np.int64
    assert book.lesson(0, 5).nats.tolist() == [1.0, 2.0, 3.0, 4.0, 5.0]


@pytest.mark.parametrize(
    ("first", "end", "at"), [(0, 6, 5), (5, 6, 5), (4, 12, 5), (3, 3, 3), (4, 2, 2), (-1, 3, 3)]
)
def test_a_lesson_of_what_is_not_scored_is_refused(first: int, end: int, at: int) -> None:
    book = ledger(check_positions=0)
    book.commit(Event(0, (Window(0, 5, 0),)), fixed())
    with pytest.raises(LedgerError, match=f"position {at} is not scored yet"):
        book.lesson(first, end)


def test_a_lesson_beyond_the_scored_targets_is_refused() -> None:
    book = ledger(num_targets=8, check_positions=0)
    book.commit(all_events(8)[0], fixed())
    assert len(book.lesson(0, 8).targets) == 8
    with pytest.raises(LedgerError, match="position 9 is not scored yet"):
        book.lesson(4, 9)


@pytest.mark.parametrize(("times", "right"), [(0, False), (1, True), (2, False)])
def test_a_lesson_of_several_ledgers_has_every_position_once(times: int, right: bool) -> None:
    """`times`: how many other ledgers have position 5, which this one has not."""
    book = ledger(check_positions=0, spans=[Span(0, range(5))])
    book.commit(Event(0, (Window(0, 5, 0),)), fixed())
    others = np.zeros((2, 6))
    others[:, 5] = times, times * 0.5
    if not right:
        with pytest.raises(LedgerError, match="position 5 is not scored yet"):
            book.lesson(0, 6, lambda own: own + others)
        return
    assert book.lesson(0, 6, lambda own: own + others).nats[5] == 0.5
    others[:, 2] = 1, 0.5
    with pytest.raises(LedgerError, match="position 2 is not scored yet"):
        book.lesson(0, 6, lambda own: own + others)


class Hearing(Witness):
    """Notes all it hears."""

    wanted = (3, 7)

    def __init__(self) -> None:
        self.heard: list[tuple[Any, ...]] = []

    def read(self, event: Event) -> None:
        self.heard.append(("read", event.index))

    def row(self, position: int, row: FloatArray) -> None:
        self.heard.append(("row", position, len(row)))

    def scored(self, receipt: Receipt) -> None:
        self.heard.append(("scored", receipt.event.index, len(receipt.nats)))

    def learned(self, first: int, end: int) -> None:
        self.heard.append(("learned", first, end))


def test_a_witness_hears_all_in_order() -> None:
    witness = Hearing()
    book = ledger(witness=witness, check_positions=0)
    for event in events(sliding_windows(12, 6, 6), 1):
        book.context(event)
        book.commit(event, fixed())
    book.lesson(2, 9)
    assert witness.heard == [
        ("read", 0), ("row", 3, V), ("scored", 0, 6),
        ("read", 1), ("row", 7, V), ("scored", 1, 6),
        ("learned", 2, 9),
    ]  # fmt: skip
    assert book.finish().checked_positions == 2


class Steps:
    """A stepwise prediction that writes down what it is shown."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def advance(self, targets: IntArray) -> FloatArray:
        self.seen.append(targets.tolist())
        return -np.arange(1.0, len(targets) + 1) * 1e-4 - math.log(V)

    def row(self, position: int) -> FloatArray:
        self.seen.append(position)
        return uniform()


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ((), [[3, 4, 0, 6]]),
        ((0,), [0, [3, 4, 0, 6]]),
        ((1, 2), [[3], 1, [4], 2, [0, 6]]),
        ((3,), [[3, 4, 0], 3, [6]]),
    ],
)
def test_a_stepwise_prediction_is_shown_no_target_before_its_row(
    wanted: tuple[int, ...], expected: list[Any]
) -> None:
    witness = Hearing()
    witness.wanted = wanted
    book, steps = ledger(check_positions=0, witness=witness), Steps()
    receipt = book.commit(Event(0, (Window(0, 4, 0),)), steps)
    assert steps.seen == expected
    assert len(receipt.nats) == 4 and receipt.nats[0] == pytest.approx(1e-4 + math.log(V))
    assert receipt.targets.tolist() == [3, 4, 0, 6]


def test_a_stepwise_row_is_compared_with_its_own_cost() -> None:
    """Costs of 0, 1, 2, 3 ten-thousandths above the row: the one at position 2 counts."""
    witness = Hearing()
    witness.wanted = (2,)
    book = ledger(check_positions=0, witness=witness, num_targets=4, text=TEXT)

    class Rising(Steps):
        def advance(self, targets: IntArray) -> FloatArray:
            self.seen.append(targets.tolist())
            first = 0 if len(self.seen) == 1 else 2
            return -np.arange(first, first + len(targets)) * 1e-4 - math.log(V)

    book.commit(Event(0, (Window(0, 4, 0),)), Rising())
    assert book.finish().worst_row_error_nats == pytest.approx(2e-4, rel=1e-6)


def test_the_protocol_predicts_commits_adapts_and_closes(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    class Told(Counter):
        def predict(self, context: Context) -> Counted:
            order.append("predict")
            return super().predict(context)

        def adapt(self, receipt: Receipt) -> None:
            order.append(f"adapt {len(receipt.targets)}")
            super().adapt(receipt)

    told: list[int] = []

    @contextmanager
    def counting(description: str, total: int) -> Iterator[Callable[[int], None]]:
        told.append(total)
        yield told.append

    monkeypatch.setattr("fairway.score.ledger.progress", counting)
    gathered: list[int] = []

    def gather(own: list[Part]) -> list[Part]:
        gathered.append(len(own))
        return own

    score_events(ledger(), Told(), all_events(), "test", gather)
    assert order == ["predict", "adapt 8", "predict", "adapt 4"] and gathered == [1]
    assert told == [12, 8, 4]


def test_a_predictor_alone_is_itself() -> None:
    predictor = Counter()
    assert alone(predictor) is predictor
