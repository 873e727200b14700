"""Intervals of a mean difference that are valid at every look (docs/studies.md).

The differences of n pairs have mean m and standard deviation s (n - 1). With N planned pairs a
study may look after each of n = 2 ... N. Look n has an error rate a(n), which doubles with each
look, and its interval is Student's,

    m +- t(1 - a(n)/2; n - 1) s / sqrt(n),    a(2) + ... + a(N) = 0.8 a.

By Bonferroni's inequality all of them hold together with probability 1 - 0.8 a (error spending: Lan
and DeMets, Biometrika 70, 1983; repeated intervals: Jennison and Turnbull, JRSS B 51, 1989).
Unplanned looks, at more pairs or at tables of several people, have the rest of the error rate, a' =
0.2 a, and a sequence of intervals that hold together for every n,

    m +- s sqrt((n - 1) x / n),  x = (k - 1) / (1 - k / (1 + n g)),  k = ((1 + n g) / a'^2)^(1/n),

unbounded while k >= 1 + n g. This is the region where the Bayes factor of the t statistic, with a
normal prior of variance g for the effect over its standard deviation (Goenen et al., The American
Statistician 59, 2005), is below 1 / a'. Ville's inequality bounds the probability that it ever
exceeds that (Lai, Annals of Statistics 4, 1976; Wang and Ramdas, arXiv 2310.03722). Under any
stopping rule the narrowest of the intervals so far may be used.
"""

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from scipy.special import nctdtrinc, stdtr, stdtrit

# The share of the error rate for planned looks.
_PLANNED = 0.8
# The variance of the standardised effect in the Bayes factor: the narrowest for 5 to 20 pairs.
_PRIOR = 4.0
# An arm is stopped if the remaining pairs would show a gain with less than this probability.
_HOPELESS = 0.05
# A difference counts as detectable if it is shown with this probability.
_POWER = 0.8
MOST_PAIRS = 1000


@dataclass(frozen=True, slots=True)
class Estimate:
    """The estimate from n differences: mean, sd, interval and verdict.

    `seen` is the smallest difference that the planned pairs, or n if that is more, would show four
    times out of five. All are in the unit of the differences; None if n is too small.
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

    With `planned` 0, a study without a plan, unplanned looks have the whole error rate.
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

    The t statistic of such differences follows a noncentral t distribution.
    """
    root, half = math.sqrt(pairs), half_width(pairs, planned, error)
    if math.isinf(half):
        return math.inf
    return sd * float(nctdtrinc(pairs - 1, 1.0 - _POWER, half * root)) / root


def pairs_needed(effect: float, sd: float, error: float) -> int | None:
    """Return the fewest planned pairs that show an effect with `_POWER`; None above 1,000."""
    enough = (n for n in range(2, MOST_PAIRS + 1) if smallest_seen(sd, n, n, error) <= effect)
    return next(enough, None)


def estimate(differences: Sequence[float], planned: int, error: float) -> Estimate:
    """Return the estimate from differences in the order of their arrival; lower is better.

    The verdict is better, worse, equal (the same bits in every pair), hopeless, undecided (after
    all planned pairs), or open. A decided verdict does not change with later pairs.
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
        # The intervals exclude one another, so some are wrong; the last has the most data.
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
    """Return the probability that the interval after all planned pairs is below zero.

    Without prior knowledge of the effect, the mean of all N pairs differs from that of n by
    s sqrt((N - n) / (n N)) times a t statistic with n - 1 degrees of freedom.
    """
    needed = -half_width(planned, planned, error) * sd
    spread = sd * math.sqrt((planned - n) / (n * planned))
    return float(stdtr(n - 1, (needed - mean) / spread))
