import math
import warnings
import weakref

import pytest
import torch
from gptq_problem import INT6, SETTINGS, gptq, problem
from torch import Tensor

from fairway.base.errors import UserError
from fairway.quantise.gptq import (
    Matrix,
    full_precision,
    gptq_all,
    inverse_factor,
    round_plainly,
    tensor_stats,
)
from fairway.quantise.grid import Grid, QuantisedTensor, restore, row_scales


def plain_gptq(w_RC: Tensor, hessian_CC: Tensor, grid: Grid, damp: float, order: Tensor) -> Tensor:
    """One column at a time in float64; the inverse of what is left is shrunk, not factored."""
    scale_R = row_scales(w_RC, grid, "w").double()
    w_RC, H_CC = w_RC.double().clone(), hessian_CC.double().clone()
    dead = H_CC.diagonal() == 0
    H_CC[dead, dead] = 1.0
    w_RC[:, dead] = 0.0
    H_CC += damp * H_CC.diagonal().mean() * torch.eye(len(H_CC))
    codes_RC = torch.zeros_like(w_RC)
    left = order.tolist()
    while left:
        j = left[0]
        inverse = torch.linalg.inv(H_CC[left][:, left])
        most = 2 ** (grid.bits - 1) - 1
        codes_RC[:, j] = (w_RC[:, j] / scale_R).round().clamp(-most, most)
        error_R = w_RC[:, j] - codes_RC[:, j] * scale_R
        w_RC[:, left] -= torch.outer(error_R, inverse[0] / inverse[0, 0])
        left = left[1:]
    return codes_RC.to(torch.int8)


def output_error(w_RC: Tensor, quantised: QuantisedTensor, hessian_CC: Tensor) -> float:
    off_RC = w_RC - restore(quantised)
    return float(((off_RC @ hessian_CC) * off_RC).sum())


@pytest.mark.parametrize("block", [1, 3, 8, 20, 128])
@pytest.mark.parametrize("dead", [(), (0, 7, 19)])
def test_equals_the_plain_column_by_column_version(block: int, dead: tuple[int, ...]) -> None:
    w_RC, hessian_CC = problem()
    # Energies up to 1, the value that a dead column's diagonal takes.
    hessian_CC /= hessian_CC.diagonal().max()
    for column in dead:
        hessian_CC[column] = hessian_CC[:, column] = 0.0
    energy_C = torch.where(hessian_CC.diagonal() == 0, 1.0, hessian_CC.diagonal())
    order = energy_C.argsort(descending=True, stable=True)
    for grid, damp in ((INT6, 0.01), (INT6, 0.5), (Grid(4, 1.5), 0.01)):
        expected = plain_gptq(w_RC, hessian_CC, grid, damp, order)
        found = gptq(w_RC, hessian_CC, grid, damp=damp, block=block)
        assert torch.equal(found.codes, expected)
    assert found.codes.min() == -7 and found.codes.max() == 7


def batch(device: str = "cpu") -> list[Matrix]:
    """Matrices of two widths, two heights and two numbers of bits; some share a Hessian."""
    found = []
    for number, (rows, columns, bits) in enumerate(
        [(12, 20, 6), (5, 20, 6), (12, 33, 6), (12, 20, 6), (12, 20, 4), (12, 33, 6)]
    ):
        w_RC, hessian_CC = problem(rows, columns, seed=number)
        if number in (1, 3):
            hessian_CC = found[0].hessian
        if number == 5:
            hessian_CC[4] = hessian_CC[:, 4] = 0.0
        grid = Grid(bits, 12.85 + number)
        weight, hessian = w_RC.to(device), hessian_CC.to(device)
        found.append(Matrix(f"m{number}", weight, hessian, grid))
    return found


def test_many_together_equal_one_at_a_time() -> None:
    together = dict(gptq_all(batch(), **SETTINGS))
    assert sorted(together) == [f"m{number}" for number in range(6)]
    for m in batch():
        alone = gptq(m.weight, m.hessian, m.grid, **SETTINGS)
        assert torch.equal(together[m.name].codes, alone.codes)
        assert torch.equal(together[m.name].scale, alone.scale)
        assert together[m.name].bits == m.grid.bits


