"""Numbers with fewer bits, for the operands of matrix products.

A product of numbers whose last bits are zero switches fewer transistors. A GPU that has reached its
power limit then runs at a higher clock: on an H100 the six products of an MLP of `best` take 6 %
less time with three bits instead of the seven of bfloat16, 5 % with four (docs/training.md).
Kernels that write an operand round it on the way, so that rounding costs no pass over memory.

A format is given by its unit: numbers are multiples of this many units in the last place of
float32. Rounding is to nearest, halves away from zero; gradients pass as if nothing was rounded.
"""

import triton
import triton.language as tl
from torch import Tensor

_FLOAT32_BITS, _BFLOAT16_BITS = 23, 7
# The unit of bfloat16: operands stay as they are.
FULL = 1 << (_FLOAT32_BITS - _BFLOAT16_BITS)
# Numbers of one program.
_VALUES = 4096


def unit_of(bits: int) -> int:
    """Return the unit of numbers with so many bits of mantissa, 7 for those of bfloat16."""
    return 1 << (_FLOAT32_BITS - bits)


@triton.jit
def shortened(x, UNIT: tl.constexpr, DTYPE: tl.constexpr):
    """Return float32 numbers rounded to a unit, in a dtype that has the unit."""
    if UNIT > 65536:
        # A carry out of the mantissa raises the exponent, as it should; but NaN would become zero.
        bits = (x.to(tl.int32, bitcast=True) + UNIT // 2) & -UNIT
        x = tl.where(x == x, bits.to(tl.float32, bitcast=True), x)
    return x.to(DTYPE)


@triton.jit
def _shorten_kernel(x_ptr, count, UNIT: tl.constexpr, VALUES: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * VALUES + tl.arange(0, VALUES)
    x = tl.load(x_ptr + at, at < count, other=0.0).to(tl.float32)
    tl.store(x_ptr + at, shortened(x, UNIT, x_ptr.dtype.element_ty), at < count)


def shorten_(x: Tensor, unit: int) -> None:
    """Round a dense tensor to a unit, in place; with `FULL` nothing changes."""
    if unit > FULL:
        _shorten_kernel[(triton.cdiv(x.numel(), _VALUES),)](x, x.numel(), UNIT=unit, VALUES=_VALUES)
