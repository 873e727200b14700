"""What Muon can have beside its recipes equals its formulas in float64, on one rank and on three.

Kernels and loops equal the plain steps at odd sizes and extremes.
"""

import functools
import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from by_threads import CONFIG, FIXED, gradients, is_matrix, plain_update, together, walk, wide
from torch import Tensor

from fairway.config.settings import OptimConfig
from fairway.train import rules

SHAPES = [(3, 7, 40), (1, 33, 128), (2, 1, 1), (2, 40, 7), (2, 5, 2500)]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BASE = replace(CONFIG, momentum_start=0.5, momentum=0.5)


def evened(update: Tensor, squares: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """Return NorMuon's update, neuron by neuron of the longer side, and its new moments."""
    tall = update.shape[0] >= update.shape[1]
    lines = list(update if tall else update.T)
    now = torch.stack([(line**2).mean() for line in lines])
    squares = beta * squares + (1 - beta) * now
    made = torch.stack([line / s.sqrt() for line, s in zip(lines, squares, strict=True)])
    made = made * update.norm() / made.norm()
    return (made if tall else made.T), squares


def ahead(grad: Tensor, means: Any, count: int) -> tuple[Tensor, list[Tensor]]:
    """Return the mean of running means, each seen one step ahead, and the means.

    A momentum of a half has a mean age of 1 step.
    """
    ages = [2.0**m / ((2**count - 1) / count) for m in range(count)]
    assert sum(ages) / count == pytest.approx(1.0)
    means = means if isinstance(means, list) else [torch.zeros_like(grad)] * count
    means = [(age * mean + grad) / (1 + age) for age, mean in zip(ages, means, strict=True)]
    seen = [(age * mean + grad) / (1 + age) for age, mean in zip(ages, means, strict=True)]
    return sum(seen, torch.zeros_like(grad)) / count, means


def moved(weight: Tensor, update: Tensor, lr: float, config: OptimConfig) -> Tensor:
    """Return a weight matrix after decay and update, row by row."""
    weight = weight.clone()
    for w, u in zip(weight, update, strict=True):
        decays = (w * u > 0) | (not config.cautious)
        w.copy_(torch.where(decays, w * (1 - lr * config.matrix_wd), w) - lr * u)
    return weight


@functools.cache
def by_formulas(config: OptimConfig, steps: int) -> dict[str, Tensor]:
    """Return all matrices after some steps at half the rate."""
    weights = {n: w.detach().clone() for n, w in wide().named_parameters() if is_matrix(n)}
    buffers: dict[str, Any] = {n: torch.zeros_like(w) for n, w in weights.items()}
    squares = {n: torch.zeros(max(w.shape)).double() for n, w in weights.items()}
    for step in range(steps):
        for name, grad in gradients(step).items():
            if not is_matrix(name):
                continue
            if config.momentum_buffers > 1:
                grad, buffers[name] = ahead(grad, buffers[name], config.momentum_buffers)
                update, _ = plain_update(grad, torch.zeros_like(grad), 0.0, FIXED)
            else:
                update, buffers[name] = plain_update(grad, buffers[name], 0.5, FIXED)
            if config.row_beta:
                update, squares[name] = evened(update, squares[name], config.row_beta)
            weights[name] = moved(weights[name], update, 0.5 * config.matrix_lr, config)
    return weights


CHANGES: dict[str, dict[str, Any]] = {
    "none": {},
    "cautious": {"cautious": True},
    "even": {"row_beta": 0.95},
    "two means": {"momentum_buffers": 2},
    "six means": {"momentum_buffers": 6},
    "all": {
        "momentum_buffers": 3,
        "cautious": True,
        "row_beta": 0.9,
    },
}


# One rank walks the same lines as three, of which one alone would not notice what is divided.
WORLDS = [
    pytest.param(change, world, marks=() if world == 3 or change == "all" else pytest.mark.slow)
    for change in CHANGES
    for world in (1, 3)
]


@pytest.mark.parametrize(("change", "world"), WORLDS)
def test_matrices_move_by_their_formulas(change: str, world: int) -> None:
    config = replace(BASE, **CHANGES[change])
    wanted = by_formulas(config, 3)
    unchanged = by_formulas(BASE, 3)
    for weights, _, _ in together(world, lambda ranks: walk(ranks, config, range(3))):
        for name, weight in wanted.items():
            torch.testing.assert_close(weights[name], weight, rtol=1e-9, atol=1e-10)
    changed = [name for name in wanted if not torch.equal(wanted[name], unchanged[name])]
    assert bool(changed) == bool(CHANGES[change])


@pytest.mark.parametrize(("before", "after"), [(1, 3), (3, 1)])
def test_what_is_kept_goes_on_with_another_number_of_ranks(before: int, after: int) -> None:
    config = replace(BASE, **CHANGES["all"])
    kept = together(before, lambda ranks: walk(ranks, config, range(2)))[0]
    [whole] = together(1, lambda ranks: walk(ranks, config, range(3)))
    assert {key.partition(".")[0] for key in whole[1]} == {"muon", "muon_rows", "adam"}
    for weights, state, _ in together(after, lambda ranks: walk(ranks, config, range(2, 3), kept)):
        for found, wanted in ((weights, whole[0]), (state, whole[1])):
            assert found.keys() == wanted.keys()
            for name, value in wanted.items():
                torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-10)


