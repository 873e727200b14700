"""Bits of a code, given the step of its row: the rates that dependent quantisation uses.

Given its row, a trained weight is nearly Gaussian (docs/LOG.md), so the probabilities of a row's
codes follow from one number, the row's deviation over its step. Rows are divided into classes by
that number, an eighth of an octave wide. A small share is reserved for codes that are improbable
under a Gaussian.

Shapes: R rows, X classes, G = 2 grids, K magnitudes: half a multiple's, rounded up.
"""

import math

import torch
from torch import Tensor

from fairway.quantise.grid import largest_code

# Codes of dependent quantisation are bytes; if columns have finer steps, some need more.
CODE_BITS, WIDE_BITS = 8, 10
PER_OCTAVE = 8
_LOWEST_OCTAVE, _OCTAVES = -4, 12
# The cost of a magnitude that a grid does not have: 0 on the second grid.
_NEVER_BITS = 64.0
# Share of the codes that follow no Gaussian, halved by every 4 further codes.
_STRAY_SHARE = 0.005


def row_classes(ratio_R: Tensor) -> Tensor:
    """Return the class (int64) of rows by their deviation over their step."""
    octave_R = ratio_R.clamp_min(2.0**_LOWEST_OCTAVE).log2() - _LOWEST_OCTAVE
    return shifted((octave_R * PER_OCTAVE).round().long(), 0)


def shifted(class_R: Tensor, classes: int | Tensor) -> Tensor:
    """Return the classes of rows after their steps become finer by this many classes."""
    return (class_R + classes).clamp(0, _OCTAVES * PER_OCTAVE - 1)


def code_bits(width: int = CODE_BITS) -> Tensor:
    """Return bits_XGK in float32: the bits of codes of a width in bits, their signs included."""
    last = largest_code(width)
    k_K = torch.arange(last + 1, dtype=torch.float64)
    octave_X = torch.arange(_OCTAVES * PER_OCTAVE, dtype=torch.float64) / PER_OCTAVE
    ratio_X1 = 2.0 ** (octave_X + _LOWEST_OCTAVE)[:, None]
    stray_K = 0.5 ** (k_K / 4 + 3)
    tables = []
    for grid in (0, 1):
        # Points are two steps apart; magnitude k is at 2k - grid.
        above_K = 2 * k_K - grid + 1
        share_XK = _below(above_K / ratio_X1) - _below((above_K - 2) / ratio_X1)
        tables.append(-torch.log2((1 - _STRAY_SHARE) * share_XK + _STRAY_SHARE * stray_K))
    tables[1][:, 0] = _NEVER_BITS
    return torch.stack(tables, 1).float()


def expected_bits(bits_XGK: Tensor) -> Tensor:
    """Return the expected bits per weight of each class, bits_X, with both grids equally often."""
    signs_K = torch.full((bits_XGK.shape[2],), 2.0)
    signs_K[0] = 1.0
    share_XGK = torch.exp2(-bits_XGK) * signs_K.to(bits_XGK.device)
    return ((share_XGK * bits_XGK).sum(2) / share_XGK.sum(2)).mean(1)


def _below(z: Tensor) -> Tensor:
    """Return the share of a standard Gaussian below z."""
    share: Tensor = torch.special.erfc(-z / math.sqrt(2)) / 2
    return share