def test_groups_come_by_width_then_height_then_bits_and_factorise_a_hessian_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []
    kept: list[weakref.ref[Tensor]] = []
    gone: dict[str, bool] = {}

    def counted(hessian_CC: Tensor, damp: float, name: str) -> Tensor:
        asked.append(name)
        if len(hessian_CC) == 33:
            gone[name] = not any(factor() is not None for factor in kept)
        upper_CC = inverse_factor(hessian_CC, damp, name)
        kept.append(weakref.ref(upper_CC))
        return upper_CC

    monkeypatch.setattr("fairway.quantise.gptq.inverse_factor", counted)
    found = [name for name, _ in gptq_all(batch(), **SETTINGS)]
    assert gone == {"m2": True, "m5": False}
    # 20 columns: m1 has 5 rows, m4 4 bits; 33 columns: m2 and m5.
    assert found == ["m1", "m4", "m0", "m3", "m2", "m5"]
    assert asked == ["m1", "m4", "m2", "m5"]


def test_codes_and_scales_of_a_group_are_copies_of_their_own() -> None:
    for tensor in dict(gptq_all(batch(), **SETTINGS)).values():
        for part in (tensor.codes, tensor.scale):
            assert part.is_contiguous()
            assert part.untyped_storage().nbytes() == part.numel() * part.element_size()
        assert tensor.codes.dtype == torch.int8 and tensor.scale.dtype == torch.float16


def test_one_hessian_that_needs_damping_leaves_the_others_alone() -> None:
    matrices = batch()
    hessian_CC = matrices[2].hessian
    hessian_CC[0, 1] = hessian_CC[1, 0] = 2 * hessian_CC.diagonal().max()
    with pytest.warns(UserWarning, match="Hessian of m2 needed") as told:
        found = dict(gptq_all(matrices, **SETTINGS))
    assert len(told) == 1
    clean = dict(gptq_all(batch(), **SETTINGS))
    same = [name for name in found if torch.equal(found[name].codes, clean[name].codes)]
    assert sorted(same) == ["m0", "m1", "m3", "m4", "m5"]


def test_products_are_full_precision_whatever_the_plan_allows() -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with full_precision():
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_codes_are_those_of_the_cpu_up_to_ties() -> None:
    w_RC, hessian_CC = problem(300, 260, seed=4)
    settings = {"damp": 0.01, "block": 128}
    wanted = gptq(w_RC, hessian_CC, INT6, **settings)
    found = gptq(w_RC.cuda(), hessian_CC.cuda(), INT6, **settings)
    assert found.codes.device.type == "cpu" and torch.equal(found.scale, wanted.scale)
    # Sums in another order: a value this close to a tie falls on the other side, and the values
    # after it in its row then differ by what is fed back.
    assert float((found.codes != wanted.codes).float().mean()) < 2e-3
    together, alone = dict(gptq_all(batch("cuda"), **SETTINGS)), dict(gptq_all(batch(), **SETTINGS))
    for name, tensor in together.items():
        assert float((tensor.codes != alone[name].codes).float().mean()) < 0.02
    on_gpu, on_cpu = (
        tensor_stats("w", w.to(device), wanted, hessian_CC.to(device))
        for device, w in (("cuda", w_RC), ("cpu", w_RC))
    )
    assert on_gpu.error == pytest.approx(on_cpu.error, rel=1e-4)
    assert on_gpu.entropy_bits == on_cpu.entropy_bits


def test_weights_and_hessians_of_other_dtypes_are_computed_with_in_float32() -> None:
    w_RC, hessian_CC = (part.bfloat16() for part in problem())
    found = gptq(w_RC, hessian_CC, INT6, **SETTINGS)
    wanted = gptq(w_RC.float(), hessian_CC.float(), INT6, **SETTINGS)
    assert torch.equal(found.codes, wanted.codes) and torch.equal(found.scale, wanted.scale)


def test_scale_of_the_hessian_does_not_matter() -> None:
    w_RC, hessian_CC = problem(seed=3)
    one = gptq(w_RC, hessian_CC, INT6, **SETTINGS)
    other = gptq(w_RC, hessian_CC * 2.0**-12, INT6, **SETTINGS)
    assert torch.equal(one.codes, other.codes)


def test_loses_less_than_plain_rounding() -> None:
    w_RC, hessian_CC = problem(48, 32, seed=1)
    fed_back = gptq(w_RC, hessian_CC, INT6, **SETTINGS)
    rounded = round_plainly(w_RC, INT6, "w")
    assert torch.equal(fed_back.scale, rounded.scale)
    assert output_error(w_RC, fed_back, hessian_CC) < 0.7 * output_error(w_RC, rounded, hessian_CC)


def test_without_correlation_it_is_plain_rounding() -> None:
    w_RC, _ = problem()
    hessian_CC = torch.diag(torch.linspace(1, 5, 20))
    assert torch.equal(
        gptq(w_RC, hessian_CC, INT6, **SETTINGS).codes, round_plainly(w_RC, INT6, "w").codes
    )


