"""Warns if the moving average of the weights does not suit the length of the run.

An average over more steps than the run has still contains the initial weights, and it is packed.
"""

import math
from pathlib import Path

from fairway.config.settings import OptimConfig, TrainConfig
from fairway.train.steps import STEPS, read_steps

# The allowed share of the initial weights in the average, and its allowed loss against the last
# weights: seeds of one recipe differ by more.
_INITIAL_SHARE, _WORSE_SHARE = 0.01, 0.002
# No horizon that was tried on short and long runs was longer.
_LONGEST_SHARE = 0.063


def initial_share(optim: OptimConfig, steps: int) -> float:
    """Return the share of the initial weights in the average after this many steps."""
    if optim.ema_decay is not None:
        return float(optim.ema_decay**steps)
    assert optim.ema_share is not None
    return math.exp(-1.0 / optim.ema_share)


def known_steps(train: TrainConfig) -> int:
    """Return the number of steps of a planned run; 0 if only its clock decides."""
    if train.clock == "replay":
        return len(read_steps(Path(train.replay) / STEPS))
    return train.steps if train.clock == "steps" else 0


def lag_warning(optim: OptimConfig, steps: int) -> str:
    """Return a warning if the average does not suit a run of this many steps, else ''."""
    if not steps:
        return ""
    share = initial_share(optim, steps)
    if share <= _INITIAL_SHARE:
        return ""
    return (
        f"the weight average, which is packed, still holds {share:.1%} of the initial weights "
        f"after {steps:,} steps: {_remedy(optim, steps)}"
    )


def loss_warning(optim: OptimConfig, steps: int, raw_bpb: float, ema_bpb: float) -> str:
    """Return a warning if the average scores worse than the last weights, else ''."""
    if ema_bpb <= raw_bpb * (1 + _WORSE_SHARE):
        return ""
    return (
        f"the weight average, which is packed, scores {ema_bpb:.4f} bpb and the last weights "
        f"{raw_bpb:.4f}: {_remedy(optim, steps)}"
    )


def _remedy(optim: OptimConfig, steps: int) -> str:
    if optim.ema_decay is None:
        assert optim.ema_share is not None
        setting, share = f"optim.ema_share {optim.ema_share:g}", optim.ema_share
    else:
        setting = f"optim.ema_decay {optim.ema_decay:g}"
        share = 1.0 / (1.0 - optim.ema_decay) / max(1, steps)
    return (
        f"{setting} is too long for this run; train with --set optim.ema_decay=none --set "
        f"optim.ema_share={min(_LONGEST_SHARE, share / 2):.2g}"
    )
