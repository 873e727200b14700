"""The trellis encoder: numba, torch and a plain search agree; the path found is the cheapest."""

import itertools
from collections.abc import Callable
from dataclasses import fields

import numpy as np
import pytest
import torch
from torch import Tensor

from fairway.quantise.trellis import GRIDS, TRELLIS, codes_of, reconstruct
from fairway.quantise.viterbi import Encoder, Problem


def problem(
    matrices: int = 2, rows: int = 3, columns: int = 21, qmax: int = 7, size: float = 3.0
) -> Problem:
    generator = torch.Generator().manual_seed(matrices + rows + columns + qmax)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    feed_LCC = (0.2 * normal(matrices, columns, columns)).triu(1) + torch.eye(columns)
    return Problem(
        weights=size * normal(matrices, columns, rows),
        feed=feed_LCC,
        weight=normal(matrices, columns).square() + 0.5,
        price=0.2 * normal(matrices, rows).abs(),
        bits=2 * normal(3, 2, qmax + 1).abs() + torch.arange(qmax + 1),
        row_class=torch.randint(0, 3, (matrices, rows), generator=generator),
        # Beyond the classes there are, on both sides.
        finer=torch.randint(-2, 3, (matrices, columns), generator=generator),
    )


def plain_paths(problem: Problem, states: int, block: int) -> Tensor:
    """Every survivor a Python tuple with its own copy of the row; every code tried."""
    L, C, R = problem.weights.shape
    codes = torch.empty((L, C, R), dtype=torch.int16)
    for m, r in itertools.product(range(L), range(R)):
        row = problem.weights[m, :, r].numpy().copy()
        state = 0
        for first in range(0, C, block):
            last = min(first + block, C)
            paths = {state: (0.0, row.copy(), [])}
            for j in range(first, last):
                paths = _extended(problem, paths, m, r, j, last, states)
            state, (_, _, taken) = min(paths.items(), key=lambda item: item[1][0])
            for j, (code, error) in enumerate(taken, first):
                codes[m, j, r] = code
                row[last:] -= np.float32(error) * problem.feed[m, j, last:].numpy()
    return codes


