"""Numbers in compiled loops: float32, and bfloat16 as its bits, the upper half of a float32.

Loops treat rows one by one in float32, so that bits do not depend on the number of threads. numba
does not recompile stored loops of other files when a function here changes: change those files too,
or remove `__pycache__`.
"""

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from fairway.base.native import compiled, compiled_sums
from fairway.base.threads import in_pieces

# To a type checker NumPy's numbers are not `float`; compiled code accepts both.
f32: Any = np.float32
_i32: Any = np.int32
_u16: Any = np.uint16
_u32: Any = np.uint32

# The fewest numbers for a thread, about 50 us of work; waking a thread for less does not pay.
_LEAST = 1 << 18
ONE = f32(1.0)
# The range of exp; outside it the result is 0 or infinite in float32, or nearly so.
_LOWEST, _HIGHEST = f32(-87.0), f32(88.0)
# log 2 in two parts, the first exact when multiplied by whole numbers up to 2^11.
_LOG2_HIGH, _LOG2_LOW = f32(0.693359375), f32(np.log(2.0) - 0.693359375)
_PER_LOG2, _BIAS, _HALF = f32(1.0 / np.log(2.0)), f32(127.0), f32(0.5)
# 1 / n! for n = 2 to 7: the remainder is below 6e-9 within half a log 2.
_C2, _C3, _C4, _C5, _C6, _C7 = (f32(1.0 / f) for f in (2, 6, 24, 120, 720, 5040))


def fit(*tensors: Tensor) -> bool:
    """Return whether loops take these tensors: not empty, on a CPU, all float32 or all bfloat16."""
    dtype = tensors[0].dtype
    return (
        dtype in (torch.float32, torch.bfloat16)
        and all(t.device.type == "cpu" and t.dtype == dtype and t.numel() for t in tensors)
        and not numba.config.DISABLE_JIT
    )


# Devices without floats of 64 bits.
_WITHOUT_DOUBLE = ("mps",)


def widest(x: Tensor) -> torch.dtype:
    """Return the widest dtype of numbers that a tensor's device has."""
    return torch.float32 if x.device.type in _WITHOUT_DOUBLE else torch.float64


def double(x: Tensor) -> Tensor:
    """Return a tensor in float64, on the CPU if its own device has none."""
    return (x.cpu() if x.device.type in _WITHOUT_DOUBLE else x).double()


def array(x: Tensor) -> Any:
    """Return the memory of a tensor as an array; bfloat16 as uint16."""
    if x.requires_grad:
        x = x.detach()
    if x.dtype != torch.bfloat16:
        return x.numpy()
    return x.view(torch.int16).numpy().view(np.uint16)


def each(rows: int, x: Tensor, loop: Callable[..., None], *arguments: Any) -> None:
    """Run a loop over all rows of arrays about as large as x, several at once if it is large."""
    in_pieces(rows, x.numel(), lambda first, end: loop(*arguments, first, end), _LEAST)


# ---------------------------------------------------------------------------------------------
# Numbers


@compiled_sums
def wide(x: Any) -> Any:
    """Return the float32 of a value, which is a float32 or the upper half of one."""
    if isinstance(x, np.uint16):
        return _u32(_u32(x) << _u32(16)).view(np.float32)
    return f32(x)


@compiled_sums
def put(y: Any, at: Any, value: Any) -> None:
    """Set y[at] to a float32, rounded to its upper half, ties to even, if that is what y holds."""
    if isinstance(y[0], np.uint16):
        bits = f32(value).view(np.uint32)
        # A NaN from arithmetic has no bits in its lower half, so it stays a NaN.
        odd = _u32(_u32(bits >> _u32(16)) & _u32(1))
        y[at] = _u16(_u32(_u32(bits + _u32(0x7FFF) + odd) >> _u32(16)))
    else:
        y[at] = value


@compiled
def exp(x: Any) -> Any:
    """Return e^x in float32 to two units of the last place; NaN stays NaN.

    The order of operations matters: the two parts of log 2 must not be added first.
    """
    x = _LOWEST if x < _LOWEST else x
    x = _HIGHEST if x > _HIGHEST else x
    # The exponent of 2^n in float32 is n + 127, never negative here.
    biased = _i32(x * _PER_LOG2 + _BIAS + _HALF)
    n = f32(f32(biased) - _BIAS)
    r = f32(f32(x - n * _LOG2_HIGH) - n * _LOG2_LOW)
    p = _C2 + r * (_C3 + r * (_C4 + r * (_C5 + r * (_C6 + r * _C7))))
    p = ONE + r + r * r * p
    power = _u32(_u32(biased) << _u32(23)).view(np.float32)
    return f32(p * power)
