"""Each lean operation equals its plain formula, forward and backward, at odd sizes and extremes.

Both of its forms: loops, and tensor operations where loops do not fit.
"""

import os
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from fairway.base import floats, threads
from fairway.model import ops

# Beyond float64's formula, as a share of the largest number: rounding to the dtype, and of sums.
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 5e-3}
DTYPES = list(TOLERANCE)
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
COS, SIN = (
    f(torch.arange(7.0)[:, None] * torch.tensor([1.0, 0.3, 0.01])) for f in (torch.cos, torch.sin)
)
NONE = torch.empty(7, 0)
Function = Callable[..., Tensor]


@pytest.fixture(params=["loops", "tensors"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Choose the form of every operation."""
    if request.param == "tensors":
        monkeypatch.setattr(ops, "fit", lambda *tensors: False)
    monkeypatch.setattr(ops, "LOSS_ROWS", 5)
    return str(request.param)


@pytest.fixture(params=[1, 2, 3])
def thread_count(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Let loops use so many threads for whatever they treat."""
    monkeypatch.setattr(floats, "_LEAST", 1)
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def leaves(shapes: list[tuple[int, ...]], dtype: torch.dtype, size: float) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    values = [torch.randn(shape, generator=generator) * size for shape in shapes]
    return [value.to(dtype) for value in values]


def results(function: Function, inputs: list[Tensor], order: tuple[int, ...] = ()) -> list[Tensor]:
    """Return a function's result and its gradients, given a gradient that may lie out of order."""
    copies = [x.detach().clone().requires_grad_() for x in inputs]
    out = function(*copies)
    generator = torch.Generator().manual_seed(2)
    weights = torch.randn(out.shape, generator=generator).bfloat16().to(out.dtype)
    if order:
        weights = weights.permute(order).contiguous().permute(order)
    torch.autograd.backward(out, weights)
    assert all(x.grad is not None for x in copies)
    return [out.detach(), *(x.grad for x in copies if x.grad is not None)]


def compare(
    lean: Function,
    plain: Function,
    inputs: list[Tensor],
    order: tuple[int, ...] = (),
    roundings: int = 1,
) -> None:
    """Compare with the plain formula in float64."""
    got = results(lean, inputs, order)
    wanted = results(plain, [x.double() for x in inputs])
    for result, expected, given in zip(got, wanted, [None, *inputs], strict=True):
        assert given is None or result.dtype == given.dtype
        scale = expected.abs().max().item() + 1e-300
        worst = (result.double() - expected).abs().max().item()
        assert worst <= roundings * TOLERANCE[inputs[0].dtype] * scale


def in_double(plain: Function) -> Function:
    """Return a plain formula that stays in float64: `float` is the identity while it runs."""

    def run(*arguments: object) -> Tensor:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Tensor, "float", lambda x: x)
            return plain(*arguments)

    return run


OPERATIONS: dict[str, tuple[Function, Function, list[tuple[int, ...]], tuple[int, ...]]] = {
    "norm": (
        lambda x: ops.norm(x, 0.5),
        lambda x: ops.norm_plain(x, 0.5),
        [(3, 7, 11)],
        (1, 0, 2),
    ),
    "leaky_square": (
        lambda x: ops.leaky_square(x, 0.3),
        lambda x: ops.leaky_square_plain(x, 0.3),
        [(3, 7, 11)],
        (0, 2, 1),
    ),
    "without_self": (
        lambda y, v: ops.without_self(y, v),
        lambda y, v: ops.without_self_plain(y, v),
        [(2, 7, 6, 10), (2, 7, 3, 10)],
        (0, 2, 1, 3),
    ),
    "entered": (
        lambda x, x0, m: torch.stack(ops.entered(x, x0, m, 0.7)),
        lambda x, x0, m: torch.stack(ops.entered_plain(x, x0, m, 0.7)),
        [(3, 67, 11), (3, 67, 11), (2, 11)],
        (0, 2, 1, 3),
    ),
    "added": (
        lambda u, y, s: ops.added(u, s, y),
        lambda u, y, s: ops.added_plain(u, s, y),
        [(3, 67, 11), (3, 67, 11), (11,)],
        (1, 0, 2),
    ),
    "position": (
        lambda x: ops.position(x, torch.linspace(-0.5, 6.0, 6), COS, SIN),
        lambda x: ops.position_plain(x, torch.linspace(-0.5, 6.0, 6), COS, SIN),
        [(2, 7, 6, 10)],
        (0, 2, 1, 3),
    ),
    "position unturned": (
        lambda x: ops.position(x, torch.ones(6), NONE, NONE),
        lambda x: ops.position_plain(x, torch.ones(6), NONE, NONE),
        [(2, 7, 6, 10)],
        (0, 3, 2, 1),
    ),
    "position of one": (
        lambda x: ops.position(x, torch.ones(1), COS[:1], SIN[:1]),
        lambda x: ops.position_plain(x, torch.ones(1), COS[:1], SIN[:1]),
        [(1, 1, 1, 6)],
        (0, 2, 1, 3),
    ),
}


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1e-3, 1.0, 300.0])
def test_lean_equals_plain_in_float64(
    name: str, dtype: torch.dtype, size: float, form: str
) -> None:
    lean, plain, shapes, order = OPERATIONS[name]
    # Tensor operations round the stream before and after x0 is added to it.
    roundings = 2 if (name, form) == ("entered", "tensors") else 1
    compare(lean, in_double(plain), leaves(shapes, dtype, size), order, roundings)