def _extended(
    problem: Problem, paths: dict, m: int, r: int, j: int, last: int, states: int
) -> dict:
    found: dict = {}
    qmax = problem.bits.shape[2] - 1
    for state, (cost, row, taken) in paths.items():
        grid = int(GRIDS[states][state])
        kind = int(problem.row_class[m, r] + problem.finer[m, j])
        bits_K = problem.bits[min(max(kind, 0), 2), grid]
        for k in range(-qmax + grid, qmax + 1):
            error = float(row[j]) - (2 * k - grid)
            total = cost + float(problem.weight[m, j]) * error**2
            total += float(problem.price[m, r] * bits_K[(abs(2 * k - grid) + 1) // 2])
            after = int(TRELLIS[states][state, k & 1])
            if after not in found or total < found[after][0]:
                rest = row.copy()
                rest[j + 1 : last] -= np.float32(error) * problem.feed[m, j, j + 1 : last].numpy()
                found[after] = (total, rest, [*taken, (k, error)])
    return found


def copied(problem: Problem) -> Problem:
    return Problem(
        problem.weights.clone(), problem.feed, problem.weight, problem.price, problem.bits,
        problem.row_class, problem.finer,
    )  # fmt: skip


def cheapest_paths(problem: Problem, states: int, block: int) -> Tensor:
    return codes_of(Encoder(states, block).cheapest_paths(problem))


def in_torch(problem: Problem, states: int, block: int) -> Tensor:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Encoder, "_block_on_cpu", Encoder._block_on_gpu)
        return cheapest_paths(copied(problem), states, block)


@pytest.mark.parametrize("states", [4, 8, 16, 32])
@pytest.mark.parametrize(
    ("shape", "block"),
    [((2, 3, 21), 8), ((1, 1, 1), 8), ((1, 2, 1), 1), ((1, 1, 9), 1), ((2, 5, 7), 128)],
)
def test_numba_and_torch_equal_the_plain_search(
    shape: tuple[int, int, int], block: int, states: int
) -> None:
    asked = problem(*shape)
    expected = plain_paths(asked, states, block)
    assert torch.equal(cheapest_paths(copied(asked), states, block), expected)
    assert torch.equal(in_torch(asked, states, block), expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_what_a_gpu_records_is_what_it_ran() -> None:
    recorded = Encoder(8, 32)
    for size in (3.0, 1.0, 30.0, 3.0):
        asked = problem(2, 5, 21, size=size)

        def on_gpu(asked: Problem = asked) -> Problem:
            values = {f.name: getattr(asked, f.name).cuda() for f in fields(asked)}
            return Problem(**values)

        found = recorded.cheapest_paths(on_gpu())
        # One that has run nothing yet records nothing.
        assert torch.equal(found, Encoder(8, 32).cheapest_paths(on_gpu()))
        # Sums are rounded otherwise there, so that a tie may fall otherwise.
        same = codes_of(found.cpu()) == cheapest_paths(copied(asked), 8, 32)
        assert float(same.float().mean()) > 0.9


def test_one_state_is_a_plain_grid() -> None:
    asked = problem(1, 3, 12)
    asked = Problem(
        asked.weights,
        asked.feed,
        asked.weight,
        torch.zeros(1, 3),
        asked.bits,
        asked.row_class,
        asked.finer,
    )
    left_CR = asked.weights[0].clone()
    for j in range(12):
        code_R = (left_CR[j] / 2).round().clamp(-7, 7)
        error_R = left_CR[j] - 2 * code_R
        left_CR[j + 1 :] -= asked.feed[0, j, j + 1 :, None] * error_R
        left_CR[j] = code_R
    assert torch.equal(in_torch(asked, 1, 5)[0], left_CR.to(torch.int16))
    assert torch.equal(cheapest_paths(copied(asked), 1, 5)[0], left_CR.to(torch.int16))


@pytest.mark.parametrize(
    ("size", "qmax"), [(0.0, 7), (1e-30, 1), (300.0, 7), (1e4, 1), (90.0, 127)]
)
def test_extreme_weights_end_at_the_range_and_lose_no_row(size: float, qmax: int) -> None:
    asked = problem(size=size, qmax=qmax)
    found = cheapest_paths(copied(asked), 8, 8)
    assert int(found.abs().max()) <= qmax
    assert torch.equal(found, in_torch(asked, 8, 8))
    if size < 50:
        assert torch.equal(found, plain_paths(asked, 8, 8))


@pytest.mark.parametrize("states", [4, 8, 16, 32])
@pytest.mark.parametrize("path", [cheapest_paths, in_torch])
def test_without_feedback_no_path_is_cheaper(
    path: Callable[[Problem, int, int], Tensor], states: int
) -> None:
    asked = problem(1, 4, 5, qmax=2, size=1.5)
    asked = Problem(
        asked.weights,
        torch.eye(5)[None],
        asked.weight,
        asked.price,
        asked.bits,
        asked.row_class,
        asked.finer,
    )
    found = path(copied(asked), states, 128)[0].T
    every = torch.tensor(list(itertools.product(range(-2, 3), repeat=5)), dtype=torch.int16)
    multiples, grids = reconstruct(every, states), _grids(every, states)
    # The second grid ends where the first one does.
    inside = (multiples.abs() <= 4).all(1)
    every, multiples, grids = every[inside], multiples[inside], grids[inside]
    for r in range(4):
        kind_C = (asked.row_class[0, r] + asked.finer[0]).clamp(0, 2)
        bits = asked.bits[kind_C, grids, (multiples.abs().long() + 1) // 2].sum(1)
        costs = (asked.weights[0, :, r] - multiples).square() @ asked.weight[0]
        costs += asked.price[0, r] * bits
        at = int((every == found[r]).all(1).nonzero())
        assert float(costs[at]) == pytest.approx(float(costs.min()), rel=1e-5)


def _grids(codes: Tensor, states: int) -> Tensor:
    state = torch.zeros(len(codes), dtype=torch.long)
    found = []
    for column in codes.T:
        found.append(torch.from_numpy(GRIDS[states])[state].long())
        state = torch.from_numpy(TRELLIS[states])[state, (column & 1).long()].long()
    return torch.stack(found, 1)


def test_a_survivor_feeds_back_its_own_errors() -> None:
    """The errors that the encoder weighs are those of the codes as a decoder restores them."""
    asked = problem(1, 6, 40, qmax=60)
    codes = cheapest_paths(copied(asked), 8, 16)[0].T
    off_RC = asked.weights[0].T.double() - reconstruct(codes, 8)
    # With errors e before feedback, off = e F where F is unit upper triangular.
    errors_RC = torch.linalg.solve_triangular(asked.feed[0].double().T, off_RC.T, upper=False).T
    # Points of one grid lie two steps apart. Errors that are not those of its own path grow large.
    assert float(errors_RC.abs().max()) < 3.0
    assert float(errors_RC.square().mean()) < 0.4 < 0.5 < float(off_RC.square().mean())
