"""Attention backends agree with the plain reference at odd sizes, forward and backward."""

import pytest
import torch

from fairway.model.attention import BACKENDS, plain

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2}


@pytest.mark.parametrize("name", sorted(set(BACKENDS) - {"plain"}))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 2, 2, 1, 8), (2, 6, 3, 7, 10), (3, 4, 1, 33, 16)])
def test_backend_equals_plain(
    name: str, dtype: torch.dtype, shape: tuple[int, int, int, int, int]
) -> None:
    B, H, G, T, K = shape
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(B, heads, T, K, generator=generator) * 2 for heads in (H, G, G)]
    results = []
    for attend in (BACKENDS[name], plain):
        q, k, v = (z.to(dtype).requires_grad_() for z in values)
        out = attend(q, k, v)
        torch.autograd.backward((out.float() ** 2).sum())
        results.append([out, q.grad, k.grad, v.grad])
    for got, wanted in zip(*results, strict=True):
        assert got is not None and wanted is not None
        scale = wanted.abs().max().item()
        assert (got - wanted).abs().max().item() <= TOLERANCE[dtype] * scale


def test_plain_reads_only_the_past() -> None:
    q, k, v = (torch.randn(1, 2, 5, 4) for _ in range(3))
    out = plain(q, k, v)
    torch.testing.assert_close(out[:, :, 0], v[:, :, 0])
    k[:, :, 3:], v[:, :, 3:] = 9.0, 9.0
    torch.testing.assert_close(plain(q, k, v)[:, :, :3], out[:, :, :3])
