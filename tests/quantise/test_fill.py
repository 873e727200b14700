"""Filling a budget, on made-up sizes."""

import math
from collections.abc import Callable

import pytest

from fairway.base.errors import UserError
from fairway.quantise.fill import (
    FIRST_SLACK,
    LEAST_SLACK_BYTES,
    MAX_PACKS,
    SLACK,
    finest_fitting,
)

LEVELS = (1e-7, 1e-2)


def bytes_at(level: float) -> float:
    return 1e6 * (25 - math.log2(level / 1e-7)) / 1.7


def search(size_at: Callable[[float], float], limit_bytes: int) -> tuple[float, list[float]]:
    tried: list[float] = []

    def packed(level: float) -> int:
        tried.append(level)
        return round(size_at(level))

    return finest_fitting(limit_bytes, packed, bytes_at, LEVELS), tried


def wavy(level: float) -> float:
    """Sizes as a coder gives them: not as estimated, and not quite smooth."""
    return 0.97 * bytes_at(level) + 50_000 + 900 * math.sin(40 * math.log(level))


@pytest.mark.parametrize("limit_bytes", [7_000_000, 9_876_543, 12_000_000])
def test_few_packs_fill_the_budget(limit_bytes: int) -> None:
    level, tried = search(wavy, limit_bytes)
    assert level in tried and len(tried) <= MAX_PACKS
    assert limit_bytes * (1 - SLACK) <= round(wavy(level)) <= limit_bytes


@pytest.mark.parametrize(
    ("factor", "packs"), [(1.0, 1), (1.0013, 1), (1.0028, 1), (0.9975, 1), (1.004, 2), (0.995, 2)]
)
def test_a_first_size_near_the_limit_is_kept(factor: float, packs: int) -> None:
    limit_bytes = 12_000_000
    level, tried = search(lambda level: factor * bytes_at(level), limit_bytes)
    slack = FIRST_SLACK if packs == 1 else SLACK
    assert len(tried) == packs
    assert limit_bytes * (1 - slack) <= round(factor * bytes_at(level)) <= limit_bytes


def test_a_wrong_estimate_never_breaks_the_limit() -> None:
    def slow(level: float) -> float:
        return 9e6 + bytes_at(level) / 5

    level, tried = search(slow, 11_000_000)
    assert len(tried) <= MAX_PACKS and slow(level) <= 11_000_000
    assert slow(level) > 0.95 * 11_000_000


def test_a_budget_that_is_never_reached_takes_the_finest_steps() -> None:
    assert search(wavy, 10**9) == (LEVELS[0], [LEVELS[0]])


def test_a_budget_that_cannot_be_met_names_the_smallest_size() -> None:
    smallest = round(wavy(LEVELS[1]))
    with pytest.raises(UserError, match="coarsest steps, more than the budget of 4,000"):
        search(wavy, 4000)
    with pytest.raises(UserError, match=f"take {smallest:,} bytes"):
        search(wavy, smallest - 1)
    assert search(wavy, smallest)[0] == pytest.approx(LEVELS[1], rel=1e-6)


def test_steps_that_cannot_be_coarser_are_packed_once() -> None:
    tried: list[float] = []
    with pytest.raises(UserError, match="take 70,000 bytes"):
        finest_fitting(1000, lambda level: tried.append(level) or 70_000, bytes_at, LEVELS)
    assert tried == [LEVELS[1]]


@pytest.mark.parametrize("limit_bytes", [1, 100, LEAST_SLACK_BYTES, LEAST_SLACK_BYTES + 1, 1000])
def test_a_budget_below_the_slack_is_refused_like_any_other(limit_bytes: int) -> None:
    tried: list[float] = []
    with pytest.raises(UserError, match=f"take 70,000 bytes .* the budget of {limit_bytes:,};"):
        finest_fitting(limit_bytes, lambda level: tried.append(level) or 70_000, bytes_at, LEVELS)
    assert tried == [LEVELS[1]]


@pytest.mark.parametrize(("limit_bytes", "size"), [(1, 1), (100, 7), (256, 256), (300, 300)])
def test_what_fits_a_tiny_budget_is_kept(limit_bytes: int, size: int) -> None:
    assert finest_fitting(limit_bytes, lambda level: size, lambda level: size, LEVELS) > 0
