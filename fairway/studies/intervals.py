"""Intervals of a mean difference that hold whenever somebody looks: docs/studies.md.

The differences of n pairs have mean m and standard deviation s (n - 1). A study that planned N
pairs may look after each of n = 2 ... N: look n has an error rate a(n), which doubles from look to
look, and its interval is Student's,

    m +- t(1 - a(n)/2; n - 1) s / sqrt(n),    a(2) + ... + a(N) = 0.8 a.

By Bonferroni's inequality all of them hold together with probability 1 - 0.8 a (error spending: Lan
and DeMets, Biometrika 70, 1983; repeated intervals: Jennison and Turnbull, JRSS B 51, 1989). What
was not planned, more pairs or tables of several people, has the rest of the error rate, a' = 0.2 a,
and a sequence of intervals that hold together for every n there will ever be,

    m +- s sqrt((n - 1) x / n),  x = (k - 1) / (1 - k / (1 + n g)),  k = ((1 + n g) / a'^2)^(1/n),

unbounded as long as k >= 1 + n g. It is where the Bayes factor of the t statistic, with a normal
prior of variance g for the effect over its standard deviation (Goenen et al., The American
Statistician 59, 2005), stays below 1 / a'; Ville's inequality bounds how often it ever exceeds that
(Lai, Annals of Statistics 4, 1976; Wang and Ramdas, arXiv 2310.03722). Whoever stops by any rule
may take the narrowest of the intervals so far.
"""

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from scipy.special import nctdtrinc, stdtr, stdtrit

# Of the error rate, what the planned looks have.
_PLANNED = 0.8
# Variance of the standardised effect in the Bayes factor: narrowest between 5 and 20 pairs.
_PRIOR = 4.0
# An arm is given up when the pairs that are left would show a gain with less than this probability.
_HOPELESS = 0.05
# How often a difference must be seen to count as one that could have been seen.
_POWER = 0.8
MOST_PAIRS = 1000


@dataclass(frozen=True, slots=True)
class Estimate:
    """What n differences say: their mean and sd, an interval, and where that leaves the question.

    `seen` is the smallest difference that as many pairs as planned, at least n, would show four
    times out of five. All in the unit of the differences; None where n does not suffice.
    """

    n: int
    planned: int
    mean: float | None
    sd: float | None
    low: float | None
    high: float | None
    seen: float | None
    verdict: str


def look_error(n: int, planned: int, error: float) -> float:
    """Return the error rate of the interval after n of the planned pairs."""
    return _PLANNED * error * 2.0 ** (n - planned) / (2.0 - 2.0 ** (2 - planned))


@functools.cache
def half_width(n: int, planned: int, error: float) -> float:
    """Return half of the interval after n pairs, in standard deviations of a difference.

    `planned` 0 is a study without a plan, whose whole error rate is that of unplanned looks.
    """
    if n < 2:
        return math.inf
    if n <= planned:
        t = float(stdtrit(n - 1, 1.0 - look_error(n, planned, error) / 2))
        return t / math.sqrt(n)
    left = error * (1.0 - _PLANNED) if planned else error
    spread = 1.0 + n * _PRIOR
    k = math.exp(math.log(spread / left**2) / n)
    if k >= spread:
        return math.inf
    return math.sqrt((n - 1) / n * (k - 1.0) / (1.0 - k / spread))


def smallest_seen(sd: float, pairs: int, planned: int, error: float) -> float:
    """Return the smallest difference that this many pairs show four times out of five.

    The t statistic of differences with that mean is noncentral.
    """
    root, half = math.sqrt(pairs), half_width(pairs, planned, error)
    if math.isinf(half):
        return math.inf
    return sd * float(nctdtrinc(pairs - 1, 1.0 - _POWER, half * root)) / root


def pairs_needed(effect: float, sd: float, error: float) -> int | None:
    """Return the fewest planned pairs that show an effect so; None for more than 1,000."""
    enough = (n for n in range(2, MOST_PAIRS + 1) if smallest_seen(sd, n, n, error) <= effect)
    return next(enough, None)


def estimate(differences: Sequence[float], planned: int, error: float) -> Estimate:
    """Return what differences say in the order in which they came; lower is better.

    The verdict is better, worse, equal (the same bits in every pair), hopeless, undecided once all
    planned pairs are there, or else open. What was decided once stays so.
    """
    n = len(differences)
    if n < 2:
        verdict = "undecided" if n >= planned > 0 else "open"
        first = differences[0] if n else None
        return Estimate(n, planned, first, None, None, None, None, verdict)
    low, high = -math.inf, math.inf
    for count, (mean, sd) in enumerate(_moments(differences), 2):
        half = half_width(count, planned, error) * sd if sd else 0.0
        low, high = max(low, mean - half), min(high, mean + half)
    if low > high:
        # Intervals that exclude one another: some of them are wrong, and the last knows most.
        low, high = mean - half, mean + half
    seen = smallest_seen(sd, max(n, planned), planned, error) if sd else 0.0
    verdict = _verdict(mean, sd, low, high, n, planned, error)
    ends = _finite(low), _finite(high), _finite(seen)
    return Estimate(n, planned, mean, sd, *ends, verdict)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _moments(values: Sequence[float]) -> Iterator[tuple[float, float]]:
    """Yield mean and standard deviation of the first 2, 3, ... values (Welford's update)."""
    mean, squares = values[0], 0.0
    for count, value in enumerate(values[1:], 2):
        away = value - mean
        mean += away / count
        squares += away * (value - mean)
        yield mean, math.sqrt(squares / (count - 1))


def _verdict(
    mean: float, sd: float, low: float, high: float, n: int, planned: int, error: float
) -> str:
    if low == high == 0.0:
        return "equal"
    if high < 0.0:
        return "better"
    if low > 0.0:
        return "worse"
    if n >= planned:
        return "undecided"
    return "hopeless" if _chance(mean, sd, n, planned, error) < _HOPELESS else "open"


def _chance(mean: float, sd: float, n: int, planned: int, error: float) -> float:
    """Return how probable it is that the interval after all planned pairs lies below zero.

    The mean of all N pairs differs from that of n by s sqrt((N - n) / (n N)) times a t statistic
    of n - 1 degrees of freedom, for whoever knew nothing of the effect before.
    """
    needed = -half_width(planned, planned, error) * sd
    spread = sd * math.sqrt((planned - n) / (n * planned))
    return float(stdtr(n - 1, (needed - mean) / spread))
