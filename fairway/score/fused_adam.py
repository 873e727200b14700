"""AdamW of `adapters` in one pass over memory, which also updates the working copies.

For each value it reads gradient, value and second moment, and writes value, moment and copy: 20
bytes if the working copies are bfloat16. The plain steps and copies read and write 70 bytes.

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
    root_factor_ptr, count, stride, rate, keep, beta2, eps,
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
    root_factor = tl.load(root_factor_ptr)
    value -= rate * (grad / (tl.sqrt(square) * root_factor + eps))
    tl.store(value_ptr + place, value, mask)
    tl.store(copy_ptr + place, (value * factor).to(copy_ptr.dtype.element_ty), mask)


def fused_step(
    adam: AdamW,
    rows: range,
    grads: list[Tensor],
    copies: list[Tensor],
    factors: list[Tensor | None],
) -> None:
    """Step some rows like `adam.step` with gradients times factors, and update the copies.

    Gradients and copies have the shapes of the values and any dtype. A factor [S, M] applies to the
    outputs of a slot; None is 1. Copies become values times factors.
    """
    config = adam.config
    for value, square, grad, copy, factor in zip(
        adam.values, adam.squares, grads, copies, factors, strict=True
    ):
        S, B, M, L = value.shape
        count = len(rows) * M * L
        # The views begin at the first of these rows; the stride between slots is that of all rows.
        parts = (tensor[:, rows.start : rows.stop] for tensor in (value, square, grad, copy))
        _step_kernel[(triton.cdiv(count, _VALUES), S)](
            *parts, value if factor is None else factor,
            adam.root_factor, count, B * M * L,
            config.lora_lr, 1.0 - config.lora_lr * config.lora_wd, BETA2, EPS,
            M=M, L=L, FACTOR=factor is not None, VALUES=_VALUES, num_warps=_WARPS,
        )  # fmt: skip
