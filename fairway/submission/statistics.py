"""Tests whether one score is lower than another, as claims of the challenge require.

Lower is always better. The challenge requires a margin of 0.005 nats per token of records. Tokens
of different tokenizers have different lengths, so the margin in bits per byte depends on the
tokenizer. The test in the challenge's README is p < 0.01 with the margin; late in the challenge
p < 0.25 without a margin was applied (pull requests #1900, #1902). Welch, Biometrika 34 (1947).
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy.special import nctdtr, stdtr, stdtrit

from fairway.base.errors import UserError
from fairway.base.units import nats_to_bits

MARGIN_NATS = 0.005
RECORD_P, FRONTIER_P = 0.01, 0.25

# The search for a number of seeds stops here; more seeds are not practical.
_MOST_SEEDS = 1000


@dataclass(frozen=True, slots=True)
class Sample:
    """Scores of several seeds: how many, their mean, and the standard deviation (n - 1)."""

    n: int
    mean: float
    sd: float


@dataclass(frozen=True, slots=True)
class TTest:
    """A one-sided t-test of 'a is lower than b by more than the margin'.

    `difference` is mean a - mean b, in the unit of the scores; a small p supports the claim.
    """

    difference: float
    margin: float
    t: float
    df: float
    p: float


def sample(values: Sequence[float]) -> Sample:
    """Return number, mean and standard deviation; UserError for fewer than two values."""
    if len(values) < 2:
        raise UserError(f"{len(values)} score has no spread; a test needs at least 2 seeds")
    return Sample(len(values), statistics.fmean(values), statistics.stdev(values))


def margin_bpb(bytes_per_token: float, margin_nats: float = MARGIN_NATS) -> float:
    """Return a margin in nats per token as bits per byte of a tokenizer."""
    return nats_to_bits(margin_nats) / bytes_per_token


def welch(a: Sample, b: Sample, margin: float = 0.0) -> TTest:
    """Return Welch's test of 'a is more than `margin` below b', all in one unit."""
    variances = a.sd**2 / a.n, b.sd**2 / b.n
    error = math.sqrt(sum(variances))
    gained = b.mean - a.mean - margin
    if error == 0.0:
        # All seeds have equal scores, so the difference is certain.
        certain = 0.0 if gained > 0 else 1.0
        return TTest(a.mean - b.mean, margin, math.copysign(math.inf, gained), math.inf, certain)
    shares = variances[0] ** 2 / (a.n - 1) + variances[1] ** 2 / (b.n - 1)
    df = sum(variances) ** 2 / shares
    t = gained / error
    return TTest(a.mean - b.mean, margin, t, df, float(stdtr(df, -t)))


def paired(a: Mapping[int, float], b: Mapping[int, float], margin: float = 0.0) -> TTest | None:
    """Return the paired test over the common seeds, or None if they are fewer than two."""
    common = a.keys() & b.keys()
    if len(common) < 2:
        return None
    gains = sample([b[seed] - a[seed] for seed in common])
    gained, error = gains.mean - margin, gains.sd / math.sqrt(gains.n)
    if error == 0.0:
        certain = 0.0 if gained > 0 else 1.0
        return TTest(-gains.mean, margin, math.copysign(math.inf, gained), gains.n - 1, certain)
    t = gained / error
    return TTest(-gains.mean, margin, t, gains.n - 1, float(stdtr(gains.n - 1, -t)))


def power(difference: float, sd: float, seeds: int, p: float, margin: float = 0.0) -> float:
    """Return the probability that `seeds` runs per side reach p if the true gain is `difference`.

    `difference` is positive for better, and both sides have the same sd. The t statistic is then
    noncentral with 2 seeds - 2 degrees of freedom.
    """
    if seeds < 2:
        return 0.0
    df = 2 * seeds - 2
    if sd == 0.0:
        return 1.0 if difference > margin else 0.0
    centre = (difference - margin) / (sd * math.sqrt(2.0 / seeds))
    critical = float(stdtrit(df, 1.0 - p))
    missed = float(nctdtr(df, centre, critical))
    # SciPy returns NaN far out in the tail, where the power is 1.
    return 1.0 if math.isnan(missed) and centre > critical else 1.0 - missed


def seeds_needed(
    difference: float, sd: float, p: float, margin: float = 0.0, wanted: float = 0.8
) -> int | None:
    """Return the fewest runs per side with power `wanted`; None if more than 1,000 are needed."""
    if difference <= margin:
        return None
    return next(
        (n for n in range(2, _MOST_SEEDS + 1) if power(difference, sd, n, p, margin) >= wanted),
        None,
    )
