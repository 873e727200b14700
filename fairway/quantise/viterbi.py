"""The encoder of dependent quantisation: the cheapest path through a trellis.

Every state keeps its cheapest path, and a copy of the next columns with the error feedback (GPTQ)
of that path. After a block of columns the cheapest path is fixed, and its errors are applied
exactly to the remaining columns. The cost of a code is its squared error, weighted as in `gptq`,
plus its bits. (Viterbi over a trellis with rates: Fischer and Wang 1992; a sequential quantiser
needs the feedback of each surviving path.)

On a GPU torch processes all rows of all matrices of a shape, column by column; on a CPU numba
processes them row by row. Both use the same arithmetic, so they agree except for ties.

Shapes: L matrices of one shape, R rows, C columns, B columns of a block, N states, P = 2 parities,
X classes of rows, G = 2 grids, K magnitudes of codes.
"""

import itertools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fairway.base.graphs import recording
from fairway.base.native import compiled
from fairway.quantise.trellis import GRIDS, TRELLIS

# One state is no trellis: every code is a multiple of two steps, still chosen by error and bits.
_NEXT = {1: np.zeros((1, 2), np.int8), **TRELLIS}
_GRIDS = {1: np.zeros(1, np.int8), **GRIDS}

# A cost above that of any path; finite, so that sums and comparisons stay normal.
NEVER = 1e30
# Rows that a thread takes at a time.
_ROWS_OF_A_JOB = 256


@dataclass(frozen=True, slots=True, eq=False)
class Problem:
    """The weights to code, in units of each row's step (weights_LCR, overwritten), and their costs.

    feed_LCC: row j of the inverse's factor over its diagonal entry; an error e of column j
    subtracts e * feed[j, i] from column i. weight_LC: cost of a squared error; price_LR: cost of a
    bit. bits_XGK: bits of a code by class, grid and magnitude (`rates`), its sign included. The
    class of a weight is the sum of its row's class_LR and its column's finer_LC, within the range
    of classes.
    """

    weights: Tensor
    feed: Tensor
    weight: Tensor
    price: Tensor
    bits: Tensor
    row_class: Tensor
    finer: Tensor


