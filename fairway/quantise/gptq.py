"""GPTQ: round a matrix column by column and let the rest of each row make up for the error.

Frantar et al. 2022, arXiv 2210.17323, with the row scales of `grid` fixed beforehand; the order of
the steps is that of #1493. Everything runs in float32 on the weights' device.

Shapes: R rows (outputs), C columns (inputs), B columns of a block.
"""

import dataclasses
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fairway.config import QuantConfig
from fairway.errors import UserError
from fairway.progress import progress
from fairway.quantise.grid import (
    Grid,
    QuantisedTensor,
    largest_code,
    restore,
    round_to_grid,
    row_scales,
)

# A model on its way into an artifact: matrices as codes, everything else as float16, by name.
QuantisedModel = dict[str, QuantisedTensor | Tensor]

_EMBEDDINGS = ("tok_emb.weight", "head.weight")
_DAMPING_TRIES = 6


def gptq(
    w_RC: Tensor,
    hessian_CC: Tensor,
    grid: Grid,
    *,
    damp: float,
    block: int,
    act_order: bool,
    name: str = "the matrix",
) -> QuantisedTensor:
    """Return the codes that keep w X closest to its old value, given hessian = X^T X.

    Any positive multiple of the Hessian gives the same codes. `damp` times its mean diagonal is
    added to it; `act_order` rounds the columns of largest energy first, equal ones in their
    order in the matrix (a stable sort, so the codes do not depend on the device). Columns that no
    input ever reached become 0. Updates leave a block of `block` columns only at its end.
    Raises UserError for weights or Hessians that are not finite or do not fit each other.
    """
    R, C = w_RC.shape
    if hessian_CC.shape != (C, C) or not torch.isfinite(hessian_CC).all():
        raise UserError(f"the calibration statistics of {name} are not a finite {C} x {C} matrix")
    scale_R = row_scales(w_RC, grid, name)
    H_CC = hessian_CC.to(w_RC.device, torch.float32).clone()
    diagonal_C = H_CC.diagonal()
    dead_C = diagonal_C == 0
    diagonal_C[dead_C] = 1.0
    order_C = torch.arange(C, device=w_RC.device)
    if act_order:
        order_C = torch.argsort(diagonal_C, descending=True, stable=True)
    factor_CC = _inverse_factor(H_CC[order_C][:, order_C], damp, name)
    w_CR = w_RC.float().T.contiguous()
    w_CR[dead_C] = 0.0
    codes_CR = _feed_back(w_CR[order_C], factor_CC, scale_R.float(), grid.bits, block)
    codes_RC = torch.empty(R, C, dtype=torch.int8)
    codes_RC[:, order_C.cpu()] = codes_CR.T.to("cpu", torch.int8)
    return QuantisedTensor(codes_RC, scale_R.cpu(), grid.bits)


def _inverse_factor(H_CC: Tensor, damp: float, name: str) -> Tensor:
    """Return the upper U with (H + damping)^-1 = U^T U; more damping, and a warning, if needed."""
    mean = H_CC.diagonal().mean()
    eye_CC = torch.eye(len(H_CC), device=H_CC.device)
    upper_CC: Tensor
    for attempt in range(_DAMPING_TRIES):
        lower_CC, failed = torch.linalg.cholesky_ex(H_CC + damp * 10**attempt * mean * eye_CC)
        if not failed:
            inverse_CC = torch.cholesky_inverse(lower_CC)
            upper_CC, failed = torch.linalg.cholesky_ex(inverse_CC, upper=True)
            if not failed and torch.isfinite(upper_CC).all():
                if attempt:
                    warnings.warn(
                        f"the Hessian of {name} needed {10**attempt} times the damping",
                        stacklevel=3,
                    )
                return upper_CC
    raise UserError(
        f"the calibration statistics of {name} are not positive; calibrate on more text"
    )


def _feed_back(w_CR: Tensor, U_CC: Tensor, scale_R: Tensor, bits: int, block: int) -> Tensor:
    """Return codes_CR (float32 whole numbers) of columns in the order given; w is used up.

    The matrix lies transposed so that a column is contiguous.
    """
    codes_CR = torch.empty_like(w_CR)
    qmax = largest_code(bits)
    for first in range(0, len(w_CR), block):
        last = min(first + block, len(w_CR))
        error_BR = torch.empty_like(w_CR[first:last])
        for j in range(first, last):
            codes_CR[j] = torch.round(w_CR[j] / scale_R).clamp_(-qmax, qmax)
            error_BR[j - first] = (w_CR[j] - codes_CR[j] * scale_R) / U_CC[j, j]
            w_CR[j + 1 : last].addr_(U_CC[j, j + 1 : last], error_BR[j - first], alpha=-1.0)
        w_CR[last:].addmm_(U_CC[first:last, last:].T, error_BR, alpha=-1.0)
    return codes_CR


# ---------------------------------------------------------------------------------------------
# A whole model


