import dataclasses
from decimal import Decimal, localcontext

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fairway.base.errors import UserError
from fairway.quantise.grid import (
    Grid,
    QuantisedTensor,
    largest_code,
    restore,
    restore_all,
    round_to_grid,
    row_scales,
    scale_of,
)

INT6 = Grid(6, 12.85)


def error_bound(w_RC: Tensor, scale_R: Tensor, bits: int) -> Tensor:
    """Return the largest possible |w - restored| of plain rounding for each weight, [R, C].

    Half a step inside the clip range, the distance to the range's end outside of it; two parts in
    a million of the weight pay for the float32 arithmetic.
    """
    scale_R1 = scale_R.float()[:, None]
    beyond_RC = w_RC.float().abs() - largest_code(bits) * scale_R1
    return torch.maximum(scale_R1 / 2, beyond_RC) + 2e-6 * w_RC.float().abs()


def test_largest_codes() -> None:
    assert [largest_code(bits) for bits in (2, 6, 8)] == [1, 31, 127]


def test_scale_is_the_unbiased_deviation_in_float16() -> None:
    w_RC = torch.tensor([[1.0, 2.0, 3.0, 4.0], [-1.0, 1.0, -1.0, 1.0]])
    scale_R = row_scales(w_RC, INT6, "w")
    # sqrt(5/3) and sqrt(4/3): divided by C - 1, not by C.
    expected = [12.85 * (5 / 3) ** 0.5 / 31, 12.85 * (4 / 3) ** 0.5 / 31]
    assert scale_R.dtype == torch.float16
    assert scale_R.tolist() == torch.tensor(expected).half().tolist()


def test_a_step_is_the_known_share_of_sigma() -> None:
    w_RC = torch.randn(1, 4096, generator=torch.Generator().manual_seed(0))
    sigma = float(w_RC.std())
    assert float(row_scales(w_RC, INT6, "w")) / sigma == pytest.approx(0.4145, abs=3e-4)
    assert float(row_scales(w_RC, Grid(8, 20.0), "w")) / sigma == pytest.approx(0.1575, abs=3e-4)


def test_ties_go_to_even_and_the_rest_is_clipped() -> None:
    w_RC = torch.tensor([[0.5, 1.5, 2.5, -0.5, -1.5, 40.0, -40.0]])
    codes = round_to_grid(w_RC, torch.ones(1).half(), 6)
    assert codes.tolist() == [[0, 2, 2, 0, -2, 31, -31]]


def test_codes_of_more_than_eight_bits_do_not_wrap() -> None:
    w_RC = torch.tensor([[127.0, 128.0, 200.0, -511.0, -512.0, 1e6]])
    for bits, dtype, most in ((8, torch.int8, 127), (9, torch.int16, 255), (10, torch.int16, 511)):
        codes = round_to_grid(w_RC, torch.ones(1), bits)
        assert codes.dtype == dtype
        wanted = [max(-most, min(most, int(value))) for value in w_RC[0].tolist()]
        assert codes.tolist() == [wanted]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_other_dtypes_are_computed_with_in_float32(dtype: torch.dtype) -> None:
    w_RC = torch.randn(5, 300, generator=torch.Generator().manual_seed(1)).to(dtype)
    scale_R = row_scales(w_RC, INT6, "w")
    assert torch.equal(scale_R, row_scales(w_RC.float(), INT6, "w"))
    codes_RC = round_to_grid(w_RC, scale_R, 6)
    assert torch.equal(codes_RC, round_to_grid(w_RC.float(), scale_R.float(), 6))
    bound_RC = error_bound(w_RC, scale_R, 6)
    assert bound_RC.dtype == torch.float32
    assert torch.equal(bound_RC, error_bound(w_RC.float(), scale_R.float(), 6))


def test_the_error_bound_is_half_a_step_or_what_is_clipped_and_two_millionths() -> None:
    w_RC = torch.tensor([[0.0, 1.0, -15.0, 16.0, -100.0]])
    # Steps of 0.5 end at 31 * 0.5 = 15.5.
    wanted = [0.25, 0.25 + 2e-6, 0.25 + 3e-5, 0.5 + 3.2e-5, 84.5 + 2e-4]
    found = error_bound(w_RC.double(), torch.tensor([0.5]), 6)[0].tolist()
    assert found == pytest.approx(wanted, abs=5e-8, rel=1e-7)