@pytest.mark.parametrize("gain", [0.0, -2.0, 5.25])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_gain_learns(dtype: torch.dtype, gain: float, form: str) -> None:
    x_BTHK, gain_H = leaves([(2, 7, 6, 10), (6,)], dtype, 1.0)
    found = []
    for position in (ops.position, in_double(ops.position_plain)):
        exact = position is not ops.position
        gains = (gain_H.float() * 0 + gain).requires_grad_()
        x = x_BTHK.double() if exact else x_BTHK
        weights = torch.arange(float(x.numel())).view(x.shape).cos().to(dtype)
        out = position(x, gains.double() if exact else gains, COS, SIN)
        torch.autograd.backward(out, weights.to(out.dtype))
        assert gains.grad is not None
        found.append(gains.grad)
    assert (found[0] - found[1]).abs().max() <= TOLERANCE[dtype] * found[1].abs().max()


@pytest.mark.parametrize("name", OPERATIONS)
def test_strided_inputs_give_what_dense_ones_give(name: str, form: str) -> None:
    lean, _, shapes, _ = OPERATIONS[name]
    dense = leaves(shapes, torch.bfloat16, 1.0)
    views = [
        torch.cat((x, x), -1)[..., : x.shape[-1]].movedim(0, -1).contiguous().movedim(-1, 0)
        for x in dense
    ]
    slices = [torch.cat((x, x), -1)[..., : x.shape[-1]] for x in dense]
    spread = [torch.stack((x, x), -1)[..., 0] for x in dense]
    for others in (views, slices, spread):
        assert torch.equal(lean(*others), lean(*dense))


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_bits_do_not_depend_on_threads(name: str, dtype: torch.dtype, thread_count: int) -> None:
    lean, _, shapes, order = OPERATIONS[name]
    inputs = leaves(shapes, dtype, 1.0)
    side_by_side = results(lean, inputs, order)
    torch.set_num_threads(1)
    alone = results(lean, inputs, order)
    assert all(torch.equal(a, b) for a, b in zip(side_by_side, alone, strict=True))


# ---------------------------------------------------------------------------------------------
# The loss


@pytest.mark.parametrize("cap", [30.0, 100.0])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [0.1, 20.0, 1000.0])
@pytest.mark.parametrize("rows, columns", [(13, 37), (1, 1), (3, 16)])
def test_mean_loss(
    dtype: torch.dtype, cap: float, size: float, rows: int, columns: int, form: str
) -> None:
    logits = leaves([(rows, columns)], dtype, size)
    targets_N = torch.arange(rows) * 2 % columns
    found = results(lambda z: ops.mean_loss(z, targets_N, cap), logits)
    wanted = results(
        in_double(lambda z: ops.mean_loss_plain(z, targets_N, cap)), [z.double() for z in logits]
    )
    assert found[0].dtype == torch.float32
    assert found[0].item() == pytest.approx(wanted[0].item(), rel=2e-5, abs=1e-5)
    # Where the cap saturates its slope is a difference of numbers near one.
    scale = wanted[1].abs().max().item() + 1.0 / rows * 1e-2
    # In bfloat16 the gradient is rounded once more, when it is multiplied by that of the mean.
    assert (found[1].double() - wanted[1]).abs().max().item() <= 2 * TOLERANCE[dtype] * scale


