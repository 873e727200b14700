"""Tests of one score against another: published figures, SciPy's own tests, simulation."""

import math

import numpy as np
import pytest
import scipy.stats

from fairway.base.errors import UserError
from fairway.submission import statistics
from fairway.submission.published import record
from fairway.submission.statistics import (
    FRONTIER_P,
    MARGIN_NATS,
    RECORD_P,
    Sample,
    margin_bpb,
    paired,
    power,
    sample,
    seeds_needed,
    welch,
)


def adapted(name: str) -> dict[int, float]:
    return {seed.seed: seed.bpb["adapted"] for seed in record(name).seeds}


def of(name: str) -> Sample:
    return sample(list(adapted(name).values()))


def test_the_published_p_value_is_reproduced() -> None:
    # Pull request #2135 states p = 0.014 against #2014: Welch, no margin.
    assert welch(of("pr2135"), of("pr2014")).p == pytest.approx(0.0138, abs=5e-5)


def test_the_margin_decides_over_the_last_record() -> None:
    margin = margin_bpb(3.15715)
    assert margin == pytest.approx(0.002285, abs=1e-6)
    assert margin_bpb(3.72663) == pytest.approx(0.001936, abs=1e-6)
    assert welch(of("pr2135"), of("pr1855"), margin).p == pytest.approx(0.029, abs=5e-4)
    assert welch(of("pr2135"), of("pr1855")).p < 0.01


@pytest.mark.parametrize("sizes", [(2, 2), (3, 5), (7, 4)])
def test_welch_and_pairs_equal_scipy(sizes: tuple[int, int]) -> None:
    draw = np.random.default_rng(sum(sizes))
    a, b = draw.normal(1.0, 0.01, sizes[0]), draw.normal(1.005, 0.03, sizes[1])
    theirs = scipy.stats.ttest_ind(a, b - 0.002, equal_var=False, alternative="less")
    ours = welch(sample(a.tolist()), sample(b.tolist()), 0.002)
    assert (ours.p, ours.t, ours.df) == pytest.approx((theirs.pvalue, -theirs.statistic, theirs.df))
    n = min(sizes)
    found = paired(dict(enumerate(a.tolist())), dict(enumerate(b.tolist())), 0.002)
    theirs = scipy.stats.ttest_rel(a[:n], b[:n] - 0.002, alternative="less")
    assert found is not None and found.p == pytest.approx(theirs.pvalue)
    assert found.df == n - 1


def test_scores_without_spread_decide_by_themselves() -> None:
    one, other = Sample(3, 1.0, 0.0), Sample(3, 1.1, 0.0)
    assert (welch(one, other).p, welch(other, one).p, welch(one, one).p) == (0.0, 1.0, 1.0)
    assert paired({1: 1.0, 2: 1.0}, {1: 1.5, 2: 1.5}).p == 0.0  # type: ignore[union-attr]
    assert paired({1: 1.0, 2: 1.0}, {2: 1.5, 3: 1.5}) is None
    with pytest.raises(UserError, match="at least 2 seeds"):
        sample([1.0])


def test_power_is_what_simulation_finds() -> None:
    draw = np.random.default_rng(1)
    runs, n, sd, gain, margin = 4000, 5, 0.001, 0.003, 0.001
    a, b = draw.normal(0, sd, (runs, n)), draw.normal(gain - margin, sd, (runs, n))
    found = scipy.stats.ttest_ind(a, b, axis=1, alternative="less").pvalue < 0.01
    assert power(gain, sd, n, 0.01, margin) == pytest.approx(found.mean(), abs=0.03)


def test_seeds_needed_are_the_fewest() -> None:
    n = seeds_needed(0.003, 0.001, 0.01, 0.0019)
    assert n is not None
    assert power(0.003, 0.001, n, 0.01, 0.0019) >= 0.8 > power(0.003, 0.001, n - 1, 0.01, 0.0019)
    assert seeds_needed(0.0019, 0.001, 0.01, 0.0019) is None
    assert seeds_needed(1e-6, 1.0, 0.01) is None
    assert seeds_needed(1.0, 0.0, 0.01) == 2


