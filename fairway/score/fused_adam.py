"""AdamW of `adapters` in one pass over memory, which renews the working copies on its way.

Per value it reads a gradient, the value and its second moment, and writes value, moment and copy:
20 bytes where the working copies are bfloat16. The plain steps and the copies read and write 70.

Shapes: S slots, B rows, M outputs, L inputs of a matrix.
"""

import triton
import triton.language as tl
from torch import Tensor

from fairway.score.adam import BETA2, EPS, AdamW

_VALUES, _WARPS = 2048, 4


@triton.jit
def _step_kernel(
    value_ptr, square_ptr, grad_ptr, copy_ptr, factor_ptr,
    unbiased_ptr, count, stride, rate, keep, beta2, eps,
    M: tl.constexpr, L: tl.constexpr, FACTOR: tl.constexpr, VALUES: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0) * VALUES + tl.arange(0, VALUES)
    mask = at < count
    slot = tl.program_id(1)
    place = slot.to(tl.int64) * stride + at
    grad = tl.load(grad_ptr + place, mask, other=0.0).to(tl.float32)
    factor = 1.0
    if FACTOR:
        factor = tl.load(factor_ptr + slot * M + at // L % M, mask, other=0.0)
        grad *= factor
    square = tl.load(square_ptr + place, mask, other=0.0)
    square = square * beta2 + (1.0 - beta2) * (grad * grad)
    tl.store(square_ptr + place, square, mask)
    value = tl.load(value_ptr + place, mask, other=0.0) * keep
    unbiased = tl.load(unbiased_ptr)
    value -= rate * (grad / (tl.sqrt(square) * unbiased + eps))
    tl.store(value_ptr + place, value, mask)
    tl.store(copy_ptr + place, (value * factor).to(copy_ptr.dtype.element_ty), mask)


def fused_step(
    adam: AdamW,
    rows: range,
    grads: list[Tensor],
    copies: list[Tensor],
    factors: list[Tensor | None],
) -> None:
    """Step some rows as `adam.step` does on gradients times factors; copies follow the values.

    Gradients and copies are like the values in shape, of any dtype; a factor [S, M] belongs to the
    outputs of a slot, None is 1. Copies become values times factors.
    """
    config = adam.config
    for value, square, grad, copy, factor in zip(
        adam.values, adam.squares, grads, copies, factors, strict=True
    ):
        S, B, M, L = value.shape
        count = len(rows) * M * L
        # Views begin at the first of the rows; the way from slot to slot stays that of all.
        parts = (tensor[:, rows.start : rows.stop] for tensor in (value, square, grad, copy))
        _step_kernel[(triton.cdiv(count, _VALUES), S)](
            *parts, value if factor is None else factor,
            adam.unbiased, count, B * M * L, config.lora_lr, 1.0 - config.lora_lr * config.lora_wd,
            BETA2, EPS,
            M=M, L=L, FACTOR=factor is not None, VALUES=_VALUES, num_warps=_WARPS,
        )  # fmt: skip
