"""Products of the MLP in float8 equal formulas that round at the same places."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from tiny import TINY, alive
from torch import Tensor

from fairway.model.paths import prepare

pytest.importorskip("triton", reason="kernels need Triton")

from fairway.model.gpu import eight
from fairway.model.gpu.eight import GRADIENT, MOST, VALUE
from fairway.model.gpu.operations import _MlpEight

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
pytestmark = pytest.mark.skipif(
    GPU and torch.cuda.get_device_capability() < (8, 9), reason="this GPU has no float8"
)


def randn(*shape: int, seed: int = 0, size: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(*shape, generator=generator) * size).to(DEVICE)


def rounded(x: Tensor, unit: Tensor, dtype: torch.dtype) -> Tensor:
    """Return x as multiples of a unit in float8, in float64."""
    most = MOST[dtype]
    return (x.float() / unit).clamp(-most, most).to(dtype).double() * unit.double()


def apart(got: Tensor, wanted: Tensor) -> float:
    return float((got.double() - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("given", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("dtype", [VALUE, GRADIENT])
@pytest.mark.parametrize(("N", "C"), [(16, 16), (144, 80), (48, 208)])
def test_a_matrix_and_its_transpose_are_the_nearest_numbers(
    given: torch.dtype, dtype: torch.dtype, N: int, C: int
) -> None:
    x = randn(N, C).bfloat16().to(given)
    x[0] = 0.0
    x[1], x[2] = 1e4, -1e4
    x[3] = (x[3] * 1e-4).bfloat16()
    unit = torch.tensor(3.0 / MOST[dtype], device=DEVICE)
    found = eight.eight_of(x, unit, dtype)
    wanted = rounded(x, unit, dtype)
    assert torch.equal(found.rows.double() * unit.double(), wanted)
    assert torch.equal(found.turned.double() * unit.double(), wanted.T)


class Mlp:
    """An MLP that adds to a stream, at random values, with the gradient of its result."""

    def __init__(self, N: int, D: int, F_: int, grad_size: float) -> None:
        x = randn(N, D)
        self.g = (x / x.pow(2).mean(1, keepdim=True).sqrt()).bfloat16()
        self.u, self.dout = randn(N, D, seed=1).bfloat16(), randn(N, D, seed=2, size=grad_size)
        self.dout = self.dout.bfloat16()
        self.up, self.down = randn(F_, D, seed=3, size=0.1), randn(D, F_, seed=4, size=0.05)
        self.scale = randn(D, seed=5).abs() + 0.5

    def found(self, leak: float) -> list[Tensor]:
        """Return the result and the gradients of g, up, down and scale."""
        leaves = [z.clone().requires_grad_() for z in (self.g, self.up, self.down, self.scale)]
        weights = eight.weights_of(self.up, self.down, self.scale)
        stream = self.u.clone().requires_grad_()
        out = _MlpEight.run(weights, leak, stream.clone(), *leaves)
        out.backward(self.dout)
        assert stream.grad is not None and torch.equal(stream.grad, self.dout)
        return [out.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]

    def exact(self, leak: float) -> list[Tensor]:
        """Return the same in float64 without rounding."""
        leaves = [z.double().requires_grad_() for z in (self.g, self.up, self.down, self.scale)]
        g, up, down, scale = leaves
        out = self.u.double() + F.leaky_relu(g @ up.T, leak).square() @ down.T * scale
        out.backward(self.dout.double())
        return [out.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]

    def rounding(self, leak: float) -> list[Tensor]:
        """Return the same in float64, rounded to float8 where the kernels round."""
        weights = eight.weights_of(self.up, self.down, self.scale)
        root = math.sqrt(self.g.shape[1])
        g = rounded(self.g, torch.tensor(root / MOST[VALUE], device=DEVICE), VALUE)
        up = rounded(self.up.bfloat16(), weights.up.unit, VALUE)
        down = rounded((self.down * self.scale[:, None]).bfloat16(), weights.down.unit, VALUE)
        h = g @ up.T
        square = rounded(F.leaky_relu(h, leak).square(), weights.square_unit, VALUE)
        out = self.u.double() + square @ down.T
        unit = self.dout.abs().amax().float() / MOST[VALUE]
        dout = rounded(self.dout, unit, VALUE)
        dh = dout @ down * torch.where(h > 0, 2 * h, 2 * leak**2 * h)
        dh = rounded(dh, unit * weights.slope_unit, GRADIENT)
        d_scaled = dout.T @ square
        d_scale = (d_scaled * self.down.double()).sum(1)
        return [out, dh @ up, dh.T @ g, d_scaled * self.scale.double()[:, None], d_scale]


@pytest.mark.parametrize("leak", [0.0, 0.5])
@pytest.mark.parametrize(
    ("N", "D", "F_", "grad_size"),
    [(64, 32, 96, 1.0), (144, 80, 208, 1e-7), (272, 48, 144, 1e5)],
)
def test_an_mlp_is_that_of_its_roundings(
    leak: float, N: int, D: int, F_: int, grad_size: float
) -> None:
    mlp = Mlp(N, D, F_, grad_size)
    found, exact, rounding = mlp.found(leak), mlp.exact(leak), mlp.rounding(leak)
    # A number at the middle between two of float8 may go to either; sums are in another order.
    for got, same in zip(found, rounding, strict=True):
        assert apart(got, same) < 0.025
    # Three bits of mantissa err by 0.026 on average, two by 0.053; a product has two factors.
    for got, true, most in zip(found, exact, (0.06, 0.12, 0.12, 0.06, 0.12), strict=True):
        assert apart(got, true) < most


def test_a_zero_gradient_gives_zeros() -> None:
    mlp = Mlp(32, 32, 48, 0.0)
    assert not any(grad.any() for grad in mlp.found(0.5)[1:])


def test_a_model_trains_with_it_and_scores_without() -> None:
    model = alive(replace(TINY, dim=32, mlp_dim=64)).to(DEVICE)
    ids_BT = torch.randint(0, 260, (2, 17), generator=torch.Generator().manual_seed(0)).to(DEVICE)
    grads, scores = [], []
    for float8 in (False, True):
        prepare(model, torch.bfloat16, "flash" if GPU else "plain", "fused")
        model.operations.float8 = float8
        model.zero_grad(set_to_none=True)
        model(ids_BT[:, :-1], ids_BT[:, 1:]).backward()
        assert all(weight.grad is not None for weight in model.parameters())
        grads.append([w.grad for w in model.parameters() if w.grad is not None])
        with torch.no_grad():
            scores.append(model(ids_BT[:, :-1], ids_BT[:, 1:]))
    assert torch.equal(*scores)
    names = [name for name, _ in model.named_parameters()]
    errors = {
        name: apart(got, wanted.double()) for name, wanted, got in zip(names, *grads, strict=True)
    }
    assert all(0.01 < errors[name] < 0.3 for name in names if "mlp" in name)
