"""Corrections of restored matrices by the product of two small coded matrices.

Shapes: R rows (outputs), C columns (inputs), K components.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

# So many matrices have corrections, as in #1874.
MATRICES = 3
# A correction's left factor has whole numbers of 2 bits, its right factor of 4 bits; this many of
# the right one's share a scale.
LEFT_BITS, RIGHT_BITS, SCALE_GROUP = 2, 4, 64


@dataclass(frozen=True, slots=True, eq=False)
class Correction:
    """The addition to a restored matrix: the product of two small matrices (`low_rank`).

    left_RK and right_KC are int8. `scales` is float16: the left factor's, then one for every
    SCALE_GROUP numbers of the right one, counted row by row.
    """

    left: Tensor
    right: Tensor
    scales: Tensor


def product(correction: Correction) -> Tensor:
    """Return the addition of a correction to a matrix, [R, C] in float32.

    It adds component by component, because the order of addition in a library's matrix product is
    not defined.
    """
    right_KC = correction.right.float()
    scales_N = correction.scales[1:].float().repeat_interleave(SCALE_GROUP)[: right_KC.numel()]
    right_KC = right_KC * scales_N.view_as(right_KC)
    sum_RC = torch.zeros(len(correction.left), right_KC.shape[1])
    for left_R, right_C in zip(correction.left.T.float(), right_KC, strict=True):
        sum_RC += left_R[:, None] * right_C
    return sum_RC * correction.scales[0].float()
