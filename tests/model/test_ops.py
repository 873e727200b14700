"""Each lean operation equals its plain formula, forward and backward, at odd sizes and extremes."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fairway.model import ops

TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-5, torch.bfloat16: 4e-2}
COS, SIN = (
    f(torch.arange(7.0)[:, None] * torch.tensor([1.0, 0.3, 0.01])) for f in (torch.cos, torch.sin)
)
NONE = torch.empty(7, 0)


def leaves(shapes: list[tuple[int, ...]], dtype: torch.dtype, size: float) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    values = [torch.randn(shape, generator=generator) * size for shape in shapes]
    return [value.to(dtype).requires_grad_() for value in values]


def compare(
    lean: Callable[..., Tensor], plain: Callable[..., Tensor], inputs: list[Tensor]
) -> None:
    results = []
    for function in (lean, plain):
        copies = [x.detach().clone().requires_grad_() for x in inputs]
        out = function(*copies)
        weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(2))
        torch.autograd.backward((out.float() * weights).sum())
        results.append([out.detach(), *(x.grad for x in copies)])
    for got, wanted in zip(*results, strict=True):
        assert got is not None and wanted is not None
        assert got.dtype == wanted.dtype
        tolerance = TOLERANCE[inputs[0].dtype]
        scale = wanted.float().abs().max().item() + 1e-30
        assert (got.float() - wanted.float()).abs().max().item() <= tolerance * scale


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [1e-3, 1.0, 300.0])
def test_lean_equals_plain(dtype: torch.dtype, size: float) -> None:
    x, y_BTHK, v_BTGK = leaves([(3, 7, 11), (2, 7, 6, 10), (2, 7, 3, 10)], dtype, size)
    gain_H = torch.linspace(0.5, 6.0, 6, requires_grad=True)
    compare(lambda z: ops.norm(z, 0.5), lambda z: ops.norm_plain(z, 0.5), [x])
    compare(lambda z: ops.leaky_square(z, 0.3), lambda z: ops.leaky_square_plain(z, 0.3), [x])
    compare(ops.without_self, ops.without_self_plain, [y_BTHK, v_BTGK])
    for table in ((COS, SIN), (NONE, NONE)):
        compare(
            lambda z, g, table=table: ops.position(z, g, *table),
            lambda z, g, table=table: ops.position_plain(z, g, *table),
            [y_BTHK, gain_H],
        )


@pytest.mark.parametrize("cap", [0.0, 30.0, 100.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [0.1, 100.0])
def test_mean_loss(
    dtype: torch.dtype, cap: float, size: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ops, "LOSS_ROWS", 5)
    (logits_NV,) = leaves([(13, 37)], dtype, size)
    targets_N = torch.arange(13) * 2
    compare(
        lambda z: ops.mean_loss(z, targets_N, cap),
        lambda z: ops.mean_loss_plain(z, targets_N, cap),
        [logits_NV],
    )


def test_zero_rows_stay_finite() -> None:
    zero = torch.zeros(1, 2, 2, 4, requires_grad=True)
    out = ops.norm(zero) + ops.without_self(zero, zero)
    torch.autograd.backward(out.sum())
    assert out.isfinite().all() and zero.grad is not None and zero.grad.isfinite().all()


def test_norm_keeps_dtype_under_autocast() -> None:
    x = torch.randn(2, 8, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert ops.norm(x).dtype == torch.bfloat16
        assert ops.norm_plain(x).dtype == torch.bfloat16
