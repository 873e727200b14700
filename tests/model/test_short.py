"""Operands with fewer bits: the rounding, every kernel that rounds, and the model as a whole."""

import math

import pytest
import torch
from fused import DEVICE, TINY, apart, loss_and_gradients, near, on_cpu, randn, varied
from torch import Tensor

pytest.importorskip("triton", reason="the kernels need Triton")

from fairway.model import paths
from fairway.model.gpu import heads, kernels, losses, products
from fairway.model.gpu.short import FULL, shorten_, unit_of
from fairway.model.gpu.steps import Working, side_by_side

BITS = (2, 3, 4, 6)


def rounded(x: Tensor, bits: int) -> Tensor:
    """Return the numbers nearest to x with so many bits after the first, halves away from zero."""
    share, exponent = torch.frexp(x.double())
    whole = share.abs() * 2 ** (bits + 1)
    return torch.ldexp(torch.copysign((whole + 0.5).floor(), x.double()), exponent - bits - 1)


def short(x: Tensor, bits: int) -> Tensor:
    x = x.clone()
    shorten_(x, unit_of(bits))
    return x


def assert_rounded(got: Tensor, whole: Tensor, bits: int) -> None:
    """`got` is `whole` with fewer bits.

    A GPU compiles each unit anew and may add in another order. So a number may round to the other
    side if it is in the middle.
    """
    assert torch.equal(short(got, bits), got)
    error = (got.double() - whole.double()).abs()
    assert (error <= whole.double().abs() * 2.0 ** -(bits + 1) + whole.abs().max() * 1e-6).all()
    if DEVICE == "cpu":
        assert torch.equal(got, short(whole, bits))


@pytest.mark.parametrize("bits", [*BITS, 7])
def test_every_bfloat16_number(bits: int) -> None:
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.bfloat16).to(DEVICE)
    normal = every[every.isfinite() & (every.abs() >= torch.finfo(torch.bfloat16).tiny)]
    got, wanted = short(normal, bits).double(), rounded(normal, bits)
    # Past the largest number of the format comes infinity.
    wanted[wanted.abs() >= 2.0**128] *= math.inf
    assert torch.equal(got, wanted)
    special = torch.tensor([0.0, -0.0, math.inf, -math.inf]).bfloat16().to(DEVICE)
    assert torch.equal(short(special, bits), special)
    assert short(every[every.isnan()], bits).isnan().all()
    tiny = every[every.isfinite() & (every.abs() < torch.finfo(torch.bfloat16).tiny)]
    assert (short(tiny, bits).double() - tiny.double()).abs().max() <= 2.0**-126


@pytest.mark.parametrize("bits", BITS)
def test_float32_numbers(bits: int) -> None:
    x = randn(1000, size=1e-3)
    assert torch.equal(short(x, bits).double(), rounded(x, bits))
    assert torch.equal(short(short(x, bits), bits), short(x, bits))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(("N", "D"), [(13, 24), (37, 130)])
