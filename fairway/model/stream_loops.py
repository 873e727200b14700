"""Loops for CPUs around the residual stream: the entry of a block, the addition of a branch.

Gradients of weights are sums over rows. They are summed within blocks of a fixed size, then over
the blocks in order, so the bits do not depend on the number of threads.

Shapes: N rows, D columns, P blocks of rows.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fairway.base.floats import ONE, array, each, f32, put, wide
from fairway.base.native import compiled_sums

_BLOCK = 64


def _rows(x: Tensor) -> Any:
    """Return a tensor as rows of its last dimension, an array [N, D]."""
    return array(x.contiguous().view(-1, x.shape[-1]))


def _blocks(rows: int) -> int:
    return -(-rows // _BLOCK)


def _sum(partial: Any) -> Tensor:
    """Return the sum over blocks, by one thread."""
    return torch.from_numpy(partial.sum(0, dtype=np.float64)).float()


# --------------------------------------------------------------------------------------------- The
# entry of a block


@compiled_sums
def _entered(
    x: Any, x0: Any, mix: Any, u: Any, h: Any, inverse: Any, scale: Any, eps: Any, first: Any,
    end: Any,
) -> None:  # fmt: skip
    width = x.shape[1]
    own, other = mix[0], mix[1]
    for n in range(first, end):
        a, b, mixed, out = x[n], x0[n], u[n], h[n]
        for j in range(width):
            put(mixed, j, own[j] * wide(a[j]) + other[j] * wide(b[j]))
        square = f32(0)
        for j in range(width):
            value = wide(mixed[j])
            square += value * value
        inverse[n] = ONE / np.sqrt(f32(square / f32(width)) + f32(eps))
        factor = f32(f32(scale) * inverse[n])
        for j in range(width):
            put(out, j, factor * wide(mixed[j]))


@compiled_sums
def _entered_back(
    x: Any, x0: Any, mix: Any, u: Any, inverse: Any, du: Any, dh: Any, scale: Any, dx: Any,
    dx0: Any, dmix: Any, first: Any, end: Any,
) -> None:  # fmt: skip
    count, width = x.shape
    own, other = mix[0], mix[1]
    for block in range(first, end):
        d_own, d_other = dmix[block, 0], dmix[block, 1]
        d_own[:] = f32(0)
        d_other[:] = f32(0)
        for n in range(block * _BLOCK, min(count, (block + 1) * _BLOCK)):
            a, b, mixed, g, of_h, da, db = x[n], x0[n], u[n], du[n], dh[n], dx[n], dx0[n]
            along = f32(0)
            for j in range(width):
                along += wide(mixed[j]) * wide(of_h[j])
            share = f32(along * inverse[n] * inverse[n] / f32(width))
            factor = f32(f32(scale) * inverse[n])
            for j in range(width):
                t = wide(g[j]) + factor * (wide(of_h[j]) - share * wide(mixed[j]))
                d_own[j] += t * wide(a[j])
                d_other[j] += t * wide(b[j])
                put(da, j, own[j] * t)
                put(db, j, other[j] * t)


def entered(
    x: Tensor, x0: Tensor, mix_2D: Tensor, scale: float, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return u = mix[0] x + mix[1] x0, h = scale u / rms(u), and 1 / rms(u) of every row."""
    u, h = (torch.empty(x.shape, dtype=x.dtype) for _ in range(2))
    x_ND = _rows(x)
    inverse_N = torch.empty(len(x_ND))
    arrays = (x_ND, _rows(x0), _rows(mix_2D.float()), _rows(u), _rows(h), inverse_N.numpy())
    each(len(x_ND), x, _entered, *arrays, float(scale), float(eps))
    return u, h, inverse_N


def entered_back(
    inputs: tuple[Tensor, Tensor, Tensor],
    u: Tensor,
    inverse_N: Tensor,
    grads: tuple[Tensor, Tensor],
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients by the inputs (x, x0, mix) of `entered`, given those by u and h."""
    x, x0, mix_2D = inputs
    dx, dx0 = (torch.empty(x.shape, dtype=x.dtype) for _ in range(2))
    x_ND = _rows(x)
    partial_P2D = np.empty((_blocks(len(x_ND)), 2, x.shape[-1]), np.float32)
    given = (x_ND, _rows(x0), _rows(mix_2D.float()), _rows(u), inverse_N.numpy())
    results = (_rows(dx), _rows(dx0), partial_P2D)
    arrays = (*given, *map(_rows, grads), float(scale), *results)
    each(len(partial_P2D), x, _entered_back, *arrays)
    return dx, dx0, _sum(partial_P2D)


# --------------------------------------------------------------------------------------------- The
# addition of a branch


@compiled_sums
def _added(u: Any, scale: Any, out: Any, to: Any, first: Any, end: Any) -> None:
    for n in range(first, end):
        a, b, row = u[n], out[n], to[n]
        for j in range(row.size):
            put(row, j, wide(a[j]) + scale[j] * wide(b[j]))


@compiled_sums
def _added_back(
    scale: Any, out: Any, grad: Any, d_out: Any, d_scale: Any, first: Any, end: Any
) -> None:
    for block in range(first, end):
        total = d_scale[block]
        total[:] = f32(0)
        for n in range(block * _BLOCK, min(out.shape[0], (block + 1) * _BLOCK)):
            b, g, back = out[n], grad[n], d_out[n]
            for j in range(total.size):
                total[j] += wide(g[j]) * wide(b[j])
                put(back, j, scale[j] * wide(g[j]))


def added(u: Tensor, scale_D: Tensor, out: Tensor) -> Tensor:
    """Return u + scale * out."""
    to = torch.empty(u.shape, dtype=u.dtype)
    u_ND = _rows(u)
    each(len(u_ND), u, _added, u_ND, array(scale_D.float()), _rows(out), _rows(to))
    return to


def added_back(scale_D: Tensor, out: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients by scale and out of `added`; the one by u is `grad`."""
    d_out = torch.empty(out.shape, dtype=out.dtype)
    out_ND = _rows(out)
    partial_PD = np.empty((_blocks(len(out_ND)), out.shape[-1]), np.float32)
    arrays = (array(scale_D.float()), out_ND, _rows(grad), _rows(d_out), partial_PD)
    each(len(partial_PD), out, _added_back, *arrays)
    return _sum(partial_PD), d_out
