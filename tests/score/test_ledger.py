import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fairway.score.ledger import (
    Context,
    FloatArray,
    IntArray,
    Ledger,
    LedgerError,
    Part,
    Receipt,
    Span,
    Text,
    score_events,
)
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
    with pytest.raises(LedgerError, match=r"float64\[7\]"):
        ledger().commit(event, fixed(log_prob=lambda n: np.full(n - 1, -1.0)))


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
        (lambda a, b: [a, replace(b, checked_positions=3)], "11 of 12 drawn positions were"),
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
