"""GPTQ: round a matrix column by column; the later columns of each row compensate for the error.

Frantar et al. 2022, arXiv 2210.17323, with the row scales of `grid` fixed beforehand; the steps
have the order of #1493. Everything runs in full float32 on the device of the Hessians. Matrices of
one shape are processed together, column by column: 67 matrices need five passes over columns. On a
GPU the launches take the time, not the arithmetic.

Shapes: L matrices of one shape, R rows (outputs), C columns (inputs), B columns of a block.
"""

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from fairway.base.errors import UserError
from fairway.base.floats import double
from fairway.base.progress import progress
from fairway.config.settings import QuantConfig
from fairway.model.gpt import GPT
from fairway.model.kinds import kind_in
from fairway.quantise.grid import (
    Grid,
    QuantisedTensor,
    largest_code,
    restore,
    restore_all,
    round_to_grid,
    row_scales,
)

# A quantised model: matrices as codes, everything else as float16, by name.
QuantisedModel = dict[str, QuantisedTensor | Tensor]

# The share of the Hessian's mean diagonal that is added to it (as in #1493), and the columns of a
# block, whose errors are applied to later blocks together: any number gives the same codes, 128 is
# fast.
DAMP, BLOCK = 0.01, 128
_DAMPING_TRIES = 6


@dataclass(frozen=True, slots=True, eq=False)
class Matrix:
    """The inputs of GPTQ for a matrix: weight [R, C], hessian X^T X [C, C] of its inputs, a
    grid."""

    name: str
    weight: Tensor
    hessian: Tensor
    grid: Grid


def gptq_all(
    matrices: Iterable[Matrix], *, damp: float = DAMP, block: int = BLOCK
) -> Iterator[tuple[str, QuantisedTensor]]:
    """Yield the name and codes of every matrix, those of one shape and number of bits together.

    The codes keep w X closest to its old value, given hessian = X^T X; any positive multiple of
    that gives the same codes. `damp` times its mean diagonal is added to it, or more if that is not
    enough. The columns of largest energy are rounded first, equal ones in their order in the matrix
    (a stable sort, so the codes do not depend on the device). Columns whose inputs were always zero
    become 0. Updates leave a block of `block` columns only at its end. Raises UserError for weights
    or Hessians that are not finite or do not fit each other.
    """
    groups: dict[tuple[int, int, int], list[Matrix]] = {}
    for matrix in matrices:
        rows, columns = matrix.weight.shape
        groups.setdefault((columns, rows, matrix.grid.bits), []).append(matrix)
    # Stored by Hessian, because matrices that read one tensor share one; kept for one width at a
    # time.
    factors: dict[int, _Factor] = {}
    width = 0
    for columns, rows, bits in sorted(groups):
        group = groups[columns, rows, bits]
        if columns != width:
            factors, width = {}, columns
        for matrix in group:
            if id(matrix.hessian) not in factors:
                factors[id(matrix.hessian)] = _factorise(matrix, damp)
        found = _gptq_group(group, [factors[id(m.hessian)] for m in group], block)
        yield from zip((matrix.name for matrix in group), found, strict=True)


@dataclass(frozen=True, slots=True, eq=False)
class _Factor:
    """A Hessian in the form for the column loop: (H + damping)^-1 = U^T U in the order of
    rounding."""

    order: Tensor
    dead: Tensor
    upper: Tensor


def _factorise(matrix: Matrix, damp: float) -> _Factor:
    C = matrix.weight.shape[1]
    hessian_CC = matrix.hessian
    if hessian_CC.shape != (C, C) or not torch.isfinite(hessian_CC).all():
        raise UserError(
            f"the calibration statistics of {matrix.name} are not a finite {C} x {C} matrix"
        )
    H_CC = hessian_CC.float().clone()
    diagonal_C = H_CC.diagonal()
    dead_C = diagonal_C == 0
    diagonal_C[dead_C] = 1.0
    order_C = torch.argsort(diagonal_C, descending=True, stable=True)
    with full_precision():
        upper_CC = inverse_factor(H_CC[order_C][:, order_C], damp, matrix.name)
    return _Factor(order_C, dead_C, upper_CC)


def inverse_factor(H_CC: Tensor, damp: float, name: str) -> Tensor:
    """Return the upper U with (H + damping)^-1 = U^T U; more damping, and a warning, if needed.

    With rows and columns reversed, H + damping = L L^T makes U the reverse of L^-1: one
    factorisation and no inverse, whose rounding would enter squared.
    """
    mean = H_CC.diagonal().mean()
    reversed_CC = H_CC.flip(0, 1)
    eye_CC = torch.eye(len(H_CC), device=H_CC.device)
    for attempt in range(_DAMPING_TRIES):
        damping_CC = damp * 10**attempt * mean * eye_CC
        lower_CC, failed = torch.linalg.cholesky_ex(reversed_CC + damping_CC)
        if failed:
            continue
        inverse_CC: Tensor = torch.linalg.solve_triangular(lower_CC, eye_CC, upper=False)
        upper_CC = inverse_CC.flip(0, 1)
        if torch.isfinite(upper_CC).all():
            if attempt:
                warnings.warn(
                    f"the Hessian of {name} needed {10**attempt} times the damping", stacklevel=2
                )
            return upper_CC
    raise UserError(
        f"the calibration statistics of {name} are not positive; calibrate on more text"
    )


