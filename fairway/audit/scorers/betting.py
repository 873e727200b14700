"""Bets against fair odds on texts that nobody can predict.

A scorer that predicts by distributions from the past gains L nats over fair odds, at any time, with
a probability of at most exp(-L): the value of such a bet is a martingale (Ville's inequality). This
needs no assumption about the scorer. Several bets share one stake, so the bound holds for their
sum. One bet starts at the beginning. One starts at every later place, so that a gain after one huge
cost still counts. One is placed at every n-th token, to find a leak at the end of every chunk.
"""

import math
from dataclasses import dataclass, field

import numpy as np

from fairway.audit.scorers.scorer import Costs
from fairway.base.arrays import FloatArray, IntArray

# A valid scorer gains this much over fair odds in one of a million audits.
AHEAD_NATS = math.log(1e6)
# Shares of the stake: from the beginning, from every place; the rest is for every n-th token.
_STRAIGHT, _RESTARTED = 0.25, 0.25
_PERIODS = (8, 16, 32, 64)
# Larger costs, infinite ones included, count as this one; it loses the whole bet.
_MOST_NATS = 1e6


@dataclass(eq=False)
class Bets:
    """A bet that continues over several independently drawn texts: their gains add up."""

    rounds: int = 0
    ahead_nats: float = -math.inf
    at: int | None = None
    gains: list[FloatArray] = field(default_factory=list)
    _straight: float = 0.0
    _restarted: float = -math.inf
    _periodic: list[FloatArray] = field(
        default_factory=lambda: [np.zeros(period) for period in _PERIODS]
    )

    def play(self, stakes: FloatArray, costs: Costs) -> None:
        """Bet on one text: `stakes` are fair costs by index, NaN where a token is not random."""
        fair = stakes[costs.index]
        random = ~np.isnan(fair)
        if not random.any():
            return
        index = costs.index[random]
        gains = fair[random] - costs.nats[random]
        # NaN counts as the largest cost.
        gains = np.clip(np.where(np.isnan(gains), _MOST_NATS, gains), -_MOST_NATS, _MOST_NATS)
        self.rounds += 1
        self.gains.append(gains)
        self._follow(gains, index)
        self._finish(gains, index)

    def _follow(self, gains: FloatArray, index: IntArray) -> None:
        """Continue the bets from the beginning and from every place, token by token."""
        total = np.cumsum(gains)
        straight = self._straight + total
        restarted = total + _entered(self._restarted, total - gains, self.rounds)
        ahead = np.logaddexp(math.log(_STRAIGHT) + straight, math.log(_RESTARTED) + restarted)
        best = int(np.argmax(ahead))
        if ahead[best] > self.ahead_nats:
            self.ahead_nats, self.at = float(ahead[best]), int(index[best])
        self._straight, self._restarted = float(straight[-1]), float(restarted[-1])

    def _finish(self, gains: FloatArray, index: IntArray) -> None:
        """Continue the bets at every n-th token, and update the sum of all bets."""
        share = math.log((1 - _STRAIGHT - _RESTARTED) / len(_PERIODS))
        parts = [math.log(_STRAIGHT) + self._straight, math.log(_RESTARTED) + self._restarted]
        for period, totals in zip(_PERIODS, self._periodic, strict=True):
            totals += np.bincount(index % period, gains, period)
            parts += (share - math.log(period) + totals).tolist()
        ahead = float(np.logaddexp.reduce(parts))
        if ahead > self.ahead_nats:
            self.ahead_nats, self.at = ahead, int(index[-1])


def _entered(before: float, totals: FloatArray, number: int) -> FloatArray:
    """Return the log of the stakes placed up to each token of text `number`, less later gains.

    All places of text n share 1 / (n (n + 1)) of the stake.
    """
    stake = -math.log(number * (number + 1) * len(totals))
    return np.asarray(np.logaddexp.accumulate(np.concatenate([[before], stake - totals]))[1:])


def fair_shuffle(ids: IntArray, costs: Costs, bos_id: int) -> FloatArray:
    """Return the fair cost of every token of a shuffled text, by index, in its scoring order.

    Even a predictor that has the count of every token can only bet on the remaining ones.
    """
    stakes = np.full(len(ids), np.nan)
    left = np.bincount(ids[1:][ids[1:] != bos_id], minlength=1).astype(np.float64)
    total = float(left.sum())
    for at in costs.index:
        token = int(ids[at])
        if token == bos_id or not left[token]:
            continue
        stakes[at] = math.log(total / left[token])
        left[token] -= 1
        total -= 1
    return stakes
