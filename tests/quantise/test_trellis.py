import numpy as np
import pytest
import torch

from fairway.quantise.trellis import GRIDS, TRELLIS, _moves, codes_of, reconstruct


def plain_row(codes: list[int], trellis: int) -> list[int]:
    """One row, one weight at a time."""
    state, out = 0, []
    for code in codes:
        out.append(2 * code - int(GRIDS[trellis][state]))
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
    found = reconstruct(torch.from_numpy(codes), trellis)
    assert found.dtype == torch.int32
    assert found.tolist() == [plain_row(row, trellis) for row in codes.tolist()]


def test_without_a_trellis_codes_are_multiples() -> None:
    codes = torch.tensor([[3, -128, 0]], dtype=torch.int8)
    assert reconstruct(codes, 0).tolist() == [[3, -128, 0]]


@pytest.mark.parametrize("trellis", sorted(TRELLIS))
def test_every_state_is_entered_twice_and_parities_part(trellis: int) -> None:
    table = TRELLIS[trellis]
    assert sorted(table.flatten().tolist()) == sorted(2 * list(range(trellis)))
    assert (table[:, 0] != table[:, 1]).all()
    assert GRIDS[trellis].sum() * 2 == trellis


def test_the_state_machines_are_part_of_the_format() -> None:
    assert all(_moves(states).tolist() == table.tolist() for states, table in TRELLIS.items())
    tables = {states: table.tolist() for states, table in TRELLIS.items() if states < 16}
    assert tables == {
        4: [[0, 1], [2, 3], [1, 0], [3, 2]],
        8: [[0, 2], [5, 7], [1, 3], [4, 6], [2, 0], [7, 5], [3, 1], [6, 4]],
    }
    assert sorted(TRELLIS) == sorted(GRIDS) == [4, 8, 16, 32]
    assert TRELLIS[16][5].tolist() == [2 ^ 9, 2 ^ 9 ^ 2]
    assert TRELLIS[32][30].tolist() == [15, 15 ^ 4] and TRELLIS[32][31, 1] == 15 ^ 18 ^ 4
    assert all((grid == np.arange(states) % 2).all() for states, grid in GRIDS.items())
    assert all(t.dtype == np.int8 for t in (*TRELLIS.values(), *GRIDS.values()))
    # 8 states: 1 in 0 (2), 2 in 2 (4), -1 in 1 (-2 - 1), -2 in 7 (-4 - 1), 0 in 6 (0), 3 in 3 (5).
    codes = torch.tensor([[1, 2, -1, -2, 0, 3]], dtype=torch.int8)
    assert reconstruct(codes, 8).tolist() == [[2, 4, -3, -5, 0, 5]]
    assert codes.tolist() == [[1, 2, -1, -2, 0, 3]]


@pytest.mark.parametrize("trellis", sorted(TRELLIS))
def test_paths_that_part_stay_apart(trellis: int) -> None:
    """Paths from one state that meet again first are as far apart as the code of the book is."""
    # Squared distances in steps: 1 where grids differ, 4 where only parities do.
    first, second = sorted(TRELLIS[trellis][0].tolist())
    start = {(first, second): 4}
    seen, best = dict(start), 10_000
    while start:
        reached: dict[tuple[int, int], int] = {}
        for (a, b), cost in start.items():
            for p in (0, 1):
                for q in (0, 1):
                    gap = 1 if GRIDS[trellis][a] != GRIDS[trellis][b] else 4 * (p != q)
                    pair = sorted((int(TRELLIS[trellis][a, p]), int(TRELLIS[trellis][b, q])))
                    total = cost + gap
                    if pair[0] == pair[1]:
                        best = min(best, total)
                    elif total < seen.get((pair[0], pair[1]), 10_000):
                        seen[pair[0], pair[1]] = reached[pair[0], pair[1]] = total
        start = reached
    assert best == {4: 9, 8: 10, 16: 11, 32: 13}[trellis]


@pytest.mark.parametrize("trellis", sorted(TRELLIS))
def test_multiples_name_their_codes(trellis: int) -> None:
    codes = torch.randint(-16_000, 16_001, (9, 40), generator=torch.Generator().manual_seed(1))
    codes[0] = 0
    codes = codes.to(torch.int16)
    found = codes_of(reconstruct(codes, trellis))
    assert torch.equal(found, codes.int())
    multiples = torch.tensor([-5, -4, -1, 0, 1, 2, 3, 4, 32_767], dtype=torch.int16)
    assert codes_of(multiples.int()).tolist() == [-2, -2, 0, 0, 1, 1, 2, 2, 16_384]
    assert codes_of(2 * torch.arange(-3, 4)).tolist() == [-3, -2, -1, 0, 1, 2, 3]
