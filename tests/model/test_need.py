"""What is planned of memory is what PyTorch holds, by the plain formulas and by kernels."""

import importlib.util
from dataclasses import replace

import pytest
import torch
from meter import Meter

from fairway.config.settings import ModelConfig
from fairway.model import need
from fairway.model.gpt import GPT, build
from fairway.model.need import Way
from fairway.model.paths import prepare

if torch.cuda.is_available():
    pytest.skip("measures on a CPU; benchmarks/memory.py does on a GPU", allow_module_level=True)

# So small that sums of weights' gradients do not hide what tokens take.
SMALL = ModelConfig(
    vocab_size=300, num_layers=4, dim=32, num_heads=4, num_kv_heads=2, mlp_dim=96, rope_dims=4,
    rope_train_len=64, xsa_layers=3, parallel_from=3, loop_first=1, loop_last=2, loop_extra=1,
    embed_bf16=False,
)  # fmt: skip
TRITON = importlib.util.find_spec("triton") is not None
FUSED = pytest.param("fused", marks=pytest.mark.skipif(not TRITON, reason="needs Triton"))
SHAPES = {
    "as it is": {},
    "no skips": {"skips": False},
    "plain skips": {"skip_gates": False},
    "wide MLP": {"mlp_dim": 256, "parallel_from": 0},
    "narrow head": {"vocab_size": 261, "mlp_dim": 32, "parallel_from": 9},
    "gates and more": {"attn_gate": "head", "x0_values": True, "smear": True, "xsa_layers": 0},
    "two lanes": {"lanes": 2, "parallel_from": 2},
}


def made(config: ModelConfig, kernels: str, backend: str, looping: bool) -> GPT:
    model = build(config, 1)
    model.set_looping(looping)
    prepare(model, torch.float32, backend, kernels)
    return model


def taken(model: GPT, rows: int, T: int, learn: bool) -> int:
    """Return the bytes held at most while some rows go forth, and back if they shall."""
    ids = torch.randint(0, 260, (rows, T + 1))
    model.zero_grad(set_to_none=True)
    with Meter() as meter, torch.set_grad_enabled(learn):
        if learn:
            model(ids[:, :-1], ids[:, 1:]).backward()
        else:
            model.hidden(ids[:, :-1])
    return meter.peak


def per_token(model: GPT, T: int, learn: bool) -> float:
    """Return what a token more takes: two sizes apart, so that weights' gradients drop out."""
    taken(model, 2, T, learn)
    few, many = (taken(model, rows, T, learn) for rows in (9, 17))
    return (many - few) / (8 * T)


@pytest.mark.parametrize("kernels", ["plain", FUSED])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_token_takes_what_is_planned(
    shape: str, kernels: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within 10 %, forth and back and without a way back."""
    # Tables of so few rows that they do not grow with the batch.
    monkeypatch.setattr("fairway.model.ops.LOSS_ROWS", 16)
    config, T = replace(SMALL, **SHAPES[shape]), 32
    for looping in (False, True) if kernels == "plain" or shape == "as it is" else (True,):
        model, way = made(config, kernels, "sdpa", looping), Way(kernels == "fused", 4)
        wanted = need.learning_bytes(config, way, looping, T)
        assert per_token(model, T, True) == pytest.approx(wanted, rel=0.1)
        wanted = need.passing_bytes(config, way, looping, T)
        assert per_token(model, T, False) == pytest.approx(wanted, rel=0.1)
