"""Triton kernels of the loss, which replace the logits of a batch by their gradients in place.

The notes in `kernels` apply here too.

Shapes: N rows (positions), V vocabulary.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fairway.model.gpu.short import FULL, shortened

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _half(x, scale):
    """Return the logistic of 2 x / cap; scale = -2 log2(e) / cap, tanh(x / cap) = 2 half - 1."""
    root = tl.rsqrt(1.0 + tl.exp2(x * scale))
    return root * root


@triton.jit
def _loss_kernel(
    logits_ptr, targets_ptr, loss_ptr, cap, scale, share,
    V: tl.constexpr, COLUMNS: tl.constexpr, GRAD: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    # Arithmetic limits this kernel, so it has no division and no comparison with the target per
    # logit. The capped logits are at most cap, so cap replaces their maximum.
    row = logits_ptr + tl.program_id(0).to(tl.int64) * V
    columns = tl.arange(0, COLUMNS)
    x = tl.load(row + columns, columns < V, other=-float("inf")).to(tl.float32)
    target = tl.load(targets_ptr + tl.program_id(0))
    chosen = _half(tl.load(row + target).to(tl.float32), scale)
    half = _half(x, scale)
    width = 2.0 * cap * LOG2_E
    weights = tl.exp2(half * width - width)
    if COLUMNS != V:
        weights = tl.where(columns < V, weights, 0.0)
    total = tl.sum(weights, 0)
    nats = tl.log(total) - (chosen - 1.0) * (2.0 * cap)
    tl.store(loss_ptr + tl.program_id(0), nats)
    if GRAD:
        DTYPE: tl.constexpr = logits_ptr.dtype.element_ty
        grad = weights * (half - half * half) * (4.0 * share / total)
        tl.debug_barrier()
        tl.store(row + columns, shortened(grad, UNIT, DTYPE), columns < V)
        tl.debug_barrier()
        weight = tl.exp2(chosen * width - width) / total
        own = (weight - 1.0) * (chosen - chosen * chosen) * (4.0 * share)
        tl.store(row + target, shortened(own, UNIT, DTYPE))


def loss_(logits_NV: Tensor, targets_N: Tensor, cap: float, grad: bool, unit: int = FULL) -> Tensor:
    """Return the loss of every row in nats, float32 [N].

    With `grad` the logits are replaced by their gradient of the mean loss, to a unit: they are read
    once and written once, without a table in float32.
    """
    N, V = logits_NV.shape
    loss_N = torch.empty(N, device=logits_NV.device)
    columns = triton.next_power_of_2(V)
    _loss_kernel[(N,)](
        logits_NV, targets_N, loss_N, cap, -2.0 * LOG2_E.value / cap, 1.0 / N,
        V=V, COLUMNS=columns, GRAD=grad, UNIT=unit,
        num_warps=min(32, max(1, columns // 1024)),
    )  # fmt: skip
    return loss_N
