"""Sums over what could have come, at one place: every bound, every figure, against plain ones."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from sum_table import AT, BOS, IDS, Table, place, summing_to

from fairway.audit.scorers.bench import Bench, grain
from fairway.audit.scorers.sums import Place, Sum

# ---------------------------------------------------------------------------------------------
# All candidates


@pytest.mark.parametrize("whole", [1.0, 1 + 9.9e-4, 1 - 9.9e-4])
def test_a_full_sum_within_its_bound(whole: float) -> None:
    scorer = Table(summing_to(whole))
    scorer.score = without_order(scorer)  # type: ignore[method-assign]
    found = place(scorer).full_sum()
    assert (found.index, found.asked, found.wrong, found.doubt) == (AT, 8, "", "")
    assert found.excess == pytest.approx(whole - 1, abs=1e-12)
    # All words, then whether BOS changes what came before, then BOS.
    assert scorer.seen[:7] == [0, 2, 3, 4, 5, 6, 7] and scorer.seen[-1] == BOS


@pytest.mark.parametrize(
    ("whole", "words"),
    [(1.00101, "sum to 1.001, more"), (1.5, "sum to 1.5, more"),
     (0.99899, "sum to 0.999, less than one"), (0.95, "sum to 0.95, less than one")],
)  # fmt: skip
def test_a_full_sum_outside_its_bound(whole: float, words: str) -> None:
    scorer = Table(summing_to(whole))
    scorer.ends_documents = True
    scorer.score = without_order(scorer)  # type: ignore[method-assign]
    found = place(scorer).full_sum()
    assert words in found.wrong and found.asked == 8
    assert found.excess == pytest.approx(whole - 1, abs=1e-12)


@pytest.mark.parametrize(("words", "asked"), [(1.00099, 8), (1.00101, 7), (1.3, 7)])
def test_words_that_sum_to_more_are_wrong_without_bos(words: float, asked: int) -> None:
    scorer = Table(summing_to(words + 1e-9, words))
    scorer.score = without_order(scorer)  # type: ignore[method-assign]
    found = place(scorer).full_sum()
    assert (found.asked, bool(found.wrong)) == (asked, asked == 7)
    assert found.excess == pytest.approx(words - 1, abs=1e-8)
    assert (BOS in scorer.seen) == (asked == 8)


def without_order(scorer: Table) -> Callable[[np.ndarray], Iterator[tuple[int, float]]]:
    """Return a `score` that goes on to the end of the text, as the whole text's costs need it."""

    def score(ids: np.ndarray) -> Iterator[tuple[int, float]]:
        scorer.seen.append(int(ids[AT]))
        for t in range(1, len(ids)):
            yield t, -math.log(scorer.charged[ids[t]])

    return score


def depends_on_bos(how: str) -> Any:
    """Return a scorer for which BOS at AT changes what is before it, or only what is after."""

    class Scorer:
        vocab_size = 8

        def score(self, ids: np.ndarray) -> Iterator[tuple[int, float]]:
            bos = ids[AT] == BOS
            order = [2, 1, 3, *range(4, 9)] if bos and how == "order" else range(1, 9)
            for t in order:
                moved = {"nats": 1.1e-5, "hair": 0.9e-5, "less": -1.1e-5}.get(how, 0.0)
                if how == "after":
                    moved = 0.5 if t >= AT else 0.0
                elif t != 2:
                    moved = 0.0
                yield t, math.log(8) + bos * moved

    return Scorer()


@pytest.mark.parametrize(
    ("how", "asked"), [("order", 7), ("nats", 7), ("less", 7), ("hair", 8), ("after", 8), ("", 8)]
)
def test_bos_that_decides_what_came_before_is_not_asked(how: str, asked: int) -> None:
    found = place(depends_on_bos(how)).full_sum()
    assert found.asked == asked
    # Seven eighths are asked; what BOS would have cost is the rest, and nothing is wrong.
    if asked == 7:
        assert (found.excess, found.wrong) == (0.0, "")
    elif how != "after":
        assert found.excess == pytest.approx(0.0, abs=1e-12) and not found.wrong


def test_a_sum_just_above_one_is_told_where_bos_decides() -> None:
    class More:
        vocab_size = 8

        def score(self, ids: np.ndarray) -> Iterator[tuple[int, float]]:
            for t in [2, 1, *range(3, 9)] if ids[AT] == BOS else range(1, 9):
                yield t, math.log(7) - 5e-4

    found = place(More()).full_sum()
    assert found.asked == 7 and found.excess == pytest.approx(5e-4, rel=1e-3)


# ---------------------------------------------------------------------------------------------
# A distribution that is shown


@pytest.mark.parametrize("whole", [1.00099, 0.99901, 1.0])
def test_a_shown_sum_within_its_bound(whole: float) -> None:
    p = np.arange(1.0, 65) / 2080 * whole
    scorer = Table(p, p)
    found = place(scorer).shown_sum(scorer)
    assert (found.index, found.wrong, found.doubt) == (AT, "", "")
    assert found.excess == pytest.approx(whole - 1, abs=1e-12)


