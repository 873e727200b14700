import numpy as np
import pytest
import torch

from fairway.quantise.trellis import GRIDS, TRELLIS, reconstruct


def plain_row(codes: list[int], order: list[int], trellis: int) -> list[int]:
    """One row, one weight at a time."""
    state, out = 0, [0] * len(codes)
    for column in order:
        code = codes[column]
        sign = (code > 0) - (code < 0)
        out[column] = 2 * code - sign * int(GRIDS[trellis][state])
        state = int(TRELLIS[trellis][state, code % 2])
    return out


@pytest.mark.parametrize("trellis", sorted(TRELLIS))
@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (1, 7), (5, 33)])
@pytest.mark.parametrize("largest", [1, 3, 32_767])
def test_reconstruction_equals_the_state_machine(
    trellis: int, shape: tuple[int, int], largest: int
) -> None:
    rng = np.random.default_rng(largest)
    codes = rng.integers(-largest, largest + 1, shape).astype(np.int16)
    order = rng.permutation(shape[1]).astype(np.int32)
    for order_C in (None, torch.from_numpy(order)):
        columns = list(range(shape[1])) if order_C is None else order.tolist()
        found = reconstruct(torch.from_numpy(codes), trellis, order_C)
        assert found.dtype == torch.int32
        assert found.tolist() == [plain_row(row, columns, trellis) for row in codes.tolist()]


def test_without_a_trellis_codes_are_multiples() -> None:
    codes = torch.tensor([[3, -128, 0]], dtype=torch.int8)
    assert reconstruct(codes, 0, None).tolist() == [[3, -128, 0]]


@pytest.mark.parametrize("trellis", sorted(TRELLIS))
def test_every_state_is_entered_twice_and_parities_part(trellis: int) -> None:
    table = TRELLIS[trellis]
    assert sorted(table.flatten().tolist()) == sorted(2 * list(range(trellis)))
    assert (table[:, 0] != table[:, 1]).all()
    assert GRIDS[trellis].sum() * 2 == trellis
