"""What surrounds Muon's matrix products, in as few passes over memory as it takes.

Per value of a matrix: gradient and momentum read, momentum and rounded row written (14 bytes), then
weight and update read, weight written (10). The plain steps of `muon` read and write 60.

Shapes: K matrices, R rows, C columns, as in `muon`.
"""

import triton
import triton.language as tl
from torch import Tensor

_VALUES, _WARPS = 2048, 4


@triton.jit
def _nesterov_kernel(
    grad_ptr, buffer_ptr, out_ptr, scale_ptr, N, mu,
    C: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr, NORMALISE: tl.constexpr,
):  # fmt: skip
    rows = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None]
    columns = tl.arange(0, COLUMNS)[None, :]
    mask = (rows < N) & (columns < C)
    at = rows.to(tl.int64) * C + columns
    grad = tl.load(grad_ptr + at, mask, other=0.0) * tl.load(scale_ptr)
    buffer = tl.load(buffer_ptr + at, mask, other=0.0) * mu + grad
    tl.store(buffer_ptr + at, buffer, mask)
    u = grad + mu * buffer
    if NORMALISE:
        u /= tl.maximum(tl.sqrt(tl.sum(u * u, 1)), 1e-7)[:, None]
    tl.store(out_ptr + at, u.to(out_ptr.dtype.element_ty), mask)


@triton.jit
def _move_kernel(weight_ptr, update_ptr, N, keep, lr, VALUES: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * VALUES + tl.arange(0, VALUES)
    weight = tl.load(weight_ptr + at, at < N) * keep
    weight -= lr * tl.load(update_ptr + at, at < N).to(tl.float32)
    tl.store(weight_ptr + at, weight, at < N)


def fused_nesterov(
    grad_KRC: Tensor, buffer_KRC: Tensor, scale_1: Tensor, mu: float, normalise: bool, out: Tensor
) -> None:
    """Do what `muon.nesterov` does; the gradient stays as it was."""
    C = grad_KRC.shape[2]
    columns = triton.next_power_of_2(C)
    rows, N = max(1, _VALUES // columns), grad_KRC.numel() // C
    _nesterov_kernel[(triton.cdiv(N, rows),)](
        grad_KRC, buffer_KRC, out, scale_1, N, mu,
        C=C, COLUMNS=columns, ROWS=rows, NORMALISE=normalise, num_warps=_WARPS,
    )  # fmt: skip


def fused_move(weights_LRC: Tensor, updates_LRC: Tensor, lr: float, decay: float) -> None:
    """Do what `muon.move` does."""
    N = weights_LRC.numel()
    _move_kernel[(triton.cdiv(N, _VALUES),)](
        weights_LRC, updates_LRC, N, 1.0 - lr * decay, lr, VALUES=_VALUES, num_warps=_WARPS
    )
