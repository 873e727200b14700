"""Triton kernels for everything in the model that is not a plain matrix product.

Each reads and writes a tensor of activations once. They must equal the formulas in `ops` and `gpt`;
tests/model/test_kernels.py compares them, without a GPU in Triton's interpreter. Arithmetic is in
float32. Vectors of parameters are rounded to the activations' dtype, as in the plain path. That
dtype is bfloat16 in use, and float32 in exact tests.

Sums over rows for parameters are collected per program and added up afterwards in a fixed order, so
that they repeat bit for bit.

Shapes: N rows (positions), D width, H query heads, G key/value heads, P = H / G, K head width,
R rotated pairs, V vocabulary, S programs.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fairway.model.gpu.short import FULL, shortened
from fairway.model.ops import NORM_EPS

# (values of a tile, warps, programs) for the backward of `enter`, without and with a skip: the
# fastest of ten on an H200 (0.21 and 0.30 ms at 98,304 x 512; the bytes alone take 0.17 and 0.24).
_BACK, _BACK_JOINED = (2048, 2, 528), (512, 1, 2112)


def _rows_per_program(width: int) -> int:
    """Return how many rows of a width one program processes: about 2,048 values, a power of two."""
    rows: int = 2048 // triton.next_power_of_2(width)
    return max(1, rows)


def _rows(x: Tensor) -> tuple[int, int]:
    """Return (N, D) of a dense tensor as rows; it may have any leading dimensions."""
    return x.numel() // x.shape[-1], x.shape[-1]


# ---------------------------------------------------------------------------------------------
# The input of a block: join a skip, mix in x0, normalise


@triton.jit
def _joined(x, skip, weight, gate, JOIN: tl.constexpr, DTYPE: tl.constexpr):
    """Return the stream after a skip: JOIN 0 none, 1 from the stack, 2 the stream itself."""
    if JOIN == 0:
        return x
    scaled = (weight[None, :] * skip).to(DTYPE).to(tl.float32)
    return (scaled + gate[None, :] * (x - scaled)).to(DTYPE).to(tl.float32)


@triton.jit
def _vector(pointer, columns, mask, USED: tl.constexpr, DTYPE: tl.constexpr):
    """Return a parameter vector rounded to the activations' dtype, or zeros."""
    if USED:
        return tl.load(pointer + columns, mask, other=0.0).to(DTYPE).to(tl.float32)
    return tl.zeros_like(columns).to(tl.float32)


@triton.jit
def _gate(pointer, columns, mask, USED: tl.constexpr, DTYPE: tl.constexpr):
    if USED:
        raw = tl.load(pointer + columns, mask, other=0.0)
        return tl.sigmoid(raw).to(DTYPE).to(tl.float32)
    return tl.zeros_like(columns).to(tl.float32)


