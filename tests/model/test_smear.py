"""SmearGate: the formula, the mask between documents, and nothing left behind when it is off."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fairway.config.settings import BOS_ID, ModelConfig
from fairway.model.gpt import GPT, build, num_parameters, smeared
from fairway.recipes import recipe
from fairway.train.muon import Optimisers

OFF = ModelConfig(
    vocab_size=300, num_layers=3, dim=24, num_heads=3, num_kv_heads=1, mlp_dim=40, rope_dims=4,
    rope_train_len=16, parallel_from=2, loop_first=1, loop_last=1, loop_extra=1,
    embed_bf16=False,
)  # fmt: skip
ON = replace(OFF, smear=True)
# Three packed documents; BOS opens the row, stands inside it twice, and ends it.
PACKED = [1, 7, 9, 250, 1, 8, 8, 33, 12, 1, 99, 7, 1]


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def by_position(e: Tensor, ids: Tensor, gate: Tensor, strength: float) -> Tensor:
    """The formula, one position at a time."""
    out = e.clone()
    for b in range(e.shape[0]):
        for t in range(1, e.shape[1]):
            score = sum(float(gate[i] * e[b, t, i]) for i in range(len(gate)))
            if ids[b, t] != 1:
                out[b, t] += strength / (1 + math.exp(-score)) * e[b, t - 1]
    return out


@pytest.mark.parametrize(("width", "features"), [(13, 12), (7, 7), (24, 12)])
@pytest.mark.parametrize("length", [1, 2, 13])
@pytest.mark.parametrize("size", [1.0, 1e3])
def test_the_formula(width: int, features: int, length: int, size: float) -> None:
    ids = torch.tensor([PACKED, PACKED[::-1], [*PACKED[2:], 5, 6]])[:, :length]
    e, gate = size * draw(*ids.shape, width), draw(features, seed=1) / size
    got = smeared(e, ids, gate, torch.tensor([-1.7], dtype=torch.float64))
    torch.testing.assert_close(got, by_position(e, ids, gate, -1.7), rtol=1e-12, atol=0)


def test_openings_of_rows_and_documents_stay_as_they_are() -> None:
    ids = torch.tensor([PACKED, PACKED[::-1], [*PACKED[1:], 7]])
    e = draw(*ids.shape, 24)
    got = smeared(e, ids, draw(12, seed=1), torch.ones(1, dtype=torch.float64))
    opening = ids == BOS_ID
    opening[:, 0] = True
    assert torch.equal(got[opening], e[opening])
    assert (got != e).any(-1)[~opening].all()


@pytest.mark.parametrize("position", [1, 2, 3])
def test_no_document_reaches_the_next(position: int) -> None:
    model = build(ON, seed=1)
    with torch.no_grad():
        model.smear_gate.copy_(draw(12))
        model.smear_lambda.fill_(2.0)
    changed = list(PACKED)
    changed[position] = 123

    def embeddings(words: list[int]) -> Tensor:
        ids = torch.tensor([words])
        return smeared(model.tok_emb(ids), ids, model.smear_gate, model.smear_lambda)[0]

    before, after = embeddings(PACKED), embeddings(changed)
    assert torch.equal(before[4:], after[4:])
    assert not torch.equal(before[position], after[position])
    # Inside a document the next token does hear of it.
    assert position == 3 or not torch.equal(before[position + 1], after[position + 1])


def test_it_is_part_of_the_model_when_on() -> None:
    model, ids = build(ON, seed=1), torch.tensor([PACKED])
    before = model.hidden(ids)
    with torch.no_grad():
        model.smear_lambda.fill_(2.0)
    after = model.hidden(ids)
    assert torch.equal(before[:, 0], after[:, 0])
    assert not torch.allclose(before[:, 1], after[:, 1])
    model.set_compute(torch.bfloat16, "plain")
    assert model.hidden(ids).dtype == torch.bfloat16


def test_on_adds_thirteen_zeros_that_begin_as_nothing() -> None:
    on, off = build(ON, seed=5), build(OFF, seed=5)
    assert num_parameters(ON) == num_parameters(OFF) + 13
    named = dict(on.named_parameters())
    for name, count in (("smear_gate", 12), ("smear_lambda", 1)):
        added = named.pop(name)
        assert torch.equal(added, torch.zeros(count))
    assert set(named) == set(dict(off.named_parameters()))
    ids = torch.tensor([PACKED])
    assert torch.equal(on(ids[:, :-1], ids[:, 1:]), off(ids[:, :-1], ids[:, 1:]))


def test_it_learns_in_the_group_of_scalars() -> None:
    config = recipe("pr1858").optim
    model, ids = build(ON, seed=5), torch.tensor([PACKED])
    optimisers = Optimisers(model, config)
    groups = [g for g in optimisers.adam.param_groups if g["base_lr"] == config.scalar_lr]
    members = {id(weight) for group in groups for weight in group["params"]}
    assert {id(model.smear_gate), id(model.smear_lambda)} <= members
    for step in range(2):
        model(ids[:, :-1], ids[:, 1:]).backward()
        optimisers.step(1.0, step)
    # The gate learns once the strength has left zero.
    assert model.smear_lambda.abs().item() > 0.01
    assert (model.smear_gate != 0).all()


def test_off_leaves_no_trace() -> None:
    with torch.device("meta"):
        names = dict(GPT(recipe("pr1858").model).named_parameters())
    assert not [name for name in names if "smear" in name]
