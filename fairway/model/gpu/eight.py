"""The MLP's products in float8, forward and backward, with the activation inside them.

Numbers of 8 bits halve the time of a product on Hopper. A product of them reads both factors along
the dimension that it sums over, so the gradients of weights need transposed copies; the kernels
here write a tensor and its transpose at once. Numbers are e4m3 (Micikevicius et al. 2022, arXiv
2209.05433), and e5m2 where the bound of their size is loose. A tensor has one scale. It comes from
a bound on its largest value wherever one is known before the tensor is, so that no pass looks for
the largest value first. By the inequality of Cauchy and Schwarz:

    |x| <= sqrt(D), since x is normalised;  |h| <= sqrt(D) max_F |w_F|;  square <= h^2;
    |dsquare| <= sqrt(D) max|g| max_F |down_F|;  |dh| <= 2 |h| |dsquare|

On trained weights the bound of squares is loose by 2^2 to 2^7 and that of dh by 2^8 to 2^11, while
e4m3 has 2^17 between its smallest and largest number and e5m2 2^32. The scale of g is measured.

Shapes: N rows (positions), D width, F hidden width of the MLP, C columns.
"""

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from fairway.model.gpu import products
from fairway.model.gpu.products import _numbered, _slope, _square

VALUE, GRADIENT = torch.float8_e4m3fn, torch.float8_e5m2
MOST = {VALUE: 448.0, GRADIENT: 57_344.0}
# Nothing is divided by less than this: matrices may be zero, as at the start of a run.
_LEAST = 1e-30
_TILE = 64
# Products of float8 take half the time, so more of them wait for memory at once.
_WARPS, _STAGES = 8, 5

# Numbers of 8 bits, and the number by which they are multiplied.
Side = tuple[Tensor, Tensor]


class Eight(NamedTuple):
    """A matrix in float8, its transpose, and the number by which both are multiplied, a scalar."""

    rows: Tensor
    turned: Tensor
    unit: Tensor

    @property
    def along(self) -> Side:
        """The matrix as a factor whose product sums over columns."""
        return self.rows, self.unit

    @property
    def across(self) -> Side:
        """The matrix as a factor whose product sums over rows."""
        return self.turned, self.unit


@triton.jit
def _store_eight(x, most: tl.constexpr, rows_desc, turned_desc, row, column):
    """Write a tile in float8, and its transpose."""
    x = tl.minimum(tl.maximum(x, -most), most)
    rows_desc.store([row, column], x.to(rows_desc.dtype))
    turned_desc.store([column, row], tl.trans(x.to(turned_desc.dtype)))


@triton.jit
def _eight_kernel(x_desc, rows_desc, turned_desc, scale_ptr, most: tl.constexpr, C: tl.constexpr,
                 ROWS: tl.constexpr, COLUMNS: tl.constexpr):  # fmt: skip
    across = tl.cdiv(C, COLUMNS)
    row = tl.program_id(0) // across * ROWS
    column = tl.program_id(0) % across * COLUMNS
    x = x_desc.load([row, column]).to(tl.float32) / tl.load(scale_ptr)
    _store_eight(x, most, rows_desc, turned_desc, row, column)


