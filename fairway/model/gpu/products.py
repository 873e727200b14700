"""Triton matrix products whose last step is the MLP's activation, forward and backward.

A separate activation would read and write the widest tensor of the model once more in each
direction. Here it is applied to a tile of the product before the tile leaves the multiprocessor.
The input h of the activation is never stored: |h| follows from leaky(h)^2, and the last bit of each
value stores the sign of h. So a stored value is off by at most one unit in the last place instead
of half a unit.

Shapes: N rows (positions), D inputs, F outputs.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from fairway.model.gpu.short import FULL, shortened

# Tiles of 128 x 128 with 64 inputs at a time leave room for two on a multiprocessor, so that the
# end of one overlaps the products of the other (benchmarks/README.md has the cost of larger ones).
_ROWS, _OUTPUTS, _INPUTS = 128, 128, 64
_WARPS, _STAGES, _STAGES_BACK = 4, 3, 2


@triton.jit
def _square(h, leak, DTYPE: tl.constexpr, UNIT: tl.constexpr):
    """Return the value nearest to leaky(h)^2 whose last bit is set if h is negative."""
    root = tl.where(h > 0, h, leak * h)
    negative = tl.where(h < 0, 1, 0)
    bits = (root * root).to(tl.int32, bitcast=True)
    bits = ((bits - negative * UNIT + UNIT) & -2 * UNIT) + negative * UNIT
    return bits.to(tl.float32, bitcast=True).to(DTYPE)


@triton.jit
def _slope(square, leak, UNIT: tl.constexpr):
    """Return the derivative of leaky(h)^2, from the result of `_square`."""
    wide = square.to(tl.float32)
    negative = (wide.to(tl.int32, bitcast=True) & UNIT) != 0
    return tl.where(negative, -2.0 * leak, 2.0) * tl.sqrt(wide)


@triton.jit
def _tile(a_desc, b_desc, row, column, D, ROWS: tl.constexpr, OUTPUTS: tl.constexpr,
          INPUTS: tl.constexpr, WIDE: tl.constexpr):  # fmt: skip
    product = tl.zeros([ROWS, OUTPUTS], tl.float32)
    for k in range(0, tl.cdiv(D, INPUTS)):
        a = a_desc.load([row, k * INPUTS])
        b = b_desc.load([column, k * INPUTS])
        if WIDE:
            product = tl.dot(a.to(tl.float32), b.to(tl.float32).T, product)
        else:
            product = tl.dot(a, b.T, product)
    # In two halves: memory for a whole tile would leave no room for a second program.
    return tl.split(tl.permute(tl.reshape(product, (ROWS, 2, OUTPUTS // 2)), (0, 2, 1)))


@triton.jit
def _numbered(a_desc, b_desc, tile, F: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr,
              OUTPUTS: tl.constexpr, INPUTS: tl.constexpr, WIDE: tl.constexpr):  # fmt: skip
    """Return the place of a tile and its two halves. Tiles of the same rows follow one another, so
    that a's rows are read from memory once."""
    across = tl.cdiv(F, OUTPUTS)
    row = tile // across * ROWS
    column = tile % across * OUTPUTS
    left, right = _tile(a_desc, b_desc, row, column, D, ROWS, OUTPUTS, INPUTS, WIDE)
    return row, column, left, right