@triton.jit
def _entered(
    x_ptr, x0_ptr, skip_ptr, at, mask, mix, mix0, weight, gate,
    JOIN: tl.constexpr, SAME: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """Load a tile; return x, x0, skip, the joined stream, and their rounded mix u."""
    x = tl.load(x_ptr + at, mask, other=0.0).to(tl.float32)
    x0 = x
    if not SAME:
        x0 = tl.load(x0_ptr + at, mask, other=0.0).to(tl.float32)
    skip = x
    if JOIN == 1:
        skip = tl.load(skip_ptr + at, mask, other=0.0).to(tl.float32)
    joined = _joined(x, skip, weight, gate, JOIN, DTYPE)
    u = (mix[None, :] * joined + mix0[None, :] * x0).to(DTYPE).to(tl.float32)
    return x, x0, skip, joined, u


@triton.jit
def _enter_kernel(
    x_ptr, x0_ptr, skip_ptr, mix_ptr, weight_ptr, gate_ptr, u_ptr, h_ptr, N, scale, eps,
    D: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr, JOIN: tl.constexpr,
    SAME: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    DTYPE: tl.constexpr = x_ptr.dtype.element_ty
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, COLUMNS)
    inside = columns < D
    mask = (rows[:, None] < N) & inside[None, :]
    at = rows[:, None].to(tl.int64) * D + columns[None, :]
    weight = _vector(weight_ptr, columns, inside, JOIN > 0, DTYPE)
    gate = _gate(gate_ptr, columns, inside, JOIN > 0, DTYPE)
    mix = _vector(mix_ptr, columns, inside, True, DTYPE)
    mix0 = _vector(mix_ptr + D, columns, inside, True, DTYPE)
    _, _, _, _, u = _entered(
        x_ptr, x0_ptr, skip_ptr, at, mask, mix, mix0, weight, gate, JOIN, SAME, DTYPE
    )
    tl.store(u_ptr + at, u.to(DTYPE), mask)
    inverse = tl.rsqrt(tl.sum(u * u, 1) / D + eps) * scale
    tl.store(h_ptr + at, shortened(u * inverse[:, None], UNIT, DTYPE), mask)


@triton.jit
def _enter_backward_kernel(
    x_ptr, x0_ptr, skip_ptr, mix_ptr, weight_ptr, gate_ptr, du_ptr, dh_ptr, dx0_ptr, dpass_ptr,
    dx_ptr, dx0_out_ptr, dskip_ptr, sums_ptr, N, scale, eps,
    D: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr, JOIN: tl.constexpr,
    SAME: tl.constexpr, HAS_DX0: tl.constexpr, HAS_PASS: tl.constexpr,
):  # fmt: skip
    DTYPE: tl.constexpr = x_ptr.dtype.element_ty
    columns = tl.arange(0, COLUMNS)
    inside = columns < D
    weight = _vector(weight_ptr, columns, inside, JOIN > 0, DTYPE)
    gate = _gate(gate_ptr, columns, inside, JOIN > 0, DTYPE)
    mix = _vector(mix_ptr, columns, inside, True, DTYPE)
    mix0 = _vector(mix_ptr + D, columns, inside, True, DTYPE)
    # Kept separate by row until the end, because a sum over rows crosses warps.
    sum_mix = tl.zeros([ROWS, COLUMNS], tl.float32)
    sum_mix0 = tl.zeros([ROWS, COLUMNS], tl.float32)
    sum_weight = tl.zeros([ROWS, COLUMNS], tl.float32)
    sum_gate = tl.zeros([ROWS, COLUMNS], tl.float32)
    for block in range(tl.program_id(0), tl.cdiv(N, ROWS), tl.num_programs(0)):
        rows = block * ROWS + tl.arange(0, ROWS)
        mask = (rows[:, None] < N) & inside[None, :]
        at = rows[:, None].to(tl.int64) * D + columns[None, :]
        x, x0, skip, joined, u = _entered(
            x_ptr, x0_ptr, skip_ptr, at, mask, mix, mix0, weight, gate, JOIN, SAME, DTYPE
        )
        du = _mixed_gradient(u, du_ptr + at, dh_ptr + at, mask, scale, eps, D)
        sum_mix += du * joined
        sum_mix0 += du * x0
        dx, dx0 = mix[None, :] * du, mix0[None, :] * du
        if HAS_DX0:
            dx0 += tl.load(dx0_ptr + at, mask, other=0.0).to(tl.float32)
        if JOIN > 0:
            sum_gate += dx * (x - weight[None, :] * skip)
            dx, dskip = gate[None, :] * dx, (1.0 - gate[None, :]) * dx
            sum_weight += dskip * skip
            if JOIN == 1:
                tl.store(dskip_ptr + at, (weight[None, :] * dskip).to(DTYPE), mask)
            else:
                dx += weight[None, :] * dskip
        if SAME:
            dx += dx0
        else:
            tl.store(dx0_out_ptr + at, dx0.to(DTYPE), mask)
        if HAS_PASS:
            dx += tl.load(dpass_ptr + at, mask, other=0.0).to(tl.float32)
        tl.store(dx_ptr + at, dx.to(DTYPE), mask)
    at = sums_ptr + tl.program_id(0) * 4 * D + columns
    tl.store(at, tl.sum(sum_mix, 0), inside)
    tl.store(at + D, tl.sum(sum_mix0, 0), inside)
    tl.store(at + 2 * D, tl.sum(sum_weight, 0), inside)
    tl.store(at + 3 * D, tl.sum(sum_gate, 0) * gate * (1.0 - gate), inside)


@triton.jit
def _mixed_gradient(u, du_ptr, dh_ptr, mask, scale, eps, D: tl.constexpr):
    """Return the gradient of u, as a residual and through its norm."""
    inverse = tl.rsqrt(tl.sum(u * u, 1) / D + eps)[:, None]
    dh = tl.load(dh_ptr, mask, other=0.0).to(tl.float32)
    unit = u * inverse
    along = tl.sum(dh * unit, 1)[:, None] / D
    du = tl.load(du_ptr, mask, other=0.0).to(tl.float32)
    return du + scale * inverse * (dh - unit * along)


class Join:
    """What a block blends into its input: nothing, a stacked state, or (`own`) the stream."""

    def __init__(self, skip_ND: Tensor | None, weight_D: Tensor, gate_D: Tensor, own: bool) -> None:
        self.skip_ND, self.weight_D, self.gate_D, self.own = skip_ND, weight_D, gate_D, own


def enter(
    x_ND: Tensor,
    x0_ND: Tensor | None,
    mix_2D: Tensor,
    join: Join | None,
    scale: float,
    unit: int = FULL,
) -> tuple[Tensor, Tensor]:
    """Return (u, h): the stream joined and mixed with x0, and scale * u / rms(u) to a unit.

    Without an x0 the stream itself is x0, as in the first block.
    """
    N, D = _rows(x_ND)
    u_ND, h_ND = torch.empty_like(x_ND), torch.empty_like(x_ND)
    rows = _rows_per_program(D)
    _enter_kernel[(triton.cdiv(N, rows),)](
        x_ND, x_ND if x0_ND is None else x0_ND, *_join_args(x_ND, mix_2D, join), u_ND, h_ND,
        N, scale, NORM_EPS, D=D, COLUMNS=triton.next_power_of_2(D), ROWS=rows,
        JOIN=_join_flag(join), SAME=x0_ND is None, UNIT=unit, num_warps=4,
    )  # fmt: skip
    return u_ND, h_ND


def enter_backward(
    x_ND: Tensor,
    x0_ND: Tensor | None,
    mix_2D: Tensor,
    join: Join | None,
    scale: float,
    grads: tuple[Tensor, Tensor, Tensor | None, Tensor | None],
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor]:
    """Return (dx, dx0, dskip, sums_4D) for `enter`; without an x0, dx includes its gradient.

    `grads` are those of u and h, of x0 from later blocks, and of x from its other uses. The sums
    are the gradients of both mix rows, the skip weight and the skip gate.
    """
    du_ND, dh_ND, dx0_ND, dpass_ND = (None if g is None else g.contiguous() for g in grads)
    assert du_ND is not None and dh_ND is not None
    N, D = _rows(x_ND)
    values, warps, programs = _BACK if join is None else _BACK_JOINED
    rows = max(1, values // triton.next_power_of_2(D))
    programs = min(programs, triton.cdiv(N, rows))
    dx_ND = torch.empty_like(x_ND)
    out_x0_ND = None if x0_ND is None else torch.empty_like(x_ND)
    dskip_ND = torch.empty_like(x_ND) if join is not None and not join.own else None
    sums_S4D = torch.empty(programs, 4, D, device=x_ND.device)
    _enter_backward_kernel[(programs,)](
        x_ND, x_ND if x0_ND is None else x0_ND, *_join_args(x_ND, mix_2D, join), du_ND, dh_ND,
        x_ND if dx0_ND is None else dx0_ND, x_ND if dpass_ND is None else dpass_ND, dx_ND,
        x_ND if out_x0_ND is None else out_x0_ND, x_ND if dskip_ND is None else dskip_ND,
        sums_S4D, N, scale, NORM_EPS,
        D=D, COLUMNS=triton.next_power_of_2(D), ROWS=rows, JOIN=_join_flag(join),
        SAME=x0_ND is None, HAS_DX0=dx0_ND is not None, HAS_PASS=dpass_ND is not None,
        num_warps=warps,
    )  # fmt: skip
    return dx_ND, out_x0_ND, dskip_ND, sums_S4D.sum(0)


def _join_args(x_ND: Tensor, mix_2D: Tensor, join: Join | None) -> tuple[Tensor, ...]:
    if join is None:
        return x_ND, mix_2D, mix_2D, mix_2D
    skip_ND = x_ND if join.skip_ND is None else join.skip_ND
    return skip_ND, mix_2D, join.weight_D, join.gate_D


def _join_flag(join: Join | None) -> int:
    if join is None:
        return 0
    return 2 if join.own else 1


# ---------------------------------------------------------------------------------------------
# Norm


@triton.jit
def _norm_kernel(
    x_ptr, ids_ptr, y_ptr, inverse_ptr, N, scale, eps,
    D: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr, LOOKUP: tl.constexpr,
    UNIT: tl.constexpr,
):  # fmt: skip
    DTYPE: tl.constexpr = y_ptr.dtype.element_ty
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, COLUMNS)
    mask = (rows[:, None] < N) & (columns[None, :] < D)
    at = rows[:, None].to(tl.int64) * D + columns[None, :]
    source = at
    if LOOKUP:
        ids = tl.load(ids_ptr + rows, rows < N, other=0).to(tl.int64)
        source = ids[:, None] * D + columns[None, :]
    x = tl.load(x_ptr + source, mask, other=0.0).to(DTYPE).to(tl.float32)
    inverse = tl.rsqrt(tl.sum(x * x, 1) / D + eps) * scale
    tl.store(y_ptr + at, shortened(x * inverse[:, None], UNIT, DTYPE), mask)
    tl.store(inverse_ptr + rows, inverse, rows < N)


@triton.jit
def _norm_backward_kernel(
    y_ptr, inverse_ptr, dy_ptr, add_ptr, dx_ptr, N, scale,
    D: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr, ADD: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, COLUMNS)
    mask = (rows[:, None] < N) & (columns[None, :] < D)
    at = rows[:, None].to(tl.int64) * D + columns[None, :]
    y = tl.load(y_ptr + at, mask, other=0.0).to(tl.float32)
    dy = tl.load(dy_ptr + at, mask, other=0.0).to(tl.float32)
    inverse = tl.load(inverse_ptr + rows, rows < N, other=0.0)[:, None]
    along = tl.sum(dy * y, 1)[:, None] / (D * scale * scale)
    dx = inverse * (dy - y * along)
    if ADD:
        dx += tl.load(add_ptr + at, mask, other=0.0).to(tl.float32)
    tl.store(dx_ptr + at, dx.to(dx_ptr.dtype.element_ty), mask)


def norm(x_ND: Tensor, scale: float = 1.0, unit: int = FULL) -> tuple[Tensor, Tensor]:
    """Return (scale * x / rms(x) to a unit, scale / rms(x) [N])."""
    return _normalised(x_ND, None, torch.empty_like(x_ND), scale, unit)


def embed(table_VD: Tensor, ids_N: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the normalised embeddings of some tokens, [N, D] in a dtype, and 1 / rms [N]."""
    y_ND = table_VD.new_empty(*ids_N.shape, table_VD.shape[1], dtype=dtype)
    return _normalised(table_VD, ids_N, y_ND, 1.0, FULL)


def _normalised(
    x: Tensor, ids_N: Tensor | None, y_ND: Tensor, scale: float, unit: int
) -> tuple[Tensor, Tensor]:
    N, D = _rows(y_ND)
    rows = _rows_per_program(D)
    inverse_N = torch.empty(N, device=y_ND.device)
    _norm_kernel[(triton.cdiv(N, rows),)](
        x, x if ids_N is None else ids_N, y_ND, inverse_N, N, scale, NORM_EPS,
        D=D, COLUMNS=triton.next_power_of_2(D), ROWS=rows, LOOKUP=ids_N is not None,
        UNIT=unit, num_warps=4,
    )  # fmt: skip
    return y_ND, inverse_N


def norm_backward(
    y_ND: Tensor, inverse_N: Tensor, dy_ND: Tensor, add_ND: Tensor | None, scale: float = 1.0
) -> Tensor:
    """Return the gradient of x from the results of `norm`, plus `add`, that of its other uses."""
    N, D = _rows(y_ND)
    dy_ND = dy_ND.contiguous()
    add_ND = None if add_ND is None else add_ND.contiguous()
    rows = _rows_per_program(D)
    dx_ND = torch.empty_like(dy_ND)
    _norm_backward_kernel[(triton.cdiv(N, rows),)](
        y_ND, inverse_N, dy_ND, dy_ND if add_ND is None else add_ND, dx_ND, N, scale,
        D=D, COLUMNS=triton.next_power_of_2(D), ROWS=rows, ADD=add_ND is not None, num_warps=4,
    )  # fmt: skip
    return dx_ND


# ---------------------------------------------------------------------------------------------
# Gradients of matrices with scaled rows


@triton.jit
def _unscale_kernel(
    grad_ptr, weight_ptr, scale_ptr, sums_ptr, N,
    C: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, COLUMNS)
    mask = (rows[:, None] < N) & (columns[None, :] < C)
    at = rows[:, None] * C + columns[None, :]
    grad = tl.load(grad_ptr + at, mask, other=0.0)
    weight = tl.load(weight_ptr + at, mask, other=0.0)
    tl.store(sums_ptr + rows, tl.sum(grad * weight, 1), rows < N)
    tl.store(grad_ptr + at, grad * tl.load(scale_ptr + rows, rows < N)[:, None], mask)


def unscale_(grad_RC: Tensor, weight_RC: Tensor, scale_R: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of W and s, given that of s W (scaled rows), in the latter's memory."""
    N, C = grad_RC.shape
    sums_R = torch.empty_like(scale_R)
    rows = _rows_per_program(C)
    _unscale_kernel[(triton.cdiv(N, rows),)](
        grad_RC, weight_RC, scale_R, sums_R, N,
        C=C, COLUMNS=triton.next_power_of_2(C), ROWS=rows, num_warps=4,
    )  # fmt: skip
    return grad_RC, sums_R