def test_the_loss_has_the_same_bits_on_any_number_of_threads(thread_count: int) -> None:
    logits, targets_N = leaves([(29, 50)], torch.float32, 3.0), torch.arange(29)
    found = results(lambda z: ops.mean_loss(z, targets_N, 30.0), logits)
    torch.set_num_threads(1)
    alone = results(lambda z: ops.mean_loss(z, targets_N, 30.0), logits)
    assert all(torch.equal(a, b) for a, b in zip(found, alone, strict=True))


@pytest.mark.parametrize("target", [-1, 5])
def test_a_target_outside_the_vocabulary_is_an_error(target: int) -> None:
    with pytest.raises(IndexError, match="5 columns"):
        ops.mean_loss(torch.zeros(2, 5), torch.tensor([0, target]), 30.0)


# ---------------------------------------------------------------------------------------------
# Extremes


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [0.0, 1e-30, 1e-13, 1e18, 1e30, float("inf"), float("nan")])
@pytest.mark.parametrize("name", ["norm", "position", "position unturned", "leaky_square"])
def test_extreme_rows_give_what_plain_ones_give(
    name: str, value: float, dtype: torch.dtype, form: str
) -> None:
    lean, plain, shapes, _ = OPERATIONS[name]
    (x,) = leaves(shapes, torch.float32, 1.0)
    x[0, 0] = value
    x[0, 1, ..., :2] = value
    got, wanted = lean(x.to(dtype)), plain(x.to(dtype).float()).to(dtype)
    assert torch.equal(got.isnan(), wanted.isnan())
    torch.testing.assert_close(got, wanted, rtol=1e-2, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [0.0, 1e-30, 1e-13, 1e-6])
def test_values_without_direction(value: float, dtype: torch.dtype) -> None:
    y, v = leaves([(2, 7, 6, 10), (2, 7, 3, 10)], torch.float32, 1.0)
    v[0] *= value
    inputs = [y.to(dtype), v.to(dtype)]
    got = results(ops.without_self, inputs)
    wanted = results(in_double(ops.without_self_plain), [x.double() for x in inputs])
    for result, expected in zip(got, wanted, strict=True):
        assert result.isfinite().all()
        for half, exact in zip(result.double(), expected, strict=True):
            worst = (half - exact).abs().max()
            assert worst <= TOLERANCE[dtype] * exact.abs().max()


@pytest.mark.parametrize("value", [1e25, 1e30])
def test_values_whose_square_overflows_leave_attention_alone(value: float) -> None:
    y, v = leaves([(1, 7, 2, 10), (1, 7, 1, 10)], torch.float32, 1.0)
    assert torch.equal(ops.without_self(y, v * value), ops.without_self_plain(y, v * value))


@pytest.mark.parametrize("at", [0, 3])
def test_a_logit_that_is_no_number_shows(at: int, form: str) -> None:
    logits_NV = torch.zeros(2, 5)
    logits_NV[1, at] = float("nan")
    assert ops.mean_loss(logits_NV, torch.tensor([0, 3]), 30.0).isnan()


def test_zero_rows_stay_finite(form: str) -> None:
    zero = torch.zeros(1, 2, 2, 4, requires_grad=True)
    out = ops.norm(zero) + ops.without_self(zero, zero)
    torch.autograd.backward(out.sum())
    assert out.isfinite().all() and zero.grad is not None and zero.grad.isfinite().all()


def test_nothing_gives_nothing() -> None:
    empty = torch.empty(0, 7, 4, requires_grad=True)
    out = ops.leaky_square(ops.norm(empty), 0.5)
    torch.autograd.backward(out.sum())
    assert out.shape == empty.shape


