"""The search for the clip multiplier: on made-up sizes here, on real packs in test_packing."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from fairway.base.errors import UserError
from fairway.config.settings import QuantConfig
from fairway.quantise.fit import LARGEST, MAX_PACKS, SLACK, smallest_fitting, with_sigmas
from fairway.quantise.gptq import grid_of

# The seed model: codes that shrink with the entropy of a Gaussian, the rest constant.
WEIGHTS, REST = 31_719_424, 2_650_000


def entropy_bytes(sigmas: float, weights: int = WEIGHTS) -> int:
    return REST + round(weights * math.log2(31 * math.sqrt(2 * math.pi * math.e) / sigmas) / 8)


def wavy_bytes(sigmas: float) -> int:
    """Sizes as a real coder gives them: above the entropy, and not quite smooth."""
    return round(1.013 * entropy_bytes(sigmas) + 900 * math.sin(40 * sigmas))


def search(
    size_at: Callable[[float], int], limit_bytes: int, start: float = 12.85
) -> tuple[float, list[float]]:
    tried: list[float] = []

    def packed(sigmas: float) -> int:
        tried.append(sigmas)
        return size_at(sigmas)

    return smallest_fitting(start, limit_bytes, packed, entropy_bytes), tried


def test_a_model_that_fits_is_packed_once_as_asked() -> None:
    assert search(wavy_bytes, 17_000_000) == (12.85, [12.85])
    assert search(wavy_bytes, wavy_bytes(12.85)) == (12.85, [12.85])


@pytest.mark.parametrize("start", [3.0, 12.83, 12.85, 12.8512])
@pytest.mark.parametrize("limit_bytes", [6_000_000, 12_345_678, 15_000_000, 15_979_823])
def test_few_packs_come_near_the_limit(limit_bytes: int, start: float) -> None:
    sigmas, tried = search(wavy_bytes, limit_bytes, start)
    assert len(tried) == len(set(tried)) <= MAX_PACKS
    size = wavy_bytes(sigmas)
    assert size <= limit_bytes
    near = size >= (1 - SLACK) * limit_bytes or wavy_bytes(sigmas - 0.01) > limit_bytes
    assert sigmas == start or near
    assert sigmas == round(sigmas, 2) or sigmas == start


def test_a_wrong_estimate_costs_packs_but_not_the_limit() -> None:
    # Sizes that fall a third as fast as the estimate says: every first guess misses.
    def slow(sigmas: float) -> int:
        return entropy_bytes(12.85) - (entropy_bytes(12.85) - entropy_bytes(sigmas)) // 3

    limit_bytes = slow(12.85) - 400_000
    sigmas, tried = search(slow, limit_bytes)
    assert len(tried) <= 8
    assert limit_bytes * 0.99 < slow(sigmas) <= limit_bytes


def test_a_step_of_a_hundredth_is_the_finest() -> None:
    def coarse(sigmas: float) -> int:
        return 50_000 if sigmas < 12.8749 else 10_000

    assert search(coarse, 20_000)[0] == pytest.approx(12.88, abs=0.06)


def test_a_limit_that_nothing_meets_is_one_sentence() -> None:
    tried: list[float] = []
    with pytest.raises(UserError) as caught:
        smallest_fitting(12.85, 1000, lambda s: tried.append(s) or 70_000, entropy_bytes)
    assert tried[-1] == LARGEST == 100.0
    assert (
        "take 70,000 bytes even at quant.matrix_sigmas=100, more than pack.limit_bytes 1,000"
        in (str(caught.value))
    )
    assert "\n" not in str(caught.value)


def test_the_multiplier_of_mlps_keeps_its_proportion() -> None:
    quant = QuantConfig(matrix_sigmas=13.0, mlp_sigmas=12.0)
    found = with_sigmas(quant, 26.0)
    assert (found.matrix_sigmas, found.mlp_sigmas) == (26.0, 24.0)
    assert with_sigmas(QuantConfig(), 26.0).mlp_sigmas is None
    weight = torch.ones(99, 99)
    grids = {
        name: grid_of(f"blocks.0.{name}.weight", weight, replace(quant, min_numel=9))
        for name in ("mlp.fc", "mlp.proj", "attn.c_q", "attn.proj")
    }
    assert {name: grid and grid.sigmas for name, grid in grids.items()} == {
        "mlp.fc": 12.0, "mlp.proj": 12.0, "attn.c_q": 13.0, "attn.proj": 13.0
    }  # fmt: skip