@triton.jit
def _up_eight_kernel(
    a_desc, b_desc, out_desc, rows_desc, turned_desc, product_unit_ptr, unit_ptr, N, leak,
    most: tl.constexpr, F: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr, INPUTS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    product_unit, scale = tl.load(product_unit_ptr), 1.0 / tl.load(unit_ptr)
    tiles = tl.cdiv(N, ROWS) * tl.cdiv(F, OUTPUTS)
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), flatten=True):
        row, column, left, right = _numbered(
            a_desc, b_desc, tile, F, D, ROWS, OUTPUTS, INPUTS, WIDE
        )
        left = _square(left * product_unit, leak, out_desc.dtype)
        out_desc.store([row, column], left)
        _store_eight(left.to(tl.float32) * scale, most, rows_desc, turned_desc, row, column)
        right = _square(right * product_unit, leak, out_desc.dtype)
        out_desc.store([row, column + OUTPUTS // 2], right)
        _store_eight(right.to(tl.float32) * scale, most, rows_desc, turned_desc, row,
               column + OUTPUTS // 2)  # fmt: skip


@triton.jit
def _slope_eight_kernel(
    a_desc, b_desc, square_desc, rows_desc, turned_desc, product_unit_ptr, unit_ptr, leak,
    most: tl.constexpr, F: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr, INPUTS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    scale = tl.load(product_unit_ptr) / tl.load(unit_ptr)
    row, column, left, right = _numbered(
        a_desc, b_desc, tl.program_id(0), F, D, ROWS, OUTPUTS, INPUTS, WIDE
    )
    DTYPE: tl.constexpr = square_desc.dtype
    left *= _slope(square_desc.load([row, column]), leak, DTYPE) * scale
    _store_eight(left, most, rows_desc, turned_desc, row, column)
    right *= _slope(square_desc.load([row, column + OUTPUTS // 2]), leak, DTYPE) * scale
    _store_eight(right, most, rows_desc, turned_desc, row, column + OUTPUTS // 2)


def _sizes_eight(a_ND: Tensor, b_FD: Tensor) -> dict[str, int | bool]:
    return products._sizes(a_ND, b_FD, _STAGES) | {"num_warps": _WARPS}


def eight_of(x_NC: Tensor, unit: Tensor, dtype: torch.dtype) -> Eight:
    """Return a matrix in float8, in multiples of `unit`; larger values become the largest one."""
    N, C = x_NC.shape
    # Triton 3.6 on an H100 wrote wrong transposes of tiles that it had read as float32.
    x_NC = x_NC.bfloat16().contiguous()
    out = _empty_eight(x_NC, N, C, unit, dtype)
    sizes = {"ROWS": _TILE, "COLUMNS": _TILE}
    tiles = triton.cdiv(N, _TILE) * triton.cdiv(C, _TILE)
    block = [_TILE, _TILE]
    _eight_kernel[(tiles,)](
        TensorDescriptor.from_tensor(x_NC, block), *_eight_outputs(out, *block),
        unit, most=MOST[dtype], C=C, **sizes,
    )  # fmt: skip
    return _rounded_eight(out, dtype)


def measured(x_NC: Tensor) -> Eight:
    """Return a matrix in float8, with a unit by its largest value."""
    most = torch.linalg.vector_norm(x_NC, math.inf)
    return eight_of(x_NC, most.float().clamp_min(_LEAST) / MOST[VALUE], VALUE)


def up_eight(
    x: Eight, weight: Eight, unit: Tensor, leak: float, dtype: torch.dtype
) -> tuple[Tensor, Eight]:
    """Return leaky(x W^T)^2 as `products.up_square` does, [N, F], and the same in float8."""
    N, F = len(x.rows), len(weight.rows)
    out_NF = x.rows.new_empty(N, F, dtype=dtype)
    eight = _empty_eight(x.rows, N, F, unit, VALUE)
    sizes = _sizes_eight(x.rows, weight.rows)
    programs = min(products._tiles(N, F, sizes), 2 * products._processors(x.rows))
    half = sizes["OUTPUTS"] // 2
    _up_eight_kernel[(programs,)](
        *products._inputs(x.rows, weight.rows, sizes), products._halves(out_NF, sizes),
        *_eight_outputs(eight, sizes["ROWS"], half), x.unit * weight.unit, unit, N, leak,
        most=MOST[VALUE], **sizes,
    )  # fmt: skip
    return out_NF, _rounded_eight(eight, VALUE)


def eight_product(a_side: Side, b_side: Side, dtype: torch.dtype) -> Tensor:
    """Return a b^T; both factors lie along the dimension that is summed."""
    (a, a_unit), (b, b_unit) = a_side, b_side
    if not a.is_cuda:
        return ((a.float() * a_unit) @ (b.float() * b_unit).T).to(dtype)
    # Fast accumulation keeps 14 bits, too few for sums over all positions.
    return torch._scaled_mm(
        a, b.T, scale_a=a_unit, scale_b=b_unit, out_dtype=dtype, use_fast_accum=False
    )


def _dtype_on(like: Tensor, dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of numbers in float8: Triton's interpreter, for machines without a GPU,
    rounds to float8 wrongly, so they are float32 there."""
    return dtype if like.is_cuda else torch.float32


def _empty_eight(like: Tensor, N: int, C: int, unit: Tensor, dtype: torch.dtype) -> Eight:
    dtype = _dtype_on(like, dtype)
    rows, turned = (like.new_empty(shape, dtype=dtype) for shape in ((N, C), (C, N)))
    return Eight(rows, turned, unit)


def _rounded_eight(out: Eight, dtype: torch.dtype) -> Eight:
    if not out.rows.is_cuda:
        for tensor in out[:2]:
            tensor.copy_(tensor.to(dtype))
    return out


def _eight_outputs(out: Eight, rows: int, columns: int) -> list[TensorDescriptor]:
    return [
        TensorDescriptor.from_tensor(out.rows, [rows, columns]),
        TensorDescriptor.from_tensor(out.turned, [columns, rows]),
    ]


class EightWeights(NamedTuple):
    """The two matrices of an MLP in float8, and the units of inputs and squares, scalars.

    `slope_unit` times the unit of the gradient is the unit of dh.
    """

    up: Eight
    down: Eight
    input_unit: Tensor
    square_unit: Tensor
    slope_unit: Tensor


def weights_of(up_FD: Tensor, down_DF: Tensor, scale_D: Tensor) -> EightWeights:
    """Return up and the scaled down in float8, with units by their largest values."""
    scaled_DF = down_DF * scale_D[:, None]
    up, down = measured(up_FD), measured(scaled_DF)
    most_x = up_FD.new_full((), math.sqrt(up_FD.shape[1]))
    most_h = most_x * up_FD.norm(dim=1).amax()
    most_slope = 2.0 * most_h * most_x * scaled_DF.norm(dim=0).amax()
    square_unit = most_h.square().clamp_min(_LEAST) / MOST[VALUE]
    slope_unit = most_slope.clamp_min(1e-3) * (MOST[VALUE] / MOST[GRADIENT])
    return EightWeights(up, down, most_x / MOST[VALUE], square_unit, slope_unit)


def slope_eight(g: Eight, weights: EightWeights, square_NF: Tensor, leak: float) -> Eight:
    """Return (g down) times the slope of leaky(h)^2 in float8, [N, F], from the square."""
    N, F = square_NF.shape
    out = _empty_eight(square_NF, N, F, g.unit * weights.slope_unit, GRADIENT)
    sizes = _sizes_eight(g.rows, weights.down.turned)
    half = sizes["OUTPUTS"] // 2
    _slope_eight_kernel[(products._tiles(N, F, sizes),)](
        *products._inputs(g.rows, weights.down.turned, sizes), products._halves(square_NF, sizes),
        *_eight_outputs(out, sizes["ROWS"], half), g.unit * weights.down.unit, out.unit, leak,
        most=MOST[GRADIENT], **sizes,
    )  # fmt: skip
    return _rounded_eight(out, GRADIENT)
