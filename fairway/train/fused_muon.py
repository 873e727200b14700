"""The steps around Muon's matrix products on a GPU, in few passes over memory.

For each value of a matrix: gradient and momentum are read, momentum and rounded row are written (14
bytes); then weight and update are read and the weight is written (10). The plain steps of `rules`
read and write 60 bytes.

Shapes: K matrices, R rows, C columns, as in `rules`.
"""

import triton
import triton.language as tl
from torch import Tensor

_VALUES, _WARPS = 2048, 4


@triton.jit
def _nesterov_kernel(
    grad_ptr, buffer_ptr, out_ptr, scale_ptr, N, mu,
    C: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    rows = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None]
    columns = tl.arange(0, COLUMNS)[None, :]
    mask = (rows < N) & (columns < C)
    at = rows.to(tl.int64) * C + columns
    grad = tl.load(grad_ptr + at, mask, other=0.0) * tl.load(scale_ptr)
    buffer = tl.load(buffer_ptr + at, mask, other=0.0) * mu + grad
    tl.store(buffer_ptr + at, buffer, mask)
    u = grad + mu * buffer
    u /= tl.maximum(tl.sqrt(tl.sum(u * u, 1)), 1e-7)[:, None]
    tl.store(out_ptr + at, u.to(out_ptr.dtype.element_ty), mask)


@triton.jit
def _several_kernel(
    grad_ptr, mean_ptr, out_ptr, scale_ptr, N, first,
    C: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr,
    MEANS: tl.constexpr,
):  # fmt: skip
    rows = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None]
    columns = tl.arange(0, COLUMNS)[None, :]
    mask = (rows < N) & (columns < C)
    at = rows.to(tl.int64) * C + columns
    grad = tl.load(grad_ptr + at, mask, other=0.0) * tl.load(scale_ptr)
    u, age = tl.zeros_like(grad), first
    for m in tl.static_range(MEANS):
        decay = age / (1.0 + age)
        place = (rows.to(tl.int64) * MEANS + m) * C + columns
        mean = tl.load(mean_ptr + place, mask, other=0.0) * decay + (1.0 - decay) * grad
        tl.store(mean_ptr + place, mean, mask)
        u += (1.0 - decay) * grad + decay * mean
        age = age * 2.0
    u /= MEANS
    u /= tl.maximum(tl.sqrt(tl.sum(u * u, 1)), 1e-7)[:, None]
    tl.store(out_ptr + at, u.to(out_ptr.dtype.element_ty), mask)


@triton.jit
def _move_kernel(
    weight_ptr, update_ptr, N, keep, lr, VALUES: tl.constexpr, CAUTIOUS: tl.constexpr
):  # fmt: skip
    at = tl.program_id(0).to(tl.int64) * VALUES + tl.arange(0, VALUES)
    weight = tl.load(weight_ptr + at, at < N)
    update = tl.load(update_ptr + at, at < N).to(tl.float32)
    if CAUTIOUS:
        weight *= tl.where(weight * update > 0, keep, 1.0)
    else:
        weight *= keep
    tl.store(weight_ptr + at, weight - lr * update, at < N)


def fused_nesterov(
    grad_KRC: Tensor, buffer_KRC: Tensor, scale_1: Tensor, mu: float, out: Tensor
) -> None:
    """Do the same as `rules.nesterov`; the gradient stays unchanged."""
    N, C, columns, rows = _by_rows(grad_KRC)
    _nesterov_kernel[(triton.cdiv(N, rows),)](
        grad_KRC, buffer_KRC, out, scale_1, N, mu,
        C=C, COLUMNS=columns, ROWS=rows, num_warps=_WARPS,
    )  # fmt: skip


def fused_several(
    grad_KRC: Tensor, means_KRMC: Tensor, scale_1: Tensor, mu: float, out: Tensor
) -> None:
    """Do the same as `rules.several`; the gradient stays unchanged."""
    (N, C, columns, rows), means = _by_rows(grad_KRC), means_KRMC.shape[2]
    first = mu / (1.0 - mu) * means / (2**means - 1)
    _several_kernel[(triton.cdiv(N, rows),)](
        grad_KRC, means_KRMC, out, scale_1, N, first,
        C=C, COLUMNS=columns, ROWS=rows, MEANS=means, num_warps=_WARPS,
    )  # fmt: skip


def _by_rows(x_KRC: Tensor) -> tuple[int, int, int, int]:
    """Return rows and columns of a stack, and of the block that one program processes."""
    C = x_KRC.shape[2]
    columns = triton.next_power_of_2(C)
    return x_KRC.numel() // C, C, columns, max(1, _VALUES // columns)


def fused_move(
    weights_LRC: Tensor,
    updates_LRC: Tensor,
    lr: float,
    decay: float,
    cautious: bool = False,
) -> None:
    """Do the same as `rules.move`."""
    N = weights_LRC.numel()
    _move_kernel[(triton.cdiv(N, _VALUES),)](
        weights_LRC, updates_LRC, N, 1.0 - lr * decay, lr,
        VALUES=_VALUES, CAUTIOUS=cautious, num_warps=_WARPS,
    )  # fmt: skip
