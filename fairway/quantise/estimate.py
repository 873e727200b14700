"""Expected size of the artifact, for the dry run and for the step line.

File size follows the entropy of the codes, not their nominal bits (#1394): a Gaussian
row clipped at k sigmas with codes up to qmax costs log2(qmax sqrt(2 pi e) / k) bits per weight.
"""

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from fairway.config.settings import Config, PackConfig, QuantConfig, declares_code
from fairway.model.gpt import GPT, shapes_of
from fairway.quantise.correction import LEFT_BITS, MATRICES, RIGHT_BITS, SCALE_GROUP
from fairway.quantise.gptq import grid_of
from fairway.quantise.grid import Grid, largest_code, round_to_grid, row_scales

# The number of rows of a matrix that the step line reads: enough for 1 %, a few milliseconds in
# all.
SAMPLE_ROWS = 64
# Magic, header and section table of the container.
CONTAINER_BYTES = 4000


def gaussian_bits(grid: Grid) -> float:
    """Return the entropy in bits per weight of a Gaussian row's codes, at least 0."""
    qmax = largest_code(grid.bits)
    return max(0.0, math.log2(qmax * math.sqrt(2 * math.pi * math.e) / grid.sigmas))


def counted(pack: PackConfig, bundle_bytes: int) -> int:
    """Return the bytes of code that count with an artifact: those of the bundle, or the declared
    ones."""
    return bundle_bytes if isinstance(pack.code_bytes, str) else pack.code_bytes


def how_counted(pack: PackConfig) -> str:
    """Return the origin of the bytes of code: 'measured' or 'declared'."""
    return "declared" if declares_code(pack) else "measured"


def expected_bytes(config: Config, code_bytes: int) -> int:
    """Return the expected artifact bytes of a recipe, from shapes alone (Gaussian weights)."""
    if fills(config.quant):
        return filled_bytes(config.pack, code_bytes)
    model = shapes_of(config.model)
    return _total(model, config.quant, lambda _, __, grid: gaussian_bits(grid))


def fills(quant: QuantConfig) -> bool:
    """Return whether the artifact fills its limit: a trellis can have steps of any size."""
    return quant.fit and quant.method == "trellis"


def filled_bytes(pack: PackConfig, code_bytes: int) -> int:
    """Return the artifact bytes of a run that fills its budget: the limit minus the code."""
    return max(0, pack.limit_bytes - code_bytes)


def estimated_total(model: GPT, config: Config, code_bytes: int) -> int:
    """Return the expected bytes of artifact and code, given the present weights."""
    if fills(config.quant):
        return filled_bytes(config.pack, code_bytes) + code_bytes
    return estimate_bytes(model, config.quant) + code_bytes


def estimate_bytes(model: GPT, config: QuantConfig) -> int:
    """Return the artifact bytes of the present weights, from the entropy of a few rows' codes.

    For a trellis the setting gives the bits per weight.
    """
    return _total(model, config, _sampled_bits)


def _total(model: GPT, config: QuantConfig, bits_of: Callable[[str, Tensor, Grid], float]) -> int:
    total, shapes = float(CONTAINER_BYTES), []
    for name, value in model.named_parameters():
        grid = grid_of(name, value, config)
        if grid is not None:
            shapes.append(tuple(value.shape))
        total += 2 * value.numel() if grid is None else 2 * value.shape[0]
        if grid is not None and config.method == "trellis":
            total += value.numel() * config.rate_bits / 8
        elif grid is not None:
            total += value.numel() * bits_of(name, value, grid) / 8
    return round(total + factor_bytes(shapes, config))


def factor_bytes(shapes: Iterable[tuple[int, ...]], config: QuantConfig) -> float:
    """Return the expected bytes of the corrections of a model with coded matrices of some shapes.

    The worst matrices are not known yet, so the matrices with the largest factors are counted.
    """
    bits = []
    for rows, columns in shapes:
        rank = min(config.lqer_rank, rows, columns)
        groups = -(-rank * columns // SCALE_GROUP)
        bits.append(rank * (LEFT_BITS * rows + RIGHT_BITS * columns) + 16 * (1 + groups))
    return sum(sorted(bits)[-MATRICES:]) / 8 if config.lqer_rank else 0.0


@torch.no_grad()
def _sampled_bits(name: str, weight_RC: Tensor, grid: Grid) -> float:
    rows = weight_RC[:: max(1, weight_RC.shape[0] // SAMPLE_ROWS)].float()
    codes = round_to_grid(rows, row_scales(rows, grid, name), grid.bits)
    qmax = largest_code(grid.bits)
    counts = torch.bincount(codes.flatten().int() + qmax, minlength=2 * qmax + 1).double()
    shares = counts / counts.sum()
    return float(-torch.special.xlogy(shares, shares).sum()) / math.log(2)
