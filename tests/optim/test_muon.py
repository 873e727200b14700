"""Muon against a plain float64 version, pinned numbers, and the groups of all parameters."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from fairway.config import ModelConfig, OptimConfig
from fairway.model.gpt import build
from fairway.optim.muon import Muon, Optimisers, muon_update, orthogonalise

CONFIG = OptimConfig()
TINY = ModelConfig(
    vocab_size=260, num_layers=2, dim=16, num_heads=2, num_kv_heads=1, mlp_dim=32, rope_dims=4,
    xsa_layers=2, parallel_from=1, loop_first=0, loop_last=1, loop_extra=1,
)  # fmt: skip


def plain_update(grad: Tensor, buffer: Tensor, mu: float, steps: int) -> tuple[Tensor, Tensor]:
    """Return (update, new buffer) of one matrix in float64, written from the formulas of #1493."""
    buffer = mu * buffer + grad
    u = grad + mu * buffer
    u = u / u.norm(dim=1, keepdim=True)
    rows, columns = u.shape
    x = u / u.norm()
    x = x.T if rows > columns else x
    for _ in range(steps):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    x = x.T if rows > columns else x
    return x * math.sqrt(max(1.0, rows / columns)), buffer


@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (31, 31), (64, 16)])
def test_update_equals_the_plain_one(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    grads = torch.randn(3, *shape, generator=generator)
    buffers = torch.randn(3, *shape, generator=generator)
    wanted = [
        plain_update(g.double(), b.double(), 0.9, 5) for g, b in zip(grads, buffers, strict=True)
    ]
    got = muon_update(grads, buffers, 0.9, CONFIG)
    for index, (update, buffer) in enumerate(wanted):
        torch.testing.assert_close(buffers[index].double(), buffer, atol=1e-5, rtol=1e-5)
        # One bfloat16 rounding per product, five quintic steps: 4 % of the norm.
        error = (got[index].double() - update).norm() / update.norm()
        assert error < 0.05, error


def test_orthogonalise_brings_singular_values_near_one() -> None:
    u = torch.randn(1, 48, 96, generator=torch.Generator().manual_seed(1))
    values = torch.linalg.svdvals(orthogonalise(u, 5)[0].float())
    assert values.min() > 0.6 and values.max() < 1.3


def test_rows_are_normalised_first() -> None:
    grads = torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(2))
    scaled = grads * torch.logspace(-3, 3, 8)[None, :, None]
    a, b = (muon_update(g, torch.zeros(1, 8, 8), 0.0, CONFIG).float() for g in (grads, scaled))
    assert (a - b).norm() / a.norm() < 0.02
    plain = replace(CONFIG, row_normalise=False)
    c = muon_update(scaled, torch.zeros(1, 8, 8), 0.0, plain).float()
    assert (c - a).norm() / a.norm() > 0.2


def test_step_on_fixed_numbers() -> None:
    # With one column the row norms leave signs, whose matrix has a single singular value; after
    # scaling it is 1, and the iteration acts on it alone. The factor sqrt(4 / 1) meets 4 rows.
    value = 1.0
    for _ in range(5):
        value = 3.4445 * value - 4.7750 * value**3 + 2.0315 * value**5
    weight = nn.Parameter(torch.tensor([[1.0], [2.0], [-1.0], [0.5]]))
    weight.grad = torch.tensor([[0.3], [-0.1], [2.0], [0.7]])
    muon = Muon([("w", weight)], replace(CONFIG, matrix_wd=0.5))
    muon.step(lr=0.1, mu=0.9)
    update = torch.tensor([[1.0], [-1.0], [1.0], [1.0]])
    moved = (torch.tensor([[1.0], [2.0], [-1.0], [0.5]]) * 0.95 - weight.detach()) / 0.1
    scale = float(moved.norm() / update.norm())
    assert scale == pytest.approx(value, rel=0.03)
    torch.testing.assert_close(moved, update * scale, atol=0.01, rtol=0.01)
    torch.testing.assert_close(
        muon.buffers[weight.shape][0], torch.tensor([[0.3], [-0.1], [2.0], [0.7]])
    )


def test_every_parameter_is_in_one_group() -> None:
    for config in (
        TINY,
        replace(TINY, tie_embeddings=False, embed_dim=8),
        replace(TINY, skips=False),
    ):
        model = build(config)
        optimisers = Optimisers(model, CONFIG)
        muon = [name for name, _ in optimisers.muon.named_state()]
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
    {"momentum_warmup_steps": 1}, {"newton_schulz_steps": 1}, {"row_normalise": False},
    {"embed_lr": 0.1}, {"embed_wd": 5.0}, {"scalar_lr": 0.5}, {"scalar_wd": 5.0}, {"beta1": 0.1},
    {"beta2": 0.1}, {"eps": 1.0}, {"grad_clip": 1e-3},
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_every_optimiser_setting_has_an_effect(change: dict[str, float]) -> None:
    assert losses(replace(CONFIG, **change)) != losses(CONFIG)


def test_head_rate_moves_an_untied_head() -> None:
    model = build(replace(TINY, tie_embeddings=False))
    optimisers = Optimisers(model, replace(CONFIG, head_lr=0.5))
    x = torch.randint(0, 260, (2, 9), generator=torch.Generator().manual_seed(0))
    torch.autograd.backward(model(x[:, :-1], x[:, 1:]))
    optimisers.step(1.0, 0)
    assert float(model.head.weight.detach().abs().mean()) == pytest.approx(0.5, rel=0.2)


def test_clip_off_reports_the_norm_and_keeps_it() -> None:
    weight = nn.Parameter(torch.zeros(3))
    weight.grad = torch.tensor([3.0, 4.0, 0.0])
    holder = nn.Module()
    holder.register_parameter("gain", weight)
    optimisers = Optimisers(holder, replace(CONFIG, grad_clip=0.0))
    assert optimisers.step(1.0, 0) == pytest.approx(5.0)


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