@triton.jit
def _up_kernel(
    a_desc, b_desc, out_desc, N, leak,
    F: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr, OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr, WIDE: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    tiles = tl.cdiv(N, ROWS) * tl.cdiv(F, OUTPUTS)
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), flatten=True):
        row, column, left, right = _numbered(
            a_desc, b_desc, tile, F, D, ROWS, OUTPUTS, INPUTS, WIDE
        )
        out_desc.store([row, column], _square(left, leak, out_desc.dtype, UNIT))
        out_desc.store([row, column + OUTPUTS // 2], _square(right, leak, out_desc.dtype, UNIT))


@triton.jit
def _slope_kernel(
    a_desc, b_desc, square_desc, out_desc, leak,
    F: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr, OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr, WIDE: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    # One tile per program: here that is faster than persistent programs (0.43 against 0.50 ms).
    row, column, left, right = _numbered(
        a_desc, b_desc, tl.program_id(0), F, D, ROWS, OUTPUTS, INPUTS, WIDE
    )
    DTYPE: tl.constexpr = out_desc.dtype
    left *= _slope(square_desc.load([row, column]), leak, UNIT)
    out_desc.store([row, column], shortened(left, UNIT, DTYPE))
    right *= _slope(square_desc.load([row, column + OUTPUTS // 2]), leak, UNIT)
    out_desc.store([row, column + OUTPUTS // 2], shortened(right, UNIT, DTYPE))


def up_square(x_ND: Tensor, weight_FD: Tensor, leak: float, unit: int = FULL) -> Tensor:
    """Return leaky(x W^T)^2 to a unit, [N, F]; the last bit of every value is the sign of x W^T."""
    N, F = len(x_ND), len(weight_FD)
    out_NF = x_ND.new_empty(N, F)
    sizes = _sizes(x_ND, weight_FD, _STAGES, unit)
    programs = min(_tiles(N, F, sizes), 2 * _processors(x_ND))
    _up_kernel[(programs,)](
        *_inputs(x_ND, weight_FD, sizes), _halves(out_NF, sizes), N, leak, **sizes
    )
    return out_NF


def slope_product(
    g_ND: Tensor, weight_FD: Tensor, square_NF: Tensor, leak: float, unit: int = FULL
) -> Tensor:
    """Return (g W^T) times the slope of leaky(h)^2, [N, F], from the result of `up_square`.

    The unit must be that of `up_square`.
    """
    N, F = square_NF.shape
    out_NF = torch.empty_like(square_NF)
    sizes = _sizes(g_ND, weight_FD, _STAGES_BACK, unit)
    _slope_kernel[(_tiles(N, F, sizes),)](
        *_inputs(g_ND, weight_FD, sizes),
        _halves(square_NF, sizes), _halves(out_NF, sizes), leak, **sizes,
    )  # fmt: skip
    return out_NF


def _sizes(a_ND: Tensor, b_FD: Tensor, stages: int, unit: int) -> dict[str, int | bool]:
    F, D = b_FD.shape
    return {
        "F": F,
        "D": D,
        "ROWS": _ROWS,
        "OUTPUTS": min(_OUTPUTS, max(32, triton.next_power_of_2(F))),
        "INPUTS": min(_INPUTS, max(16, triton.next_power_of_2(D))),
        # Triton's interpreter, for machines without a GPU, has no products of bfloat16.
        "WIDE": not a_ND.is_cuda,
        # The last bit of float32 in exact tests.
        "UNIT": 1 if unit == FULL and a_ND.dtype == torch.float32 else unit,
        "num_warps": _WARPS,
        "num_stages": stages,
    }


def _tiles(N: int, F: int, sizes: dict[str, int | bool]) -> int:
    tiles: int = triton.cdiv(N, sizes["ROWS"]) * triton.cdiv(F, sizes["OUTPUTS"])
    return tiles


def _inputs(a_ND: Tensor, b_FD: Tensor, sizes: dict[str, int | bool]) -> list[TensorDescriptor]:
    return [
        TensorDescriptor.from_tensor(a_ND, [sizes["ROWS"], sizes["INPUTS"]]),
        TensorDescriptor.from_tensor(b_FD, [sizes["OUTPUTS"], sizes["INPUTS"]]),
    ]


def _halves(x_NF: Tensor, sizes: dict[str, int | bool]) -> TensorDescriptor:
    return TensorDescriptor.from_tensor(x_NF, [sizes["ROWS"], sizes["OUTPUTS"] // 2])


def _processors(like: Tensor) -> int:
    if not like.is_cuda:
        return 4
    return torch.cuda.get_device_properties(like.device).multi_processor_count
