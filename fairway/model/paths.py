"""Which of its two ways a model computes: `gpt`'s own operations, or `fused`'s GPU kernels."""

import importlib

import torch

from fairway.errors import UserError
from fairway.model.gpt import GPT


def prepare(model: GPT, dtype: torch.dtype, backend: str, kernels: str) -> None:
    """Choose activations' dtype, attention backend and kernels of a model on its final device.

    Raises UserError for a model whose shapes the fused kernels cannot take.
    """
    model.set_compute(dtype, backend)
    model.fused = None
    if kernels == "fused":
        # Imported here: it needs Triton, which comes with GPU builds of PyTorch alone.
        fused = importlib.import_module("fairway.model.fused")
        if reason := fused.why_not(model.config):
            raise UserError(f"the fused kernels cannot run: {reason}; set runtime.kernels=plain")
        model.fused = fused.FusedPath(model)
