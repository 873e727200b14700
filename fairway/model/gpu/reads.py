"""GPU kernels of a layer that reads earlier ones: one pass over all states each way.

As in `kernels`, whose notes hold here too. A state is read, and its gradient written, once.

Shapes: N rows (positions), D width, S shares of a row: of the stream, then of the sources.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

# x0 and three layers' outputs.
MOST_SOURCES = 4
# Values of a tile.
_VALUES = 1024


@triton.jit
def _share(share_ptr, rows, inside, number, S: tl.constexpr):
    """The shares of one source, [ROWS, 1]."""
    at = rows.to(tl.int64) * S + number
    return tl.load(share_ptr + at, inside, other=0.0).to(tl.float32)[:, None]


@triton.jit
def _mix_kernel(
    x_ptr, a_ptr, b_ptr, c_ptr, d_ptr, share_ptr, out_ptr, N,
    D: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr, S: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, COLUMNS)
    inside = rows < N
    mask = inside[:, None] & (columns[None, :] < D)
    at = rows[:, None].to(tl.int64) * D + columns[None, :]
    x = tl.load(x_ptr + at, mask, other=0.0).to(tl.float32)
    total = x + _share(share_ptr, rows, inside, 0, S) * x
    a = tl.load(a_ptr + at, mask, other=0.0).to(tl.float32)
    total += _share(share_ptr, rows, inside, 1, S) * a
    if S > 2:
        b = tl.load(b_ptr + at, mask, other=0.0).to(tl.float32)
        total += _share(share_ptr, rows, inside, 2, S) * b
    if S > 3:
        c = tl.load(c_ptr + at, mask, other=0.0).to(tl.float32)
        total += _share(share_ptr, rows, inside, 3, S) * c
    if S > 4:
        d = tl.load(d_ptr + at, mask, other=0.0).to(tl.float32)
        total += _share(share_ptr, rows, inside, 4, S) * d
    tl.store(out_ptr + at, total.to(out_ptr.dtype.element_ty), mask)


@triton.jit
def _source_backward(
    source_ptr, share_ptr, d_source_ptr, d_share_ptr, grad, at, mask, rows, inside, number,
    S: tl.constexpr, MORE: tl.constexpr, OWN: tl.constexpr,
):  # fmt: skip
    """Gradients of a state and of its shares; MORE: what others want of it lies there already."""
    source = tl.load(source_ptr + at, mask, other=0.0).to(tl.float32)
    d_source = _share(share_ptr, rows, inside, number, S) * grad
    if OWN:
        d_source += grad
    if MORE:
        d_source += tl.load(d_source_ptr + at, mask, other=0.0).to(tl.float32)
    tl.store(d_source_ptr + at, d_source.to(d_source_ptr.dtype.element_ty), mask)
    d_share = tl.sum(grad * source, 1).to(d_share_ptr.dtype.element_ty)
    tl.store(d_share_ptr + rows.to(tl.int64) * S + number, d_share, inside)


@triton.jit
def _mix_backward_kernel(
    x_ptr, a_ptr, b_ptr, c_ptr, d_ptr, share_ptr, grad_ptr,
    dx_ptr, da_ptr, db_ptr, dc_ptr, dd_ptr, d_share_ptr, N,
    D: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr, S: tl.constexpr,
    A: tl.constexpr, B: tl.constexpr, C: tl.constexpr, E: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, COLUMNS)
    inside = rows < N
    mask = inside[:, None] & (columns[None, :] < D)
    at = rows[:, None].to(tl.int64) * D + columns[None, :]
    grad = tl.load(grad_ptr + at, mask, other=0.0).to(tl.float32)
    _source_backward(
        x_ptr, share_ptr, dx_ptr, d_share_ptr, grad, at, mask, rows, inside, 0, S, False, True
    )
    _source_backward(
        a_ptr, share_ptr, da_ptr, d_share_ptr, grad, at, mask, rows, inside, 1, S, A, False
    )
    if S > 2:
        _source_backward(
            b_ptr, share_ptr, db_ptr, d_share_ptr, grad, at, mask, rows, inside, 2, S, B, False
        )
    if S > 3:
        _source_backward(
            c_ptr, share_ptr, dc_ptr, d_share_ptr, grad, at, mask, rows, inside, 3, S, C, False
        )
    if S > 4:
        _source_backward(
            d_ptr, share_ptr, dd_ptr, d_share_ptr, grad, at, mask, rows, inside, 4, S, E, False
        )


def _grid(x: Tensor) -> tuple[int, dict[str, int]]:
    """Return (programs, the sizes of a tile) for rows of a tensor."""
    D = x.shape[-1]
    N, columns = x.numel() // D, triton.next_power_of_2(D)
    rows = max(1, _VALUES // columns)
    return triton.cdiv(N, rows), {"D": D, "COLUMNS": columns, "ROWS": rows}


def _all_places(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return one tensor for each place of a kernel; places beyond the last are never read."""
    return [*tensors, *[tensors[0]] * (1 + MOST_SOURCES - len(tensors))]


def mix(states: Sequence[Tensor], share: Tensor) -> Tensor:
    """Return the first state and shares [..., S] of all, summed in float32, rounded once."""
    out = torch.empty_like(states[0])
    programs, sizes = _grid(out)
    _mix_kernel[(programs,)](
        *_all_places(states), share, out, out.numel() // out.shape[-1],
        **sizes, S=share.shape[-1], num_warps=4,
    )  # fmt: skip
    return out


def mix_backward(
    states: Sequence[Tensor], share: Tensor, grad: Tensor, wanted: Sequence[Tensor | None]
) -> tuple[list[Tensor], Tensor]:
    """Return (gradients of all states, of the shares).

    `wanted` is what others want of the sources; it is added, and its memory taken.
    """
    made = [torch.empty_like(grad)]
    made += [torch.empty_like(grad) if more is None else more for more in wanted]
    d_share = torch.empty_like(share)
    programs, sizes = _grid(grad)
    more = [False] * MOST_SOURCES
    more[: len(wanted)] = [gradient is not None for gradient in wanted]
    _mix_backward_kernel[(programs,)](
        *_all_places(states), share, grad, *_all_places(made), d_share,
        grad.numel() // grad.shape[-1], **sizes, S=share.shape[-1],
        A=more[0], B=more[1], C=more[2], E=more[3], num_warps=4,
    )  # fmt: skip
    return made, d_share
