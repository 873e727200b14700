"""Kernels compute what the plain formulas compute: loss, gradients, steps."""

from dataclasses import replace

import pytest
import torch
from features import ALL, FEATURES
from fused import GPU, TINY, apart, batch, loss_and_gradients, on_cpu, varied
from torch import Tensor

from fairway.base.errors import UserError
from fairway.config.settings import OptimConfig, RuntimeConfig
from fairway.machine.plan import make_plan
from fairway.model.block import Walk
from fairway.model.gpt import build
from fairway.model.modes import mode
from fairway.model.paths import plain_steps, prepare
from fairway.quantise.calibrate import collect_hessians
from fairway.quantise.sensitivity import curvatures
from fairway.train.muon import Optimisers

pytest.importorskip("triton", reason="kernels need Triton")

from fairway.model.gpu import operations

needs_gpu = pytest.mark.skipif(not GPU, reason="measures bfloat16 on a GPU")

VARIANTS = {
    "as it is": {},
    "smear": {"smear": True},
    "no rotation": {"rope_dims": 0},
    "odd widths": {"dim": 36, "num_heads": 6, "num_kv_heads": 3, "mlp_dim": 50},
    **FEATURES,
    "everything": {**ALL, "dim": 36, "num_heads": 6, "num_kv_heads": 3},
    "one layer": {"num_layers": 1, "parallel_from": 0, "loop_extra": 0},
}


# What is around the blocks does not know of the loop: without it, skips alone are tried again.
CASES = [
    (name, looping)
    for name in VARIANTS
    for looping in (False, True)
    if name != "one layer" or not looping
    if looping or name in ("as it is", "one layer")
]


@on_cpu
@pytest.mark.parametrize(("name", "looping"), CASES)
def test_loss_and_gradients_are_those_of_the_plain_path(name: str, looping: bool) -> None:
    model = varied(replace(TINY, **VARIANTS[name]), looping)
    model.separate = name == "everything"
    wanted, plain = loss_and_gradients(model)
    prepare(model, torch.float32, "plain", "fused")
    # Gradients of two passes add up.
    got, fused = loss_and_gradients(model, backwards=2 if name == "as it is" else 1)
    assert abs(got - wanted) < 1e-5
    assert fused.keys() == plain.keys()
    for name, grad in plain.items():
        # Some gradients of lanes nearly cancel: 1e-8 is the rounding of their parts.
        assert float((fused[name] - grad).norm()) < 2e-5 * float(grad.norm()) + 1e-8, name


@on_cpu
def test_training_takes_the_same_steps() -> None:
    """Working copies of weights must follow every kind of update, and a load."""
    losses = []
    for kernels in ("plain", "fused"):
        model = varied(TINY, False)
        prepare(model, torch.float32, "plain", kernels)
        optimisers = Optimisers(model, OptimConfig())
        found = []
        for step in range(3):
            model.set_looping(step >= 1)
            loss = model(*batch(TINY))
            torch.autograd.backward(loss)
            optimisers.step(1.0, step)
            found.append(loss.item())
        with torch.no_grad():
            for weight in model.parameters():
                weight.copy_(torch.zeros_like(weight))
            found.append(model(*batch(TINY)).item())
        losses.append(found)
    assert losses[0] == pytest.approx(losses[1], abs=2e-3)
    assert losses[0][-2] < losses[0][0] - 0.5


@on_cpu
@pytest.mark.parametrize("name", ["as it is", "odd widths", "everything", "two lanes"])
def test_calibration_sees_every_activation_of_a_fused_model(name: str) -> None:
    model = varied(replace(TINY, **VARIANTS[name]), True)
    names = [n for n, w in model.named_parameters() if n.endswith(".weight") and w.ndim == 2]
    wanted = collect_hessians(model, [batch(TINY)[0]], names)
    prepare(model, torch.float32, "plain", "fused")
    kernels = model.operations
    got = collect_hessians(model, [batch(TINY)[0]], names)
    assert model.operations is kernels and got.keys() == wanted.keys()
    for name, hessian_CC in wanted.items():
        torch.testing.assert_close(got[name], hessian_CC, rtol=1e-3, atol=1e-3)
    shared = [[n for n in wanted if h[n] is h[m]] for h in (got, wanted) for m in wanted]
    assert shared[: len(wanted)] == shared[len(wanted) :]
    assert model.operations.fused


