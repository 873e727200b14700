"""Schedules as functions of progress and step, against their formulas and the seed's figures."""

import math
from dataclasses import replace

import pytest
import torch

from fairway.config.settings import OptimConfig
from fairway.train.schedule import WeightAverage, average_decay, lr_multiplier, momentum

SEED = OptimConfig()


@pytest.mark.parametrize(
    ("progress", "multiplier"),
    [(0.0, 1.0), (0.2799, 1.0), (0.28, 1.0), (0.64, 0.5), (0.82, 0.25), (1.0, 0.0)],
)
def test_learning_rate_falls_over_the_last_72_percent(progress: float, multiplier: float) -> None:
    assert lr_multiplier(progress, SEED) == pytest.approx(multiplier, abs=1e-12)


def test_learning_rate_floor_and_flat() -> None:
    assert lr_multiplier(0.99, replace(SEED, min_lr=0.1)) == 0.1
    assert lr_multiplier(0.2, replace(SEED, min_lr=0.1)) == 1.0
    assert lr_multiplier(1.0, replace(SEED, warmdown_share=0.0)) == 1.0
    assert lr_multiplier(0.5, replace(SEED, warmdown_share=1.0)) == 0.5


def test_momentum_ramp() -> None:
    assert [momentum(step, SEED) for step in (0, 750, 1500, 9999)] == pytest.approx(
        [0.92, 0.955, 0.99, 0.99]
    )
    assert momentum(0, replace(SEED, momentum_warmup_steps=0)) == 0.99


def test_average_horizon_is_a_share_of_the_run() -> None:
    assert average_decay(0.123, SEED) == 0.9965
    share = replace(SEED, ema_decay=None, ema_share=0.05)
    steps = 1000
    assert average_decay(1 / steps, share) ** (0.05 * steps) == pytest.approx(math.exp(-1))


def test_weight_average_formula() -> None:
    live = torch.tensor([1.0, -2.0], dtype=torch.bfloat16)
    average = WeightAverage([("w", live)])
    expected = live.float().clone()
    for value in (3.0, 5.0):
        live.fill_(value)
        average.update(0.75)
        expected = 0.75 * expected + 0.25 * value
    assert average.average["w"].dtype == torch.float32
    torch.testing.assert_close(average.average["w"], expected)
