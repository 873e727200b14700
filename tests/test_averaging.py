"""A weight average longer than its run is told, with a horizon that suits."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from small_run import FEW, sample_little

from fairway.config.settings import Config, OptimConfig
from fairway.pipeline.averaging import initial_share, lag_warning, loss_warning
from fairway.pipeline.folder import RunFolder
from fairway.pipeline.run import Pipeline
from fairway.recipes import RECIPES, recipe

DECAY = OptimConfig()


def test_the_share_of_the_initial_weights() -> None:
    assert initial_share(DECAY, 12) == pytest.approx(0.9965**12)
    share = OptimConfig(ema_decay=None, ema_share=0.5)
    assert initial_share(share, 12) == initial_share(share, 9999) == pytest.approx(0.1353, abs=1e-4)


@pytest.mark.parametrize(("steps", "warned"), [(0, False), (12, True), (1313, True), (1314, False)])
def test_a_fixed_horizon_is_told_until_the_run_outgrows_it(steps: int, warned: bool) -> None:
    # 0.9965 ** 1313.4 is one hundredth.
    assert bool(lag_warning(DECAY, steps)) == warned


@pytest.mark.parametrize(("share", "warned"), [(0.21, False), (0.22, True), (1, True)])
def test_a_horizon_as_a_share_is_told_whatever_the_steps(share: float, warned: bool) -> None:
    told = lag_warning(OptimConfig(ema_decay=None, ema_share=share), 1000)
    assert bool(told) == warned
    assert not told or f"optim.ema_share {share:g} is too long" in told


@pytest.mark.parametrize("name", RECIPES)
def test_no_recipe_is_warned_of_itself(name: str) -> None:
    assert lag_warning(recipe(name).optim, 4550) == ""


def test_a_worse_average_names_a_shorter_horizon() -> None:
    told = loss_warning(DECAY, 12, 3.6262, 4.7472)
    assert "4.7472 bpb and the last weights 3.6262: optim.ema_decay 0.9965" in told
    found = re.search(r"--set optim.ema_decay=none --set optim.ema_share=(\S+)$", told)
    assert found and lag_warning(OptimConfig(ema_decay=None, ema_share=float(found[1])), 12) == ""
    assert loss_warning(DECAY, 12, 3.6262, 3.63) == ""
    short = OptimConfig(ema_decay=None, ema_share=0.02)
    assert "ema_share=0.01" in loss_warning(short, 12, 1.0, 1.1)


@pytest.mark.long
def test_a_short_run_says_so_before_it_trains_and_when_it_is_scored(
    tiny: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    settings = ("optim.ema_decay=0.9965", "optim.ema_share=none", "ttt.method=off", "prove.bytes=0")
    sample_little(monkeypatch)
    config = tiny(*FEW, *settings, "audit.budget_s=0", "data.val_bytes=300")
    pipeline = Pipeline(config, RunFolder(tmp_path), said.append)
    with pipeline.writing():
        results = pipeline.walk()
    first = next(n for n, line in enumerate(said) if line.startswith("step"))
    lag = [n for n, line in enumerate(said) if "of the initial weights after 12 steps" in line]
    assert len(lag) == 1 and lag[0] < first
    assert "still holds 95.9%" in said[lag[0]]
    assert results["warnings"] == [line for line in said if "which is packed, scores" in line]
    assert len(results["warnings"]) == 1
    assert results["warnings"][0] in (tmp_path / "report.html").read_text()