def test_norms_round_what_a_product_reads(N: int, D: int, bits: int) -> None:
    x, x0, mix, unit = randn(N, D), randn(N, D, seed=1), randn(2, D, seed=2), unit_of(bits)
    whole, some = kernels.enter(x, x0, mix, None, 0.7), kernels.enter(x, x0, mix, None, 0.7, unit)
    near(some[0], whole[0])
    assert_rounded(some[1], whole[1], bits)
    whole, some = kernels.norm(x, 0.7), kernels.norm(x, 0.7, unit)
    assert_rounded(some[0], whole[0], bits)
    near(some[1], whole[1])


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(("H", "G", "K"), [(4, 2, 16), (3, 1, 8)])
def test_attention_reads_rounded_numbers(H: int, G: int, K: int, bits: int) -> None:
    T, N, unit = 5, 10, unit_of(bits)
    qkv, gain = randn(N, (H + 2 * G) * K), randn(H, seed=1)
    angles = randn(T, K // 4, seed=2)
    rope = angles.cos(), angles.sin()
    whole, some = qkv.clone(), qkv.clone()
    inverse = heads.position_(whole, gain, rope, T, H, G)
    heads.position_(some, gain, rope, T, H, G, unit)
    turned = (H + G) * K
    assert_rounded(some[:, :turned].contiguous(), whole[:, :turned], bits)
    assert torch.equal(some[:, turned:], qkv[:, turned:])
    y, grad = randn(2, H, T, K, seed=3), randn(N, H * K, seed=4)
    out = heads.without_self(y, qkv, G)
    assert_rounded(heads.without_self(y, qkv, G, unit), out, bits)
    dy, dv = heads.without_self_backward(y, qkv, grad, G)
    got = heads.without_self_backward(y, qkv, grad, G, unit)
    assert_rounded(got[0], dy, bits)
    near(got[1], dv)
    grads = tuple(randn(2, count, T, K, seed=5 + count) for count in (H, G, G))
    back = (whole, gain, rope, inverse, (*grads, dv))
    (d_qkv, d_gain), got = heads.position_backward(*back), heads.position_backward(*back, unit)
    assert_rounded(got[0], d_qkv, bits)
    near(got[1], d_gain)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(("N", "D", "F_"), [(5, 8, 16), (150, 40, 72)])
def test_squares_keep_their_sign_in_the_last_bit(N: int, D: int, F_: int, bits: int) -> None:
    dtype = torch.bfloat16 if DEVICE == "cuda" else torch.float32
    x, w, g = (z.to(dtype) for z in (randn(N, D), randn(F_, D, seed=1), randn(N, D, seed=2)))
    x[0] = 0.0
    h, unit, leak = x.double() @ w.double().T, unit_of(bits), 0.5
    square = products.up_square(x, w, leak, unit)
    right = torch.where(h > 0, h, leak * h).square()
    assert ((square.double() - right).abs() <= right * 2.0**-bits + 1e-6).all()
    places = square.float().view(torch.int32)
    assert not (places & (unit - 1)).any()
    sure = h.abs() > 1e-4
    assert torch.equal(((places & unit) != 0)[sure], (h < 0)[sure])
    slope = torch.where(h < 0, -2 * leak, 2.0) * square.double().sqrt()
    got = products.slope_product(g, w, square, leak, unit)
    near(got, (g.double() @ w.double().T) * slope, 2.0 ** -(bits + 1) * 1.1)
    assert torch.equal(short(got, bits), got)


@pytest.mark.parametrize("bits", BITS)
def test_the_gradient_of_logits_is_rounded_and_the_loss_is_not(bits: int) -> None:
    logits, targets = randn(13, 37, size=3.0), torch.arange(13, device=DEVICE) * 2
    whole, some = logits.clone(), logits.clone()
    wanted = losses.loss_(whole, targets, 30.0, True)
    near(losses.loss_(some, targets, 30.0, True, unit_of(bits)), wanted)
    assert_rounded(some, whole, bits)


def test_copies_of_weights_are_rounded_after_every_change() -> None:
    weight = torch.nn.Parameter(randn(6, 8))
    copy = Working(side_by_side, (6, 8), torch.bfloat16, unit_of(3), weight)
    assert torch.equal(copy.get(), short(weight.detach().bfloat16(), 3))
    with torch.no_grad():
        weight.mul_(1.3)
    assert torch.equal(copy.get(), short(weight.detach().bfloat16(), 3))
    assert not torch.equal(copy.get(), weight.detach().bfloat16())


@on_cpu
@pytest.mark.parametrize("looping", [False, True])
def test_a_model_with_short_operands_is_near_the_whole_one(looping: bool) -> None:
    """The fewer the bits, the larger the difference; with 7 there is none."""
    model = varied(TINY, looping)
    paths.prepare(model, torch.float32, "plain", "fused")
    wanted, whole = loss_and_gradients(model)
    errors = []
    for bits in (7, 6, 4, 3):
        paths.prepare(model, torch.float32, "plain", "fused", bits)
        got, grads = loss_and_gradients(model)
        assert abs(got - wanted) <= (0.0 if bits == 7 else 0.5 * 2.0**-bits)
        errors.append(sum(apart(grads[name], grad) for name, grad in whole.items()) / len(whole))
    assert errors[0] == 0.0 < errors[1] < 0.04
    assert 2 < errors[2] / errors[1] < 8
    assert 1.3 < errors[3] / errors[2] < 3


def test_plain_formulas_say_that_they_keep_all_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(paths, "notice", said.append)
    paths._tell_bits.cache_clear()
    model = varied(TINY, False)
    for bits in (7, 4):
        paths.prepare(model, torch.float32, "plain", "plain", bits)
    assert said == ["train.operand_bits=4 needs Fairway's GPU kernels; operands keep all bits here"]


def test_all_bits_are_those_of_bfloat16() -> None:
    assert unit_of(7) == FULL
