"""Number grids: round a matrix to small integers, restore it, and bound its error.

The clip range of a row is `sigmas` of its standard deviations (SDClip, pull request #1493), so the
step, and with it the entropy of the codes, follows `sigmas` and not the number of bits.

Shapes: R rows (outputs), C columns (inputs).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fairway.base.errors import UserError
from fairway.quantise.correction import Correction, product
from fairway.quantise.trellis import reconstruct

# 2^-24, the smallest positive float16. A smaller scale would be stored as 0, and 0 / 0 is NaN.
SMALLEST_SCALE = 2.0**-24

# Scales on a logarithmic grid, in sixteenths of an octave: from 2^-40 to 2^40.
LARGEST_STEP = 640
# Rows restored together; intermediate numbers take many times the bytes of a code.
_ROWS_AT_ONCE = 256
# 2^(i/16) as multiples of 2^-23, the nearest float32; a library's pow() may miss the last bit.
_MANTISSAS = (
    0x800000,
    0x85AAC3,
    0x8B95C2,
    0x91C3D3,
    0x9837F0,
    0x9EF532,
    0xA5FED7,
    0xAD583F,
    0xB504F3,
    0xBD08A4,
    0xC5672A,
    0xCE248C,
    0xD744FD,
    0xE0CCDF,
    0xEAC0C7,
    0xF5257D,
)


def largest_code(bits: int) -> int:
    """Return the largest code of this many bits; the smallest is its negative."""
    return (1 << (bits - 1)) - 1


@dataclass(frozen=True, slots=True)
class Grid:
    """Codes of `bits` bits, symmetric around 0, that clip at `sigmas` deviations of the row."""

    bits: int
    sigmas: float


@dataclass(frozen=True, slots=True, eq=False)
class QuantisedTensor:
    """Whole numbers codes_RC (int8, int16) within +-largest_code(bits), and a step for every row.

    w is the row's scale times the multiple of a code: the code itself, or the result of a trellis
    of this many states along the columns. scale_R is float16, or float32 if scale_steps (int16 [R])
    gives it: `scale_of(scale_steps)`. With `columns` (int8 [C]) the step of a weight is
    `scale_of(scale_steps_R + columns_C)` instead. A `correction` is added at the end.
    """

    codes: Tensor
    scale: Tensor
    bits: int
    scale_steps: Tensor | None = None
    trellis: int = 0
    columns: Tensor | None = None
    correction: Correction | None = None


def scale_of(steps_R: Tensor) -> Tensor:
    """Return 2^(steps / 16) in float32, of any shape, the same bits on every machine.

    Raises UserError for steps beyond +-LARGEST_STEP.
    """
    if steps_R.numel() and int(steps_R.int().abs().max()) > LARGEST_STEP:
        raise UserError(f"a scale step lies beyond +-{LARGEST_STEP}; did the training diverge?")
    steps_R = steps_R.int()
    mantissas = torch.tensor(_MANTISSAS, dtype=torch.int32, device=steps_R.device)
    # The sum of both parts: the leading one of the mantissa adds 1 to the exponent, biased by 127.
    return ((126 + (steps_R >> 4) << 23) + mantissas[(steps_R & 15).long()]).view(torch.float32)


def row_scales(w_RC: Tensor, grid: Grid, name: str) -> Tensor:
    """Return the step of every row, scale_R in float16: sigmas * std / largest code.

    The deviation is the unbiased one. A row without spread (constant, or a single column) takes
    its largest magnitude as the clip instead, so that it is restored and a zero row has codes 0.
    Raises UserError, with the tensor's name, for weights that are not finite or too large.
    """
    if w_RC.ndim != 2 or 0 in w_RC.shape:
        raise UserError(f"{name} has shape {list(w_RC.shape)}; only filled matrices are quantised")
    w_RC = w_RC.float()
    if not torch.isfinite(w_RC).all():
        raise UserError(f"{name} holds a weight that is not finite; did the training diverge?")
    peak_R = w_RC.abs().amax(1)
    std_R = w_RC.std(1) if w_RC.shape[1] > 1 else torch.zeros_like(peak_R)
    clip_R = torch.where(std_R > 0, grid.sigmas * std_R, peak_R)
    scale_R = (clip_R / largest_code(grid.bits)).clamp_min(SMALLEST_SCALE).half()
    if not torch.isfinite(scale_R).all():
        raise UserError(
            f"{name} holds weights up to {float(peak_R.max()):.3g}, whose scale exceeds the "
            "65,504 that float16 can hold; did the training diverge?"
        )
    return scale_R


def round_to_grid(w_RC: Tensor, scale_R: Tensor, bits: int) -> Tensor:
    """Return the nearest codes, codes_RC (int8; int16 if of more than 8 bits).

    Ties go to the even code; values beyond the largest code are clipped to it.
    """
    codes_RC = torch.round(w_RC.float() / scale_R.float()[:, None])
    codes_RC.clamp_(-largest_code(bits), largest_code(bits))
    return codes_RC.to(torch.int8 if bits <= 8 else torch.int16)


def restore(quantised: QuantisedTensor) -> Tensor:
    """Return the weights w_RC in float32."""
    return _restored(quantised, reconstruct(quantised.codes, quantised.trellis))


def restore_all(tensors: Mapping[str, QuantisedTensor]) -> Iterator[tuple[str, Tensor]]:
    """Yield names and weights of matrices, as `restore` gives them, not in their order.

    The path of codes through a trellis goes column by column, with a few calls of PyTorch for each.
    So matrices of one width are restored together.
    """
    alike: dict[Any, list[str]] = {}
    for name, tensor in tensors.items():
        codes_RC = tensor.codes
        kind = tensor.trellis, codes_RC.shape[1], codes_RC.dtype, codes_RC.device
        alike.setdefault(kind, []).append(name)
    for (trellis, *_), names in alike.items():
        rows = [tensors[name].codes for name in names]
        multiples = torch.split(reconstruct(torch.cat(rows), trellis), [len(r) for r in rows])
        for name, multiples_RC in zip(names, multiples, strict=True):
            yield name, _restored(tensors[name], multiples_RC)


def _restored(quantised: QuantisedTensor, multiples_RC: Tensor) -> Tensor:
    weights_RC = _steps_times_multiples(quantised, multiples_RC)
    if quantised.correction is not None:
        weights_RC += product(quantised.correction).to(weights_RC.device)
    return weights_RC


def _steps_times_multiples(quantised: QuantisedTensor, multiples_RC: Tensor) -> Tensor:
    if quantised.columns is None:
        return multiples_RC.float() * quantised.scale.float()[:, None]
    assert quantised.scale_steps is not None, "columns have steps where rows have"
    steps_R1, weights_RC = quantised.scale_steps.int()[:, None], multiples_RC.float()
    for first in range(0, len(weights_RC), _ROWS_AT_ONCE):
        rows = slice(first, first + _ROWS_AT_ONCE)
        scale_RC = scale_of(steps_R1[rows] + quantised.columns.int())
        weights_RC[rows] *= scale_RC.to(weights_RC.device)
    return weights_RC
