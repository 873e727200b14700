"""Learning rate, momentum and weight average as functions of progress and step (#1493)."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from fairway.config.settings import OptimConfig


def lr_multiplier(progress: float, config: OptimConfig) -> float:
    """Return the learning-rate multiplier at a progress in [0, 1].

    1 until the last `warmdown_share` of the run, then linear to 0, but never below `min_lr`.
    """
    share = config.warmdown_share
    if share == 0.0 or progress < 1.0 - share:
        return 1.0
    return max((1.0 - progress) / share, config.min_lr)


def momentum(step: int, config: OptimConfig) -> float:
    """Return Muon's momentum at a step: linear from `momentum_start` over the warm-up steps."""
    warmup = config.momentum_warmup_steps
    ramp = min(step / warmup, 1.0) if warmup else 1.0
    return (1.0 - ramp) * config.momentum_start + ramp * config.momentum


def due(progress: float, stages: Iterable[tuple[int, float]], otherwise: int) -> int:
    """Return the number of the first stage (number, end) that has not ended at a progress."""
    return next((number for number, end in stages if progress < end), otherwise)


def average_decay(advance: float, config: OptimConfig) -> float:
    """Return the weight average's decay for a step that advances the run by `advance`.

    Either a constant per step, as in the records, or exp(-advance / ema_share). With the latter the
    horizon is the same share of short and long runs (0.9965 over 4,550 steps is a share of 0.063).
    """
    if config.ema_decay is not None:
        return config.ema_decay
    assert config.ema_share is not None
    return math.exp(-advance / config.ema_share)


class WeightAverage:
    """A float32 exponential average of weights, starting at the initial weights (#1493)."""

    def __init__(self, parameters: Iterable[tuple[str, Tensor]]) -> None:
        self.live = dict(parameters)
        self.average = {name: value.detach().float().clone() for name, value in self.live.items()}

    @torch.no_grad()
    def update(self, decay: float) -> None:
        """Move the average towards the live weights: e = decay * e + (1 - decay) * p."""
        live = [value.float() for value in self.live.values()]
        torch._foreach_lerp_(list(self.average.values()), live, 1.0 - decay)
