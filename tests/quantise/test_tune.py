"""What an artifact keeps as float16 learns around the codes, and nothing else does."""

from collections.abc import Iterator

import pytest
import torch
from tiny import alive
from torch import Tensor

from fairway.config.settings import QuantConfig
from fairway.quantise import tune
from fairway.quantise.gptq import QuantisedModel, dequantise, quantise_model
from fairway.quantise.grid import QuantisedTensor
from fairway.quantise.tune import divergence, tuned

CONFIG = QuantConfig(
    method="round", matrix_bits=3, matrix_sigmas=2.5, embed_bits=4, embed_sigmas=3.0,
    min_numel=200, tune_steps=60,
)  # fmt: skip


def batches() -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(3)
    while True:
        yield torch.randint(2, 260, (8, 24), generator=generator)


def coarse() -> tuple[torch.nn.Module, QuantisedModel]:
    model = alive()
    state = {name: weight.detach() for name, weight in model.named_parameters()}
    return model, quantise_model(state, {}, CONFIG)


def off(quantised: QuantisedModel) -> float:
    """Return the divergence on text that nothing learned from."""
    model, learner = alive(), alive()
    learner.load_state_dict(dequantise(quantised))
    ids_BT = torch.randint(2, 260, (16, 24), generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        return float(divergence(model, learner, ids_BT))


def test_damage_shrinks_and_only_what_is_float16_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    # So that 60 steps are enough.
    monkeypatch.setattr(tune, "RATE", 0.005)
    model, before = coarse()
    kept = {name: weight.clone() for name, weight in model.state_dict().items()}
    after = tuned(model, before, batches(), CONFIG)
    assert list(after) == list(before)
    moved = set()
    for name, tensor in before.items():
        now = after[name]
        if isinstance(tensor, QuantisedTensor):
            assert now is tensor
        else:
            assert isinstance(now, Tensor) and now.dtype == torch.float16
            moved |= {name} if not torch.equal(now, tensor) else set()
    # The embedding is coded; small matrices are not, and learn too.
    assert {"blocks.0.attn_scale", "skip_weights", "blocks.1.attn.c_k.weight"} <= moved
    assert off(after) < 0.85 * off(before)
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, kept[name]), name
    assert all(weight.grad is None and weight.requires_grad for weight in model.parameters())


def test_the_same_text_teaches_the_same_and_may_end_early() -> None:
    model, before = coarse()
    first = [next(batches()) for _ in range(2)]
    once, again = (dequantise(tuned(model, before, first, CONFIG)) for _ in range(2))
    assert all(torch.equal(once[name], again[name]) for name in once)
    untouched = dequantise(tuned(model, before, [], CONFIG))
    assert all(torch.equal(untouched[n], w) for n, w in dequantise(before).items())
