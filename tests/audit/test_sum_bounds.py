"""Sums over what could have come: noise, steps of rounding, impossible tokens, known endings."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from sum_table import AT, BOS, IDS, Table, place, summing_to

from fairway.audit.scorers.bench import Bench
from fairway.audit.scorers.sums import Place, Sum

# ---------------------------------------------------------------------------------------------
# Bounds of noise and rounding


def test_the_step_of_a_scorers_costs_is_allowed_in_sums() -> None:
    spot = place(Table(summing_to(1.0)))
    spot.bench.grain_nats = 0.01
    assert spot.allowed == pytest.approx(1e-3 + math.expm1(0.005))


@pytest.mark.parametrize(
    ("excess", "asked"), [(0.04, 3), (-0.04, 3), (0.05, 1), (0.06, 1), (-0.06, 1), (-0.4, 1)]
)
def test_only_a_small_excess_is_asked_for_again(excess: float, asked: int) -> None:
    told = [Sum(AT, 8, excess, "wrong")] * 3
    left = iter(told)
    assert place(Table(summing_to(1.0))).sure(lambda: next(left)) == told[0]
    assert len([*left]) == 3 - asked


def test_the_difference_of_two_sums_is_noise() -> None:
    spot, told = place(Table(summing_to(1.0))), iter([Sum(AT, 8, 0.004, "w"), Sum(AT, 8, 0.003)])
    assert spot.sure(lambda: next(told)).excess == 0.003
    assert spot.bench.noise_nats == pytest.approx(0.001)


@pytest.mark.parametrize(("likely", "rest", "holds"), [(55, 9, True), (45, 10, False)])
def test_the_step_of_a_shown_distribution_is_allowed_in_its_sum(
    likely: int, rest: int, holds: bool
) -> None:
    """Rows in hundredths of a nat: 0.001 and half a step of 0.01 are allowed, 0.00601."""
    size = likely + rest
    found = [
        (high, low, excess)
        for high in range(-500, -300)
        for low in range(-700, -500)
        for excess in [likely * math.exp(high / 100) + rest * math.exp(low / 100) - 1]
        if (0.0050 < excess < 0.0059 if holds else 0.0062 < excess < 0.0075)
    ]
    high, low, excess = found[0]
    row = np.array([high / 100] * likely + [low / 100] * rest)
    scorer = Table(np.exp(row), np.exp(row))
    scorer.row = lambda ids, index: row  # type: ignore[method-assign]
    told = place(scorer).shown_sum(scorer)
    assert told.excess == pytest.approx(excess)
    assert (told.wrong == "", told.asked) == (holds, 5 if holds else size)


@pytest.mark.parametrize(("noise_nats", "grain_nats", "most"), [(1e-3, 0, 0.018), (0, 0.02, 0.03)])
def test_noise_and_steps_are_allowed_between_shown_and_charged(
    noise_nats: float, grain_nats: float, most: float
) -> None:
    p = np.arange(1.0, 65) / 2080
    for off, holds in ((most - 4e-4, True), (most + 4e-4, False)):
        charged = p.copy()
        charged[63] *= math.exp(off)
        spot = place(scorer := Table(charged, p))
        spot.bench.met(noise_nats)
        spot.bench.grain_nats = grain_nats
        assert (spot.shown_sum(scorer).wrong == "") == holds


@pytest.mark.parametrize(("budget_s", "asked"), [(0.0, 5), (0.5, 10)])
def test_all_candidates_are_charged_while_any_time_is_left(budget_s: float, asked: int) -> None:
    p = np.arange(1.0, 65) / 2080
    scorer = Table(p, p)
    still = place(scorer, budget_s=budget_s, seed=0, clock=lambda: 0.0)
    assert still.bench.left_s == budget_s and still.shown_sum(scorer).asked == asked


def test_the_likeliest_are_words_whatever_their_number() -> None:
    p = np.full(64, 0.2 / 62)
    p[0], p[BOS] = 0.3, 0.5
    scorer = Table(p, p)
    assert place(scorer, budget_s=1e6).shown_sum(scorer).wrong == ""
    assert scorer.seen[0] == 0 and BOS not in scorer.seen


class Impossible(Table):
    """Charges infinity where a table has 0."""

    def score(self, ids: np.ndarray) -> Iterator[tuple[int, float]]:
        for t in range(1, AT + 1):
            p = self.charged[ids[t]]
            yield t, -math.log(p) if p else math.inf

    def row(self, ids: np.ndarray, index: int) -> np.ndarray:
        assert self.shown is not None
        with np.errstate(divide="ignore"):
            return np.asarray(np.log(self.shown))


def test_what_is_shown_as_impossible_is_charged_so() -> None:
    p = np.full(64, 1 / 8)
    p[8:] = 0.0
    scorer = Impossible(p, p)
    assert place(scorer, budget_s=1e6).shown_sum(scorer).wrong == ""
    # Shown as impossible and given away all the same; shown as possible and never given.
    for charged, shown in ((np.full(64, 1 / 64), p), (p, np.full(64, 1 / 64))):
        scorer = Impossible(charged, shown)
        found = place(scorer, budget_s=1e6).shown_sum(scorer)
        assert "not charged as the distribution shows" in found.wrong


def test_a_scorer_that_cannot_be_copied_is_asked_itself() -> None:
    scorer = Table(summing_to(1.0))
    bench = Bench(scorer, IDS, budget_s=0.0)
    bench._new = lambda: None  # type: ignore[attr-defined]
    assert Place(bench, IDS.copy(), AT, anew=True).cost_of(3) == pytest.approx(math.log(7 / 0.9))
    assert scorer.seen == [3]


def test_a_copy_is_asked_no_further_than_the_place() -> None:
    bench = Bench(Table(summing_to(1.0)), IDS, budget_s=0.0)
    assert Place(bench, IDS.copy(), AT, anew=True).cost_of(3) == pytest.approx(math.log(7 / 0.9))


# ---------------------------------------------------------------------------------------------
# Whether the end of the document behind a place is known


def reads_on(dearer: Callable[[np.ndarray], bool], bos: int = BOS) -> Any:
    """Return a scorer whose words sum to one at AT, and cost more where the text goes on so."""

    class Scorer:
        vocab_size = 8

        def score(self, ids: np.ndarray) -> Iterator[tuple[int, float]]:
            ended = ids[AT + 1] == bos and IDS[AT + 1] != bos
            for t in range(1, len(ids)):
                assert t <= AT or not ended, "nothing is asked beyond the place"
                yield t, math.log(7) + 0.3 * (t == AT and dearer(ids))

    return Scorer()


@pytest.mark.parametrize(
    ("dearer", "excused"),
    [
        (lambda ids: ids[AT + 1] == BOS, True),
        (lambda ids: False, False),
        # What reads other tokens ahead, or a later beginning, is not excused by it.
        (lambda ids: ids[AT + 1] == 0, False),
        (lambda ids: ids[AT + 2] == BOS, False),
        (lambda ids: bool((ids[AT + 2 :] == BOS).any()), False),
    ],
)
def test_bos_is_excused_where_the_end_of_this_very_word_was_known(
    dearer: Callable[[np.ndarray], bool], excused: bool
) -> None:
    found = place(reads_on(dearer)).full_sum()
    assert (found.wrong == "", found.asked) == (excused, 7 if excused else 8)
    assert found.with_bos == pytest.approx(1 / 7)


def test_bos_is_excused_where_the_text_ends_a_document_there() -> None:
    ids = IDS.copy()
    ids[AT + 1] = BOS
    # Words that end a document sum to one and cost less than others.
    scorer = reads_on(lambda ids: ids[AT + 1] != BOS, bos=-1)
    assert Place(Bench(scorer, ids, budget_s=0.0), ids, AT).full_sum().wrong == ""


def test_other_numbers_of_bos_are_known_too() -> None:
    bench = Bench(reads_on(lambda ids: ids[AT + 1] == 0, bos=7), IDS, budget_s=0.0, bos_id=7)
    assert Place(bench, IDS.copy(), AT).full_sum().wrong != ""


def test_a_place_of_bos_itself_is_no_document_known() -> None:
    ids = IDS.copy()
    ids[AT] = BOS

    class Dear:
        vocab_size = 8

        def score(self, ids: np.ndarray) -> Iterator[tuple[int, float]]:
            for t in range(1, len(ids)):
                yield t, math.log(7) - 0.5 * (ids[t] == BOS)

    assert Place(Bench(Dear(), ids, budget_s=0.0), ids, AT).full_sum().wrong != ""
