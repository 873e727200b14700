"""Number grids: round a matrix to small integers, restore it, and say how far off it can be.

The clip range of a row is `sigmas` of its standard deviations (SDClip, pull request #1493), so the
step, and with it the entropy of the codes, follows `sigmas` and not the number of bits.

Shapes: R rows (outputs), C columns (inputs).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fairway.errors import UserError

# 2^-24, the smallest positive float16. A smaller scale would be stored as 0, and 0 / 0 is NaN.
SMALLEST_SCALE = 2.0**-24


def largest_code(bits: int) -> int:
    """Return the largest code of so many bits; the smallest is its negative."""
    return (1 << (bits - 1)) - 1


@dataclass(frozen=True, slots=True)
class Grid:
    """Codes of `bits` bits, symmetric around 0, that clip at `sigmas` deviations of the row."""

    bits: int
    sigmas: float


@dataclass(frozen=True, slots=True, eq=False)
class QuantisedTensor:
    """codes_RC int8 within +-largest_code(bits), float16 scale_R: w is codes * scale of the row."""

    codes: Tensor
    scale: Tensor
    bits: int


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
        raise UserError(f"{name} holds a weight that is not finite; was the training diverging?")
    peak_R = w_RC.abs().amax(1)
    std_R = w_RC.std(1) if w_RC.shape[1] > 1 else torch.zeros_like(peak_R)
    clip_R = torch.where(std_R > 0, grid.sigmas * std_R, peak_R)
    scale_R = (clip_R / largest_code(grid.bits)).clamp_min(SMALLEST_SCALE).half()
    if not torch.isfinite(scale_R).all():
        raise UserError(
            f"{name} holds weights up to {float(peak_R.max()):.3g}, whose scale exceeds the "
            "65,504 that float16 can hold; was the training diverging?"
        )
    return scale_R


def round_to_grid(w_RC: Tensor, scale_R: Tensor, bits: int) -> Tensor:
    """Return the nearest codes, codes_RC int8; ties go to the even code, the rest is clipped."""
    codes_RC = torch.round(w_RC.float() / scale_R.float()[:, None])
    return codes_RC.clamp_(-largest_code(bits), largest_code(bits)).to(torch.int8)


def restore(quantised: QuantisedTensor) -> Tensor:
    """Return the weights w_RC in float32. See `error_bound` for how far off they can be."""
    return quantised.codes.float() * quantised.scale.float()[:, None]


def error_bound(w_RC: Tensor, scale_R: Tensor, bits: int) -> Tensor:
    """Return the largest possible |w - restored| of plain rounding for each weight, [R, C].

    Half a step inside the clip range, the distance to the range's end outside of it; two parts in
    a million of the weight pay for the float32 arithmetic.
    """
    scale_R1 = scale_R.float()[:, None]
    beyond_RC = w_RC.float().abs() - largest_code(bits) * scale_R1
    return torch.maximum(scale_R1 / 2, beyond_RC) + 2e-6 * w_RC.float().abs()
