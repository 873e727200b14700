"""The element-wise operations of `ops` as loops for CPUs: one pass over memory in each direction.

A row is read, computed in float32 and rounded once; nothing else is written. Sums over a row use
the order that suits the processor's vector units. A loop that sums must not write: before a loop
that does both, compiled code checks whether the arrays overlap, and sums one by one if they may.
The order of the sum, and its last bit, would then depend on the heap.

Shapes: N rows, D columns; B batch, T time, H query heads, G key/value heads, K head width,
R rotated pairs, V vocabulary. A `flat` array is the memory of a tensor whose last dimension is
dense, accompanied by the strides of its other dimensions.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fairway.base.floats import ONE, array, each, exp, f32, put, wide
from fairway.base.native import compiled_sums

# A shorter vector has no direction; see `ops.without_self_plain`.
_SHORTEST = f32(1e-12)


def _flat(x: Tensor) -> Any:
    """Return the memory of a tensor with a dense last dimension, from its first element on."""
    span = 1 + sum((size - 1) * step for size, step in zip(x.shape, x.stride(), strict=True))
    return array(x.detach().as_strided((span,), (1,)))


def _dense(x: Tensor) -> Tensor:
    """Return a tensor whose last dimension is dense."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def _rows(x: Tensor) -> Any:
    """Return a tensor as rows of its last dimension, an array [N, D]."""
    return array(x.contiguous().view(-1, x.shape[-1]))


# ---------------------------------------------------------------------------------------------
# RMS norm


@compiled_sums
def _norm(x: Any, y: Any, inverse: Any, scale: Any, eps: Any, first: Any, end: Any) -> None:
    width = x.shape[1]
    for n in range(first, end):
        row, out = x[n], y[n]
        square = f32(0)
        for j in range(width):
            value = wide(row[j])
            square += value * value
        inverse[n] = ONE / np.sqrt(f32(square / f32(width)) + f32(eps))
        factor = f32(f32(scale) * inverse[n])
        for j in range(width):
            put(out, j, wide(row[j]) * factor)


@compiled_sums
def _norm_back(x: Any, grad: Any, dx: Any, inverse: Any, scale: Any, first: Any, end: Any) -> None:
    width = x.shape[1]
    for n in range(first, end):
        row, g, out = x[n], grad[n], dx[n]
        along = f32(0)
        for j in range(width):
            along += wide(row[j]) * wide(g[j])
        share = f32(along * inverse[n] * inverse[n] / f32(width))
        factor = f32(f32(scale) * inverse[n])
        for j in range(width):
            put(out, j, factor * (wide(g[j]) - share * wide(row[j])))


def norm(x: Tensor, scale: float, eps: float) -> tuple[Tensor, Tensor]:
    """Return scale * x / rms(x) over the last dimension, and 1 / rms(x) of every row in float32."""
    x_ND = _rows(x)
    y = torch.empty(x.shape, dtype=x.dtype)
    inverse_N = torch.empty(len(x_ND))
    each(len(x_ND), x, _norm, x_ND, _rows(y), inverse_N.numpy(), float(scale), float(eps))
    return y, inverse_N


def norm_back(x: Tensor, grad: Tensor, inverse_N: Tensor, scale: float) -> Tensor:
    """Return the gradient of `norm` by x, given the gradient by its result."""
    x_ND = _rows(x)
    dx = torch.empty(x.shape, dtype=x.dtype)
    arrays = (x_ND, _rows(grad), _rows(dx), inverse_N.numpy())
    each(len(x_ND), x, _norm_back, *arrays, float(scale))
    return dx


# ---------------------------------------------------------------------------------------------
# Queries and keys: norm, gain, rotation


@compiled_sums
def _turn(x: Any, cos: Any, sin: Any) -> None:
    """Rotate in place the pairs (j, j + R) of a float32 row."""
    R = cos.size
    a, b = x[:R], x[R : 2 * R]
    for j in range(R):
        left, right = a[j], b[j]
        a[j] = left * cos[j] + right * sin[j]
        b[j] = right * cos[j] - left * sin[j]


