"""Training that knows its rate: steps as a packer takes them, errors, decay."""

import importlib.util
from dataclasses import replace
from typing import Any

import plain
import pytest
import torch
from tiny import TINY, alive
from torch import Tensor

from fairway.base.errors import UserError
from fairway.config.checks import check
from fairway.config.settings import Config, OptimConfig, QuantConfig, TrainConfig
from fairway.model.paths import prepare
from fairway.quantise.rates import code_bits, expected_bits, row_classes
from fairway.train.muon import Optimisers
from fairway.train.rates import Rates, cost_bits, decay_, entropy_bits, step_ratio, steps_of

CPU = torch.device("cpu")
# Where kernels run: on a CPU through Triton's interpreter.
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
needs_triton = pytest.mark.skipif(not importlib.util.find_spec("triton"), reason="needs Triton")


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rates(method: str = "trellis", device: str = "cpu", **train: Any) -> Rates:
    """Return the rates of a tiny model whose matrices are all coded."""
    model = alive(replace(TINY, embed_bf16=False)).to(device)
    quant = QuantConfig(min_numel=0, method=method)
    config = Config(model=model.config, train=TrainConfig(**train), quant=quant)
    made = Rates(config, Optimisers(model, OptimConfig()).muon.banks, torch.device(device))
    made.model = model  # type: ignore[attr-defined]
    return made


@pytest.mark.parametrize("bits", [1.5, 2.0, 2.6, 3.0, 3.4, 4.0, 5.0])
def test_steps_are_those_at_which_a_packer_expects_so_many_bits(bits: float) -> None:
    x = torch.tensor([1 / step_ratio(bits)], dtype=torch.float64)
    expected = expected_bits(code_bits())
    # A class is an eighth of an octave, of which half is lost in rounding to it.
    near = row_classes(x) + torch.tensor([-1, 0, 1])
    assert expected[near].min() <= bits <= expected[near].max()
    assert float(expected[row_classes(x)]) == pytest.approx(bits, abs=0.07)


@pytest.mark.parametrize("bits", [2.0, 3.0, 4.5])
def test_the_entropy_of_gaussian_codes_is_what_was_asked_for(bits: float) -> None:
    rows = randn(2, 130, 999) * torch.logspace(-3, 3, 130)[:, None]
    found = entropy_bits(rows, steps_of(rows, bits, True))
    assert found == pytest.approx(bits, abs=0.08)
    # Where most are small and few large, codes take less.
    assert entropy_bits(rows**3, steps_of(rows**3, bits, True)) < found - 0.3
    # With one step for a matrix small rows take hardly any.
    assert entropy_bits(rows, steps_of(rows, bits, False)) < found - 0.3
    zeros = torch.zeros(1, 3, 5)
    assert entropy_bits(zeros, steps_of(zeros, bits, True)) == 0.0


def test_steps_follow_rows_or_matrices() -> None:
    rows = randn(2, 3, 400) * torch.tensor([1.0, 2.0, 4.0])[:, None]
    by_row, whole = steps_of(rows, 3.0, True), steps_of(rows, 3.0, False)
    deviations = rows.square().mean(2, keepdim=True).sqrt()
    torch.testing.assert_close(by_row, deviations * step_ratio(3.0))
    deviations = rows.square().mean((1, 2), keepdim=True).sqrt()
    torch.testing.assert_close(whole, deviations * step_ratio(3.0))


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 3, 7), (3, 5, 130)])
def test_decay_follows_the_derivative_of_the_cost(shape: tuple[int, ...]) -> None:
    weights, steps, tiny = randn(*shape), randn(*shape[:2], 1, seed=1).abs() + 0.1, 1e-6
    units = weights / steps
    up, down = (cost_bits((units + side * tiny) * steps, steps) for side in (1, -1))
    slope = (up - down) / (2 * tiny)
    moved = weights.clone()
    decay_(moved, steps, 0.01)
    torch.testing.assert_close((moved - weights) / steps, -0.01 * slope, rtol=1e-6, atol=1e-9)
    assert cost_bits(moved, steps).sum() < cost_bits(weights, steps).sum()


def test_rows_without_weights_and_extremes_stay_finite() -> None:
    weights = torch.zeros(1, 3, 4)
    weights[0, 1], weights[0, 2] = 1e-30, 1e15
    steps = steps_of(weights, 3.0, True)
    decay_(weights, steps, 0.1)
    assert weights.isfinite().all() and cost_bits(weights, steps).isfinite().all()
    assert not weights[0, 0].any()


