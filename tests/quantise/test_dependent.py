"""A model's matrices as paths through a trellis: steps, feedback both ways, what comes back."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fairway.base.errors import UserError
from fairway.config.settings import QuantConfig
from fairway.quantise import dependent
from fairway.quantise.dependent import HIGH, LOW, Plan
from fairway.quantise.grid import QuantisedTensor, restore, scale_of
from fairway.quantise.sensitivity import Curvature

CONFIG = QuantConfig(method="trellis", min_numel=16)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several stripes and blocks even of small matrices, columns alike."""
    monkeypatch.setattr(dependent, "STRIPE", 8)
    monkeypatch.setattr(dependent, "BLOCK", 16)
    monkeypatch.setattr(dependent, "FINEST", 0.0)
    monkeypatch.setattr(dependent, "COARSEST", 0.0)


COLUMNS = {False: (0.0, 0.0), True: (dependent.FINEST, dependent.COARSEST)}


def let_differ(monkeypatch: pytest.MonkeyPatch, columns: bool) -> None:
    """Choose whether columns have steps of their own."""
    for name, value in zip(("FINEST", "COARSEST"), COLUMNS[columns], strict=True):
        monkeypatch.setattr(dependent, name, value)


NAMES = ("blocks.0.mlp.fc.weight", "blocks.1.mlp.fc.weight", "tok_emb.weight")


