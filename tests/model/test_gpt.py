"""The transformer: counts, order of visits, positions, initial state, and a second implementation.

The second implementation, tests/plain.py, is written from the formulas of #1493 alone (float64, no
shared code), so that a slip in the fast one shows as a difference in loss or gradient.
"""

from dataclasses import replace

import plain
import pytest
import torch
from features import ALL, FEATURES
from torch import Tensor

from fairway.config.settings import BOS_ID, ModelConfig
from fairway.model import gpt, ops
from fairway.model.gpt import GPT, build, num_parameters, rope_table, visits

SMALL = ModelConfig(
    vocab_size=300,
    num_layers=5,
    dim=48,
    num_heads=6,
    num_kv_heads=3,
    mlp_dim=80,
    rope_dims=4,
    rope_train_len=16,
    parallel_from=3,
    loop_first=1,
    loop_last=2,
    loop_extra=1,
    embed_bf16=False,
)


def random_model(config: ModelConfig, looping: bool = True) -> GPT:
    """Return a model whose every parameter is away from its special initial value."""
    model = build(config, seed=3)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            size = 0.3 if weight.ndim == 1 or "skip" in name or "mix" in name else 0.1
            weight.add_(torch.randn(weight.shape, generator=generator) * size)
    model.set_looping(looping)
    return model


def ids(rows: int = 2, length: int = 11, vocab: int = 300) -> Tensor:
    return torch.randint(0, vocab, (rows, length), generator=torch.Generator().manual_seed(5))


# --- The second implementation ----------------------------------------------------------------


# All that a model can have, at odd sizes.
EVERYTHING = replace(
    SMALL, **ALL, dim=51, num_heads=3, num_kv_heads=1, mlp_dim=37, rope_train_len=99
)
ALIKE = {
    "the recipes": SMALL,
    **{name: replace(SMALL, **feature) for name, feature in FEATURES.items()},
    "all": EVERYTHING,
    "two lanes from the first block on": replace(SMALL, lanes=2, parallel_from=0),
}


@pytest.mark.parametrize("looping", [False, True])
@pytest.mark.parametrize("name", ALIKE)
def test_equals_a_second_implementation(name: str, looping: bool) -> None:
    config = ALIKE[name]
    model = random_model(config, looping)
    x, order = ids(), ([0, 1, 2], [1, 2, 3, 4]) if looping else ([0, 1], [2, 3, 4])
    assert plain.order(config, looping) == order
    # Documents begin anywhere, two of them at neighbours.
    x[0, [3, 7]] = x[1, [0, 4, 5]] = BOS_ID
    separate = model.separate = name.startswith("all")
    loss = model(x[:, :-1], x[:, 1:])
    names, weights = zip(*model.named_parameters(), strict=True)
    grads = torch.autograd.grad(loss, weights, allow_unused=True)
    leaves = {n: w.detach().double().requires_grad_() for n, w in zip(names, weights, strict=True)}
    wanted = plain.loss(leaves, config, x[:, :-1], x[:, 1:], looping, separate)
    wanted_grads = torch.autograd.grad(wanted, list(leaves.values()), allow_unused=True)
    assert abs(loss.item() - wanted.item()) < 4e-6
    for name, got, ref in zip(names, grads, wanted_grads, strict=True):
        assert (got is None) == (ref is None), name
        if got is not None:
            assert (got - ref).abs().max() <= 4e-4 * ref.abs().max() + 1e-8, name


# --- Counts and orders -------------------------------------------------------------------------


def test_seed_configuration_counts() -> None:
    config = ModelConfig()
    assert num_parameters(config) == 35_944_536
    with torch.device("meta"):
        named = dict(GPT(config).named_parameters())
    matrices = [
        w for n, w in named.items() if w.ndim == 2 and n.startswith("blocks") and "mix" not in n
    ]
    assert len(matrices) == 66
    assert sum(w.numel() for w in matrices) == 31_719_424
    assert named["tok_emb.weight"].numel() == 4_194_304
    assert sum(w.numel() for w in named.values()) - 31_719_424 - 4_194_304 == 30_808


def test_seed_configuration_visits() -> None:
    config = ModelConfig()
    assert visits(config, True) == ([0, 1, 2, 3, 4, 5, 3, 4], [5, 3, 4, 5, 6, 7, 8, 9, 10])
    assert visits(config, False) == ([0, 1, 2, 3, 4], [5, 6, 7, 8, 9, 10])
    assert visits(replace(config, loop_extra=0), True) == visits(config, False)
    assert gpt.num_skips(config) == 8


