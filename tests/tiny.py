"""A tiny model whose every part matters: all weights away from their initial values."""

from contextlib import AbstractContextManager
from dataclasses import fields, replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from fairway.config.settings import ModelConfig, OptimConfig
from fairway.model.gpt import GPT, build
from fairway.score.experts import mixture
from fairway.train import rules

TINY = ModelConfig(
    vocab_size=260, num_layers=3, dim=16, num_heads=2, num_kv_heads=1, mlp_dim=32, rope_dims=4,
    parallel_from=2, loop_first=1, loop_last=1, loop_extra=1,
)  # fmt: skip


def alive(config: ModelConfig = TINY, seed: int = 1) -> GPT:
    """Return the model in float32, looping."""
    model = build(config, seed=seed)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.3 * torch.randn(weight.shape, generator=generator)
    model.set_looping(True)
    return model


def tuned(changes: dict[str, Any]) -> AbstractContextManager[Any]:
    """Change the experts' fixed numbers among some changes for those made meanwhile."""
    names = {item.name for item in fields(mixture.Tuning)}
    own = {name: changes.pop(name) for name in names & changes.keys()}
    return mock.patch.object(mixture, "TUNING", replace(mixture.TUNING, **own))


def muon_update(grads: Tensor, buffers: Tensor, mu: float, config: OptimConfig) -> Tensor:
    """Return updates [K, R, C] of gradients as they are; the momentum advances in place."""
    out = torch.empty_like(grads, dtype=torch.bfloat16)
    rules.muon_update(grads.clone(), buffers, torch.ones(1), mu, config, out)
    return out