# ---------------------------------------------------------------------------------------------
# Kernels and loops


def kernel(name: str) -> Callable[..., None]:
    fused = pytest.importorskip("fairway.train.fused_muon", reason="the kernels need Triton")
    found: Callable[..., None] = getattr(fused, name)
    return found


def drawn(shape: tuple[int, ...], seed: int, size: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return size * torch.randn(shape, generator=generator)


@pytest.mark.parametrize("cautious", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_move_by_rows(shape: tuple[int, int, int], cautious: bool) -> None:
    weights, updates = drawn(shape, 0, 3.0), drawn(shape, 1).bfloat16()
    # A row without update, one without weights, and a huge one.
    updates[0, 0], weights[-1, -1] = 0.0, 0.0
    weights[:, shape[1] // 2] *= 1e6
    ours, plain, exact = weights.to(DEVICE), weights.clone(), weights.double()
    kernel("fused_move")(ours, updates.to(DEVICE), 0.02, 0.3, cautious)
    rules.move(plain, updates, 0.02, 0.3, cautious)
    rules.move(exact, updates.double(), 0.02, 0.3, cautious)
    for found in (ours.cpu(), plain):
        assert found.isfinite().all()
        close = 4e-6 * weights.double().norm(dim=-1, keepdim=True) + 1e-6
        assert ((found.double() - exact).abs() <= close).all()


@pytest.mark.parametrize("count", [2, 5])
@pytest.mark.parametrize("shape", SHAPES)
def test_several_running_means(shape: tuple[int, int, int], count: int) -> None:
    K, R, C = shape
    grads, means, scale = drawn(shape, 0), drawn((K, R, count, C), 1), torch.tensor([0.37])
    grads[0, 0], means[0, 0] = 0.0, 0.0
    grads[-1, -1] *= 1e6
    exact, wanted = means.double(), torch.empty(shape, dtype=torch.float64)
    rules.several(grads.double(), exact, scale.double(), 0.966, wanted)
    for rows, device in ((rules.several, "cpu"), (kernel("fused_several"), DEVICE)):
        kept, out = means.clone().to(device), torch.empty(shape, device=device)
        rows(grads.clone().to(device), kept, scale.to(device), 0.966, out)
        torch.testing.assert_close(kept.cpu().double(), exact, rtol=2e-5, atol=1e-5)
        torch.testing.assert_close(out.cpu().double(), wanted, rtol=2e-5, atol=1e-5)
        assert not out[0, 0].any()


def test_ages_double_and_have_the_mean_age_of_the_momentum() -> None:
    for mu in (0.0, 0.5, 0.93, 0.9999):
        for count in (1, 2, 6, 16):
            ages = [decay / (1 - decay) for decay in rules.decays(mu, count)]
            assert sum(ages) / count == pytest.approx(mu / (1 - mu), rel=1e-6)
            assert all(b == pytest.approx(2 * a) for a, b in itertools.pairwise(ages))


def test_evening_out_meets_matrices_of_nothing() -> None:
    x, squares = torch.zeros(2, 4, 3), torch.zeros(2, 4, 1)
    x[1, 0] = 1.0
    factors = rules.balance(x, squares, 0.9)
    assert (x * factors).isfinite().all()
    # Rows of nothing count nothing: the norm of the matrix stays.
    assert float((x * factors)[1].norm()) == pytest.approx(float(x[1].norm()), rel=1e-6)
