"""The factors of corrections in an artifact: shapes, numbers in their order, and limits.

Left factors are stored as their transposes, [K, R]: component by component, like right ones.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fairway.base.errors import UserError
from fairway.quantise.correction import SCALE_GROUP, Correction

Shapes = dict[str, tuple[int, ...]]


def factor_shapes(
    coded: Mapping[str, tuple[int, ...]], corrected: Sequence[str], rank: int
) -> dict[str, Shapes]:
    """Return the shapes of factors and scales, by the kind of section and the matrix.

    `coded` are the shapes of all matrices with codes. UserError if other matrices are corrected, or
    in another order.
    """
    names = [name for name in coded if name in corrected]
    if names != list(corrected):
        raise UserError("the header's corrections are not of matrices with codes, in order")
    found: dict[str, Shapes] = {"left factors": {}, "right factors": {}, "factor scales": {}}
    for name in names:
        rows, columns = coded[name]
        own = min(rank, rows, columns)
        found["left factors"][name] = own, rows
        found["right factors"][name] = own, columns
        found["factor scales"][name] = (1 + -(-own * columns // SCALE_GROUP),)
    return found


def factor_line(kind: str, correction: Correction) -> NDArray[np.generic]:
    """Return the numbers of a correction for a section of some kind, two bytes each."""
    if kind == "factor scales":
        return correction.scales.numpy().astype("<f2")
    factor = correction.left.T if kind == "left factors" else correction.right
    return factor.numpy().astype("<i2")


def correction_of(left_KR: Tensor, right_KC: Tensor, scales: Tensor) -> Correction:
    """Return the correction from the content of the three sections."""
    return Correction(left_KR.T, right_KC, scales)


def require_factors(values: NDArray[Any], bits: int, name: str) -> None:
    """Raise UserError with the matrix's name for a number outside the range of `bits`."""
    beyond, numbers = 1 << (bits - 1), values.astype(np.int64)
    if numbers.min() < -beyond or numbers.max() >= beyond:
        raise UserError(
            f"the correction of {name} holds a number that {bits} bits cannot; the file was not "
            "written by Fairway"
        )