def test_initial_loss_of_the_seed_is_that_of_a_uniform_guess() -> None:
    # The seed's logs print 9.0090 nats on FineWeb before the first step; ln 8192 is 9.0109.
    model = build(replace(ModelConfig(), num_layers=1, loop_extra=0), seed=42)
    x = ids(2, 65, 8192)
    assert abs(model(x[:, :-1], x[:, 1:]).item() - 9.0109) < 0.04


def test_blocks_start_as_the_identity() -> None:
    model = build(SMALL)
    for looping in (False, True):
        model.set_looping(looping)
        x0 = ops.norm_plain(model.tok_emb(ids()))
        torch.testing.assert_close(model.hidden(ids()), ops.norm_plain(x0))


def test_initial_values_depend_on_the_seed_and_pass_through_bfloat16() -> None:
    a, b, other = (dict(build(SMALL, seed).named_parameters()) for seed in (1, 1, 2))
    for name in a:
        assert torch.equal(a[name], b[name])
        assert torch.equal(a[name], a[name].bfloat16().float()), name
    assert not torch.equal(a["blocks.0.mlp.fc.weight"], other["blocks.0.mlp.fc.weight"])
    fc = a["blocks.0.attn.c_q.weight"]
    torch.testing.assert_close(fc @ fc.T, torch.eye(48), atol=0.01, rtol=0)


# --- Positions ---------------------------------------------------------------------------------


def test_rope_table_keeps_positions_apart() -> None:
    config = ModelConfig()
    cos, sin = rope_table(2048, config)
    wanted = [
        1.0, 0.31640625, 0.10009765625, 0.03173828125, 0.010009765625,
        0.0031585693359375, 0.00099945068359375, 0.000316619873046875,
    ]  # fmt: skip
    angles = torch.arange(2048.0)[:, None].double() * torch.tensor(wanted).double()
    torch.testing.assert_close(cos.double(), angles.cos(), atol=2e-4, rtol=0)
    torch.testing.assert_close(sin.double(), angles.sin(), atol=2e-4, rtol=0)
    assert len(torch.unique(cos[:, 7])) == 2048


def test_rope_base_grows_beyond_the_training_length() -> None:
    config = replace(ModelConfig(), rope_dims=4)
    slow = rope_table(4096, config)[1][1, 1].asin().item()
    assert slow == pytest.approx((10_000 * 2 ** (4 / 2)) ** -0.5, rel=1e-6)
    assert rope_table(2048, config)[1][1, 1].asin().item() == pytest.approx(0.01, rel=4e-3)


def test_no_future_token_reaches_an_earlier_state() -> None:
    model = random_model(SMALL)
    x = ids()
    changed = x.clone()
    changed[:, 7:] = (changed[:, 7:] + 1) % 300
    before, after = model.hidden(x), model.hidden(changed)
    assert torch.equal(before[:, :7], after[:, :7])
    assert not torch.allclose(before[:, 7], after[:, 7])


# --- Switches ----------------------------------------------------------------------------------

SWITCHES = [
    {"rope_dims": 0},
    {"rope_train_len": 4},
    {"qk_gain": 2.0},
    {"parallel_from": 0},
    {"parallel_from": 5},
    {"loop_extra": 0},
    {"loop_extra": 2},
    {"loop_first": 2},
    {"loop_last": 3},
    {"gate_features": 3},
    {"num_kv_heads": 2},
]


@pytest.mark.parametrize("switch", SWITCHES, ids=str)
def test_every_model_setting_has_an_effect(switch: dict[str, float]) -> None:
    base, changed = random_model(SMALL), random_model(replace(SMALL, **switch))
    shared = dict(base.named_parameters())
    with torch.no_grad():
        # Weights of equal shape are shared, so that only the setting tells the two apart.
        for name, weight in changed.named_parameters():
            if name in shared and shared[name].shape == weight.shape and "qk_gain" not in switch:
                weight.copy_(shared[name])
    x = ids()
    assert base(x[:, :-1], x[:, 1:]).item() != changed(x[:, :-1], x[:, 1:]).item()


def test_embedding_precision_is_a_setting() -> None:
    assert build(replace(SMALL, embed_bf16=True)).tok_emb.weight.dtype == torch.bfloat16
    assert build(SMALL).tok_emb.weight.dtype == torch.float32


def test_bfloat16_activations_stay_near_float32() -> None:
    model = random_model(SMALL)
    x = ids()
    exact = model(x[:, :-1], x[:, 1:])
    model.set_compute(torch.bfloat16, "plain")
    assert model.hidden(x).dtype == torch.bfloat16
    assert abs(model(x[:, :-1], x[:, 1:]).item() - exact.item()) < 0.05
