"""The leaks that a probe would have found, with the probability of finding them."""

import math
from collections.abc import Sequence

import numpy as np

from fairway.audit.scorers.betting import AHEAD_NATS, Bets
from fairway.base.arrays import FloatArray

# Leaks at one of a hundred places are the example; of others the reader can tell from the number.
SHARE = 0.01
_SIZES_NATS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
_SHARES = (1.0, 0.1)
_TRIALS, _SURE = 10, 0.9


def by_places(looked: int, of: int, least_nats: float, what: str) -> str:
    """Return the power of a probe that looked closely at some of all places.

    `least_nats` is what a cost must move by to be seen.
    """
    # Of fewer than a hundred places it is one.
    leaky = max(1, round(SHARE * of))
    found = 1.0 if looked + leaky > of else 1.0 - _none_of(looked, leaky, of)
    return (
        f"{what} of more than {least_nats:.2g} nats at {SHARE:.0%} of places would have been found "
        f"with probability {found:.2g} ({looked} of {of} looked at)"
    )


def _none_of(looked: int, leaky: int, of: int) -> float:
    """Return how likely it is that none of the places looked at is one of the leaky ones."""
    log = math.lgamma
    return math.exp(
        log(of - leaky + 1) - log(of - leaky - looked + 1) - log(of + 1) + log(of - looked + 1)
    )


def by_bets(bets: Sequence[Bets], draw: np.random.Generator) -> str:
    """Return the power of bets, measured: a leak is planted into the costs that were charged."""
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
    """Return how often a leak of a size, at a share of the tokens, would have convicted."""
    found = 0
    for _ in range(_TRIALS):
        found += any(
            _ahead(gains + size_nats * (draw.random(len(gains)) < share)) > AHEAD_NATS
            for gains in played
        )
    return found / _TRIALS


def _ahead(gains: FloatArray) -> float:
    """Return the most that the plainest of the bets, from the beginning, is ahead."""
    return float(np.cumsum(gains).max()) + math.log(0.25)
