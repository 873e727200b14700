"""The ledger with documents side by side, and what it asks of lessons and witnesses."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from accounts import IDS, TEXT, Counted, Counter, V, all_events, fixed, ledger, uniform

from fairway.base.arrays import FloatArray, IntArray
from fairway.score.ledger import Ledger, LedgerError, Part, Span, Witness, score_events
from fairway.score.predictor import Context, Receipt, alone
from fairway.score.windows import Event, Window, events, sliding_windows


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
    assert lesson.inputs.dtype == lesson.targets.dtype == np.int64
    assert len(book.lesson(0, 5).targets) == 5


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
    others = np.zeros(6)
    others[5] = times
    if not right:
        with pytest.raises(LedgerError, match="position 5 is not scored yet"):
            book.lesson(0, 6, lambda own: own + others)
        return
    assert len(book.lesson(0, 6, lambda own: own + others).targets) == 6
    others[2] = 1
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