def _gptq_group(group: list[Matrix], factors: list[_Factor], block: int) -> list[QuantisedTensor]:
    """Return the codes of matrices of one shape and number of bits, on the CPU."""
    device, bits = factors[0].upper.device, group[0].grid.bits
    scale_LR = torch.stack([row_scales(m.weight, m.grid, m.name).to(device) for m in group])
    w_LCR = torch.stack(
        [
            m.weight.to(device, torch.float32).T.masked_fill(f.dead[:, None], 0.0)[f.order]
            for m, f in zip(group, factors, strict=True)
        ]
    )
    with full_precision():
        codes_LCR = _feed_back(
            w_LCR, torch.stack([f.upper for f in factors]), scale_LR.float(), bits, block
        )
    places_LC = torch.stack([f.order.argsort() for f in factors])
    codes_LCR = codes_LCR.to(torch.int8).gather(1, places_LC[..., None].expand_as(codes_LCR))
    # Separate copies, since a slice would keep the memory of the whole group.
    codes = [codes_RC.clone() for codes_RC in codes_LCR.mT.contiguous().cpu()]
    return [
        QuantisedTensor(codes_RC, scale_R.clone(), bits)
        for codes_RC, scale_R in zip(codes, scale_LR.cpu(), strict=True)
    ]


def _feed_back(w_LCR: Tensor, U_LCC: Tensor, scale_LR: Tensor, bits: int, block: int) -> Tensor:
    """Return codes_LCR (float32 whole numbers) of columns in the given order; w is overwritten.

    The matrices lie transposed so that a column is contiguous.
    """
    codes_LCR = torch.empty_like(w_LCR)
    qmax = largest_code(bits)
    C = w_LCR.shape[1]
    inverse_LC1 = U_LCC.diagonal(dim1=1, dim2=2).reciprocal()[..., None]
    for first in range(0, C, block):
        last = min(first + block, C)
        error_LBR = torch.empty_like(w_LCR[:, first:last])
        for j in range(first, last):
            w_LR, code_LR, error_LR = w_LCR[:, j], codes_LCR[:, j], error_LBR[:, j - first]
            torch.div(w_LR, scale_LR, out=code_LR).round_().clamp_(-qmax, qmax)
            torch.addcmul(w_LR, code_LR, scale_LR, value=-1.0, out=error_LR)
            error_LR *= inverse_LC1[:, j]
            w_LCR[:, j + 1 : last].addcmul_(
                U_LCC[:, j, j + 1 : last, None], error_LR[:, None], value=-1.0
            )
        w_LCR[:, last:].baddbmm_(U_LCC[:, first:last, last:].mT, error_LBR, alpha=-1.0)
    return codes_LCR


