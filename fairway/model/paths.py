"""Chooses which steps of a model run as kernels and which as plain formulas."""

import functools
import importlib

import torch

from fairway.base.progress import notice
from fairway.config.settings import ModelConfig
from fairway.model.gpt import GPT
from fairway.model.operations import PLAIN

_STEPS = {"mlp": "the MLP runs", "attend": "what is around attention runs"}


def place(model: GPT, device: torch.device | str) -> GPT:
    """Return a model on a device.

    Not every Apple GPU has bfloat16, so there everything is float32.
    """
    if torch.device(device).type == "mps":
        model.float()
    return model.to(device)


def prepare(model: GPT, dtype: torch.dtype, backend: str, kernels: str, bits: int = 7) -> None:
    """Choose activations' dtype, attention backend and kernels of a model on its final device.

    `bits` are those of the mantissa of operands that kernels write: 7 for all of bfloat16.
    """
    model.set_compute(dtype, backend)
    model.operations = PLAIN
    if kernels == "fused":
        # Imported here, because it needs Triton, which only GPU builds of PyTorch include.
        gpu = importlib.import_module("fairway.model.gpu.operations")
        plain = plain_steps(model.config)
        model.operations = gpu.Kernels(dtype, plain, bits)
        for step, reason in plain.items():
            _tell(step, reason)
    elif bits < 7:
        _tell_bits(bits)


@functools.cache
def _tell(step: str, reason: str) -> None:
    notice(f"{_STEPS[step]} by plain formulas, which take longer: {reason}")


@functools.cache
def _tell_bits(bits: int) -> None:
    notice(f"train.operand_bits={bits} needs Fairway's GPU kernels; operands keep all bits here")


def plain_steps(config: ModelConfig) -> dict[str, str]:
    """Return the steps that no kernel takes at these shapes, each with its reason."""
    found = {}
    for name, width in (("model.dim", config.dim), ("model.mlp_dim", config.mlp_dim)):
        if width % 8:
            found["mlp"] = f"{name} {width} is not a multiple of 8"
    width = config.dim // config.num_heads
    if width % 8:
        found["attend"] = f"the head width {width} is not a multiple of 8"
    return found
