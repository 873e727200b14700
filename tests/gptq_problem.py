"""A matrix and what reaches it, for tests of GPTQ."""

from typing import Any

import torch
from torch import Tensor

from fairway.quantise.gptq import (
    Matrix,
    gptq_all,
)
from fairway.quantise.grid import Grid, QuantisedTensor

INT6 = Grid(6, 12.85)

SETTINGS = {"damp": 0.01, "block": 8}


def gptq(
    w_RC: Tensor, hessian_CC: Tensor, grid: Grid, *, name: str = "the matrix", **settings: Any
) -> QuantisedTensor:
    """Return the codes of one matrix."""
    [(_, found)] = gptq_all([Matrix(name, w_RC, hessian_CC, grid)], **settings)
    return found


def problem(rows: int = 12, columns: int = 20, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A matrix and the Hessian of correlated inputs of very different energy."""
    generator = torch.Generator().manual_seed(seed)
    x_NC = torch.randn(64, columns, generator=generator) @ torch.randn(
        columns, columns, generator=generator
    )
    x_NC *= torch.logspace(-1, 1, columns)[torch.randperm(columns, generator=generator)]
    return torch.randn(rows, columns, generator=generator), x_NC.T @ x_NC