@pytest.mark.parametrize(
    ("whole", "words"), [(1.00101, "more than"), (0.99899, "less than one"), (2.0, "more than")]
)
def test_a_shown_sum_outside_its_bound_is_asked_no_further(whole: float, words: str) -> None:
    p = np.arange(1.0, 65) / 2080 * whole
    scorer = Table(p, p)
    found = place(scorer).shown_sum(scorer)
    assert words in found.wrong and found.asked == 64 and scorer.seen == []


def test_the_likeliest_and_some_others_are_charged_by_turns() -> None:
    p = np.arange(1.0, 65) / 2080
    for budget_s, asked in ((0.0, 5), (1e6, 10)):
        scorer = Table(p, p)
        spot = place(scorer, budget_s=budget_s, seed=0)
        drawn = Bench(scorer, IDS, 0).draw.choice(np.setdiff1d(np.arange(64), [BOS]), 6).tolist()
        assert len({*drawn, 63, 62, 61, 60}) == 10, "this seed draws no token twice"
        assert spot.shown_sum(scorer).asked == asked
        turns = [63, drawn[0], 62, drawn[1], 61, drawn[2], 60, drawn[3], drawn[4], drawn[5]]
        assert scorer.seen == turns[:asked]


@pytest.mark.parametrize("off", [0.00999, -0.00999, 0.01003, -0.01003, 1.0])
def test_candidates_are_charged_as_shown_to_the_scorers_tolerance(off: float) -> None:
    """0.01 is the scorer's own, and 1e-5 is the bench's."""
    p = np.arange(1.0, 65) / 2080
    charged = p.copy()
    charged[62] *= math.exp(off)
    scorer = Table(charged, p)
    found = place(scorer).shown_sum(scorer)
    if abs(off) < 0.01:
        assert (found.asked, found.wrong) == (5, "")
        return
    assert found.asked == 3 and "not charged as the distribution shows" in found.wrong
    assert found.excess == pytest.approx(abs(off))


# ---------------------------------------------------------------------------------------------
# A sample


def sampled(p: np.ndarray, asked: int = 60) -> tuple[Sum, np.ndarray, np.ndarray]:
    """Return a sampled sum, with the tokens asked for sure and those drawn."""
    scorer = Table(p)
    found = place(scorer).sampled_sum(asked)
    # The text has 7 different tokens; all are asked, the place's own first.
    assert scorer.seen[0] == IDS[AT] and {*scorer.seen[:7]} == {*range(1, 8)}
    assert found.asked == len(scorer.seen) == len({*scorer.seen})
    return found, np.array(scorer.seen[:7]), np.array(scorer.seen[7:])


def flat(whole: float, size: int = 400) -> np.ndarray:
    """Return probabilities that differ only between the text's tokens and all others."""
    p = np.full(size, (whole - 0.7) / (size - 7))
    p[1:8] = 0.1
    return p


@pytest.mark.parametrize(
    ("whole", "wrong", "doubt"),
    [
        (1.0, "", ""),
        (1 + 9.9e-4, "", ""),
        (1 - 9.9e-4, "", ""),
        (1.00101, "sum to 1.001, more than one (estimated, +-", ""),
        (1.4, "sum to 1.4, more than", ""),
        (0.99899, "", "60 candidates leave the sum open: 0.999 +- 0.000"),
    ],
)
def test_a_sampled_sum_is_estimated(whole: float, wrong: str, doubt: str) -> None:
    found, sure, drawn = sampled(flat(whole))
    assert (len(sure), len(drawn), found.index) == (7, 53, AT)
    assert found.excess == pytest.approx(whole - 1, abs=1e-9)
    assert (wrong in found.wrong, bool(found.wrong)) == (True, bool(wrong))
    assert (doubt in found.doubt, bool(found.doubt)) == (True, bool(doubt))


def test_what_was_asked_alone_may_be_too_much() -> None:
    p = flat(1.0)
    p[1:8] = (1.00101 - 53 * p[0]) / 7
    found, _, _ = sampled(p)
    assert "by those asked alone" in found.wrong
    assert found.excess == pytest.approx(0.00101, abs=1e-9)
    p[1:8] = (1.00099 - 53 * p[0]) / 7
    assert "(estimated" in sampled(p)[0].wrong


def test_no_more_are_drawn_than_there_are() -> None:
    found, _, drawn = sampled(flat(1.0, 20), 48)
    assert found.asked == 20 and len(drawn) == 13
    assert found.excess == pytest.approx(0.0, abs=1e-9)


def test_of_the_texts_tokens_half_of_those_asked_are_taken() -> None:
    scorer = Table(flat(1.0))
    assert place(scorer).sampled_sum(6).asked == 6
    # The place's own token, then the most frequent three: 2 and 3 are there twice as often.
    assert scorer.seen[0] == 5 and {*scorer.seen[1:3]} == {2, 3} and 5 not in scorer.seen[1:]
    assert sum(token < 8 for token in scorer.seen) in (4, 5)