class Encoder:
    """Finds paths for problems of one trellis; on a GPU each shape is recorded as a CUDA graph.

    A block of columns has thousands of launches too small to fill a GPU, and Python's calls take
    most of the time. Stripes of rows have the same shapes many times.
    """

    def __init__(self, states: int, block: int) -> None:
        """Choose the number of states (1 or one of TRELLIS) and the columns of the path."""
        self._states, self._block = states, block
        self._on_gpu: dict[tuple[int, ...], _Block] = {}

    def cheapest_paths(self, problem: Problem) -> Tensor:
        """Return multiples_LCR (int16) of the steps that every row's cheapest path restores.

        problem.weights is overwritten; `trellis.codes_of` turns multiples into codes. The table of
        bits has a largest magnitude: a weight beyond it gets the nearest code, and its error is fed
        back like any other.
        """
        w_LCR = problem.weights
        L, C, R = w_LCR.shape
        multiples_LCR = torch.empty((L, C, R), dtype=torch.int16, device=w_LCR.device)
        state_LR = torch.zeros((L, R), dtype=torch.long, device=w_LCR.device)
        encode = self._block_on_gpu if w_LCR.is_cuda else self._block_on_cpu
        for first in range(0, C, self._block):
            last = min(first + self._block, C)
            multiples_LBR, error_LBR, state_LR = encode(problem, slice(first, last), state_LR)
            multiples_LCR[:, first:last] = multiples_LBR
            feed_LBC = problem.feed[:, first:last, last:]
            w_LCR[:, last:].baddbmm_(feed_LBC.mT, error_LBR, alpha=-1.0)
        return multiples_LCR

    def _block_on_gpu(
        self, problem: Problem, columns: slice, state_LR: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return (multiples_LBR, error_LBR, state_LR) of a block, in torch on any device."""
        inputs = _inputs(problem, columns, state_LR)
        shape = (*inputs.weights.shape, *inputs.bits.shape)
        if shape not in self._on_gpu:
            self._on_gpu[shape] = _Block(inputs, self._states)
        return self._on_gpu[shape](inputs)

    def _block_on_cpu(
        self, problem: Problem, columns: slice, state_LR: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return what `_block_on_gpu` returns; rows are divided among torch's threads."""
        return _on_cpu(problem, columns, state_LR, self._states)


# ---------------------------------------------------------------------------------------------
# In torch: every row at once, column by column


@dataclass(frozen=True, slots=True, eq=False)
class _Inputs(Problem):
    """The inputs of a block: a problem's fields on its columns, and the states before it."""

    state: Tensor

    def all(self) -> list[Tensor]:
        """Return the tensors in order."""
        return [getattr(self, item.name) for item in fields(self)]


def _inputs(problem: Problem, columns: slice, state_LR: Tensor) -> _Inputs:
    return _Inputs(
        problem.weights[:, columns],
        problem.feed[:, columns, columns],
        problem.weight[:, columns],
        problem.price,
        problem.bits,
        problem.row_class,
        problem.finer[:, columns],
        state_LR,
    )


def _arrivals(states: int) -> NDArray[np.int64]:
    """Return the two (state, parity), as 2 * state + parity, that lead to every state: [N, 2]."""
    flat = _NEXT[states].flatten()
    return np.stack([np.flatnonzero(flat == state) for state in range(states)])


class _Block:
    """Blocks of one shape: tensors for inputs and results, and the graph that computes them."""

    def __init__(self, inputs: _Inputs, states: int) -> None:
        """Make these tensors, and all constants, since a graph cannot read from the host."""
        device = inputs.weights.device
        self._in = _Inputs(*(torch.empty_like(x).contiguous() for x in inputs.all()))
        self._multiples_LBR = torch.empty_like(self._in.weights, dtype=torch.int16)
        self._error_LBR = torch.empty_like(self._in.weights)
        self._state_LR = torch.empty_like(self._in.state)
        self._states = states
        self._step = _Step(states, inputs.bits.shape[2] - 1, device)
        self._arrival_N2 = torch.from_numpy(_arrivals(states)).to(device)
        self._grid_N = torch.from_numpy(_GRIDS[states]).to(device, torch.int16)
        self._seen = False
        self._graph: Any = None

    def __call__(self, inputs: _Inputs) -> tuple[Tensor, Tensor, Tensor]:
        """Return (multiples_LBR, error_LBR, state_LR); the next call overwrites them."""
        for place, value in zip(self._in.all(), inputs.all(), strict=True):
            place.copy_(value)
        # The first run is not recorded, because libraries initialise themselves then.
        if self._seen and self._graph is None and inputs.weights.is_cuda:
            with recording() as self._graph:
                self._compute()
        if self._graph is None:
            self._compute()
        else:
            self._graph.replay()
        self._seen = True
        return self._multiples_LBR, self._error_LBR, self._state_LR

    def _compute(self) -> None:
        """Find the paths, on the device alone: without copies and without waiting."""
        inputs, states, arrival_N2 = self._in, self._states, self._arrival_N2
        L, B, R = inputs.weights.shape
        device = inputs.weights.device
        left_NLBR = inputs.weights.expand(states, L, B, R).contiguous()
        cost_NLR = torch.full((states, L, R), NEVER, device=device)
        cost_NLR.scatter_(0, inputs.state[None], 0.0)
        back_BNLR = torch.empty((B, states, L, R), dtype=torch.int8, device=device)
        code_BNLR = torch.empty((B, states, L, R), dtype=torch.int16, device=device)
        error_BNLR = torch.empty((B, states, L, R), device=device)
        for j in range(B):
            cost_PNLR, code_PNLR, err_PNLR = self._step(left_NLBR[:, :, j], inputs, j, cost_NLR)
            # Ordered by 2 * state + parity, as in `arrival`.
            shape = (2 * states, L, R)
            cost_ALR = cost_PNLR.transpose(0, 1).reshape(shape)
            first_NLR, second_NLR = cost_ALR[arrival_N2[:, 0]], cost_ALR[arrival_N2[:, 1]]
            second = second_NLR < first_NLR
            cost_NLR = torch.where(second, second_NLR, first_NLR)
            from_NLR = torch.where(
                second, arrival_N2[:, 1, None, None], arrival_N2[:, 0, None, None]
            )
            code_BNLR[j] = code_PNLR.transpose(0, 1).reshape(shape).gather(0, from_NLR)
            error_NLR = err_PNLR.transpose(0, 1).reshape(shape).gather(0, from_NLR)
            error_BNLR[j] = error_NLR
            from_NLR >>= 1
            back_BNLR[j] = from_NLR
            rest_NLBR = left_NLBR[:, :, j + 1 :]
            kept_NLBR = rest_NLBR.gather(0, from_NLR[:, :, None].expand_as(rest_NLBR))
            feed_LB = inputs.feed[None, :, j, j + 1 :, None]
            torch.addcmul(kept_NLBR, feed_LB, error_NLR[:, :, None], value=-1.0, out=rest_NLBR)
        self._state_LR.copy_(cost_NLR.argmin(0))
        self._trace(back_BNLR, code_BNLR, error_BNLR)

    def _trace(self, back_BNLR: Tensor, code_BNLR: Tensor, error_BNLR: Tensor) -> None:
        """Follow the paths from the final states back to the beginning of the block."""
        at_1LR = self._state_LR[None]
        for j in range(len(back_BNLR) - 1, -1, -1):
            code_LR = code_BNLR[j].gather(0, at_1LR)[0]
            self._error_LBR[:, j] = error_BNLR[j].gather(0, at_1LR)[0]
            at_1LR = back_BNLR[j].gather(0, at_1LR).long()
            self._multiples_LBR[:, j] = 2 * code_LR - self._grid_N[at_1LR[0]]


class _Step:
    """The best code of each parity for every path: the cheaper of the two nearest."""

    def __init__(self, states: int, last: int, device: torch.device) -> None:
        """Compute the constants of all columns. O = 2 are the nearest codes below and above."""
        self._last = last
        self._grid_N11 = torch.from_numpy(_GRIDS[states]).to(device).long()[:, None, None]
        self._shift_N11 = self._grid_N11.float()
        self._parity_P111 = torch.arange(2.0, device=device)[:, None, None, None]
        self._option_O1111 = torch.arange(2.0, device=device)[:, None, None, None, None]
        # The bounds of half the codes of a parity.
        self._largest_P111 = ((last - self._parity_P111) / 2).floor()
        self._least_PN11 = -((last - self._shift_N11 + self._parity_P111) / 2).floor()

    def __call__(
        self, x_NLR: Tensor, inputs: _Inputs, j: int, cost_NLR: Tensor
    ) -> tuple[Tensor, ...]:
        """Return the cost of a path with the code, the code, and its error: [P, N, L, R] each."""
        class_LR = inputs.row_class + inputs.finer[:, j, None]
        class_LR = class_LR.clamp_(0, len(inputs.bits) - 1)
        # The start of the bits of a row's codes on a state's grid in the flattened table.
        table_NLR = (2 * class_LR + self._grid_N11) * (self._last + 1)
        place_NLR = (x_NLR + self._shift_N11) * 0.25
        low_PNLR = (place_NLR - self._parity_P111 * 0.5).floor_()
        half_OPNLR = torch.minimum(low_PNLR + self._option_O1111, self._largest_P111)
        half_OPNLR = torch.maximum(half_OPNLR, self._least_PN11)
        k_OPNLR = 2 * half_OPNLR + self._parity_P111
        multiple_OPNLR = 2 * k_OPNLR - self._shift_N11
        error_OPNLR = x_NLR - multiple_OPNLR
        bits_OPNLR = inputs.bits.view(-1)[table_NLR + ((multiple_OPNLR.abs_().long() + 1) >> 1)]
        total_OPNLR = error_OPNLR * error_OPNLR * inputs.weight[:, j, None]
        total_OPNLR += inputs.price * bits_OPNLR
        total_OPNLR += cost_NLR
        above_PNLR = total_OPNLR[1] < total_OPNLR[0]
        code_PNLR = torch.where(above_PNLR, k_OPNLR[1], k_OPNLR[0])
        error_PNLR = torch.where(above_PNLR, error_OPNLR[1], error_OPNLR[0])
        cost_PNLR = torch.where(above_PNLR, total_OPNLR[1], total_OPNLR[0])
        return cost_PNLR, code_PNLR.to(torch.int16), error_PNLR


# --------------------------------------------------------------------------------------------- In
# numba: row by row, the paths in the cache


def _on_cpu(
    problem: Problem, columns: slice, state_LR: Tensor, states: int
) -> tuple[Tensor, Tensor, Tensor]:
    x_LRB = problem.weights[:, columns].mT.contiguous().numpy()
    multiple_LRB = np.empty(x_LRB.shape, np.int16)
    error_LRB = np.empty(x_LRB.shape, np.float32)
    state_after_LR = state_LR.numpy().copy()
    feed_LBB = problem.feed[:, columns, columns].contiguous().numpy()
    weight_LB = problem.weight[:, columns].contiguous().numpy()
    price_LR, class_LR = problem.price.numpy(), problem.row_class.numpy()
    finer_LB = problem.finer[:, columns].contiguous().numpy()
    tables = (problem.bits.numpy(), _NEXT[states], _GRIDS[states], _arrivals(states))

    def work(job: tuple[int, slice]) -> None:
        matrix, rows = job
        _encode_rows(
            x_LRB[matrix, rows],
            feed_LBB[matrix],
            weight_LB[matrix],
            price_LR[matrix, rows],
            class_LR[matrix, rows],
            finer_LB[matrix],
            *tables,
            state_after_LR[matrix, rows],
            multiple_LRB[matrix, rows],
            error_LRB[matrix, rows],
        )

    matrices, count, _ = x_LRB.shape
    stripes = [slice(first, first + _ROWS_OF_A_JOB) for first in range(0, count, _ROWS_OF_A_JOB)]
    jobs = itertools.product(range(matrices), stripes)
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        list(pool.map(work, jobs))
    multiples, errors = torch.from_numpy(multiple_LRB).mT, torch.from_numpy(error_LRB).mT
    return multiples, errors, torch.from_numpy(state_after_LR)


@compiled
def _encode_rows(
    x_RB: Any,
    feed_BB: Any,
    weight_B: Any,
    price_R: Any,
    class_R: Any,
    finer_B: Any,
    bits_XGK: Any,
    next_N2: Any,
    grid_N: Any,
    arrival_N2: Any,
    state_R: Any,
    multiple_RB: Any,
    error_RB: Any,
) -> None:
    """Fill in multiple_RB and error_RB; state_R has the states before, then those after."""
    R, B = x_RB.shape
    N = len(next_N2)
    left_NB, next_left_NB = np.empty((N, B), np.float32), np.empty((N, B), np.float32)
    cost_N, next_cost_N = np.empty(N, np.float32), np.empty(N, np.float32)
    back_BN, code_BN = np.empty((B, N), np.int8), np.empty((B, N), np.int16)
    error_BN = np.empty((B, N), np.float32)
    total_A = np.empty(2 * N, np.float32)
    code_A, error_A = np.empty(2 * N, np.int16), np.empty(2 * N, np.float32)
    for r in range(R):
        cost_N[:] = NEVER
        cost_N[state_R[r]] = 0.0
        for n in range(N):
            left_NB[n] = x_RB[r]
        for j in range(B):
            at = min(max(class_R[r] + finer_B[j], 0), len(bits_XGK) - 1)
            for n in range(N):
                _branch(
                    left_NB[n, j], cost_N[n], weight_B[j], price_R[r], grid_N[n],
                    bits_XGK[at, grid_N[n]], total_A[2 * n : 2 * n + 2],
                    code_A[2 * n : 2 * n + 2], error_A[2 * n : 2 * n + 2],
                )  # fmt: skip
            for n in range(N):
                a = arrival_N2[n, 0]
                if total_A[arrival_N2[n, 1]] < total_A[a]:
                    a = arrival_N2[n, 1]
                next_cost_N[n], code_BN[j, n] = total_A[a], code_A[a]
                error, before = error_A[a], a >> 1
                error_BN[j, n], back_BN[j, n] = error, before
                for i in range(j + 1, B):
                    next_left_NB[n, i] = left_NB[before, i] - feed_BB[j, i] * error
            left_NB, next_left_NB = next_left_NB, left_NB
            cost_N, next_cost_N = next_cost_N, cost_N
        at = np.argmin(cost_N)
        state_R[r] = at
        for j in range(B - 1, -1, -1):
            code, error_RB[r, j] = code_BN[j, at], error_BN[j, at]
            at = back_BN[j, at]
            multiple_RB[r, j] = 2 * code - grid_N[at]


@compiled
def _branch(
    x: Any, cost: Any, weight: Any, price: Any, grid: Any, bits_K: Any,
    total_P: Any, code_P: Any, error_P: Any,
) -> None:  # fmt: skip
    """Fill in the best code of each parity: the cost of a path with it, the code, its error."""
    last, shift = len(bits_K) - 1, np.float32(grid)
    quarter, half = np.float32(0.25), np.float32(0.5)
    for parity in range(2):
        least, largest = -((last - grid + parity) // 2), (last - parity) // 2
        low = int(np.floor((x + shift) * quarter - np.float32(parity) * half))
        total_P[parity] = np.inf
        for i in range(2):
            k = 2 * max(min(low + i, largest), least) + parity
            multiple = 2 * k - grid
            error = x - np.float32(multiple)
            total = cost + (error * error * weight + price * bits_K[(abs(multiple) + 1) >> 1])
            if total < total_P[parity]:
                total_P[parity] = total
                code_P[parity], error_P[parity] = np.int16(k), error