def test_the_challenges_own_numbers() -> None:
    assert (MARGIN_NATS, RECORD_P, FRONTIER_P) == (0.005, 0.01, 0.25)


def test_differences_are_a_less_b() -> None:
    a, b = [1.0, 1.25], [1.5, 2.25]
    assert welch(sample(a), sample(b)).difference == -0.75
    found = paired(dict(enumerate(a)), dict(enumerate(b)), 0.25)
    assert found is not None
    # Gains of 0.5 and 1.0: mean 0.75, sd 0.3536, error 0.25.
    assert (found.difference, found.margin, found.df) == (-0.75, 0.25, 1)
    assert found.t == pytest.approx(2.0) and found.p == pytest.approx(0.14758361765)


@pytest.mark.parametrize(
    ("gain", "margin", "t", "p"),
    [(0.5, 0.0, math.inf, 0.0), (-0.5, 0.0, -math.inf, 1.0), (0.5, 0.5, math.inf, 1.0),
     (0.5, 0.75, -math.inf, 1.0), (0.5, 0.25, math.inf, 0.0)],
)  # fmt: skip
def test_zero_spread_is_certain_either_way(gain: float, margin: float, t: float, p: float) -> None:
    found = welch(Sample(3, 1.0, 0.0), Sample(4, 1.0 + gain, 0.0), margin)
    assert (found.difference, found.t, found.df, found.p) == (-gain, t, math.inf, p)
    same = paired(dict.fromkeys(range(4), 1.0), dict.fromkeys(range(4), 1.0 + gain), margin)
    assert same is not None
    assert (same.difference, same.margin, same.t, same.df, same.p) == (-gain, margin, t, 3, p)


def test_pairs_are_of_the_seeds_that_both_have() -> None:
    found = paired({1: 1.0, 2: 1.0, 9: 5.0}, {2: 1.5, 1: 2.0, 7: 0.0})
    assert found is not None and (found.difference, found.df) == (-0.75, 1)
    assert paired({1: 1.0}, {1: 1.5}) is None


@pytest.mark.parametrize(
    ("difference", "seeds", "p", "margin"),
    [(0.003, 2, 0.01, 0.0), (0.003, 3, 0.05, 0.001), (0.001, 2, 0.25, 0.002)],
)
def test_power_at_few_seeds_is_scipys(
    difference: float, seeds: int, p: float, margin: float
) -> None:
    df, centre = 2 * seeds - 2, (difference - margin) / (0.001 * (2 / seeds) ** 0.5)
    expected = scipy.stats.nct.sf(scipy.stats.t.isf(p, df), df, centre)
    assert power(difference, 0.001, seeds, p, margin) == pytest.approx(expected, rel=1e-9)
    if margin == 0.0:
        assert power(difference, 0.001, seeds, p) == pytest.approx(expected, rel=1e-9)


def test_power_where_there_is_nothing_to_compute() -> None:
    assert power(1.0, 0.5, 1, 0.01) == power(1.0, 0.0, 1, 0.01) == 0.0
    assert power(1.0, 0.0, 2, 0.01, 0.5) == 1.0
    assert power(1.0, 0.0, 2, 0.01, 1.0) == power(0.5, 0.0, 2, 0.01, 1.0) == 0.0


def test_where_scipy_has_no_value_nothing_is_missed_far_out_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(statistics, "nctdtr", lambda *_: math.nan)
    assert power(1.0, 1e-3, 5, 0.01) == 1.0
    assert math.isnan(power(1.0, 10.0, 5, 0.01))


def test_at_most_a_thousand_seeds_are_thought_of() -> None:
    assert [seeds_needed(1.0, sd, 0.01) for sd in (7.05, 7.053, 7.055)] == [999, 1000, None]
    # As likely by chance as it is wanted: no number of runs shows what is not there.
    assert seeds_needed(0.0, 1.0, 0.9, 0.0, wanted=0.5) is None
    assert seeds_needed(1.0, 0.0, 0.01, wanted=1.0) == seeds_needed(1.0, 9.0, 0.01, wanted=0.0) == 2