def spread_out(error: float) -> tuple[np.ndarray, float, float]:
    """Return probabilities whose estimate has this standard error, sum to 1 as estimated.

    Also what the estimate loses without the largest value drawn.
    """
    p = flat(1.0)
    _, sure, drawn = sampled(p)
    rest = np.setdiff1d(np.arange(len(p)), sure)
    draw = np.random.default_rng(0).uniform(-1, 1, len(p))
    draw = (draw - draw[drawn].mean()) / draw[drawn].std(ddof=1)
    p[rest] += draw[rest] * error * math.sqrt(len(drawn)) / len(rest)
    largest = np.sort(p[drawn])
    return p, error, len(rest) * (largest.mean() - largest[:-1].mean())


@pytest.mark.parametrize("error", [0.0005, 0.003])
def test_an_estimate_is_believed_to_five_standard_errors(error: float) -> None:
    p, _, loss = spread_out(error)
    assert sampled(p)[0].excess == pytest.approx(0.0, abs=1e-9)
    for times, open_ in ((-4.9, False), (-5.1, True), (4.9, False)):
        moved = p.copy()
        moved[IDS[AT]] += times * error
        found, _, _ = sampled(moved)
        assert (found.wrong, bool(found.doubt)) == ("", open_), (times, found)
        assert found.excess == pytest.approx(times * error, abs=1e-9)
    # Wrong is only what is too much without the largest value that was drawn.
    for apart, wrong in ((0.9e-3, False), (1.1e-3, True)):
        moved = p.copy()
        moved[IDS[AT]] += 5 * error + loss + apart
        found, _, _ = sampled(moved)
        assert bool(found.wrong) == wrong and bool(found.doubt) != wrong
        assert f"+-{error:.3g}" in found.wrong or not wrong


@pytest.mark.parametrize(("error", "open_"), [(0.0199, False), (0.0201, True)])
def test_a_wide_estimate_leaves_the_sum_open(error: float, open_: bool) -> None:
    found, _, _ = sampled(spread_out(error)[0])
    assert (found.wrong, bool(found.doubt)) == ("", open_)
    assert f"1.000 +- {error:.3f}" in found.doubt or not open_


# ---------------------------------------------------------------------------------------------
# Noise, rounding, scorers asked anew


def test_noise_that_replay_measured_is_allowed_in_sums() -> None:
    found = place(Table(summing_to(1.005)))
    assert found.allowed == 1e-3
    found.bench.met(2e-3)
    assert found.allowed == pytest.approx(1e-3 + math.expm1(8e-3))


@pytest.mark.parametrize(
    ("values", "step"),
    [([0.25, 3.0, 1.5], 0.01), ([0.251, 3.0], 0.001), ([0.2513, 3.0], 0.0001),
     ([0.25131, 2.0], 0.0), ([float(np.float16(3.3)), float(np.float16(0.7))], 2**-9),
     ([np.inf], 0.0), ([], 0.0),
     ([float(np.float16(77.7)), float(np.float16(0.7))], 0.0)],
)  # fmt: skip
def test_the_step_of_rounded_costs_is_seen(values: list[float], step: float) -> None:
    assert grain(np.array(values)) == step


def test_a_small_excess_counts_only_if_it_comes_again() -> None:
    spot = place(Table(summing_to(1.0)))
    told = [Sum(AT, 8, 0.004, "too much"), Sum(AT, 8, 0.0), Sum(AT, 8, 0.004, "too much")]
    asked = iter(told)
    assert spot.sure(lambda: next(asked)).wrong == ""
    assert spot.bench.noise_nats == pytest.approx(0.004)
    asked = iter([told[0]] * 3)
    assert spot.sure(lambda: next(asked)).wrong == "too much"
    assert next(asked, None) is None
    large = iter([Sum(AT, 8, 0.4, "too much")])
    assert spot.sure(lambda: next(large)).wrong == "too much"


def test_a_scorer_asked_anew_has_seen_one_candidate() -> None:
    class Remembers:
        vocab_size = 8

        def __init__(self) -> None:
            self.known: int | None = None

        def score(self, ids: np.ndarray) -> Iterator[tuple[int, float]]:
            self.known = int(ids[AT]) if self.known is None else self.known
            for t in range(1, len(ids)):
                sure = t == AT
                yield t, -math.log((0.6 if ids[t] == self.known else 0.4 / 7) if sure else 1 / 8)

    assert place(Remembers()).full_sum().wrong == ""
    bench = Bench(Remembers(), IDS, budget_s=0.0)
    assert "sum to 4.2" in Place(bench, IDS.copy(), AT, anew=True).full_sum().wrong


@pytest.mark.parametrize("knows", [True, False])
def test_bos_is_excused_where_the_end_of_the_document_was_known(knows: bool) -> None:
    """The token before BOS costs more: then BOS here is another text, else too much is given."""

    class Ends:
        vocab_size = 8

        def score(self, ids: np.ndarray) -> Iterator[tuple[int, float]]:
            for t in range(1, len(ids)):
                ends = knows and t + 1 < len(ids) and ids[t + 1] == BOS
                yield t, math.log(7) + 0.3 * ends

    found = place(Ends()).full_sum()
    assert bool(found.wrong) != knows and found.with_bos == pytest.approx(1 / 7)
