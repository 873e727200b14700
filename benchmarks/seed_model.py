"""The bench weights: 8-bit codes with one scale per row in a safetensors file, by tensor name."""

from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from fairway.config.settings import ModelConfig
from fairway.model.gpt import GPT


def load_state(path: Path) -> dict[str, Tensor]:
    """Return the float32 weights of the trained seed model, in the model's own order."""
    with safe_open(path, "pt") as file:
        stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    with torch.device("meta"):
        names = list(GPT(ModelConfig()).state_dict())
    return {name: _weight(stored, name) for name in names}


def _weight(stored: dict[str, Tensor], name: str) -> Tensor:
    if name in stored:
        return stored[name].float()
    return stored[f"{name}.codes8"].float() * stored[f"{name}.scale"].float()[:, None]
