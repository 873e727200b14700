"""The clock of training: what it counts, and what it leaves for calibration."""

from collections.abc import Callable

import pytest

from fairway.config.overrides import override
from fairway.config.settings import Config
from fairway.machine.ranks import Ranks
from fairway.recipes import recipe
from fairway.train.clock import Clock, calibration_steps


def test_clock_counts_only_between_start_and_stop(tiny: Callable[..., Config]) -> None:
    clock = Clock(tiny("train.clock=wall", "train.budget_s=100", "train.reserve_s=20"))
    assert clock.progress(5) == 0.0
    clock.elapsed_s = 40.0
    assert clock.progress(0) == 0.5 and clock.seconds() == 40.0
    clock.start()
    assert 40.0 <= clock.seconds() < 41.0
    clock.stop()
    assert clock.seconds() == clock.elapsed_s
    clock.elapsed_s = 80.0
    assert clock.done(0, clock.progress(0))


@pytest.mark.parametrize("world", [1, 2, 8])
def test_clock_leaves_two_steps_and_calibration_within_the_budget(
    world: int, tiny: Callable[..., Config]
) -> None:
    """One process calibrates, however many have shared the step whose seconds are the measure."""
    settings = [
        "train.clock=wall",
        "train.budget_s=100",
        "train.reserve_s=20",
    ]
    batch = tiny().train.batch_tokens
    for more in (0, 1, 10):
        tokens = max(1, 2 * more * batch // world)
        clock = Clock(tiny(*settings, f"quant.calibration_tokens={tokens}"), None, Ranks(0, world))
        clock.elapsed_s = 79.0
        clock.step_s = 21.0 / (2 + more) * 1.01
        assert clock.done(0, clock.progress(0))
        clock.step_s = 21.0 / (2 + more) * 0.99
        assert clock.progress(0) == pytest.approx(79 / 80)
    counted = Clock(tiny())
    assert counted.progress(6) == 0.5 and not counted.done(11, 0.9) and counted.done(12, 1.0)


@pytest.mark.parametrize("world", [1, 2, 4, 8])
def test_clock_of_the_published_run_leaves_its_calibration(world: int) -> None:
    """Sixty-four batches of 98,304 tokens, which one process reads alone: steps by ranks."""
    ranks, config = Ranks(0, world), recipe("pr1858")
    assert calibration_steps(config, ranks, "cuda") == 8 * world
    assert calibration_steps(config, ranks, "cpu") == 4 * world
    trellis = override(config, ["quant.method=trellis", "quant.gradient_tokens=1572864"])
    assert calibration_steps(trellis, ranks, "cuda") == (8 + 2) * world
    few = override(trellis, ["quant.calibration_tokens=786432"])
    assert calibration_steps(few, ranks, "cpu") == (0.5 + 1) * world
    plain = override(config, ["quant.method=round"])
    assert calibration_steps(plain, ranks, "cuda") == 0
