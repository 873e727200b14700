"""Muon's iteration, pinned numbers, the groups of all parameters, and what settings change."""

import math
from dataclasses import replace

import pytest
import torch
from tiny import muon_update
from torch import nn

from fairway.config.settings import ModelConfig, OptimConfig
from fairway.model.gpt import build
from fairway.model.kinds import ones, scalar
from fairway.model.operations import PLAIN
from fairway.train.muon import Muon, Optimisers, in_stages
from fairway.train.rules import POLAR_EXPRESS, coefficients, orthogonalise

CONFIG = OptimConfig()
TINY = ModelConfig(
    vocab_size=260, num_layers=2, dim=16, num_heads=2, num_kv_heads=1, mlp_dim=32, rope_dims=4,
    parallel_from=1, loop_first=0, loop_last=1, loop_extra=1,
)  # fmt: skip


def test_orthogonalise_brings_singular_values_near_one() -> None:
    u = torch.randn(1, 48, 96, generator=torch.Generator().manual_seed(1))
    values = torch.linalg.svdvals(orthogonalise(u, coefficients(CONFIG))[0].float())
    assert values.min() > 0.6 and values.max() < 1.3


@pytest.mark.parametrize("shape", [(1, 24, 40), (3, 41, 24), (2, 31, 31)])
def test_fixed_coefficients_are_the_records_loop(shape: tuple[int, ...]) -> None:
    """Word for word the loop that made the golden losses: not one bit may move."""
    u = torch.randn(shape, generator=torch.Generator().manual_seed(3)).bfloat16()
    x = u / (u.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    for _ in range(5):
        gram = x @ x.mT
        x = torch.baddbmm(
            x, torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), x, beta=3.4445
        )
    assert torch.equal(orthogonalise(u, coefficients(CONFIG)), x.mT if tall else x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_on_a_cpu_are_those_it_has(dtype: torch.dtype) -> None:
    """A CPU that computes in float32 has no products of bfloat16, or slow ones."""
    model = build(TINY)
    model.set_compute(dtype, "plain")
    assert {bank.updates_PRC.dtype for bank in Optimisers(model, CONFIG).muon.banks} == {dtype}
    u = torch.randn(2, 24, 40, generator=torch.Generator().manual_seed(3)).to(dtype)
    got, exact = (orthogonalise(x, coefficients(CONFIG)).double() for x in (u, u.double()))
    bound = {torch.float32: 1e-5, torch.bfloat16: 0.05}[dtype]
    assert (got - exact).norm() / exact.norm() < bound


def test_polar_express_lands_where_the_specification_says() -> None:
    """Algorithms.md 3.2, in float64: the iteration acts on the singular values alone."""
    u = torch.randn(512, 512, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    values = torch.linalg.svdvals(u)
    values /= values.square().sum().sqrt()
    for a, b, c in POLAR_EXPRESS:
        values = a * values + b * values**3 + c * values**5
    assert values.mean() == pytest.approx(0.996, abs=0.01)
    assert values.min() > 0.0 and values.max() == pytest.approx(1.14, abs=0.01)
    config = replace(CONFIG, newton_schulz="polar_express")
    got = torch.linalg.svdvals(orthogonalise(u.float()[None], coefficients(config))[0].float())
    assert got.mean() == pytest.approx(float(values.mean()), abs=0.01) and got.max() < 1.2


def test_rows_are_normalised_first() -> None:
    grads = torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(2))
    scaled = grads * torch.logspace(-3, 3, 8)[None, :, None]
    a, b = (muon_update(g, torch.zeros(1, 8, 8), 0.0, CONFIG).float() for g in (grads, scaled))
    assert (a - b).norm() / a.norm() < 0.02


def test_step_on_fixed_numbers() -> None:
    # With one column the row norms leave signs, whose matrix has a single singular value; after
    # scaling it is 1, and the iteration acts on it alone. The factor sqrt(4 / 1) meets 4 rows.
    value = 1.0
    for _ in range(5):
        value = 3.4445 * value - 4.7750 * value**3 + 2.0315 * value**5
    weight = nn.Parameter(torch.tensor([[1.0], [2.0], [-1.0], [0.5]]))
    weight.grad = torch.tensor([[0.3], [-0.1], [2.0], [0.7]])
    muon = Muon([("w", weight)], replace(CONFIG, matrix_wd=0.5))
    muon.banks[0].collect()
    muon.propose(torch.ones(1), mu=0.9)
    muon.apply(lr=0.1)
    update = torch.tensor([[1.0], [-1.0], [1.0], [1.0]])
    moved = (torch.tensor([[1.0], [2.0], [-1.0], [0.5]]) * 0.95 - weight.detach()) / 0.1
    scale = float(moved.norm() / update.norm())
    assert scale == pytest.approx(value, rel=0.03)
    torch.testing.assert_close(moved, update * scale, atol=0.01, rtol=0.01)
    torch.testing.assert_close(
        dict(muon.named_state())["muon.w"], torch.tensor([[0.3], [-0.1], [2.0], [0.7]])
    )


@pytest.mark.parametrize("world", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("count", [1, 3, 11, 22])
def test_stages_cover_every_matrix_and_pad_no_more_than_one_bank(count: int, world: int) -> None:
    parts = [list(range(count))[part] for part in in_stages(count, world)]
    assert [place for part in reversed(parts) for place in part] == list(range(count))
    padded = [-(-len(part) // world) * world for part in parts]
    assert sum(padded) == -(-count // world) * world
    assert len(parts) <= (3 if world > 1 else 1)


def test_every_parameter_is_in_one_group() -> None:
    for config in (replace(TINY, smear=True, gate_features=3), TINY):
        model = build(config)
        optimisers = Optimisers(model, CONFIG)
        muon = [name.removeprefix("muon.") for name, _ in optimisers.muon.named_state()]
        assert sorted(muon + optimisers.adam_names) == sorted(
            n for n, _ in model.named_parameters()
        )
    assert len(muon) == 12


def losses(config: OptimConfig, count: int = 4) -> list[float]:
    model = build(TINY, seed=1)
    model.set_looping(True)
    optimisers = Optimisers(model, config)
    x = torch.randint(0, 260, (4, 17), generator=torch.Generator().manual_seed(0))
    out = []
    for step in range(count):
        loss = model(x[:, :-1], x[:, 1:])
        torch.autograd.backward(loss)
        optimisers.step(1.0, step)
        out.append(loss.item())
    return out


CHANGES = [
    {"matrix_lr": 0.1}, {"matrix_wd": 5.0}, {"momentum_start": 0.5, "momentum": 0.5},
    {"momentum_warmup_steps": 1},
    {"newton_schulz": "polar_express"},
    {"embed_lr": 0.1}, {"scalar_lr": 0.5},
    {"beta2": 0.1}, {"grad_clip": 1e-3},
    {"cautious": True}, {"row_beta": 0.9},
    {"momentum_buffers": 4},
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_every_optimiser_setting_has_an_effect(change: dict[str, float]) -> None:
    assert losses(replace(CONFIG, **change)) != losses(CONFIG)


def test_clip_off_reports_the_norm_and_keeps_it() -> None:
    weight = nn.Parameter(torch.zeros(3))
    weight.grad = torch.tensor([3.0, 4.0, 0.0])
    holder = nn.Module()
    holder.register_parameter("gain", weight)
    holder.declares, holder.operations = {"gain": scalar(ones)}, PLAIN
    holder.compute_dtype = torch.float32
    optimisers = Optimisers(holder, replace(CONFIG, grad_clip=0.0))
    assert float(optimisers.step(1.0, 0)) == pytest.approx(5.0)
    # AdamW's first step is the learning rate times the sign: only its moments show the scale.
    assert optimisers.state()["adam.exp_avg.gain"].tolist() == pytest.approx([0.3, 0.4, 0.0])


def test_the_clip_bounds_the_norm_over_all_parameters() -> None:
    """Matrices, float32 scalars and the bfloat16 embedding are scaled by one number."""
    model = build(TINY)
    optimisers = Optimisers(model, replace(CONFIG, grad_clip=0.5))
    generator = torch.Generator().manual_seed(0)
    for weight in model.parameters():
        weight.grad = torch.randn(weight.shape, generator=generator).to(weight.dtype)
    grads = {n: w.grad.float() for n, w in model.named_parameters() if w.grad is not None}
    wanted = math.sqrt(sum(float(g.double().square().sum()) for g in grads.values()))
    assert float(optimisers.step(0.0, 0)) == pytest.approx(wanted, rel=1e-5)
    state = optimisers.state()
    for name, grad in grads.items():
        matrix = f"muon.{name}" in state
        got = state[f"muon.{name}"] if matrix else state[f"adam.exp_avg.{name}"].float() / 0.1
        # The embedding's moments are kept in bfloat16.
        bound = 0.01 if model.get_parameter(name).dtype == torch.bfloat16 else 1e-5
        torch.testing.assert_close(got, grad * (0.5 / wanted), rtol=bound, atol=1e-7)


def test_matrices_move_as_one_by_one() -> None:
    """Weights are views of a stack that one kernel moves: each must get its own update."""
    model = build(TINY, 2)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    optimisers = Optimisers(model, replace(CONFIG, grad_clip=0.0, matrix_wd=0.3))
    x = torch.randint(0, 260, (4, 17), generator=torch.Generator().manual_seed(0))
    torch.autograd.backward(model(x[:, :-1], x[:, 1:]))
    grads = {n: w.grad.clone() for n, w in model.named_parameters() if w.grad is not None}
    optimisers.step(0.5, 0)
    for bank in optimisers.muon.banks:
        for name in bank.names:
            one = muon_update(grads[name][None], torch.zeros_like(grads[name])[None], 0.92, CONFIG)
            wanted = before[name] * (1 - 0.011 * 0.3) - 0.011 * one[0].float()
            torch.testing.assert_close(model.get_parameter(name), wanted, atol=2e-4, rtol=0)


def test_a_parameter_without_gradient_is_noticed() -> None:
    optimisers = Optimisers(build(TINY), CONFIG)
    with pytest.raises(AssertionError, match="received no gradient"):
        optimisers.step(1.0, 0)


def test_overfits_one_batch() -> None:
    values = losses(replace(CONFIG, matrix_lr=0.05, momentum_warmup_steps=0, momentum=0.9), 60)
    assert values[-1] < 0.3 * values[0], values[::10]


def test_state_round_trip() -> None:
    model, other = build(TINY, 1), build(TINY, 1)
    a, b = Optimisers(model, CONFIG), Optimisers(other, CONFIG)
    x = torch.randint(0, 260, (2, 9), generator=torch.Generator().manual_seed(0))
    for step in range(3):
        torch.autograd.backward(model(x[:, :-1], x[:, 1:]))
        a.step(1.0, step)
    with torch.no_grad():
        for mine, theirs in zip(other.parameters(), model.parameters(), strict=True):
            mine.copy_(theirs)
    b.restore({name: value.clone() for name, value in a.state().items()})
    for net, optimisers in ((model, a), (other, b)):
        torch.autograd.backward(net(x[:, :-1], x[:, 1:]))
        optimisers.step(0.5, 3)
    for mine, theirs in zip(other.parameters(), model.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_a_step_counts_as_a_change_of_every_parameter() -> None:
    """Copies of weights are renewed by their version, which banks and fused AdamW do not count."""
    model = build(TINY)
    model.set_looping(True)
    optimisers = Optimisers(model, CONFIG)
    torch.autograd.backward(model(*torch.randint(0, 260, (2, 2, 9)).unbind()))
    before = {name: weight._version for name, weight in model.named_parameters()}
    optimisers.step(1.0, 0)
    assert all(w._version > before[name] for name, w in model.named_parameters())