def test_norm_keeps_dtype_under_autocast() -> None:
    x = torch.randn(2, 8, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert ops.norm(x).dtype == torch.bfloat16
        assert ops.norm_plain(x).dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_other_dtypes_take_tensor_operations(dtype: torch.dtype) -> None:
    (x,) = leaves([(3, 7, 11)], dtype, 1.0)
    assert not ops.fit(x)
    torch.testing.assert_close(ops.norm(x), ops.norm_plain(x), rtol=2e-3, atol=1e-3)


@pytest.mark.parametrize("name", OPERATIONS)
def test_tensor_operations_are_exact_in_float64(name: str) -> None:
    lean, plain, shapes, order = OPERATIONS[name]
    inputs = leaves(shapes, torch.float64, 1.0)
    for got, wanted in zip(
        results(lean, inputs, order), results(in_double(plain), inputs), strict=True
    ):
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)


# ---------------------------------------------------------------------------------------------
# Numbers and threads


def test_bfloat16_rounds_as_torch_does() -> None:
    bits = torch.arange(0, 1 << 32, 65_521, dtype=torch.int64).to(torch.int32)
    x = bits.view(torch.float32)
    x = x[x.isfinite()].contiguous()
    halves = torch.tensor([1.00390625, 1.01171875, -1.00390625, 3.4e38, 1e-40])
    for values in (x, halves):
        out = torch.empty(len(values), dtype=torch.bfloat16)
        array, numbers = floats.array(out), values.numpy()
        for at in range(len(values)):
            floats.put(array, at, numbers[at])
        assert torch.equal(out, values.bfloat16())


def test_exp_is_right_to_two_units_of_the_last_place() -> None:
    x = torch.linspace(-86.9, 87.9, 40_001)
    got = torch.tensor([floats.exp(value) for value in x.numpy()])
    assert ((got.double() / x.double().exp() - 1.0).abs() <= 2.0**-22).all()
    assert floats.exp(torch.tensor(-1e30).numpy()[()]) < 2e-38
    assert torch.tensor(floats.exp(torch.tensor(float("nan")).numpy()[()])).isnan()


def test_pieces_make_up_all_rows(thread_count: int) -> None:
    for rows in (1, 2, 7, 100):
        seen: list[int] = []
        threads.in_pieces(
            rows, rows, lambda first, end, seen=seen: seen.extend(range(first, end)), 1
        )  # type: ignore[misc]
        assert sorted(seen) == list(range(rows))


def test_an_error_in_a_piece_is_raised(thread_count: int) -> None:
    def work(first: int, end: int) -> None:
        if first <= 50 < end:
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        threads.in_pieces(100, 100, work, 1)


def test_a_forked_process_has_threads_of_its_own(thread_count: int) -> None:
    x = torch.ones(64, 64)
    ops.norm(x)
    child = os.fork()
    if not child:
        os._exit(0 if torch.equal(ops.norm(x), torch.ones(64, 64)) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(24,), (1, 24), (5, 24), (2, 3, 24)])
def test_wide_logits_are_not_rounded(
    shape: tuple[int, ...], dtype: torch.dtype, device: str
) -> None:
    """Logits of 16 and more, where bfloat16 is 0.125 apart, and both gradients."""
    generator = torch.Generator().manual_seed(0)
    x = (6 * torch.randn(shape, generator=generator)).to(device, dtype).requires_grad_()
    weight_VD = torch.randn(17, 24, generator=generator).to(dtype).to(device, torch.float32)
    weight_VD.requires_grad_()
    upper = torch.randn(*shape[:-1], 17, generator=generator).to(dtype).to(device, torch.float32)
    got = ops.wide_logits(x, weight_VD)
    got.backward(upper)
    wide, weights = (t.detach().double().requires_grad_() for t in (x, weight_VD))
    exact = wide @ weights.T
    exact.backward(upper.double())
    assert got.dtype == torch.float32
    assert exact.abs().max() > 32
    assert (got - exact).abs().max() <= 1e-4
    for leaf, truth in ((x, wide), (weight_VD, weights)):
        assert leaf.grad is not None and truth.grad is not None
        error = (leaf.grad.double() - truth.grad).abs().max()
        assert error <= TOLERANCE[dtype] * truth.grad.abs().max()
    with torch.no_grad():
        assert torch.equal(ops.wide_logits(x, weight_VD), got)
