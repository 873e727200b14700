"""Intervals that hold whenever one looks: their formulas, their coverage, their verdicts."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from fairway.studies.intervals import (
    estimate,
    half_width,
    look_error,
    pairs_needed,
    smallest_seen,
)


@pytest.mark.parametrize("planned", [2, 3, 5, 8, 16, 100])
@pytest.mark.parametrize("error", [0.01, 0.05, 0.2])
def test_the_planned_looks_share_four_fifths_of_the_error_rate(planned: int, error: float) -> None:
    shares = [look_error(n, planned, error) for n in range(2, planned + 1)]
    assert sum(shares) == pytest.approx(0.8 * error)
    assert all(b == pytest.approx(2 * a) for a, b in itertools.pairwise(shares))


@pytest.mark.parametrize(("n", "planned"), [(2, 8), (5, 8), (8, 8), (3, 3), (16, 16)])
def test_a_planned_interval_is_students(n: int, planned: int) -> None:
    sample = np.random.default_rng(n).normal(size=n)
    low, high = stats.t.interval(
        1 - look_error(n, planned, 0.05), n - 1, sample.mean(), stats.sem(sample)
    )
    half = half_width(n, planned, 0.05) * sample.std(ddof=1)
    assert (high - low) / 2 == pytest.approx(half)


def bayes_factor(t: float, n: int, g: float) -> float:
    """Return the factor by integrating over the effect, as its definition says."""
    effects = np.linspace(-14, 14, 2001)
    prior = stats.norm.pdf(effects, scale=math.sqrt(g))
    likelihood = stats.nct.pdf(t, n - 1, effects * math.sqrt(n))
    return float(np.trapezoid(np.nan_to_num(likelihood) * prior, effects)) / stats.t.pdf(t, n - 1)


@pytest.mark.parametrize(("n", "error"), [(5, 0.05), (8, 0.01), (30, 0.05)])
def test_an_unplanned_interval_ends_where_the_bayes_factor_says(n: int, error: float) -> None:
    t = half_width(n, 0, error) * math.sqrt(n)
    assert bayes_factor(t, n, 4.0) == pytest.approx(1 / error, rel=1e-3)
    assert half_width(n, 4, error) == pytest.approx(half_width(n, 0, 0.2 * error))


def test_too_few_pairs_bound_nothing() -> None:
    assert half_width(1, 8, 0.05) == half_width(2, 0, 0.05) == math.inf
    assert estimate([], 8, 0.05).mean is None
    one = estimate([0.1], 8, 0.05)
    assert (one.mean, one.low, one.high, one.verdict) == (0.1, None, None, "open")
    assert estimate([0.1], 1, 0.05).verdict == "undecided"


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        ([-0.010, -0.011, -0.012, -0.010, -0.011, -0.0105], "better"),
        ([0.010, 0.011, 0.012, 0.010, 0.011, 0.0105], "worse"),
        ([0.0, 0.0], "equal"),
        ([-0.01, 0.02, -0.03], "open"),
        ([0.010, 0.011, 0.016], "hopeless"),
        ([-0.01, 0.02, -0.03, 0.04, 0.01, -0.03, 0.02, 0.01], "undecided"),
    ],
)
def test_verdicts(differences: list[float], verdict: str) -> None:
    assert estimate(differences, 8, 0.05).verdict == verdict


def test_what_was_decided_stays_so_and_more_pairs_than_planned_are_wider() -> None:
    decided = [-0.010, -0.011, -0.012, -0.010, -0.011, -0.0105]
    later = estimate([*decided, 0.02, 0.02], 8, 0.05)
    assert later.verdict == "better" and later.high is not None and later.high < 0
    assert half_width(9, 8, 0.05) > half_width(8, 8, 0.05)


def test_equal_differences_that_are_not_zero_are_certain() -> None:
    found = estimate([-0.25, -0.25, -0.25], 8, 0.05)
    assert (found.low, found.high, found.verdict) == (-0.25, -0.25, "better")


@pytest.mark.parametrize("pairs", [3, 8, 16])
def test_the_smallest_effect_seen_is_seen_four_times_out_of_five(pairs: int) -> None:
    rng = np.random.default_rng(pairs)
    effect = smallest_seen(1.0, pairs, pairs, 0.05)
    samples = rng.normal(-effect, 1.0, (2000, pairs))
    half = half_width(pairs, pairs, 0.05) * samples.std(1, ddof=1)
    assert (samples.mean(1) + half < 0).mean() == pytest.approx(0.8, abs=0.03)


def test_pairs_needed() -> None:
    assert pairs_needed(0.01, 0.001, 0.05) == 3
    assert pairs_needed(0.003, 0.001, 0.05) == 4
    assert pairs_needed(1e-6, 0.001, 0.05) is None
    for effect in (0.002, 0.0007):
        n = pairs_needed(effect, 0.001, 0.05)
        assert n and smallest_seen(0.001, n, n, 0.05) <= effect < smallest_seen(
            0.001, n - 1, n - 1, 0.05
        )
