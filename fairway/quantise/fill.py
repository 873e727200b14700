"""Fill the budget: the finest steps at which artifact and code are within the limit.

One level sets all steps (`dependent`), so that filling is a search for one number. Each real size
needs a quantisation and an encoding. With a good estimate the first size is near the limit and is
kept if it fits. Otherwise it corrects the estimate, so the second one is close enough.
"""

from collections.abc import Callable

from fairway.base.errors import UserError

# A size below the limit by at most this share is close enough: 16,000 of 16,000,000 bytes. A share
# of 0.001 is worth about 0.00001 bits per byte (docs/LOG.md), and another pack takes 16 to 20 s on
# a GPU's host. With 0.0002 two of four runs of `best` needed a third pack. Sizes of small models
# vary by more.
SLACK, LEAST_SLACK_BYTES = 0.001, 256
# The first size is kept with more room, and aims at its middle: it may be 0.003 off in either
# direction. Three models took 0.0006 to 0.0013 more than estimated at 3.4 bits a weight, but seven
# runs of `best` all missed a room from -0.0005 to +0.0015.
FIRST_SLACK, FIRST_MARGIN = 0.006, 0.003
# One or two packs usually fill a budget (tests, docs/LOG.md). This is the most packs for irregular
# sizes.
MAX_PACKS = 5
_HALVINGS = 60


def finest_fitting(
    limit_bytes: int,
    size_at: Callable[[float], int],
    estimate_at: Callable[[float], float],
    levels: tuple[float, float],
) -> float:
    """Return the smallest level found whose size is within the limit: at most `MAX_PACKS` are made.

    `size_at` packs and returns bytes; `estimate_at` is cheap, and a better estimate needs fewer
    packs. Both fall as the level rises. Raises UserError, with the smallest size reachable, if not
    even the largest level fits.
    """
    low, high = levels
    best = best_size = 0.0
    tried: list[tuple[float, int]] = []
    slack_bytes = max(FIRST_SLACK * limit_bytes, LEAST_SLACK_BYTES)
    margin_bytes = max(FIRST_MARGIN * limit_bytes, LEAST_SLACK_BYTES / 2)
    # With a limit below the slack every size is close enough, yet one must be made.
    while len(tried) < MAX_PACKS and (not best or best_size < limit_bytes - slack_bytes):
        if len(tried) == 1:
            slack_bytes = max(SLACK * limit_bytes, LEAST_SLACK_BYTES)
            margin_bytes = slack_bytes / 2
        aim = _estimate_wanted(tried, limit_bytes - margin_bytes)
        level = _within(estimate_at, aim, low, high)
        if len(tried) == MAX_PACKS - 1 and not best:
            # The last try takes the coarsest level unless a size fits already.
            level = high
        size = size_at(level)
        tried.append((estimate_at(level), size))
        if size <= limit_bytes:
            best, best_size, high = level, size, level
            if level == levels[0]:
                break
        elif level == levels[1]:
            # Nothing is coarser.
            break
        else:
            # The error of an estimate does not predict the error of a corrected estimate.
            low = level
            margin_bytes *= 1 if best or len(tried) == 1 else 2
    if not best:
        raise UserError(
            f"artifact and code take {size:,} bytes even at the coarsest steps, more than the "
            f"budget of {limit_bytes:,}; make the model smaller or the budget larger"
        )
    return best


def _estimate_wanted(tried: list[tuple[float, int]], size: float) -> float:
    """Return the estimate that corresponds to a wanted size, from the sizes of the last two
    tries."""
    if not tried:
        return size
    estimate, last_size = tried[-1]
    slope = 1.0
    if len(tried) > 1 and tried[-2][0] != estimate:
        slope = (last_size - tried[-2][1]) / (estimate - tried[-2][0])
    return estimate + (size - last_size) / min(max(slope, 0.1), 10.0)


def _within(estimate_at: Callable[[float], float], aim: float, low: float, high: float) -> float:
    """Return the smallest level between two with an estimate of at most `aim`, else the larger."""
    if estimate_at(low) <= aim:
        return low
    for _ in range(_HALVINGS):
        middle = (low * high) ** 0.5
        low, high = (low, middle) if estimate_at(middle) <= aim else (middle, high)
    return high