def grid_of(name: str, weight: Tensor, config: QuantConfig) -> Grid | None:
    """Return the grid of a tensor, or None for one that is kept as float16.

    Matrices with more than config.min_numel values are quantised; embedding and untied head have
    a grid of their own. Gains, mixes and skips are no matrices, whatever their shape.
    """
    if not is_coded(name, weight, config.min_numel):
        return None
    if name in _EMBEDDINGS:
        return Grid(config.embed_bits, config.embed_sigmas)
    return Grid(config.matrix_bits, config.matrix_sigmas)


def is_coded(name: str, weight: Tensor, min_numel: int) -> bool:
    """Return whether a tensor is a matrix with more than min_numel values."""
    return name.endswith(".weight") and weight.ndim == 2 and weight.numel() > min_numel


def needs_hessian(name: str, state: Mapping[str, Tensor]) -> bool:
    """Return whether a matrix multiplies activations; an untied embedding is only looked up."""
    return not (name == "tok_emb.weight" and "head.weight" in state)


def quantise_model(
    state: Mapping[str, Tensor], hessians: Mapping[str, Tensor], config: QuantConfig
) -> QuantisedModel:
    """Return every tensor of a state dict as codes or as float16, on the CPU, in its order.

    With method 'gptq' each quantised matrix needs its Hessian (see `calibrate`); an untied
    embedding is rounded plainly, since lookups have none. Raises UserError, with the tensor's
    name, for values that cannot be stored.
    """
    quantised: QuantisedModel = {}
    with progress("quantise", len(state)) as advance:
        for name, weight in state.items():
            grid = grid_of(name, weight, config)
            if grid is None:
                quantised[name] = _as_half(name, weight)
            elif config.method == "gptq" and needs_hessian(name, state):
                if name not in hessians:
                    raise UserError(f"{name} has no calibration statistics; set quant.method=round")
                quantised[name] = gptq(
                    weight,
                    hessians[name],
                    grid,
                    damp=config.damp,
                    block=config.block,
                    act_order=config.act_order,
                    name=name,
                )
            else:
                quantised[name] = round_plainly(weight, grid, name)
            advance(1)
    return quantised


def round_plainly(w_RC: Tensor, grid: Grid, name: str) -> QuantisedTensor:
    """Return the nearest codes, without error feedback."""
    scale_R = row_scales(w_RC, grid, name)
    return QuantisedTensor(round_to_grid(w_RC, scale_R, grid.bits).cpu(), scale_R.cpu(), grid.bits)


def _as_half(name: str, weight: Tensor) -> Tensor:
    if not weight.is_floating_point():
        raise UserError(f"{name} is {weight.dtype}; an artifact holds floating-point tensors only")
    half = weight.detach().cpu().half()
    if not torch.isfinite(half).all():
        raise UserError(f"{name} holds a value that float16 cannot; was the training diverging?")
    return half


def dequantise(quantised: Mapping[str, QuantisedTensor | Tensor]) -> dict[str, Tensor]:
    """Return the state dict that an artifact restores, in float32."""
    return {
        name: restore(tensor) if isinstance(tensor, QuantisedTensor) else tensor.float()
        for name, tensor in quantised.items()
    }


# ---------------------------------------------------------------------------------------------
# What to say about it


@dataclass(frozen=True, slots=True)
class TensorStats:
    """One quantised matrix in figures; errors are of outputs, relative to the outputs' energy.

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
    name: str, w_RC: Tensor, quantised: QuantisedTensor, hessian_CC: Tensor | None
) -> TensorStats:
    """Return the statistics of a matrix and its codes, for the report."""
    w_RC = w_RC.detach().float().cpu()
    H_CC = None if hessian_CC is None else hessian_CC.float().cpu()
    qmax = largest_code(quantised.bits)
    counts = torch.bincount(quantised.codes.flatten().int() + qmax, minlength=2 * qmax + 1)
    share = counts.double() / counts.sum()
    plain = dataclasses.replace(
        quantised, codes=round_to_grid(w_RC, quantised.scale, quantised.bits)
    )
    energy = max(_energy(w_RC, H_CC), 1e-30)
    centred = w_RC - w_RC.mean()
    variance = max(float(centred.square().mean()), 1e-30)
    return TensorStats(
        name=name,
        values=w_RC.numel(),
        bits=quantised.bits,
        entropy_bits=float(-torch.special.xlogy(share, share).sum()) / math.log(2),
        zero_share=float(share[qmax]),
        kurtosis=float(centred.pow(4).mean()) / variance**2,
        error=_energy(w_RC - restore(quantised), H_CC) / energy,
        error_rounded=_energy(w_RC - restore(plain), H_CC) / energy,
    )


def _energy(w_RC: Tensor, hessian_CC: Tensor | None) -> float:
    if hessian_CC is None:
        return float(w_RC.square().sum())
    return float(((w_RC @ hessian_CC) * w_RC).sum())
