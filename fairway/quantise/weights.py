"""Statistics of trained weights that matter for quantisation and entropy coding.

Only matrices count: at least 16 rows and columns and more than 1,000 elements. Gains, scales and
gates are vectors, or short stacks of vectors, and stay in fp16. A role is the name of the same
matrix in every block: `blocks.3.attn.c_q.weight` has the role `attn.c_q`.

Pull request #1858 logs one figure, its void fraction, after test-time training: for the weights
that were restored from the artifact and have learned since, with its own rule for which tensors
count. `void_fraction` applies that rule to any weights.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fairway.base.errors import UserError

Tensor = npt.NDArray[Any] | torch.Tensor
Reals = npt.NDArray[np.float64]

# P(|z| <= E|z|) of a zero-mean Gaussian z, 0.5751: the value for weights without any structure.
VOID_FRACTION_GAUSSIAN = math.erf(1.0 / math.sqrt(math.pi))

MEANINGS = {
    "row_kurtosis": "fourth moment about the row mean over the squared variance, median over the "
    "rows that vary; 3 is Gaussian, more is heavy tails that stretch a row's step",
    "code_entropy_bits": "order-0 entropy of each tensor's codes in bits per weight, averaged over "
    "weights: what an ideal coder without context would spend",
    "zero_mass": "share of the codes that are 0",
    "unrounded_void_fraction": "share of the weights w, averaged and not yet rounded, with |w| at "
    "most the mean |w| of their tensor; it describes the shape of the distribution only (Gaussian "
    "0.5751, Laplace 0.632, uniform 0.500) and says nothing about quality",
}
# The rule of #1858 in words.
VOID_RULE = (
    "the void fraction by the rule of pull request #1858. The rule takes every tensor of more than "
    "1,000 elements that has 'weight' in its name, skip weights included. It counts the elements "
    "that are at most as large as the mean size in their tensor, and divides by all elements. "
    "#1858 logs it once: for the weights restored from the artifact, after test-time training"
)

_MIN_SIDE = 16
_MIN_ELEMENTS = 1_000
# Rows are processed in pieces, so that an embedding is never in memory as a whole in float64.
_CHUNK_ELEMENTS = 1 << 20


@dataclass(frozen=True)
class _Matrix:
    """The statistics of one tensor, before they are pooled."""

    weights: int
    void: int
    kurtosis_rows: Reals
    rows: int
    coded: int
    entropy_bits: float
    zeros: int


def weight_statistics(
    state: Mapping[str, Tensor], codes: Mapping[str, Tensor] | None = None
) -> dict[str, Any]:
    """Return statistics of the weight matrices by role and pooled; `MEANINGS` defines them.

    `state` has the unquantised weights by name, `codes` the integers that they became. If `codes`
    is None or lacks a tensor, the two code statistics are None. Constant rows have no kurtosis and
    are counted in `constant_rows`. Raises UserError for weights that are not finite.
    """
    groups: dict[str, list[_Matrix]] = {}
    for name, tensor in state.items():
        values = _array(tensor)
        if not _is_matrix(values):
            continue
        coded = None if codes is None or name not in codes else _array(codes[name])
        groups.setdefault(role_of(name), []).append(_statistics(name, values, coded))
    return {
        "roles": {role: _pool(groups[role]) for role in sorted(groups)},
        "pooled": _pool([matrix for group in groups.values() for matrix in group]),
        "void_fraction_gaussian": VOID_FRACTION_GAUSSIAN,
        "meanings": MEANINGS,
    }


def role_of(name: str) -> str:
    """Return a tensor's role: its name after the last block number, without a final 'weight'."""
    parts = name.split(".")
    last_number = max((i for i, part in enumerate(parts) if part.isdigit()), default=-1)
    role = ".".join(parts[last_number + 1 :]).removesuffix(".weight")
    return role or name


def void_count(values: npt.NDArray[Any]) -> int:
    """Return how many elements are at most as large as the mean size; all, if all are equal."""
    size = np.abs(values.astype(np.float64))
    return int(np.count_nonzero(size <= size.mean()))