@pytest.mark.parametrize("method", ["trellis", "gptq"])
@pytest.mark.parametrize("errors", ["noise", "round"])
def test_weights_have_errors_meanwhile_and_are_what_they_were(errors: str, method: str) -> None:
    made = rates(method, rate_errors=errors, rate_bits=3.0, rate_share=0.5)
    before = [bank.weights_LRC.clone() for bank in made.banks]
    seen: dict[int, list[Tensor]] = {}
    for step in (4, 5, 4):
        with made.errors(0.5, step):
            found = [bank.weights_LRC.clone() for bank in made.banks]
        assert all(map(torch.equal, found, seen.setdefault(step, found)))
        for bank, weights in zip(made.banks, before, strict=True):
            assert torch.equal(bank.weights_LRC, weights)
    for weights, disturbed in zip(before, seen[4], strict=True):
        steps = steps_of(weights, 3.0, method == "gptq")
        apart = (disturbed - weights) / steps
        assert apart.abs().max() <= 1 + 1e-4
        if errors == "round":
            multiples = disturbed / steps / 2
            torch.testing.assert_close(multiples, multiples.round(), atol=1e-4, rtol=0)
        elif apart.numel() > 500:
            assert float(apart.square().mean()) == pytest.approx(1 / 3, rel=0.15)
    alike = [torch.equal(a, b) for a, b in zip(seen[4], seen[5], strict=True)]
    assert all(alike) if errors == "round" else not any(alike)
    with made.errors(0.49, 4):
        assert all(torch.equal(b.weights_LRC, w) for b, w in zip(made.banks, before, strict=True))


@pytest.mark.parametrize("kernels", ["plain", pytest.param("fused", marks=needs_triton)])
@pytest.mark.parametrize("errors", ["noise", "round"])
def test_gradients_are_those_at_the_weights_with_errors(errors: str, kernels: str) -> None:
    device = DEVICE if kernels == "fused" else "cpu"
    made = rates(device=device, rate_errors=errors, rate_bits=2.5, rate_share=1.0)
    model = made.model  # type: ignore[attr-defined]
    prepare(model, torch.float32, "plain", kernels)
    ids = torch.randint(0, 260, (2, 12), generator=torch.Generator().manual_seed(0)).to(device)
    whole = model(ids[:, :-1], ids[:, 1:]).item()
    named = dict(model.named_parameters())
    with made.errors(0.0, 7):
        leaves = {n: w.detach().double().cpu().requires_grad_() for n, w in named.items()}
        loss = model(ids[:, :-1], ids[:, 1:])
        loss.backward()
    wanted = plain.loss(leaves, model.config, ids[:, :-1].cpu(), ids[:, 1:].cpu(), True)
    wanted.backward()
    assert loss.item() == pytest.approx(wanted.item(), abs=1e-5) and abs(loss.item() - whole) > 1e-3
    for name, weight in named.items():
        right = leaves[name].grad
        assert right is not None and weight.grad is not None
        assert (weight.grad.cpu() - right).norm() <= 1e-4 * right.norm(), name
    # Working copies of weights know that these are back.
    assert model(ids[:, :-1], ids[:, 1:]).item() == whole


def test_decay_begins_with_the_last_share_and_takes_bits_away() -> None:
    made = rates(rate_weight=0.5, rate_bits=3.0, rate_share=0.25)
    before = [bank.weights_LRC.clone() for bank in made.banks]
    versions = [weight._version for weight in made.parameters]
    made.decay(0.74, 0.1)
    assert all(torch.equal(b.weights_LRC, w) for b, w in zip(made.banks, before, strict=True))
    bits = made.bits()
    for _ in range(40):
        made.decay(0.75, 0.2)
    assert made.bits() < bits - 0.1
    assert all(w._version > v for w, v in zip(made.parameters, versions, strict=True))


def test_matrices_that_stay_float16_are_left_alone() -> None:
    model = alive(TINY)
    banks = Optimisers(model, OptimConfig()).muon.banks
    config = Config(model=TINY, train=TrainConfig(rate_errors="noise"))
    with pytest.raises(UserError, match=r"none has more than quant\.min_numel 65536 weights"):
        Rates(config, banks, CPU)
    some = Rates(replace(config, quant=QuantConfig(min_numel=256)), banks, CPU)
    assert 0 < len(some.banks) < len(banks)


@pytest.mark.parametrize("changes", [{"rate_errors": "round"}, {"rate_weight": 0.1}])
def test_a_share_of_nothing_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"train\.rate_share of a run, which is 0"):
        check(Config(train=TrainConfig(rate_share=0.0, **changes)))