@compiled_sums
def _position(
    x: Any, step: Any, y: Any, out_step: Any, inverse: Any, gain: Any, cos: Any, sin: Any,
    size: Any, eps: Any, first: Any, end: Any,
) -> None:  # fmt: skip
    T, H, K = size
    turned = np.empty(K, np.float32)
    for n in range(first, end):
        b, t = n // T, n % T
        for h in range(H):
            at = b * step[0] + t * step[1] + h * step[2]
            to = b * out_step[0] + t * out_step[1] + h * out_step[2]
            row, out = x[at : at + K], y[to : to + K]
            for j in range(K):
                turned[j] = wide(row[j])
            square = f32(0)
            for j in range(K):
                square += turned[j] * turned[j]
            inverse[n, h] = ONE / np.sqrt(f32(square / f32(K)) + f32(eps))
            factor = f32(gain[h] * inverse[n, h])
            _turn(turned, cos[t], sin[t])
            for j in range(K):
                put(out, j, turned[j] * factor)


@compiled_sums
def _position_back(
    x: Any, step: Any, grad: Any, grad_step: Any, dx: Any, inverse: Any, along: Any, gain: Any,
    cos: Any, back: Any, size: Any, first: Any, end: Any,
) -> None:  # fmt: skip
    # `back` is -sin: it rotates in the other direction.
    T, H, K = size
    turned = np.empty(K, np.float32)
    for n in range(first, end):
        b, t = n // T, n % T
        for h in range(H):
            at = b * step[0] + t * step[1] + h * step[2]
            of = b * grad_step[0] + t * grad_step[1] + h * grad_step[2]
            row, g, out = x[at : at + K], grad[of : of + K], dx[n, h]
            for j in range(K):
                turned[j] = wide(g[j])
            _turn(turned, cos[t], back[t])
            total = f32(0)
            for j in range(K):
                total += turned[j] * wide(row[j])
            along[n, h] = total * inverse[n, h]
            share = f32(along[n, h] * inverse[n, h] / f32(K))
            factor = f32(gain[h] * inverse[n, h])
            for j in range(K):
                put(out, j, factor * (turned[j] - share * wide(row[j])))


