"""Each GPU kernel equals its plain formula, forward and backward, at odd sizes and extremes.

Without a GPU they run in Triton's interpreter, in float32: it truncates to bfloat16.
"""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from fused import DEVICE, near, randn
from torch import Tensor

from fairway.model import ops

pytest.importorskip("triton", reason="the kernels need Triton")

from fairway.model.gpu import heads, kernels, losses, products
from fairway.model.gpu.kernels import Join


def gradients(
    function: Callable[..., tuple[Tensor, ...]], inputs: list[Tensor], outer: list[Tensor]
) -> list[Tensor]:
    """Return float64 gradients of the inputs for the given gradients of the outputs."""
    leaves = [x.double().requires_grad_() for x in inputs]
    outputs = function(*leaves)
    return list(torch.autograd.grad(outputs, leaves, [g.double() for g in outer]))


@pytest.mark.parametrize(("R", "C"), [(13, 24), (1, 1), (37, 130), (3, 2500)])
def test_unscale(R: int, C: int) -> None:
    grad, weight, scale = randn(R, C), randn(R, C, seed=1, size=50.0), randn(R, seed=2)
    scale[0] = 0.0
    wanted = grad * scale[:, None], (grad.double() * weight.double()).sum(1).float()
    for got, right in zip(kernels.unscale_(grad.clone(), weight, scale), wanted, strict=True):
        near(got, right)


# ---------------------------------------------------------------------------------------------
# Entering a block


