"""Finds the smallest clip multiplier at which an artifact fits its limit.

File size depends on the multiplier (`estimate`), so raising it makes a slightly too large model
fit. Each real pack of the seed model takes half a minute. So the entropy estimate, corrected by the
last real size, gives the next multiplier to try.
"""

import math
from collections.abc import Callable
from dataclasses import replace

from fairway.base.errors import UserError
from fairway.config.settings import QuantConfig, settings

# Multipliers are searched in hundredths: at 12.85 one hundredth is 0.03 % of the seed's file.
PER_SIGMA = 100
# A size below the limit by this share of it is near enough: 8,000 of 16,000,000 bytes.
SLACK = 0.0005
# After a size fits, at most this many packs come closer to the limit.
MAX_PACKS = 4

LARGEST: float = next(
    item.metadata["hi"] for name, item, _ in settings(QuantConfig()) if name == "matrix_sigmas"
)


def with_sigmas(quant: QuantConfig, sigmas: float) -> QuantConfig:
    """Return settings with another clip multiplier; the multiplier of MLPs keeps its proportion."""
    of_mlp = quant.mlp_sigmas
    if of_mlp is not None:
        of_mlp *= sigmas / quant.matrix_sigmas
    return replace(quant, matrix_sigmas=sigmas, mlp_sigmas=of_mlp)


def smallest_fitting(
    start: float,
    limit_bytes: int,
    size_at: Callable[[float], int],
    estimate_at: Callable[[float], int],
) -> float:
    """Return the smallest clip multiplier from `start` upwards whose size is within the limit.

    `size_at` packs and returns bytes; `estimate_at` is cheap, and only its changes must follow
    those of sizes. Smallest means: `start` itself, or the next hundredth does not fit, or less than
    `SLACK` of the limit is left, or `MAX_PACKS` are spent. Raises UserError when not even the
    largest multiplier fits.
    """
    size = size_at(start)
    if size <= limit_bytes:
        return start
    low, high, last = math.floor(start * PER_SIGMA + 1e-6), 0, start
    best, margin, tries = 0, SLACK / 2, 1
    while not high or (tries < MAX_PACKS and best < (1 - SLACK) * limit_bytes):
        aim = (1 - margin) * limit_bytes - (size - estimate_at(last))
        top = high - 1 if high else round(LARGEST * PER_SIGMA)
        if low >= top:
            break
        at = _first_within(estimate_at, aim, low + 1, top)
        last, tries = at / PER_SIGMA, tries + 1
        size = size_at(last)
        if size <= limit_bytes:
            high, best = at, size
        else:
            # Until a size fits, leave more room at each try.
            low, margin = at, margin if high else 4 * margin
    if not high:
        raise UserError(
            f"artifact and code take {size:,} bytes even at quant.matrix_sigmas={LARGEST:g}, more "
            f"than pack.limit_bytes {limit_bytes:,}; make the model smaller, or pack it as it is "
            "with quant.fit=false"
        )
    return high / PER_SIGMA


def _first_within(estimate_at: Callable[[float], int], aim: float, low: int, high: int) -> int:
    """Return the first hundredth of low..high whose estimate is at most `aim`, else `high`."""
    while low < high:
        middle = (low + high) // 2
        if estimate_at(middle / PER_SIGMA) <= aim:
            high = middle
        else:
            low = middle + 1
    return high
