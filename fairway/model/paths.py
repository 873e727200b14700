"""Which of its two ways a model computes: `gpt`'s own operations, or `fused`'s GPU kernels."""

import importlib

import torch

from fairway.base.errors import UserError
from fairway.config.settings import ModelConfig
from fairway.model.gpt import GPT


def prepare(model: GPT, dtype: torch.dtype, backend: str, kernels: str) -> None:
    """Choose activations' dtype, attention backend and kernels of a model on its final device.

    Raises UserError for a model whose shapes the fused kernels cannot take.
    """
    model.set_compute(dtype, backend)
    model.fused = None
    if kernels == "fused":
        if reason := unfit(model.config):
            raise UserError(f"the fused kernels cannot run: {reason}; set runtime.kernels=plain")
        # Imported here: it needs Triton, which comes with GPU builds of PyTorch alone.
        fused = importlib.import_module("fairway.model.gpu.fused")
        model.fused = fused.FusedPath(model)


def unfit(config: ModelConfig) -> str:
    """Return why a model of these shapes cannot take the fused kernels, or nothing."""
    if config.embed_dim not in (0, config.dim):
        return f"model.embed_dim {config.embed_dim} differs from model.dim {config.dim}"
    widths = {"model.dim": config.dim, "model.mlp_dim": config.mlp_dim}
    odd = [f"{name} {width}" for name, width in widths.items() if width % 8]
    if odd:
        return f"{odd[0]} is not a multiple of 8"
    if config.dim // config.num_heads % 8:
        return f"the head width {config.dim // config.num_heads} is not a multiple of 8"
    return ""
