"""Adapters: zeros change nothing, and what they add is what the formula says."""

from dataclasses import replace

import pytest
import torch
from tiny import TINY, alive

from fairway.config.checks import LORA_TARGETS
from fairway.model.adapters import Adapters
from fairway.model.block import Walk
from fairway.model.gpt import GPT

IDS_BT = torch.randint(0, 260, (3, 7), generator=torch.Generator().manual_seed(0))


def adapters_of(
    model: GPT, targets: tuple[str, ...], factors: dict[str, float] | None = None
) -> tuple[Adapters, list[torch.Tensor]]:
    adapters = Adapters(model, targets, 4, 6.0, factors)
    values = adapters.zeros(3)
    drawn = adapters.drawn(torch.Generator().manual_seed(3))
    for value, inner in zip(values[::2], drawn, strict=True):
        value.copy_(inner.expand_as(value))
    return adapters, values


def logits(model: GPT, adapters: Adapters, ids_BT: torch.Tensor) -> torch.Tensor:
    embedded_BTD, rope = model.embedded(ids_BT), model.rope_for(ids_BT)
    states_BTD = model.states(embedded_BTD, Walk(rope, adapters))
    return model.logits(states_BTD, adapters.added("head", 0, states_BTD))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("smear", [False, True])
def test_zero_adapters_are_the_model_itself(dtype: torch.dtype, smear: bool) -> None:
    model = alive(replace(TINY, smear=smear))
    model.set_compute(dtype, "plain")
    adapters, values = adapters_of(model, LORA_TARGETS)
    adapters.use(values)
    assert torch.equal(logits(model, adapters, IDS_BT), model.logits(model.hidden(IDS_BT)))


@pytest.mark.parametrize("target", LORA_TARGETS)
def test_each_target_learns_alone_and_rows_do_not_mix(target: str) -> None:
    model = alive()
    adapters, values = adapters_of(model, (target,))
    values[1][:, 1] = torch.randn(values[1][:, 1].shape, generator=torch.Generator().manual_seed(4))
    adapters.use(values)
    plain, changed = model.logits(model.hidden(IDS_BT)), logits(model, adapters, IDS_BT)
    assert torch.equal(plain[[0, 2]], changed[[0, 2]])
    assert not torch.allclose(plain[1], changed[1])
    # The first position attends to itself alone, but q and k of it cannot matter then.
    if target in ("q", "k"):
        torch.testing.assert_close(plain[1, 0], changed[1, 0])


@pytest.mark.parametrize("target", ["q", "k", "v"])
@pytest.mark.parametrize("factor", [1.0, 0.25])
def test_one_adapter_equals_a_changed_matrix(target: str, factor: float) -> None:
    # With the same product in all visits of a block, W + factor scale B A does the same.
    model = alive(replace(TINY, loop_extra=0))
    adapters, values = adapters_of(model, (target,), {target: factor, "o": 7.0})
    values[1].normal_(generator=torch.Generator().manual_seed(5))
    adapters.use([value[:, :1] for value in values])
    found = logits(model, adapters, IDS_BT[:1])
    with torch.no_grad():
        for layer, block in enumerate(model.blocks):
            weight = getattr(block.attn, f"c_{target}").weight
            weight += factor * 1.5 * values[1][layer, 0] @ values[0][layer, 0]
    torch.testing.assert_close(found, model.logits(model.hidden(IDS_BT[:1])), rtol=1e-4, atol=1e-4)