def test_the_smallest_scale_is_a_floor_and_not_more() -> None:
    # 31 codes of 2^-23 are twice the floor, of 2^-25 half of it.
    w_RC = torch.tensor([[31 * 2.0**-23], [31 * 2.0**-25], [-31 * 2.0**-24]])
    assert row_scales(w_RC, INT6, "w").tolist() == [2.0**-23, 2.0**-24, 2.0**-24]


def test_the_largest_scale_is_float16s() -> None:
    # A single column is its own clip, and two bits have the codes -1 to 1.
    assert row_scales(torch.tensor([[65_504.0]]), Grid(2, 1.0), "w").tolist() == [65_504.0]
    told = r"w holds weights up to 6.55e\+04, whose scale exceeds the 65,504 that float16 can hold"
    with pytest.raises(UserError, match=told):
        row_scales(torch.tensor([[1.0], [-65_520.0]]), Grid(2, 1.0), "w")


@pytest.mark.filterwarnings("error")
def test_two_columns_have_a_deviation_and_one_or_equal_ones_have_none() -> None:
    assert row_scales(torch.tensor([[-0.5]]), INT6, "w") == torch.tensor(0.5 / 31).half()
    w_RC = torch.tensor([[1.0, 3.0], [2.0, 2.0]])
    wanted = torch.tensor([12.85 * 2**0.5 / 31, 2 / 31]).half()
    assert torch.equal(row_scales(w_RC, INT6, "w"), wanted)


def test_zero_row_has_codes_zero_and_a_positive_scale() -> None:
    w_RC = torch.zeros(2, 8)
    scale_R = row_scales(w_RC, INT6, "w")
    assert scale_R.tolist() == [2.0**-24] * 2
    quantised = QuantisedTensor(round_to_grid(w_RC, scale_R, 6), scale_R, 6)
    assert torch.equal(restore(quantised), w_RC)


@pytest.mark.parametrize("w_RC", [torch.full((1, 5), -0.25), torch.tensor([[0.125]])])
def test_rows_without_spread_are_restored(w_RC: torch.Tensor) -> None:
    scale_R = row_scales(w_RC, INT6, "w")
    restored = restore(QuantisedTensor(round_to_grid(w_RC, scale_R, 6), scale_R, 6))
    torch.testing.assert_close(restored, w_RC, rtol=1e-3, atol=0)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10_000), st.integers(2, 8), st.floats(0.5, 30.0), st.floats(1e-8, 100.0))
