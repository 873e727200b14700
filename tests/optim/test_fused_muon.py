"""Muon's GPU kernels equal its plain steps at odd sizes, extremes included.

Without a GPU they run in Triton's interpreter, which truncates to bfloat16 where a GPU rounds.
"""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from fairway.config.settings import OptimConfig
from fairway.model.kinds import matrix, ones, scalar
from fairway.train import cpu_muon, muon, rules

pytest.importorskip("triton", reason="the kernels need Triton")

from fairway.train import fused_muon

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHAPES = [(3, 7, 40), (1, 33, 128), (2, 1, 1), (2, 5, 2500)]


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


@pytest.mark.parametrize("shape", SHAPES)
def test_nesterov(shape: tuple[int, int, int]) -> None:
    grads, buffers, scale = randn(*shape, seed=0), randn(*shape, seed=1), randn(1, seed=2).abs()
    grads[0, 0], buffers[0, 0] = 0.0, 0.0
    grads[-1, -1] *= 1e6
    ours, plain, mine = buffers.clone(), buffers.clone(), grads.clone()
    out = [torch.empty(shape, dtype=torch.bfloat16, device=DEVICE) for _ in range(2)]
    fused_muon.fused_nesterov(mine, ours, scale, 0.9, out[0])
    assert torch.equal(mine, grads)
    rules.nesterov(grads, plain, scale, 0.9, out[1])
    torch.testing.assert_close(ours, plain, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(out[0].float(), out[1].float(), rtol=2**-7, atol=1e-6)
    assert not out[0][0, 0].any()


@pytest.mark.parametrize("shape", SHAPES)
def test_move(shape: tuple[int, int, int]) -> None:
    ours, updates = randn(*shape, seed=3) * 100, randn(*shape, seed=4).bfloat16()
    plain = ours.clone()
    fused_muon.fused_move(ours, updates, 0.02, 0.3)
    rules.move(plain, updates, 0.02, 0.3)
    torch.testing.assert_close(ours, plain, rtol=1e-6, atol=1e-6)
    fused_muon.fused_move(ours, updates, 0.0, 0.3)
    torch.testing.assert_close(ours, plain, rtol=1e-6, atol=1e-6)


def test_a_model_of_kernels_is_moved_by_kernels() -> None:
    for fused, kernels in (
        (False, (cpu_muon.loop_nesterov, rules.move)),
        (True, (fused_muon.fused_nesterov, fused_muon.fused_move)),
    ):
        model = torch.nn.Module()
        model.blocks = torch.nn.ModuleList([torch.nn.Linear(3, 4)])
        model.compute_dtype = torch.float32
        model.declares = {"weight": matrix(""), "bias": scalar(ones)}
        model.operations = SimpleNamespace(fused=fused)
        [bank] = muon.Optimisers(model, OptimConfig()).muon.banks
        assert bank.names == ["blocks.0.weight"] and (bank.nesterov, bank.move) == kernels