def void_fraction(tensors: Iterable[tuple[str, Tensor]]) -> float | None:
    """Return the void fraction of named weights by `VOID_RULE`; None if no tensor counts."""
    void = weights = 0
    for name, tensor in tensors:
        values = _array(tensor)
        if "weight" in name and values.size > _MIN_ELEMENTS and _is_floating(values):
            void += void_count(values)
            weights += values.size
    return void / weights if weights else None


def row_kurtosis(values_RC: npt.NDArray[Any]) -> Reals:
    """Return the kurtosis (3 for a Gaussian) of every row of a matrix that is not constant."""
    rows_RC = values_RC[values_RC.min(axis=1) < values_RC.max(axis=1)].astype(np.float64)
    centred_RC = rows_RC - rows_RC.mean(axis=1, keepdims=True)
    # Division by the largest deviation prevents underflow of the fourth powers of tiny rows.
    centred_RC /= np.abs(centred_RC).max(axis=1, keepdims=True)
    # Squared twice: NumPy's fourth power takes ten times as long.
    squares_RC = np.square(centred_RC, out=centred_RC)
    variance_R = np.mean(squares_RC, axis=1)
    return np.asarray(np.mean(np.square(squares_RC), axis=1) / variance_R**2)


def code_entropy_bits(codes: npt.NDArray[Any]) -> float:
    """Return the order-0 entropy of integers in bits per element."""
    # Counting takes a seventh of the time of sorting; int32, since int8 would overflow.
    least = int(codes.min())
    counts = np.bincount(codes.ravel().astype(np.int32) - least)
    shares = counts[counts > 0] / codes.size
    return float(max(0.0, -np.sum(shares * np.log2(shares))))


def _array(tensor: Tensor) -> npt.NDArray[Any]:
    if isinstance(tensor, torch.Tensor):
        tensor = tensor.detach().cpu()
        tensor = tensor.float() if tensor.is_floating_point() else tensor
        return np.asarray(tensor.numpy())
    return tensor


def _is_matrix(values: npt.NDArray[Any]) -> bool:
    return (
        values.ndim == 2
        and _is_floating(values)
        and min(values.shape) >= _MIN_SIDE
        and values.size > _MIN_ELEMENTS
    )


def _is_floating(values: npt.NDArray[Any]) -> bool:
    return np.issubdtype(values.dtype, np.floating)


def _statistics(name: str, values_RC: npt.NDArray[Any], codes: npt.NDArray[Any] | None) -> _Matrix:
    if not np.isfinite(values_RC).all():
        raise UserError(f"weight '{name}' holds NaN or infinity; the run that made it has diverged")
    if codes is not None and codes.shape != values_RC.shape:
        raise UserError(
            f"codes of '{name}' have shape {codes.shape}, its weights {values_RC.shape}"
        )
    step = max(1, _CHUNK_ELEMENTS // values_RC.shape[1])
    pieces = [values_RC[first : first + step] for first in range(0, len(values_RC), step)]
    return _Matrix(
        weights=values_RC.size,
        void=void_count(values_RC),
        kurtosis_rows=np.concatenate([row_kurtosis(piece_RC) for piece_RC in pieces]),
        rows=len(values_RC),
        coded=0 if codes is None else codes.size,
        entropy_bits=0.0 if codes is None else code_entropy_bits(codes) * codes.size,
        zeros=0 if codes is None else int(np.count_nonzero(codes == 0)),
    )


def _pool(matrices: list[_Matrix]) -> dict[str, Any]:
    weights = sum(matrix.weights for matrix in matrices)
    coded = sum(matrix.coded for matrix in matrices)
    rows = sum(matrix.rows for matrix in matrices)
    kurtosis = np.concatenate([np.empty(0), *(matrix.kurtosis_rows for matrix in matrices)])
    return {
        "tensors": len(matrices),
        "weights": weights,
        "rows": rows,
        "constant_rows": rows - kurtosis.size,
        "row_kurtosis": float(np.median(kurtosis)) if kurtosis.size else None,
        "coded_weights": coded,
        "code_entropy_bits": sum(m.entropy_bits for m in matrices) / coded if coded else None,
        "zero_mass": sum(m.zeros for m in matrices) / coded if coded else None,
        "unrounded_void_fraction": sum(m.void for m in matrices) / weights if weights else None,
    }