def entered(
    x: Tensor, x0: Tensor, mix: Tensor, skip: Tensor, weight: Tensor, gate: Tensor,
    join: str, scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    if join != "none":
        s = weight * (x if join == "own" else skip)
        x = s + torch.sigmoid(gate) * (x - s)
    u = mix[0] * x + mix[1] * x0
    return u, scale * u / (u.square().mean(-1, keepdim=True) + ops.NORM_EPS).sqrt()


@pytest.mark.parametrize("join", ["none", "stack", "own"])
@pytest.mark.parametrize(("N", "D"), [(13, 24), (1, 64), (37, 130)])
def test_enter(join: str, N: int, D: int) -> None:
    x, x0, skip, du, dh, dx0, dpass = (randn(N, D, seed=n) for n in range(7))
    mix, weight, gate = randn(2, D, seed=8), randn(D, seed=9), randn(D, seed=10)
    joined = None
    if join != "none":
        joined = Join(None if join == "own" else skip, weight, gate, join == "own")

    def plain(*values: Tensor) -> tuple[Tensor, ...]:
        # The inputs again: what later blocks want of x0 and others of x passes through.
        return *entered(*values, join, 0.7), values[1] * 1.0, values[0] * 1.0

    inputs = [x, x0, mix, skip, weight, gate]
    for got, wanted in zip(
        kernels.enter(x, x0, mix, joined, 0.7),
        entered(*(z.double() for z in inputs), join, 0.7),
        strict=True,
    ):
        near(got, wanted)
    dx, dx0_out, dskip, sums = kernels.enter_backward(x, x0, mix, joined, 0.7, (du, dh, dx0, dpass))
    wanted = gradients(
        lambda *v: tuple(o + 0 * sum(z.sum() for z in v) for o in plain(*v)),
        inputs, [du, dh, dx0, dpass],
    )  # fmt: skip
    assert dx0_out is not None
    near(dx, wanted[0])
    near(dx0_out, wanted[1])
    near(sums[:2], wanted[2], 1e-4)
    if join.startswith("stack"):
        assert dskip is not None
        near(dskip, wanted[3])
    else:
        assert dskip is None
    if join != "none":
        near(sums[2], wanted[4], 1e-4)
        near(sums[3], wanted[5], 1e-4)


def test_the_first_block_mixes_the_stream_with_itself() -> None:
    x, du, dh, dx0 = (randn(9, 24, seed=n) for n in range(4))
    mix = randn(2, 24, seed=5)
    twice = kernels.enter_backward(x, x, mix, None, 1.0, (du, dh, dx0, None))
    once = kernels.enter_backward(x, None, mix, None, 1.0, (du, dh, dx0, None))
    assert twice[1] is not None and once[1] is None
    near(once[0], twice[0] + twice[1])
    assert torch.equal(once[3], twice[3])
    one, two = (kernels.enter(x, x0, mix, None, 1.0)[0] for x0 in (None, x))
    assert torch.equal(one, two)


@pytest.mark.parametrize("size", [0.0, 1e-4, 1.0, 1e4])
def test_norm(size: float) -> None:
    x, dy, add = randn(11, 40, size=size), randn(11, 40, seed=1), randn(11, 40, seed=2)
    y, inverse = kernels.norm(x, 0.5)
    near(y, ops.norm_plain(x.double(), 0.5).float())
    (wanted,) = gradients(lambda z: (ops.norm_plain(z, 0.5),), [x], [dy])
    near(kernels.norm_backward(y, inverse, dy, None, 0.5), wanted, 1e-4)
    near(kernels.norm_backward(y, inverse, dy, add, 0.5), wanted + add, 1e-4)


def test_embed() -> None:
    table, ids = randn(17, 24), torch.tensor([3, 16, 3, 0, 5], device=DEVICE)
    near(kernels.embed(table, ids, torch.float32)[0], ops.norm_plain(table[ids]))


# ---------------------------------------------------------------------------------------------
# Around attention


@pytest.mark.parametrize(("H", "G", "K", "R"), [(4, 2, 16, 4), (3, 1, 8, 0), (2, 2, 10, 5)])
@pytest.mark.parametrize("T", [1, 7])
def test_position(H: int, G: int, K: int, R: int, T: int) -> None:
    N, C = 2 * T, (H + 2 * G) * K
    qkv, gain = randn(N, C), torch.linspace(0.5, 6.0, H, device=DEVICE)
    angles = torch.arange(T)[:, None] * torch.linspace(1.0, 0.01, R)
    rope = angles.cos().to(DEVICE), angles.sin().to(DEVICE)

    def plain(values: Tensor, gains: Tensor) -> tuple[Tensor, ...]:
        q, k, v = (z.view(2, T, -1, K) for z in values.split([H * K, G * K, G * K], 1))
        # Not `ops.position_plain`: that rounds nothing to float32 in float64 tests.
        return (
            ops.rotate(ops.norm_plain(q), *rope) * gains[:, None],
            ops.rotate(ops.norm_plain(k), *rope),
            v * 1.0,
        )

    outer = [randn(2, T, heads_, K, seed=n) for n, heads_ in enumerate((H, G, G), 1)]
    extra = randn(N, G * K, seed=9)
    wanted = gradients(plain, [qkv, gain], outer)
    wanted[0][:, (H + G) * K :] += extra
    made = qkv.clone()
    inverse = heads.position_(made, gain, rope, T, H, G)
    near(made, torch.cat([z.reshape(N, -1) for z in plain(qkv, gain)], 1))
    grads = tuple(z.transpose(1, 2) for z in outer)
    got = heads.position_backward(made, gain, rope, inverse, (*grads, extra))
    near(got[0], wanted[0], 1e-4)
    near(got[1], wanted[1], 1e-4)


@pytest.mark.parametrize(("H", "G", "K"), [(4, 2, 16), (3, 1, 8), (2, 2, 10)])
def test_without_self(H: int, G: int, K: int) -> None:
    B, T = 2, 5
    y, qkv = randn(B, H, T, K), randn(B * T, (H + 2 * G) * K, seed=1)
    qkv[3] = 0.0
    grad = randn(B * T, H * K, seed=2)
    v = qkv[:, (H + G) * K :].reshape(B, T, G, K)

    def plain(y_BHTK: Tensor, v_BTGK: Tensor) -> tuple[Tensor]:
        return (ops.without_self_plain(y_BHTK.transpose(1, 2), v_BTGK).reshape(B * T, -1),)

    near(heads.without_self(y, qkv, G), plain(y, v)[0])
    dy, dv = heads.without_self_backward(y, qkv, grad, G)
    wanted = gradients(plain, [y, v], [grad])
    # A zero value has no direction: the plain formula's gradient there is that of its epsilon.
    rows = [n for n in range(B * T) if n != 3]
    near(dy, wanted[0])
    near(dv[rows], wanted[1].reshape(B * T, -1)[rows], 1e-4)
    assert torch.isfinite(dv).all()


# ---------------------------------------------------------------------------------------------
# The MLP's products


@pytest.mark.parametrize("leak", [0.0, 0.5])
@pytest.mark.parametrize(("N", "D", "F_"), [(5, 8, 16), (150, 40, 72), (129, 64, 264)])
def test_products(leak: float, N: int, D: int, F_: int) -> None:
    # A GPU multiplies bfloat16, whose tiles are what fits a multiprocessor.
    dtype, bits, tolerance = torch.float32, torch.int32, 1e-5
    if DEVICE == "cuda":
        dtype, bits, tolerance = torch.bfloat16, torch.int16, 1e-2
    x, w, g = (z.to(dtype) for z in (randn(N, D), randn(F_, D, seed=1), randn(N, D, seed=2)))
    x[0] = 0.0
    h = x.double() @ w.double().T
    square = products.up_square(x, w, leak)
    near(square, F.leaky_relu(h, leak).square(), tolerance)
    if leak:
        negative = (square.view(bits) & 1).bool()
        sure = h.abs() > 1e-4
        assert torch.equal(negative[sure], (h < 0)[sure])
    slope = torch.where(h > 0, 2 * h, 2 * leak**2 * h)
    got = products.slope_product(g, w, square, leak)
    near(got, (g.double() @ w.double().T) * slope, 10 * tolerance)


# ---------------------------------------------------------------------------------------------
# The loss


# Logits far beyond the cap: the interpreter's exp2 says that it reached infinity, as it should.
@pytest.mark.filterwarnings("ignore:overflow encountered in exp2")
@pytest.mark.parametrize("cap", [30.0, 5.0])
@pytest.mark.parametrize("size", [0.1, 10.0, 1e4])
@pytest.mark.parametrize("V", [37, 64])
def test_loss(cap: float, size: float, V: int) -> None:
    logits, targets = randn(13, V, size=size), (torch.arange(13, device=DEVICE) * 2)

    def plain(z: Tensor) -> tuple[Tensor]:
        z = cap * torch.tanh(z / cap)
        return (F.cross_entropy(z, targets, reduction="none"),)

    wanted = plain(logits.double())[0]
    before = logits.clone()
    near(losses.loss_(logits, targets, cap, False), wanted)
    assert torch.equal(logits, before)
    losses.loss_(logits, targets, cap, True)
    grads = gradients(plain, [before], [torch.full((13,), 1 / 13, device=DEVICE)])
    assert (logits.double() - grads[0]).abs().max() <= 2e-6
