"""Triton kernels around attention: preparation of queries and keys, and XSA.

The notes in `kernels` apply here too. One buffer has queries, keys and values of a position next to
each other: [N, (H + 2 G) K].

Shapes: N rows, B batch, T time, H query heads, G key/value heads, P = H / G, K head width,
R rotated pairs, S programs.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fairway.model.gpu.short import FULL, shortened
from fairway.model.ops import NORM_EPS

# Values of a tile, warps, and programs of the kernel that sums over rows: the fastest on an H200.
_VALUES, _WARPS, _PROGRAMS = 2048, 2, 1056


# ---------------------------------------------------------------------------------------------
# Queries and keys: norm, rotation, gain


@triton.jit
def _turn(cos_ptr, sin_ptr, times, dims, mask, R: tl.constexpr, DTYPE: tl.constexpr):
    """Return cosine and signed sine that combine a dimension and its partner in a rotation."""
    turned = (dims < 2 * R) & mask
    pair = tl.where(dims < R, dims, dims - R)
    cos = tl.load(cos_ptr + times * R + pair, turned, other=1.0)
    sin = tl.load(sin_ptr + times * R + pair, turned, other=0.0)
    cos = cos.to(DTYPE).to(tl.float32)
    sin = sin.to(DTYPE).to(tl.float32)
    return cos, tl.where(dims < R, sin, -sin)


@triton.jit
def _position_kernel(
    qkv_ptr, gain_ptr, cos_ptr, sin_ptr, inverse_ptr, N, T, eps,
    H: tl.constexpr, G: tl.constexpr, K: tl.constexpr, R: tl.constexpr,
    ROWS: tl.constexpr, HEADS: tl.constexpr, DIMS: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    DTYPE: tl.constexpr = qkv_ptr.dtype.element_ty
    rows = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None, None]
    heads = tl.arange(0, HEADS)[None, :, None]
    dims = tl.arange(0, DIMS)[None, None, :]
    mask = (rows < N) & (heads < H + G) & (dims < K)
    base = rows.to(tl.int64) * ((H + 2 * G) * K) + heads * K
    partner = tl.where(dims < R, dims + R, tl.where(dims < 2 * R, dims - R, dims))
    x = tl.load(qkv_ptr + base + dims, mask, other=0.0).to(tl.float32)
    other = tl.load(qkv_ptr + base + partner, mask, other=0.0).to(tl.float32)
    inverse = tl.rsqrt(tl.sum(x * x, 2) / K + eps)[:, :, None]
    gain = tl.load(gain_ptr + heads, heads < H, other=1.0).to(DTYPE).to(tl.float32)
    cos, sin = _turn(cos_ptr, sin_ptr, rows % T, dims, mask, R, DTYPE)
    y = (x * cos + other * sin) * (inverse * gain)
    # In place: every value must be read as a partner before it is overwritten.
    tl.debug_barrier()
    tl.store(qkv_ptr + base + dims, shortened(y, UNIT, DTYPE), mask)
    at = rows * (H + G) + heads
    tl.store(inverse_ptr + at, inverse, (rows < N) & (heads < H + G))


@triton.jit
def _position_backward_kernel(
    qkv_ptr, gain_ptr, cos_ptr, sin_ptr, inverse_ptr, dq_ptr, dk_ptr, dv_ptr, extra_ptr,
    out_ptr, sums_ptr, N, T, qb, qh, qt, kb, kh, kt, vb, vh, vt,
    H: tl.constexpr, G: tl.constexpr, K: tl.constexpr, R: tl.constexpr,
    ROWS: tl.constexpr, HEADS: tl.constexpr, DIMS: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    DTYPE: tl.constexpr = qkv_ptr.dtype.element_ty
    heads = tl.arange(0, HEADS)[None, :, None]
    dims = tl.arange(0, DIMS)[None, None, :]
    partner = tl.where(dims < R, dims + R, tl.where(dims < 2 * R, dims - R, dims))
    gain = tl.load(gain_ptr + heads, heads < H, other=1.0).to(DTYPE).to(tl.float32)
    sums = tl.zeros([ROWS, HEADS, 1], tl.float32)
    for block in range(tl.program_id(0), tl.cdiv(N, ROWS), tl.num_programs(0)):
        rows = (block * ROWS + tl.arange(0, ROWS))[:, None, None]
        row_mask = rows < N
        batch, times = (rows // T).to(tl.int64), rows % T
        base = rows.to(tl.int64) * ((H + 2 * G) * K) + heads * K
        is_q, is_k = heads < H, (heads >= H) & (heads < H + G)
        # One pointer per head: gradients of queries and keys are in separate tensors.
        q_at = batch * qb + heads * qh + times * qt
        k_at = batch * kb + (heads - H) * kh + times * kt
        inside = row_mask & (dims < K)
        dy = tl.load(dq_ptr + q_at + dims, inside & is_q, other=0.0).to(tl.float32)
        dy += tl.load(dk_ptr + k_at + dims, inside & is_k, other=0.0).to(tl.float32)
        dy_other = tl.load(dq_ptr + q_at + partner, inside & is_q, other=0.0).to(tl.float32)
        dy_other += tl.load(dk_ptr + k_at + partner, inside & is_k, other=0.0).to(tl.float32)
        mask = inside & (heads < H + G)
        y = tl.load(qkv_ptr + base + dims, mask, other=0.0).to(tl.float32)
        y_other = tl.load(qkv_ptr + base + partner, mask, other=0.0).to(tl.float32)
        at = rows * (H + G) + heads
        inverse = tl.load(inverse_ptr + at, row_mask & (heads < H + G), other=0.0)
        along = tl.sum(dy * y, 2)[:, :, None]
        sums += along
        # A rotation keeps dot products, so the norm's backward also works on rotated vectors.
        share = along / (K * gain * gain)
        cos, sin = _turn(cos_ptr, sin_ptr, times, dims, mask, R, DTYPE)
        dx = (dy - y * share) * cos - (dy_other - y_other * share) * sin
        tl.store(out_ptr + base + dims, shortened(dx * gain * inverse, UNIT, DTYPE), mask)
        is_v = inside & (heads < G)
        v_at = batch * vb + heads * vh + times * vt
        dv = tl.load(dv_ptr + v_at + dims, is_v, other=0.0).to(tl.float32)
        extra_at = rows.to(tl.int64) * (G * K) + heads * K
        dv += tl.load(extra_ptr + extra_at + dims, is_v, other=0.0).to(tl.float32)
        tl.store(out_ptr + base + (H + G) * K + dims, shortened(dv, UNIT, DTYPE), is_v)
    at = tl.program_id(0) * H + heads
    tl.store(sums_ptr + at, tl.sum(sums, 0)[None, :, :] / gain, heads < H)


def position_(
    qkv_NC: Tensor,
    gain_H: Tensor,
    rope: tuple[Tensor, Tensor],
    T: int,
    H: int,
    G: int,
    unit: int = FULL,
) -> Tensor:
    """Normalise, rotate and scale queries and keys in place, to a unit; return inverse norms."""
    N = len(qkv_NC)
    K, R = qkv_NC.shape[1] // (H + 2 * G), rope[0].shape[1]
    inverse = torch.empty(N, H + G, device=qkv_NC.device)
    rows, heads, dims = _tile(H + G, K)
    _position_kernel[(triton.cdiv(N, rows),)](
        qkv_NC, gain_H, *rope, inverse, N, T, NORM_EPS,
        H=H, G=G, K=K, R=R, ROWS=rows, HEADS=heads, DIMS=dims, UNIT=unit, num_warps=_WARPS,
    )  # fmt: skip
    return inverse


def position_backward(
    qkv_NC: Tensor,
    gain_H: Tensor,
    rope: tuple[Tensor, Tensor],
    inverse: Tensor,
    grads: tuple[Tensor, Tensor, Tensor, Tensor],
    unit: int = FULL,
) -> tuple[Tensor, Tensor]:
    """Return (gradient of the projections to a unit [N, C], gradient of the gains [H]).

    `grads` are those of queries, keys and values from attention ([B, heads, T, K], any strides),
    and the addition to the values' gradient from XSA ([N, G K]).
    """
    dq_BHTK, dk_BGTK, dv_BGTK = (_dense(grad) for grad in grads[:3])
    extra = grads[3]
    _, H, T, K = dq_BHTK.shape
    G, N, R = dk_BGTK.shape[1], len(qkv_NC), rope[0].shape[1]
    out_NC = torch.empty_like(qkv_NC)
    rows, heads, dims = _tile(H + G, K)
    programs = min(_PROGRAMS, triton.cdiv(N, rows))
    sums_SH = torch.empty(programs, H, device=qkv_NC.device)
    strides = [s for z in (dq_BHTK, dk_BGTK, dv_BGTK) for s in z.stride()[:3]]
    _position_backward_kernel[(programs,)](
        qkv_NC, gain_H, *rope, inverse, dq_BHTK, dk_BGTK, dv_BGTK,
        extra, out_NC, sums_SH, N, T, *strides,
        H=H, G=G, K=K, R=R, ROWS=rows, HEADS=heads, DIMS=dims, UNIT=unit, num_warps=_WARPS,
    )  # fmt: skip
    return out_NC, sums_SH.sum(0)


def _dense(x: Tensor) -> Tensor:
    """Return x with contiguous values of a head, as the kernels expect."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _tile(heads: int, K: int) -> tuple[int, int, int]:
    """Return (rows, heads, dims) of one program's tile: powers of two, about 2,048 values."""
    heads, dims = triton.next_power_of_2(heads), triton.next_power_of_2(K)
    return max(1, _VALUES // (heads * dims)), heads, dims


# ---------------------------------------------------------------------------------------------
# Exclusive self-attention (XSA)


@triton.jit
def _without_self_kernel(
    y_ptr, qkv_ptr, out_ptr, N, T, yb, yh, yt,
    H: tl.constexpr, G: tl.constexpr, K: tl.constexpr,
    ROWS: tl.constexpr, HEADS: tl.constexpr, DIMS: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    DTYPE: tl.constexpr = qkv_ptr.dtype.element_ty
    P: tl.constexpr = H // G
    rows = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None, None]
    heads = tl.arange(0, HEADS)[None, :, None]
    dims = tl.arange(0, DIMS)[None, None, :]
    mask = (rows < N) & (heads < H) & (dims < K)
    y_at = (rows // T).to(tl.int64) * yb + heads * yh + (rows % T) * yt
    v_at = rows.to(tl.int64) * ((H + 2 * G) * K) + (H + G + heads // P) * K
    y = tl.load(y_ptr + y_at + dims, mask, other=0.0).to(tl.float32)
    v = tl.load(qkv_ptr + v_at + dims, mask, other=0.0).to(tl.float32)
    square = tl.maximum(tl.sum(v * v, 2), 1e-24)
    share = (tl.sum(y * v, 2) / square)[:, :, None]
    at = rows.to(tl.int64) * (H * K) + heads * K
    tl.store(out_ptr + at + dims, shortened(y - share * v, UNIT, DTYPE), mask)


@triton.jit
def _without_self_backward_kernel(
    y_ptr, qkv_ptr, g_ptr, dy_ptr, dv_ptr, N, T, yb, yh, yt,
    H: tl.constexpr, G: tl.constexpr, K: tl.constexpr,
    ROWS: tl.constexpr, GROUPS: tl.constexpr, DIMS: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    DTYPE: tl.constexpr = qkv_ptr.dtype.element_ty
    # With s = v.v, c = (y.v)/s and e = (g.v)/s:  dy = g - e v,
    # dv = sum over the group's heads of (2 c e v - c g - e y).
    P: tl.constexpr = H // G
    rows = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None, None]
    groups = tl.arange(0, GROUPS)[None, :, None]
    dims = tl.arange(0, DIMS)[None, None, :]
    mask = (rows < N) & (groups < G) & (dims < K)
    v_at = rows.to(tl.int64) * ((H + 2 * G) * K) + (H + G + groups) * K
    v = tl.load(qkv_ptr + v_at + dims, mask, other=0.0).to(tl.float32)
    square = tl.maximum(tl.sum(v * v, 2), 1e-24)[:, :, None]
    dv = tl.zeros([ROWS, GROUPS, DIMS], tl.float32)
    for member in tl.static_range(P):
        heads = groups * P + member
        y_at = (rows // T).to(tl.int64) * yb + heads * yh + (rows % T) * yt
        g_at = rows.to(tl.int64) * (H * K) + heads * K
        y = tl.load(y_ptr + y_at + dims, mask, other=0.0).to(tl.float32)
        g = tl.load(g_ptr + g_at + dims, mask, other=0.0).to(tl.float32)
        c = tl.sum(y * v, 2)[:, :, None] / square
        e = tl.sum(g * v, 2)[:, :, None] / square
        tl.store(dy_ptr + y_at + dims, shortened(g - e * v, UNIT, DTYPE), mask)
        dv += 2.0 * c * e * v - c * g - e * y
    at = rows.to(tl.int64) * (G * K) + groups * K
    tl.store(dv_ptr + at + dims, dv.to(DTYPE), mask)


def without_self(y_BHTK: Tensor, qkv_NC: Tensor, G: int, unit: int = FULL) -> Tensor:
    """Return attention's output minus its part along the position's own value, [N, H K]."""
    y_BHTK = _dense(y_BHTK)
    _, H, T, K = y_BHTK.shape
    N = len(qkv_NC)
    out = torch.empty(N, H * K, device=y_BHTK.device, dtype=y_BHTK.dtype)
    rows, heads, dims = _tile(H, K)
    _without_self_kernel[(triton.cdiv(N, rows),)](
        y_BHTK, qkv_NC, out, N, T, *y_BHTK.stride()[:3],
        H=H, G=G, K=K, ROWS=rows, HEADS=heads, DIMS=dims, UNIT=unit, num_warps=_WARPS,
    )  # fmt: skip
    return out


def without_self_backward(
    y_BHTK: Tensor, qkv_NC: Tensor, grad: Tensor, G: int, unit: int = FULL
) -> tuple[Tensor, Tensor]:
    """Return the gradient of y to a unit, in its layout, and what XSA adds to that of the values,
    [N, G K]."""
    y_BHTK = _dense(y_BHTK)
    _, H, T, K = y_BHTK.shape
    N = len(qkv_NC)
    dy_BHTK = torch.empty_like(y_BHTK)
    dv = torch.empty(N, G * K, device=y_BHTK.device, dtype=y_BHTK.dtype)
    rows, groups, dims = _tile(G, K)
    rows = max(1, rows // 4)
    _without_self_backward_kernel[(triton.cdiv(N, rows),)](
        y_BHTK, qkv_NC, grad, dy_BHTK, dv, N, T, *y_BHTK.stride()[:3],
        H=H, G=G, K=K, ROWS=rows, GROUPS=groups, DIMS=dims, UNIT=unit, num_warps=_WARPS,
    )  # fmt: skip
    return dy_BHTK, dv