@on_cpu
@pytest.mark.parametrize("name", ["as it is", "odd widths", "everything", "two lanes", "smear"])
def test_sensitivities_get_every_gradient_of_a_fused_model(name: str) -> None:
    model = varied(replace(TINY, **VARIANTS[name]), True)
    names = [n for n, w in model.named_parameters() if n.endswith(".weight") and w.ndim == 2]
    hessians = collect_hessians(model, [batch(TINY)[0]], names)
    wanted = curvatures(model, [batch(TINY)[0]], hessians, 42)
    prepare(model, torch.float32, "plain", "fused")
    kernels = model.operations
    got = curvatures(model, [batch(TINY)[0]], hessians, 42)
    assert model.operations is kernels and got.keys() == wanted.keys()
    for name, cost in wanted.items():
        assert apart(got[name].rows, cost.rows) < 1e-4, name
        if cost.outputs is not None:
            found_RR = got[name].outputs
            assert found_RR is not None and apart(found_RR, cost.outputs) < 1e-4, name
            assert apart(cost.outputs, torch.zeros_like(found_RR)) > 1, name


def test_steps_that_no_kernel_takes_are_named() -> None:
    assert plain_steps(TINY) == {}
    found = plain_steps(replace(TINY, dim=48, num_heads=4, num_kv_heads=2, mlp_dim=100))
    assert found["attend"] == "the head width 12 is not a multiple of 8"
    assert found["mlp"] == "model.mlp_dim 100 is not a multiple of 8"


def test_steps_that_run_plainly_are_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        prepare(build(replace(TINY, mlp_dim=84)), torch.float32, "plain", "fused")
    told = capsys.readouterr().err
    assert told.count("the MLP runs by plain formulas") == 1 and "mlp_dim 84" in told


@on_cpu
def test_without_a_gpu_fused_kernels_are_refused() -> None:
    with pytest.raises(UserError, match=r"runtime.kernels is fused, but they need a GPU"):
        make_plan(RuntimeConfig(kernels="fused", threads=1, dtype="float32", matmul="highest"))


@needs_gpu
@pytest.mark.parametrize("looping", [False, True])
def test_on_a_gpu_bfloat16_is_as_near_to_float32_as_the_plain_path(looping: bool) -> None:
    config = replace(TINY, dim=256, num_heads=4, mlp_dim=512, rope_dims=16)
    model = varied(config, looping)
    wanted, exact = loss_and_gradients(model)
    prepare(model, torch.bfloat16, "sdpa", "plain")
    _, plain = loss_and_gradients(model)
    prepare(model, torch.bfloat16, "sdpa", "fused")
    got, fused = loss_and_gradients(model)
    assert abs(got - wanted) < 2e-2
    for name, grad in exact.items():
        assert apart(fused[name], grad) < 2.5 * apart(plain[name], grad) + 1e-2, name


@on_cpu
@pytest.mark.parametrize("name", ["as it is", "everything", "two lanes"])
def test_a_frozen_model_computes_no_gradients_of_matrices(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Adapters learn through it, and nothing reads those products."""
    model = varied(replace(TINY, **VARIANTS[name]), True)
    prepare(model, torch.float32, "plain", "fused")
    count = []
    product = operations.product_f32

    def counted(a_MN: Tensor, b_NL: Tensor) -> Tensor:
        count.append(a_MN.shape)
        return product(a_MN, b_NL)

    monkeypatch.setattr(operations, "product_f32", counted)
    ids_BT = batch(TINY)[0]
    for frozen in (False, True):
        count.clear()
        with mode(model, frozen=frozen):
            x_BTD = model.embedded(ids_BT).detach().requires_grad_()
            # The first step changes its input in place, which a leaf does not allow.
            states_BTD = model.states(x_BTD * 1.0, Walk(model.rope_for(ids_BT)))
            torch.autograd.backward(states_BTD.square().sum())
        assert x_BTD.grad is not None and x_BTD.grad.abs().sum() > 0
        assert bool(count) is not frozen
