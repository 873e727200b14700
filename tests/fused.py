"""What tests of GPU kernels share: random numbers, a small model, its loss and gradients."""

import pytest
import torch
from torch import Tensor

from fairway.config.settings import ModelConfig
from fairway.model.gpt import GPT, build

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
TINY = ModelConfig(
    vocab_size=300, num_layers=3, dim=32, num_heads=4, num_kv_heads=2, mlp_dim=64, rope_dims=4,
    rope_train_len=64, parallel_from=2, loop_first=1, loop_last=1, loop_extra=1,
    embed_bf16=False,
)  # fmt: skip
on_cpu = pytest.mark.skipif(GPU, reason="exact in float32, which the GPU's tiles do not hold")


def varied(config: ModelConfig, looping: bool) -> GPT:
    """Return a model none of whose parameters is at a special value."""
    model = build(config, 1).to(DEVICE)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in model.parameters():
            noise = torch.randn(weight.shape, generator=generator).to(DEVICE)
            weight.add_((noise * (0.2 if weight.ndim == 1 else 0.05)).to(weight.dtype))
    model.set_looping(looping)
    return model


def batch(config: ModelConfig, rows: int = 2, T: int = 21) -> tuple[Tensor, Tensor]:
    ids = torch.randint(
        0, config.vocab_size, (rows, T + 1), generator=torch.Generator().manual_seed(0)
    ).to(DEVICE)
    return ids[:, :-1], ids[:, 1:]


def loss_and_gradients(model: GPT, backwards: int = 1) -> tuple[float, dict[str, Tensor]]:
    model.zero_grad()
    for _ in range(backwards):
        loss = model(*batch(model.config))
        torch.autograd.backward(loss / backwards)
    grads = {n: w.grad.double() for n, w in model.named_parameters() if w.grad is not None}
    return loss.item(), grads


def apart(got: Tensor, wanted: Tensor) -> float:
    return float((got - wanted).norm() / (wanted.norm() + 1e-12))


def randn(*shape: int, seed: int = 0, size: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator) * size).to(DEVICE)


def near(got: Tensor, wanted: Tensor, tolerance: float = 2e-5) -> None:
    scale = wanted.abs().max().item() + 1e-30
    assert got.shape == wanted.shape
    assert (got.double() - wanted.double()).abs().max().item() <= tolerance * scale
