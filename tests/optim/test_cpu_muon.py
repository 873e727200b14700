"""The loop before Muon's products equals the plain steps in float64, at odd sizes and extremes."""

from types import SimpleNamespace

import pytest
import torch

from fairway.base import floats
from fairway.config.settings import OptimConfig
from fairway.model.kinds import matrix, ones, scalar
from fairway.train import cpu_muon, muon, rules

SHAPES = [(3, 7, 40), (1, 33, 128), (2, 1, 1), (2, 5, 2500)]


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_nesterov(shape: tuple[int, int, int], dtype: torch.dtype, size: float) -> None:
    generator = torch.Generator().manual_seed(0)
    grads, buffers = (torch.randn(shape, generator=generator) * size for _ in range(2))
    grads[0, 0], buffers[0, 0] = 0.0, 0.0
    scale = torch.tensor([0.37])
    kept, exact = buffers.clone(), buffers.double()
    out, wanted = torch.empty(shape, dtype=dtype), torch.empty(shape, dtype=torch.float64)
    cpu_muon.loop_nesterov(grads, kept, scale, 0.9, out)
    rules.nesterov(grads.double(), exact, scale.double(), 0.9, wanted)
    torch.testing.assert_close(kept.double(), exact, rtol=1e-6, atol=1e-6 * size)
    rounding = 2**-8 if dtype == torch.bfloat16 else 1e-6
    if size < 1e-20:
        # The square of a row's length is nothing in float32: such a row is divided by a constant.
        wanted = exact * 0
    largest = wanted.abs().max().item()
    torch.testing.assert_close(out.double(), wanted, rtol=rounding, atol=1e-6 * largest + 1e-22)
    assert not out[0, 0].any()


def test_bits_do_not_depend_on_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(floats, "_LEAST", 1)
    before, found = torch.get_num_threads(), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        grads = torch.randn(3, 7, 40, generator=torch.Generator().manual_seed(0))
        kept, out = torch.ones_like(grads), torch.empty_like(grads)
        cpu_muon.loop_nesterov(grads, kept, torch.ones(1), 0.9, out)
        found.append((kept, out))
    torch.set_num_threads(before)
    for kept, out in found[1:]:
        assert torch.equal(kept, found[0][0]) and torch.equal(out, found[0][1])


def test_a_model_on_a_cpu_is_moved_by_the_loop_and_one_in_float64_is_not() -> None:
    for dtype, wanted in ((torch.float32, cpu_muon.loop_nesterov), (torch.float64, rules.nesterov)):
        model = torch.nn.Module()
        model.blocks = torch.nn.ModuleList([torch.nn.Linear(3, 4, dtype=dtype)])
        model.compute_dtype = torch.float32
        model.declares = {"weight": matrix(""), "bias": scalar(ones)}
        model.operations = SimpleNamespace(fused=False)
        [bank] = muon.Optimisers(model, OptimConfig()).muon.banks
        assert bank.nesterov is wanted