@contextmanager
def full_precision() -> Iterator[None]:
    """Multiply in full float32 in this context, even if the machine plan allows less in training.

    Updates with a mantissa of ten bits would change codes that are not close to a tie.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


# ---------------------------------------------------------------------------------------------
# A whole model


def grid_of(name: str, weight: Tensor, config: QuantConfig) -> Grid | None:
    """Return the grid of a tensor, or None for one that is kept as float16.

    Matrices with more than config.min_numel values are quantised; embedding and untied head have
    a grid of their own. Gains, mixes and skips are no matrices, whatever their shape.
    """
    if not is_coded(name, weight, config.min_numel):
        return None
    kind = kind_in(GPT.declares, name)
    if kind.group != "matrix":
        return Grid(config.embed_bits, config.embed_sigmas)
    own = config.mlp_sigmas if kind.section in ("MLP up", "MLP down") else None
    return Grid(config.matrix_bits, config.matrix_sigmas if own is None else own)


def is_coded(name: str, weight: Tensor, min_numel: int) -> bool:
    """Return whether a parameter is a matrix or embedding with more than min_numel values.

    Raises ValueError for a name that the model does not declare.
    """
    return kind_in(GPT.declares, name).group != "scalar" and weight.numel() > min_numel


def quantise_model(
    state: Mapping[str, Tensor], hessians: Mapping[str, Tensor], config: QuantConfig
) -> QuantisedModel:
    """Return every tensor of a state dict as codes or as float16, on the CPU, in its order.

    With method 'gptq' each quantised matrix needs its Hessian (see `calibrate`). Raises UserError,
    with the tensor's name, for values that cannot be stored.
    """
    quantised: QuantisedModel = {}
    matrices: list[Matrix] = []
    for name, weight in state.items():
        grid = grid_of(name, weight, config)
        if grid is None:
            quantised[name] = as_half(name, weight)
        elif config.method == "gptq":
            if name not in hessians:
                raise UserError(f"{name} has no calibration statistics; set quant.method=round")
            matrices.append(Matrix(name, weight, hessians[name], grid))
        else:
            quantised[name] = round_plainly(weight, grid, name)
    found = gptq_all(matrices)
    with progress("quantise", len(matrices)) as advance:
        for name, tensor in found:
            quantised[name] = tensor
            advance(1)
    return {name: quantised[name] for name in state}


def round_plainly(w_RC: Tensor, grid: Grid, name: str) -> QuantisedTensor:
    """Return the nearest codes, without error feedback."""
    scale_R = row_scales(w_RC, grid, name)
    return QuantisedTensor(round_to_grid(w_RC, scale_R, grid.bits).cpu(), scale_R.cpu(), grid.bits)


def as_half(name: str, weight: Tensor) -> Tensor:
    """Return a tensor in float16, on the CPU; UserError, with its name, if it does not fit."""
    if not weight.is_floating_point():
        raise UserError(f"{name} is {weight.dtype}; an artifact holds floating-point tensors only")
    half = weight.detach().cpu().half()
    if not torch.isfinite(half).all():
        raise UserError(f"{name} holds a value that float16 cannot; did the training diverge?")
    return half


def dequantise(quantised: Mapping[str, QuantisedTensor | Tensor]) -> dict[str, Tensor]:
    """Return the state dict that an artifact restores, in float32."""
    coded = {n: t for n, t in quantised.items() if isinstance(t, QuantisedTensor)}
    restored = dict(restore_all(coded))
    return {
        name: tensor.float() if isinstance(tensor, Tensor) else restored[name]
        for name, tensor in quantised.items()
    }


# ---------------------------------------------------------------------------------------------
# Statistics


@dataclass(frozen=True, slots=True)
class TensorStats:
    """Statistics of a quantised matrix; errors refer to outputs, relative to the outputs' energy.

    entropy_bits: order-0 entropy of the codes. zero_share: codes that are 0. kurtosis: of the
    weights (3 is Gaussian). error, error_rounded: tr(E H E^T) / tr(W H W^T) of these codes and of
    plain rounding; without a Hessian, that of the weights themselves.
    """

    name: str
    values: int
    bits: int
    entropy_bits: float
    zero_share: float
    kurtosis: float
    error: float
    error_rounded: float


def tensor_stats(
    name: str,
    w_RC: Tensor,
    quantised: QuantisedTensor,
    hessian_CC: Tensor | None,
    restored_RC: Tensor | None = None,
) -> TensorStats:
    """Return the statistics of a matrix and its codes, for the report.

    They are computed on the device of the Hessian, or else of the weights. `restored_RC` are the
    weights of the codes, if they are known.
    """
    device = w_RC.device if hessian_CC is None else hessian_CC.device
    w_RC = w_RC.detach().to(device, torch.float32)
    H_CC = None if hessian_CC is None else hessian_CC.float()
    scale_R, codes_RC = quantised.scale.to(device), quantised.codes.to(device)
    restored_RC = (restore(quantised) if restored_RC is None else restored_RC).to(device)
    # One grid of a trellis has twice the step, and needs about as many bits as a plain grid with
    # that step.
    plain_R = scale_R * (2 if quantised.trellis else 1)
    plain = QuantisedTensor(round_to_grid(w_RC, plain_R, quantised.bits), plain_R, quantised.bits)
    qmax = largest_code(quantised.bits)
    counts = torch.bincount(codes_RC.flatten().int() + qmax, minlength=qmax + 1)
    share = double(counts).cpu() / codes_RC.numel()
    centred = w_RC - w_RC.mean()
    variance = max(float(centred.square().mean()), 1e-30)
    with full_precision():
        whole = max(energy(w_RC, H_CC), 1e-30)
        error = energy(w_RC - restored_RC, H_CC) / whole
        error_rounded = energy(w_RC - restore(plain), H_CC) / whole
    return TensorStats(
        name=name,
        values=w_RC.numel(),
        bits=quantised.bits,
        entropy_bits=float(-torch.special.xlogy(share, share).sum()) / math.log(2),
        zero_share=float(share[qmax]),
        kurtosis=float(centred.square().square_().mean()) / variance**2,
        error=error,
        error_rounded=error_rounded,
    )


def energy(w_RC: Tensor, hessian_CC: Tensor | None) -> float:
    """Return tr(W H W^T), the energy of a matrix's outputs; without a Hessian that of W itself."""
    if hessian_CC is None:
        return float(w_RC.square().sum())
    return float(((w_RC @ hessian_CC) * w_RC).sum())