def position(
    x_BTHK: Tensor, gain_H: Tensor, cos_TR: Tensor, sin_TR: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Return x normalised per head, times a gain per head, rotated; and 1 / rms of every head.

    The result is stored head by head, [B, H, T, K], as attention reads it.
    """
    B, T, H, K = x_BTHK.shape
    x_BTHK = _dense(x_BTHK)
    y_BTHK = torch.empty(B, H, T, K, dtype=x_BTHK.dtype).transpose(1, 2)
    inverse_NH = torch.empty(B * T, H)
    arrays = (_flat(x_BTHK), _steps(x_BTHK), _flat(y_BTHK), _steps(y_BTHK), inverse_NH.numpy())
    tables = (_float(gain_H, H), *(_float(table, T) for table in (cos_TR, sin_TR)))
    each(B * T, x_BTHK, _position, *arrays, *tables, (T, H, K), float(eps))
    return y_BTHK, inverse_NH


def position_back(
    x_BTHK: Tensor,
    grad_BTHK: Tensor,
    inverse_NH: Tensor,
    gain_H: Tensor,
    cos_TR: Tensor,
    sin_TR: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return the gradients of `position` by x and by the gains, given that by its result."""
    B, T, H, K = x_BTHK.shape
    x_BTHK, grad_BTHK = _dense(x_BTHK), _dense(grad_BTHK)
    dx_BTHK = torch.empty(B, T, H, K, dtype=x_BTHK.dtype)
    along_NH = np.empty((B * T, H), np.float32)
    inputs = (_flat(x_BTHK), _steps(x_BTHK), _flat(grad_BTHK), _steps(grad_BTHK))
    arrays = (*inputs, array(dx_BTHK.view(-1, H, K)), inverse_NH.numpy(), along_NH)
    tables = (_float(gain_H, H), *(_float(table, T) for table in (cos_TR, -sin_TR)))
    each(B * T, x_BTHK, _position_back, *arrays, *tables, (T, H, K))
    # Summed by one thread, in a fixed order.
    return dx_BTHK, torch.from_numpy(along_NH.sum(0, dtype=np.float64)).float()


def _steps(x_BTHK: Tensor) -> tuple[int, int, int]:
    b, t, h, _ = x_BTHK.stride()
    return b, t, h


def _float(x: Tensor, length: int) -> Any:
    """Return a tensor as a contiguous float32 array with this first dimension, for the loops."""
    if x.dtype != torch.float32 or len(x) != length or not x.is_contiguous():
        x = x.detach().float().expand(length, *x.shape[1:]).contiguous()
    return array(x)


# ---------------------------------------------------------------------------------------------
# Exclusive self-attention


@compiled_sums
def _without_self(y: Any, step: Any, v: Any, out: Any, size: Any, first: Any, end: Any) -> None:
    T, H, G, K = size
    unit = np.empty(K, np.float32)
    for n in range(first, end):
        b, t = n // T, n % T
        for g in range(G):
            _unit(v[n, g], unit)
            for h in range(g * (H // G), (g + 1) * (H // G)):
                at = b * step[0] + t * step[1] + h * step[2]
                row, to = y[at : at + K], out[n, h]
                along = f32(0)
                for j in range(K):
                    along += wide(row[j]) * unit[j]
                for j in range(K):
                    put(to, j, wide(row[j]) - along * unit[j])


@compiled_sums
def _unit(v: Any, unit: Any) -> Any:
    """Write v / |v| and return 1 / |v|; shorter vectors count as of the shortest length."""
    for j in range(unit.size):
        unit[j] = wide(v[j])
    square = f32(0)
    for j in range(unit.size):
        square += unit[j] * unit[j]
    length = np.sqrt(square)
    inverse = ONE / (_SHORTEST if length < _SHORTEST else length)
    for j in range(unit.size):
        unit[j] *= inverse
    return inverse


@compiled_sums
def _without_self_back(
    y: Any, step: Any, v: Any, grad: Any, dy: Any, dy_step: Any, dv: Any, size: Any, first: Any,
    end: Any,
) -> None:  # fmt: skip
    # With u = v / |v|, c = y.u and e = g.u: dy = g - e u. The gradient by u is -(c g + e y), summed
    # over all heads; its part orthogonal to u, over |v|, is the gradient by v.
    T, H, G, K = size
    unit, total = np.empty(K, np.float32), np.empty(K, np.float32)
    for n in range(first, end):
        b, t = n // T, n % T
        for g in range(G):
            inverse = _unit(v[n, g], unit)
            total[:] = f32(0)
            both = f32(0)
            for h in range(g * (H // G), (g + 1) * (H // G)):
                at = b * step[0] + t * step[1] + h * step[2]
                to = b * dy_step[0] + t * dy_step[1] + h * dy_step[2]
                row, back, out = y[at : at + K], grad[n, h], dy[to : to + K]
                c, e = f32(0), f32(0)
                for j in range(K):
                    c += wide(row[j]) * unit[j]
                    e += wide(back[j]) * unit[j]
                both += f32(2) * c * e
                for j in range(K):
                    total[j] += c * wide(back[j]) + e * wide(row[j])
                    put(out, j, wide(back[j]) - e * unit[j])
            # A vector without a direction was divided by a constant.
            both = both if inverse * _SHORTEST < ONE else f32(0)
            to_v = dv[n, g]
            for j in range(K):
                put(to_v, j, inverse * (both * unit[j] - total[j]))


def without_self(y_BTHK: Tensor, v_BTGK: Tensor) -> Tensor:
    """Return y minus its part along the position's own value, [B, T, H, K]."""
    B, T, H, K = y_BTHK.shape
    G = v_BTGK.shape[2]
    y_BTHK = _dense(y_BTHK)
    out_BTHK = torch.empty(B, T, H, K, dtype=y_BTHK.dtype)
    v_NGK = array(v_BTGK.contiguous().view(-1, G, K))
    arrays = (_flat(y_BTHK), _steps(y_BTHK), v_NGK, array(out_BTHK.view(-1, H, K)))
    each(B * T, y_BTHK, _without_self, *arrays, (T, H, G, K))
    return out_BTHK


def without_self_back(y_BTHK: Tensor, v_BTGK: Tensor, grad_BTHK: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients by y, in the layout of y, and by v."""
    B, T, H, K = y_BTHK.shape
    G = v_BTGK.shape[2]
    y_BTHK = _dense(y_BTHK)
    dy_BTHK, dv_BTGK = torch.empty_like(y_BTHK), torch.empty(B, T, G, K, dtype=y_BTHK.dtype)
    v_NGK = array(v_BTGK.contiguous().view(-1, G, K))
    grad_NHK = array(grad_BTHK.contiguous().view(-1, H, K))
    results = (_flat(dy_BTHK), _steps(dy_BTHK), array(dv_BTGK.view(-1, G, K)))
    arrays = (_flat(y_BTHK), _steps(y_BTHK), v_NGK, grad_NHK, *results)
    each(B * T, y_BTHK, _without_self_back, *arrays, (T, H, G, K))
    return dy_BTHK, dv_BTGK


# ---------------------------------------------------------------------------------------------
# The MLP's activation


@compiled_sums
def _leaky_square(x: Any, y: Any, leak: Any, first: Any, end: Any) -> None:
    for n in range(first, end):
        row, out = x[n], y[n]
        for j in range(row.size):
            value = wide(row[j])
            root = value if value > 0 else value * f32(leak)
            put(out, j, root * root)


@compiled_sums
def _leaky_square_back(x: Any, grad: Any, dx: Any, leak: Any, first: Any, end: Any) -> None:
    square = f32(f32(leak) * f32(leak))
    for n in range(first, end):
        row, g, out = x[n], grad[n], dx[n]
        for j in range(row.size):
            value = wide(row[j])
            slope = f32(2) * (value if value > 0 else value * square)
            put(out, j, wide(g[j]) * slope)


def leaky_square(x: Tensor, leak: float) -> Tensor:
    """Return x^2 above zero, (leak x)^2 below."""
    x_ND = _rows(x)
    y = torch.empty(x.shape, dtype=x.dtype)
    each(len(x_ND), x, _leaky_square, x_ND, _rows(y), float(leak))
    return y


def leaky_square_back(x: Tensor, grad: Tensor, leak: float) -> Tensor:
    """Return the gradient of `leaky_square` by x, given that by its result."""
    x_ND = _rows(x)
    dx = torch.empty(x.shape, dtype=x.dtype)
    each(len(x_ND), x, _leaky_square_back, x_ND, _rows(grad), _rows(dx), float(leak))
    return dx


# ---------------------------------------------------------------------------------------------
# The loss


@compiled_sums
def _most(z: Any) -> Any:
    """Return the largest number, in 16 lanes: compilers do not vectorise a running maximum."""
    lanes = np.full(16, -np.inf, np.float32)
    whole = z.size // 16
    for block in range(whole):
        part = z[block * 16 : block * 16 + 16]
        for k in range(16):
            lanes[k] = part[k] if part[k] > lanes[k] else lanes[k]
    most = f32(-np.inf)
    for k in range(16):
        most = max(most, lanes[k])
    for j in range(whole * 16, z.size):
        most = max(most, z[j])
    return most


@compiled_sums
def _loss(
    logits: Any, targets: Any, cap: Any, share: Any, loss: Any, grad: Any, first: Any, end: Any
) -> None:
    width = logits.shape[1]
    z, p = np.empty(width, np.float32), np.empty(width, np.float32)
    cap, share = f32(cap), f32(share)
    for n in range(first, end):
        row, out = logits[n], grad[n]
        rate = f32(f32(-2) / cap)
        for j in range(width):
            z[j] = f32(2) * cap / (ONE + exp(f32(wide(row[j]) * rate))) - cap
        most = _most(z)
        for j in range(width):
            p[j] = exp(f32(z[j] - most))
        total = f32(0)
        for j in range(width):
            total += p[j]
        target = targets[n]
        loss[n] = np.log(np.float64(total)) + np.float64(most) - np.float64(z[target])
        factor = f32(share / total)
        # The slope of the cap, 1 - (z / cap)^2.
        rate = f32(ONE / cap)
        for j in range(width):
            part = f32(z[j] * rate)
            put(out, j, p[j] * factor * (ONE - part * part))
        part = f32(z[target] * rate)
        put(out, target, (p[target] * factor - share) * (ONE - part * part))


def mean_loss(logits_NV: Tensor, targets_N: Tensor, cap: float) -> tuple[Tensor, Tensor]:
    """Return the mean cross-entropy in nats of capped logits, float32, and its gradient [N, V].

    Raises IndexError for a target outside the columns.
    """
    low, high = (int(bound) for bound in targets_N.aminmax())
    if low < 0 or high >= logits_NV.shape[1]:
        raise IndexError(f"targets {low} to {high} for {logits_NV.shape[1]} columns of logits")
    grad_NV = torch.empty(logits_NV.shape, dtype=logits_NV.dtype)
    count = len(logits_NV)
    loss_N = np.empty(count, np.float64)
    targets = targets_N.expand(len(logits_NV)).contiguous().numpy()
    arguments = (_rows(logits_NV), targets, float(cap), 1.0 / count, loss_N, _rows(grad_NV))
    each(count, logits_NV, _loss, *arguments)
    # Summed by one thread, in a fixed order.
    return torch.tensor(loss_N.sum() / count, dtype=torch.float32), grad_NV
