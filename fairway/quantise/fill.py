"""Fill the budget: the finest steps at which artifact and code are within the limit.

One level sets all steps (`dependent`), so that filling is a search for one number. Real sizes take
a quantisation and an encoding each. A good estimate makes the first fall near the limit; set right
by it, the second falls as close as the search has to come.
"""

from collections.abc import Callable

from fairway.base.errors import UserError

# A size below the limit by this share of it is near enough: 3,200 of 16,000,000 bytes. Sizes of
# small models tremble by more than that.
SLACK, LEAST_SLACK_BYTES = 0.0002, 256
# Two packs fill a budget (tests, docs/LOG.md); no more than this many are made if sizes surprise.
MAX_PACKS = 5
_HALVINGS = 60


def finest_fitting(
    limit_bytes: int,
    size_at: Callable[[float], int],
    estimate_at: Callable[[float], float],
    levels: tuple[float, float],
) -> float:
    """Return the smallest level found whose size is within the limit: at most `MAX_PACKS` are made.

    `size_at` packs and returns bytes; `estimate_at` is cheap, and the nearer it comes the fewer
    packs there are. Both fall as the level rises. Raises UserError, with the smallest size
    reachable, if not even the largest level fits.
    """
    low, high = levels
    best = best_size = 0.0
    tried: list[tuple[float, int]] = []
    slack_bytes = max(SLACK * limit_bytes, LEAST_SLACK_BYTES)
    margin_bytes = slack_bytes / 2
    while len(tried) < MAX_PACKS and best_size < limit_bytes - slack_bytes:
        aim = _estimate_wanted(tried, limit_bytes - margin_bytes)
        level = _within(estimate_at, aim, low, high)
        if len(tried) == MAX_PACKS - 1 and not best:
            # The last try is not spent on coming near unless something fits already.
            level = high
        size = size_at(level)
        tried.append((estimate_at(level), size))
        if size <= limit_bytes:
            best, best_size, high = level, size, level
            if level == levels[0]:
                break
        else:
            # An estimate's own error says nothing of how far one set right goes wrong.
            low = level
            margin_bytes *= 1 if best or len(tried) == 1 else 2
    if not best:
        raise UserError(
            f"artifact and code take {size:,} bytes even at the coarsest steps, more than the "
            f"budget of {limit_bytes:,}; make the model smaller or the budget larger"
        )
    return best


def _estimate_wanted(tried: list[tuple[float, int]], size: float) -> float:
    """Return the estimate at which a size is to be expected, by the sizes of the last two tries."""
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
