"""The leaks that a probe would have found, with the probability of finding them."""

import math
from collections.abc import Sequence

import numpy as np

from fairway.audit.scorers.betting import AHEAD_NATS, Bets
from fairway.base.arrays import FloatArray

# The report assumes leaks at one of a hundred places; readers can scale from that.
SHARE = 0.01
_SIZES_NATS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
_SHARES = (1.0, 0.1)
_TRIALS, _SURE = 10, 0.9


def by_places(looked: int, of: int, least_nats: float, what: str) -> str:
    """Return the power of a probe that visited some of all places.

    `least_nats` is the smallest detectable change of a cost.
    """
    # With fewer than a hundred places, one is leaky.
    leaky = max(1, round(SHARE * of))
    found = 1.0 if looked + leaky > of else 1.0 - _none_of(looked, leaky, of)
    return (
        f"{what} of more than {least_nats:.2g} nats at {SHARE:.0%} of places would have been found "
        f"with probability {found:.2g} ({looked} of {of} looked at)"
    )


def _none_of(looked: int, leaky: int, of: int) -> float:
    """Return the probability that no visited place is leaky."""
    log = math.lgamma
    return math.exp(
        log(of - leaky + 1) - log(of - leaky - looked + 1) - log(of + 1) + log(of - looked + 1)
    )


def by_bets(bets: Sequence[Bets], draw: np.random.Generator) -> str:
    """Return the measured power of bets: leaks are planted into the charged costs."""
    played = [np.concatenate(bet.gains) for bet in bets if bet.gains]
    if not played:
        return ""
    words = []
    for share in _SHARES:
        least = next((x for x in _SIZES_NATS if _found(played, x, share, draw) >= _SURE), None)
        at = "every token" if share == 1.0 else f"{share:.0%} of tokens"
        words.append(
            f"{least:g} nats at {at}"
            if least is not None
            else f"at {at} not even {_SIZES_NATS[-1]:g} nats"
        )
    return f"would have found with probability {_SURE:g}: {'; '.join(words)}"


def _found(
    played: list[FloatArray], size_nats: float, share: float, draw: np.random.Generator
) -> float:
    """Return the share of trials in which a leak of this size and frequency would convict."""
    found = 0
    for _ in range(_TRIALS):
        found += any(
            _ahead(gains + size_nats * (draw.random(len(gains)) < share)) > AHEAD_NATS
            for gains in played
        )
    return found / _TRIALS


def _ahead(gains: FloatArray) -> float:
    """Return the largest lead of the simplest bet, the one from the beginning."""
    return float(np.cumsum(gains).max()) + math.log(0.25)
