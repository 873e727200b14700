"""Tests of one score against another: published figures, SciPy's own tests, simulation."""

import numpy as np
import pytest
import scipy.stats

from fairway.errors import UserError
from fairway.published import record
from fairway.statistics import Sample, margin_bpb, paired, power, sample, seeds_needed, welch


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
