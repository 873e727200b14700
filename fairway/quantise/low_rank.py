"""LQER: products of two small matrices correct the worst errors of quantised matrices.

Zhang et al. 2024, arXiv 2402.02446, as pull request #1797 has it and #1874 uses it: the error E of
a matrix is approximated by the first components of its singular value decomposition, whose two
factors are coded with 2 and 4 bits. Everything runs in float64 on the CPU.

Shapes: R rows (outputs), C columns (inputs), K components.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from fairway.base.floats import double
from fairway.quantise.correction import (
    LEFT_BITS,
    MATRICES,
    RIGHT_BITS,
    SCALE_GROUP,
    Correction,
    product,
)
from fairway.quantise.gptq import QuantisedModel, energy
from fairway.quantise.grid import SMALLEST_SCALE, QuantisedTensor, restore

_LARGEST_HALF = 65_504.0


def corrected(quantised: QuantisedModel, state: Mapping[str, Tensor], rank: int) -> QuantisedModel:
    """Return a model whose worst matrices, by the norm of their error, have corrections of a rank.

    A matrix gets no correction if its coded factors do not reduce the error.
    """
    coded = {n: t for n, t in quantised.items() if isinstance(t, QuantisedTensor)}
    found = dict(quantised)

    def error(name: str) -> Tensor:
        return double(state[name].detach().cpu()) - double(restore(coded[name]))

    # Errors of all matrices at once would be twice the model.
    sizes = {name: energy(error(name), None) for name in coded}
    wrong = [name for name in coded if sizes[name] > 0]
    for name in sorted(wrong, key=lambda name: -sizes[name])[:MATRICES]:
        error_RC = error(name)
        correction = code(*factors(error_RC, rank))
        if energy(error_RC - double(product(correction)), None) < sizes[name]:
            found[name] = replace(coded[name], correction=correction)
    return found


def factors(error_RC: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return left_RK and right_KC, whose product is the nearest of its rank to an error (float64).

    The largest number of every component of the left factor is negative: two bits reach to -2 and
    1.
    """
    u_RM, size_M, v_MC = torch.linalg.svd(error_RC, full_matrices=False)
    left_RK, right_KC = u_RM[:, :rank] * size_M[:rank], v_MC[:rank]
    largest_K = left_RK.gather(0, left_RK.abs().argmax(0, keepdim=True))[0]
    sign_K = torch.where(largest_K > 0, -1.0, 1.0)
    return left_RK * sign_K, right_KC * sign_K[:, None]


def code(left_RK: Tensor, right_KC: Tensor) -> Correction:
    """Return the coded product of two factors.

    The left factor has one scale, its largest magnitude over 1.5; the right one has a scale for
    every SCALE_GROUP of its numbers, the largest magnitude over 7.5.
    """
    left_scale = _scale(left_RK.abs().max() / (_beyond(LEFT_BITS) - 0.5))
    flat_N = right_KC.flatten()
    groups_GN = F.pad(flat_N, (0, -len(flat_N) % SCALE_GROUP)).view(-1, SCALE_GROUP)
    scales_G = _scale(groups_GN.abs().amax(1) / (_beyond(RIGHT_BITS) - 0.5))
    right_N = _rounded(groups_GN, scales_G[:, None], RIGHT_BITS).flatten()[: len(flat_N)]
    return Correction(
        _rounded(left_RK, left_scale, LEFT_BITS),
        right_N.view_as(right_KC).contiguous(),
        torch.cat([left_scale.view(1), scales_G]),
    )


def _beyond(bits: int) -> int:
    """Return the size of the smallest whole number of this many bits; the largest is one less."""
    return 1 << (bits - 1)


def _scale(value: Tensor) -> Tensor:
    return value.clamp(SMALLEST_SCALE, _LARGEST_HALF).half()


def _rounded(values: Tensor, scale: Tensor, bits: int) -> Tensor:
    most = _beyond(bits)
    return torch.round(values / double(scale)).clamp_(-most, most - 1).to(torch.int8)