def test_zero_row_stays_zero() -> None:
    w_RC, hessian_CC = problem()
    w_RC[4] = 0.0
    found = gptq(w_RC, hessian_CC, INT6, **SETTINGS)
    assert not found.codes[4].any()
    assert torch.isfinite(restore(found)).all()


def test_dead_columns_become_zero_and_the_scale_is_that_of_the_original_row() -> None:
    w_RC, hessian_CC = problem()
    for dead in (0, 13):
        hessian_CC[dead] = 0.0
        hessian_CC[:, dead] = 0.0
    found = gptq(w_RC, hessian_CC, INT6, **SETTINGS)
    assert not found.codes[:, [0, 13]].any()
    assert found.codes[:, 1].any()
    assert torch.equal(found.scale, row_scales(w_RC, INT6, "w"))


def test_no_calibration_at_all_gives_zeros() -> None:
    w_RC, _ = problem()
    assert not gptq(w_RC, torch.zeros(20, 20), INT6, **SETTINGS).codes.any()


def test_equal_energies_keep_the_columns_order() -> None:
    w_RC, hessian_CC = problem()
    d_C = hessian_CC.diagonal().rsqrt()
    equal_CC = (d_C[:, None] * hessian_CC * d_C).fill_diagonal_(1.0)
    found = gptq(w_RC, equal_CC, INT6, **SETTINGS)
    assert torch.equal(found.codes, plain_gptq(w_RC, equal_CC, INT6, 0.01, torch.arange(20)))


def test_inputs_are_left_alone() -> None:
    w_RC, hessian_CC = problem()
    hessian_CC[2] = hessian_CC[:, 2] = 0.0
    kept = w_RC.clone(), hessian_CC.clone()
    gptq(w_RC, hessian_CC, INT6, **SETTINGS)
    assert torch.equal(w_RC, kept[0]) and torch.equal(hessian_CC, kept[1])


@pytest.mark.parametrize(("beyond", "times"), [(0.95, 100), (50.0, 10_000), (950.0, 100_000)])
def test_indefinite_hessian_gets_more_damping_and_a_warning(beyond: float, times: int) -> None:
    # Eigenvalues 2 + x and -x, a mean of 1: 0.01 times a power of ten must exceed x.
    hessian_CC = torch.tensor([[1.0, 1.0 + beyond], [1.0 + beyond, 1.0]])
    w_RC = problem(6, 2)[0]
    with pytest.warns(UserWarning, match=rf"^the Hessian of x needed {times} times the damping$"):
        found = gptq(w_RC, hessian_CC, INT6, **SETTINGS, name="x")
    plain = plain_gptq(w_RC, hessian_CC, INT6, 0.01 * times, torch.arange(2))
    assert torch.equal(found.codes, plain)


def test_hopeless_hessian_is_refused() -> None:
    told = "the calibration statistics of the matrix are not positive; calibrate on more text"
    # Six tries end at 0.01 * 10^5 = 1000.
    for hessian_CC in (-torch.eye(2), torch.tensor([[1.0, 1101.0], [1101.0, 1.0]])):
        with pytest.raises(UserError, match=told):
            gptq(problem(6, 2)[0], hessian_CC, INT6, **SETTINGS)


def test_the_factor_is_that_of_the_inverse() -> None:
    hessian_CC = problem(columns=33)[1]
    upper_CC = inverse_factor(hessian_CC, 0.02, "w").double()
    damped_CC = hessian_CC.double()
    damped_CC += 0.02 * damped_CC.diagonal().mean() * torch.eye(33)
    assert torch.equal(upper_CC, upper_CC.triu())
    product_CC = damped_CC @ (upper_CC.T @ upper_CC)
    torch.testing.assert_close(product_CC, torch.eye(33).double(), rtol=0, atol=2e-4)


def test_one_position_of_calibration_is_enough_without_a_warning() -> None:
    w_RC, _ = problem()
    x_C = torch.randn(20, generator=torch.Generator().manual_seed(5))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gptq(w_RC, torch.outer(x_C, x_C), INT6, **SETTINGS)


@pytest.mark.parametrize(
    "hessian",
    [
        torch.full((20, 20), float("nan")),
        torch.eye(20).index_fill(1, torch.tensor([3]), math.inf),
        torch.eye(19),
        torch.ones(20),
    ],
)
def test_unusable_hessians_are_refused(hessian: Tensor) -> None:
    with pytest.raises(UserError, match="statistics of the matrix are not a finite 20 x 20"):
        gptq(problem()[0], hessian, INT6, **SETTINGS)