def test_error_bound_holds(seed: int, bits: int, sigmas: float, size: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    w_RC = size * torch.randn(4, 33, generator=generator) ** 3
    scale_R = row_scales(w_RC, Grid(bits, sigmas), "w")
    restored = restore(QuantisedTensor(round_to_grid(w_RC, scale_R, bits), scale_R, bits))
    assert bool(((restored - w_RC).abs() <= error_bound(w_RC, scale_R, bits)).all())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_name_their_tensor(value: float) -> None:
    w_RC = torch.ones(2, 3)
    w_RC[1, 1] = value
    with pytest.raises(UserError, match=r"blocks\.0\.x holds a weight that is not finite"):
        row_scales(w_RC, INT6, "blocks.0.x")


def test_a_scale_beyond_float16_is_refused() -> None:
    with pytest.raises(UserError, match="scale exceeds the 65,504"):
        row_scales(torch.tensor([[1e6, -1e6]]), Grid(2, 1.0), "w")


@pytest.mark.parametrize("shape", [(3,), (0, 4), (4, 0), (2, 2, 2)])
def test_only_filled_matrices_have_scales(shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="only filled matrices"):
        row_scales(torch.zeros(shape), INT6, "w")


def test_scales_on_the_logarithmic_grid_are_the_nearest_float32() -> None:
    steps_R = torch.arange(-640, 641, dtype=torch.int16)
    scale_R = scale_of(steps_R)
    assert scale_R.dtype == torch.float32
    with localcontext() as context:
        context.prec = 40
        for step, scale in zip(steps_R.tolist(), scale_R.numpy(), strict=True):
            exact = Decimal(2) ** (Decimal(step) / 16)
            below, above = (np.nextafter(scale, np.float32(to)) for to in (0, np.inf))
            off = abs(Decimal(float(scale)) - exact)
            assert off < min(abs(Decimal(float(other)) - exact) for other in (below, above))
    for beyond in (641, -641):
        with pytest.raises(UserError, match="a scale step lies beyond \\+-640; did the training"):
            scale_of(torch.tensor([3, beyond], dtype=torch.int16))
    assert scale_of(torch.zeros(0, 3, dtype=torch.int16)).shape == (0, 3)


def test_a_trellis_and_logarithmic_steps_are_restored() -> None:
    codes = torch.tensor([[1, -1, 2], [0, 1, -3]], dtype=torch.int16)
    steps = torch.tensor([16, -16], dtype=torch.int16)
    tensor = QuantisedTensor(codes, scale_of(steps), 6, steps, 4)
    # Row 0: 1 in state 0 (2), -1 in state 1 (-2 - 1), 2 in state 3 (4 - 1).
    # Row 1: 0 in state 0 (0), 1 in state 0 (2), -3 in state 1 (-6 - 1).
    assert restore(tensor).tolist() == [[4.0, -6.0, 6.0], [0.0, 1.0, -3.5]]


@pytest.mark.parametrize("trellis", [0, 4])
def test_every_row_is_restored_however_many_there_are(trellis: int) -> None:
    """Rows go by in parts of 256: none may be left out, or scaled twice."""
    R, C = 600, 3
    codes = (torch.arange(R * C).reshape(R, C) * 37 % 501 - 250).to(torch.int16)
    steps_R = (torch.arange(R) * 53 % 401 - 200).to(torch.int16)
    columns_C = torch.tensor([-7, 0, 9], dtype=torch.int8)
    tensor = QuantisedTensor(
        codes, scale_of(steps_R), 10, steps_R, trellis, columns=columns_C if trellis else None
    )
    found = restore(tensor)
    assert found.dtype == torch.float32
    for row in range(R):
        state = 0
        for c, code in enumerate(codes[row].tolist()):
            multiple = code
            if trellis:
                multiple = 2 * code - state % 2
                state = [[0, 1], [2, 3], [1, 0], [3, 2]][state][code % 2]
            exponent = int(steps_R[row]) + (int(columns_C[c]) if trellis else 0)
            assert float(found[row, c]) == pytest.approx(multiple * 2 ** (exponent / 16), rel=3e-7)


def test_matrices_restored_together_are_those_restored_alone() -> None:
    """Of several widths, trellises and types of codes, with and without columns' steps."""
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    kinds = [(7, 5, 4), (3, 5, 4), (1, 5, 0), (9, 5, 8), (4, 1, 4), (2, 11, 4), (300, 5, 4)]
    for n, (R, C, trellis) in enumerate([*kinds, *kinds]):
        wide = n >= len(kinds)
        codes_RC = torch.randint(-9, 10, (R, C), generator=generator)
        steps_R = torch.randint(-99, 100, (R,), generator=generator).short()
        columns_C = torch.randint(-9, 10, (C,), generator=generator).to(torch.int8)
        tensors[f"{n}"] = QuantisedTensor(
            codes_RC.short() if wide else codes_RC.to(torch.int8), scale_of(steps_R), 8, steps_R,
            trellis, columns=columns_C if n % 2 else None,
        )  # fmt: skip
    found = dict(restore_all(tensors))
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(found[name], restore(tensor)), name
    assert dict(restore_all({})) == {}


def test_a_sum_of_steps_beyond_the_grid_is_refused_and_the_last_is_not() -> None:
    tensor = QuantisedTensor(
        torch.ones(1, 1, dtype=torch.int8), torch.ones(1), 6, torch.tensor([600]).short(),
        columns=torch.tensor([40]).to(torch.int8),
    )  # fmt: skip
    assert restore(tensor).item() == 2.0**40
    with pytest.raises(UserError, match="beyond"):
        restore(dataclasses.replace(tensor, columns=torch.tensor([41]).to(torch.int8)))


def test_a_restored_matrix_is_a_copy() -> None:
    codes = torch.tensor([[2, -3]], dtype=torch.int8)
    steps = torch.tensor([16]).short()
    columns = torch.zeros(2, dtype=torch.int8)
    restore(QuantisedTensor(codes, scale_of(steps), 6, steps, columns=columns)).zero_()
    assert codes.tolist() == [[2, -3]]