def moments(size: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x_NC = torch.randn(4 * size, size, generator=generator)
    x_NC = x_NC @ (torch.eye(size) + 0.5 * torch.randn(size, size, generator=generator))
    return x_NC.T @ x_NC / len(x_NC)


def problem() -> tuple[dict[str, Tensor], dict[str, Curvature]]:
    generator = torch.Generator().manual_seed(0)
    state = {name: torch.randn(40, 24, generator=generator) for name in NAMES}
    state["skip_weights"] = torch.tensor([5.25, 1.0])
    costs = {}
    for seed, name in enumerate(NAMES[:2]):
        outputs_RR = 1e-5 * moments(40, seed)
        costs[name] = Curvature(moments(24, 9), outputs_RR, outputs_RR.diagonal())
    rows_R = torch.logspace(-7, -3, 40)
    costs["tok_emb.weight"] = Curvature(moments(24, 8), None, rows_R)
    return state, costs


def coded(plan: Plan, level: float) -> dict[str, QuantisedTensor]:
    found = plan.quantise(level)
    return {name: t for name, t in found.items() if isinstance(t, QuantisedTensor)}


def loss(state: dict[str, Tensor], costs: dict[str, Curvature], name: str, got: Tensor) -> float:
    error_RC = state[name] - got
    outputs_RR = costs[name].outputs
    assert outputs_RR is not None
    return float(((outputs_RR @ error_RC @ costs[name].inputs) * error_RC).sum())


def test_what_comes_back_is_near_and_in_order() -> None:
    state, costs = problem()
    plan = Plan(state, costs, CONFIG)
    found = plan.quantise(plan.level_for(5.0))
    assert list(found) == list(state)
    assert (
        isinstance(found["skip_weights"], Tensor) and found["skip_weights"].dtype == torch.float16
    )
    for name in NAMES:
        tensor = found[name]
        assert isinstance(tensor, QuantisedTensor)
        assert (tensor.codes.dtype, tensor.trellis) == (torch.int8, 32)
        assert tensor.scale_steps is not None
        assert torch.equal(tensor.scale, scale_of(tensor.scale_steps))
        off_RC = (restore(tensor) - state[name]) / tensor.scale[:, None]
        assert 0.1 < float(off_RC.square().mean()) < 3.0


def test_steps_follow_sensitivity_within_their_bounds() -> None:
    state, costs = problem()
    plan = Plan(state, costs, CONFIG)
    scale_R = coded(plan, plan.level_for(3.0))["tok_emb.weight"].scale
    spread_R = state["tok_emb.weight"].std(1, unbiased=False)
    sixteenth = 2 ** (1 / 16)
    assert bool((scale_R <= HIGH * spread_R * sixteenth).all())
    assert bool((scale_R >= LOW * spread_R / sixteenth).all())
    free_R = (scale_R < HIGH * spread_R / 1.1) & (scale_R > LOW * spread_R * 1.1)
    product_R = (scale_R * costs["tok_emb.weight"].rows.sqrt())[free_R]
    assert len(product_R) > 5 and float(product_R.max() / product_R.min()) < 1.1


def test_columns_that_cost_more_have_finer_steps_and_less_is_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    state, costs = problem()
    # One input that is far larger than the others, as one of a trained model's final states is.
    for name in (NAMES[0], NAMES[2]):
        inputs_CC = costs[name].inputs.clone()
        inputs_CC[5] *= 20
        inputs_CC[:, 5] *= 20
        costs[name] = replace(costs[name], inputs=inputs_CC)
    losses = []
    for columns in (False, True):
        let_differ(monkeypatch, columns)
        plan = Plan(state, costs, CONFIG)
        level = plan.level_for(4.0)
        found = coded(plan, level)
        bits = sum(float(order_0(t)) for t in found.values()) / len(found)
        losses.append(loss(state, costs, NAMES[0], restore(found[NAMES[0]])) * 4**bits)
    for name, tensor in found.items():
        assert tensor.columns is not None and tensor.columns.dtype == torch.int8
        assert int(tensor.columns.min()) >= -48 and int(tensor.columns.max()) <= 16
        # What is left of a weight is within its own step, feedback included.
        assert tensor.scale_steps is not None
        step_RC = scale_of(tensor.scale_steps[:, None] + tensor.columns)
        off_RC = (restore(tensor) - state[name]) / step_RC
        assert 0.1 < float(off_RC.square().mean()) < 3.0
        if name != NAMES[1]:
            assert int(tensor.columns[5]) == int(tensor.columns.min()) < -16
    assert losses[1] < 0.8 * losses[0]


def test_codes_beyond_a_byte_are_kept_where_columns_ask_for_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    let_differ(monkeypatch, True)
    state, costs = problem()
    name = NAMES[2]
    state[name][3, 5] = 12.0
    inputs_CC = costs[name].inputs.clone()
    inputs_CC[5] *= 40
    inputs_CC[:, 5] *= 40
    costs[name] = replace(costs[name], inputs=inputs_CC)
    plan = Plan(state, costs, CONFIG)
    tensor = coded(plan, plan.level_for(5.5))[name]
    assert (tensor.codes.dtype, tensor.bits) == (torch.int16, 10)
    largest = int(tensor.codes.abs().max())
    assert int(tensor.codes[3, 5].abs()) == largest > 127
    assert abs(float(restore(tensor)[3, 5]) - 12.0) < 0.1


def order_0(tensor: QuantisedTensor) -> Tensor:
    """Return the bits of a code, column by column, order 0."""
    shares = [torch.unique(c, return_counts=True)[1] / len(c) for c in tensor.codes.T]
    return torch.stack([-(share * share.log2()).sum() for share in shares]).mean()


def test_a_level_sets_the_bits_over_the_whole_range() -> None:
    state, costs = problem()
    plan = Plan(state, costs, CONFIG)
    weights = 3 * 40 * 24
    for bits in (1.5, 3.0, 5.0):
        assert plan.expected_bits(plan.level_for(bits)) / weights == pytest.approx(bits, abs=0.01)
    low, high = plan.levels()
    assert plan.expected_bits(low) == plan.expected_bits(low / 100)
    assert plan.expected_bits(high) < 0.7 * weights
    sizes = [sum(int(t.codes.abs().sum()) for t in coded(plan, level).values()) for level in
             (low, plan.level_for(3.0), high)]  # fmt: skip
    assert sizes == sorted(sizes, reverse=True)


def test_a_sample_of_rows_tells_the_bits_that_no_gaussian_tells(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Codes of rows with long tails fit the rates of Gaussians of their deviation badly."""
    generator = torch.Generator().manual_seed(3)
    weights_RC = torch.randn(1200, 24, generator=generator)
    weights_RC *= torch.randn(1200, 24, generator=generator).abs() + 0.1
    costs = {"tok_emb.weight": Curvature(moments(24, 8), None, torch.logspace(-7, -3, 1200))}
    for columns in (False, True):
        let_differ(monkeypatch, columns)
        plan = Plan({"tok_emb.weight": weights_RC}, costs, CONFIG)
        level = plan.level_for(3.0)
        whole = plan._bits(plan.groups[0], level)
        assert whole > 1.015 * plan.expected_bits(level)
        assert plan.sampled_bits(level) == pytest.approx(whole, rel=0.01)


def test_a_trellis_beats_a_plain_grid_of_as_many_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    state, costs = problem()
    errors = {}
    for states in (1, 4, 8):
        monkeypatch.setattr(dependent, "STATES", states)
        plan = Plan(state, costs, CONFIG)
        found = coded(plan, plan.level_for(4.0))
        assert {t.trellis for t in found.values()} == {0 if states == 1 else states}
        errors[states] = sum(loss(state, costs, n, restore(found[n])) for n in NAMES[:2])
    assert errors[8] < 0.9 * errors[1] and errors[4] < 0.9 * errors[1]


def test_feedback_over_rows_lowers_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    state, costs = problem()
    level = Plan(state, costs, CONFIG).level_for(3.0)
    name = NAMES[0]
    # In one stripe nothing is made up for; the steps differ a little as well.
    errors = {}
    for stripe in (1, 8, 40):
        monkeypatch.setattr(dependent, "STRIPE", stripe)
        monkeypatch.setattr(dependent, "OUTPUT_DAMP", 1e-3)
        plan = Plan(state, costs, CONFIG)
        found = coded(plan, plan.level_for(3.0))
        errors[stripe] = loss(state, costs, name, restore(found[name]))
    assert errors[1] < errors[8] < errors[40]
    assert errors[1] < 0.8 * errors[40]
    assert level > 0


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"STATES": 4}, "states"),
        ({"STATES": 1}, "no trellis"),
        ({"rate_price": 0.3}, "price"),
        ({"DAMP": 1.0}, "damping"),
        ({"OUTPUT_DAMP": 5.0}, "damping of the outputs"),
        ({"BLOCK": 3}, "block"),
    ],
)
def test_every_number_changes_the_codes(
    changes: dict[str, float], what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, costs = problem()
    base = Plan(state, costs, CONFIG)
    level = base.level_for(3.0)
    before = coded(base, level)
    for name in [name for name in changes if name.isupper()]:
        monkeypatch.setattr(dependent, name, changes.pop(name))
    after = coded(Plan(state, costs, replace(CONFIG, **changes)), level)
    assert any(not torch.equal(before[n].codes, after[n].codes) for n in before), what


def test_rows_without_spread_and_columns_without_input_are_coded() -> None:
    state, costs = problem()
    name = NAMES[0]
    state[name][0], state[name][1] = 0.0, -0.25
    inputs_CC = costs[name].inputs.clone()
    inputs_CC[3], inputs_CC[:, 3] = 0.0, 0.0
    outputs_RR = costs[name].outputs
    assert outputs_RR is not None
    outputs_RR[5], outputs_RR[:, 5] = 0.0, 0.0
    costs[name] = Curvature(inputs_CC, outputs_RR, outputs_RR.diagonal())
    plan = Plan(state, costs, CONFIG)
    found = restore(coded(plan, plan.level_for(4.0))[name])
    assert bool(torch.isfinite(found).all())
    assert float(found[0].abs().mean()) < 0.1
    assert float((found[1] + 0.25).abs().mean()) < 0.25


def test_what_cannot_be_stored_is_named() -> None:
    state, costs = problem()
    state[NAMES[1]][2, 3] = float("nan")
    with pytest.raises(UserError, match=r"blocks\.1\.mlp\.fc\.weight holds a weight that is not"):
        Plan(state, costs, CONFIG)


def test_a_model_without_matrices_is_kept_as_it_is() -> None:
    plan = Plan({"skip_weights": torch.ones(2)}, {}, CONFIG)
    assert list(plan.quantise(plan.level_for(3.0))) == ["skip_weights"]
