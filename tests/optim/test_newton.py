"""Newton-Muon: gradients times inverse second moments of inputs, on any number of ranks."""

import itertools
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from by_threads import CONFIG, FIXED, gradients, is_matrix, plain_update, together, walk, wide
from small_run import FEW
from torch import Tensor

from fairway.config.settings import Config
from fairway.data.folder import DataFolder
from fairway.machine.plan import make_plan
from fairway.machine.ranks import Ranks
from fairway.model.gpt import build
from fairway.quantise.calibrate import collect_hessians
from fairway.train import inputs, loop, rules
from fairway.train.loop import Training, TrainingText, train
from fairway.train.muon import Optimisers

DAMPING = 0.3
BASE = replace(CONFIG, momentum_start=0.5, momentum=0.5, newton=DAMPING)


def moments(step: int, share: tuple[int, int] = (0, 1)) -> dict[str, Tensor]:
    """Return second moments of drawn inputs, or what one of several ranks sees of them."""
    generator = torch.Generator().manual_seed(50 + step)
    found = {}
    for name, weight in wide().named_parameters():
        if is_matrix(name):
            x = torch.randn(60, weight.shape[1], generator=generator, dtype=torch.float64)
            x = x * torch.logspace(0, -2, weight.shape[1], dtype=torch.float64)
            own = x[share[0] :: share[1]]
            found[name] = own.T @ own / len(x)
    return found


def look(optimisers: Optimisers, step: int, ranks: Any) -> None:
    if step != 1:
        optimisers.look(moments(step, (ranks.rank, ranks.world)))


def by_formulas(steps: int) -> dict[str, Tensor]:
    weights = {n: w.detach().clone() for n, w in wide().named_parameters() if is_matrix(n)}
    buffers = {n: torch.zeros_like(w) for n, w in weights.items()}
    seen = {n: torch.zeros(w.shape[1], w.shape[1]).double() for n, w in weights.items()}
    for step in range(steps):
        for name, weight in weights.items():
            if step != 1:
                seen[name] = 0.75 * seen[name] + 0.25 * moments(step)[name]
            mean = seen[name].trace() / len(seen[name])
            damped = seen[name] / mean + DAMPING * torch.eye(len(seen[name])).double()
            grad = gradients(step)[name] @ torch.linalg.inv(damped)
            update, buffers[name] = plain_update(grad, buffers[name], 0.5, FIXED)
            lr = 0.5 * BASE.matrix_lr
            weights[name] = weight * (1 - lr * BASE.matrix_wd) - lr * update
    return weights


@pytest.mark.long
@pytest.mark.parametrize("world", [1, 3])
def test_gradients_meet_inverse_moments(world: int) -> None:
    wanted = by_formulas(3)
    for weights, _, _ in together(world, lambda ranks: walk(ranks, BASE, range(3), look=look)):
        for name, weight in wanted.items():
            torch.testing.assert_close(weights[name], weight, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize(("before", "after"), [(1, 3), (3, 1)])
def test_what_is_kept_goes_on_with_another_number_of_ranks(before: int, after: int) -> None:
    kept = together(before, lambda ranks: walk(ranks, BASE, range(1), look=look))[0]
    wanted = by_formulas(2)

    def go_on(ranks: Any) -> Any:
        return walk(ranks, BASE, range(1, 2), kept, look)

    for weights, _, _ in together(after, go_on):
        for name, weight in wanted.items():
            torch.testing.assert_close(weights[name], weight, rtol=1e-8, atol=1e-9)


def test_inverses_of_nothing_and_of_few_inputs_are_finite() -> None:
    x = torch.randn(3, 40, generator=torch.Generator().manual_seed(0))
    given = torch.stack([torch.zeros(40, 40), 1e6 * x.T @ x, 1e-6 * x.T @ x])
    found = rules.inverses(given, 1e-3)
    assert not found[0].any() and found.isfinite().all()
    # The size of the inputs means nothing.
    torch.testing.assert_close(found[1], found[2], rtol=1e-2, atol=0.5)
    exact = torch.linalg.inv(given[1].double() + 1e-3 * given[1].diagonal().mean() * torch.eye(40))
    exact *= given[1].diagonal().mean()
    assert (found[1] - exact).norm() < 1e-2 * exact.norm()


# ---------------------------------------------------------------------------------------------
# In a training


def run(
    config: Config, data: Path, folder: Path, collect: Any = collect_hessians, resume: bool = False
) -> Training:
    folder.mkdir(exist_ok=True)
    source, plan = DataFolder.open(data), make_plan(config.runtime)
    text = TrainingText(source.train_shards(), source.bytes_per_token)
    plan.apply()
    say = lambda text: None  # noqa: E731
    return train(
        config, plan, Ranks(), text, folder, lambda model: 1, say, resume=resume, collect=collect
    )


@pytest.mark.long
def test_a_training_looks_at_its_own_tokens_and_resumes_to_the_bit(
    tiny: Callable[..., Config], data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "INPUTS_EVERY", 4)
    monkeypatch.setattr(loop, "INPUTS_TOKENS", 128)
    config = tiny(*FEW, "optim.newton=0.1", "train.warmup_steps=0")
    looked: list[Any] = []

    def noted(model: Any, batches: Any, names: Any) -> dict[str, Tensor]:
        assert model.training
        looked.append([tuple(ids.shape) for ids in batches])
        return collect_hessians(model, batches, names)

    whole = run(config, data_folder, tmp_path / "whole", noted)
    assert looked == [[(2, 64)]] * 3
    named = dict(build(config.model).named_parameters())
    state = whole.optimisers.state()
    matrices = [key.removeprefix("muon.") for key in state if key.startswith("muon.")]
    for name in matrices:
        moments_CC = state[f"muon_inputs.{name}"]
        assert moments_CC.shape == (named[name].shape[1],) * 2
        torch.testing.assert_close(moments_CC, moments_CC.T)
        assert torch.linalg.eigvalsh(moments_CC).min() > -1e-5
    step, calls = Training._advance, itertools.count(1)

    def interrupted(self: Training, *how: Any) -> tuple[Tensor, Tensor]:
        if next(calls) == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *how)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "_advance", interrupted)
        with pytest.raises(Exception, match="after step 6; --resume"):
            run(config, data_folder, tmp_path / "parts")
    resumed = run(config, data_folder, tmp_path / "parts", resume=True)
    for name, weight in whole.model.named_parameters():
        assert torch.equal(weight, resumed.model.get_parameter(name)), name
    plain = run(tiny(*FEW, "train.warmup_steps=0"), data_folder, tmp_path / "plain")
    assert any(
        not torch.equal(weight, plain.model.get_parameter(name))
        for name, weight in whole.model.named_parameters()
    )


def test_without_a_way_to_see_inputs_it_is_refused(
    tiny: Callable[..., Config], data_folder: Path, tmp_path: Path
) -> None:
    config = tiny(*FEW, "optim.newton=0.1", "train.warmup_steps=0")
    with pytest.raises(ValueError, match="collects the inputs"):
        run(config, data_folder, tmp_path, inputs.no_inputs)
