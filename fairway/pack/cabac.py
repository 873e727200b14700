"""Entropy coding of integer matrices, with the expected mean and variance of each weight as
context.

A stream holds the matrices of one section. They are coded row by row and share cells, so the next
matrix profits from the previous ones. Before each matrix the stream has its mean energy and its
powers, fitted by the encoder in whole numbers.

Shapes: R rows, C columns.
"""

import functools
import math
import struct
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from decimal import Decimal, localcontext

import numpy as np
from numpy.typing import NDArray

from fairway.base.cores import usable_cores
from fairway.base.errors import UserError
from fairway.pack.arithmetic import (
    AT,
    BEYOND,
    CODE,
    COLUMN_MEANS,
    COVARIANCE,
    DECODE,
    ENCODE,
    ENERGY,
    FAR,
    FIT,
    GIVEN,
    HIGH,
    LARGEST_LOG,
    LEVEL_LOG_BITS,
    LEVELS,
    LOG_ENERGY,
    LOW,
    LOWEST_LOG,
    NEAR,
    NLL,
    NO_PREDICTION,
    OFFSETS,
    PER_COLUMN,
    PER_ROW,
    POWER_UNIT,
    POWERS,
    PREDICT,
    SIDE,
    SIZE,
    SLOTS,
    UNARY,
    USES_BITS,
    ZERO,
    Bytes,
    Ints,
    Narrow,
    code_rows,
    exp2_256,
    log2_256,
)
from fairway.pack.moments import PRIOR_ROWS, WIDEST, Covariance
from fairway.quantise.trellis import GRIDS, TRELLIS

# The weight of the Gaussian prior of a fresh cell, in uses.
_PRIOR_USES = 24
_PRIOR_REACH = 400

_HEAD = struct.Struct(f"<H{POWERS}b")
_FIT_STEPS, _FIT_VALUES = 3, 1 << 22
_FIRST_POWERS = (0.9, 0.5, 0, 0, 0, 0, 0, 0)
_RIDGE = 20 * 256.0**2
_NEWTON = 256 / (65_536 * 0.6931471805599453)  # gradients to steps of log2 powers
_ROOM_BYTES = 128  # more than one code can take
_CODES_AT_ONCE = 1 << 17
LARGEST_CODE = 32_767
DAMAGED = "a cabac stream is damaged; copy the file again"


_NOTHING, _NO_BYTES = np.zeros(1, np.int64), np.zeros(1, np.uint8)


@dataclass(frozen=True, slots=True, eq=False)
class Side:
    """The facts about a matrix that both sides know: its shape, 256 log2 of its rows' steps, its
    trellis."""

    shape: tuple[int, int]
    step_logs: Ints
    trellis: int = 0


@dataclass(frozen=True, slots=True)
class _Head:
    """The data before a matrix: log2 of its mean energy and its powers; and how its stream
    predicts."""

    log_energy: int
    powers: tuple[int, ...]
    predict: int


@functools.cache
def _gaussian_cells() -> Ints:
    """Return the cells of Gaussians, by IEEE products and sums in a fixed order, equal on all
    machines."""
    # w[t] is the density at t / 8 of every level: w[t + 1] / w[t] is q^(2t + 1).
    with localcontext() as context:
        context.prec = 20
        octaves = [
            Decimal(level * (1 << LEVEL_LOG_BITS) - LOWEST_LOG) / 256 for level in range(LEVELS)
        ]
        q_L = np.array([float((-1 / (128 * Decimal(2) ** o)).exp()) for o in octaves])
    reach = 8 * _PRIOR_REACH
    w_TL = np.ones((reach + 5, LEVELS))
    ratio_L, square_L = q_L.copy(), q_L * q_L
    for t in range(reach + 4):
        w_TL[t + 1] = w_TL[t] * ratio_L
        ratio_L = ratio_L * square_L
    p = np.full((OFFSETS, LEVELS, SLOTS), 0.5)
    for offset in range(OFFSETS):
        tails = [w_TL[8 + side * offset : reach + 1 : 8][::-1].cumsum(0)[::-1] for side in (1, -1)]
        behind_NL, ahead_NL = (tail_NL[: UNARY + 1] for tail_NL in tails)
        zero_L, both_L = w_TL[offset], ahead_NL[0] + behind_NL[0]
        p[offset, :, ZERO] = zero_L / (zero_L + both_L)
        for at, tail_NL in ((BEYOND, behind_NL), (BEYOND + UNARY, ahead_NL)):
            p[offset, :, at : at + UNARY] = _share(tail_NL[1:], tail_NL[:-1]).T
        p[offset, :, SIDE] = _share(ahead_NL[0], both_L)
    units = np.clip(np.rint(p * 4096), 1, 4095).astype(np.int64)
    return np.asarray((units << 16 << USES_BITS | _PRIOR_USES).ravel(), np.int64)


def _share(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return part / whole; a half if the whole is 0."""
    some = whole > 1e-250
    return np.asarray(np.where(some, part / np.where(some, whole, 1.0), 0.5))


# ---------------------------------------------------------------------------------------------
# One matrix


class _Walk:
    """A walk through a matrix, some rows at a time, and the statistics that it learns."""

    def __init__(self, side: Side, head: _Head, covariance: Covariance) -> None:
        self._covariance = covariance
        self._columns = np.zeros((PER_COLUMN, side.shape[1]), np.int64)
        self._columns[NEAR] = self._columns[FAR] = 65_536
        self._left_over = np.zeros(side.shape[1], np.int32)
        self.row = np.zeros(PER_ROW, np.int64)
        self.row[LOG_ENERGY], self.row[PREDICT] = head.log_energy, head.predict
        self.row[ENERGY] = exp2_256(head.log_energy)
        self._powers = np.array(head.powers, np.int64)
        self._steps_R = 2 * (side.step_logs - side.step_logs.sum() // len(side.step_logs))
        self._moves = _moves(side.trellis)
        self._features = np.zeros(POWERS, np.int64)
        self.gradient = np.zeros(POWERS, np.int64)
        self.curvature = np.zeros((POWERS, POWERS), np.int64)

    def go(
        self, mode: int, codes_RC: Ints, means_RC: Narrow | None = None, cells: Ints = _NOTHING,
        coder: Ints = _NOTHING, buffer: Bytes = _NO_BYTES,
    ) -> int:  # fmt: skip
        """Code the next rows, or add them to the fit; return their energy about their means.

        means_RC receives the means, or supplies them if the head's prediction is GIVEN.
        """
        if means_RC is None:
            means_RC = np.zeros((len(codes_RC), 0), np.int32)
        learns, met, first = self.row[PREDICT] == COVARIANCE, 0, 0
        while first < len(codes_RC):
            # All rows up to the next change of the predictor in one call: each call takes the
            # interpreter's lock, for which the other sections' threads wait.
            end = min(len(codes_RC), first + (self._covariance.due if learns else len(codes_RC)))
            rows = slice(first, end)
            multiples_RC = np.zeros((end - first, codes_RC.shape[1] if learns else 0), np.int32)
            met += code_rows(
                mode, codes_RC[rows], self.row, self._steps_R, self._columns, self._powers,
                self._covariance.factor_CC, self._left_over, means_RC[rows], multiples_RC,
                self._moves, cells, coder, buffer, self._features, self.gradient, self.curvature,
            )  # fmt: skip
            if learns:
                self._covariance.add(multiples_RC)
            first = end
        return met


def _moves(trellis: int) -> Ints:
    """Return next state by parity and grid of every state, [N, 3]; one state without a trellis."""
    if not trellis:
        return np.zeros((1, 3), np.int64)
    return np.column_stack([TRELLIS[trellis], GRIDS[trellis]]).astype(np.int64)


class _Fit:
    """The head of maximum likelihood for a matrix, found by Newton's method.

    The means of the weights depend only on the codes, so the first walk keeps them for later walks.
    """

    def __init__(self, codes_RC: Ints, side: Side, predict: int) -> None:
        self.codes_RC, self._side, self._predict = codes_RC, side, predict
        R, C = side.shape
        self._rows = min(R, max(1, _FIT_VALUES // C))
        energies = int((codes_RC**2).clip(0, 1 << 24).sum()) << (14 if side.trellis else 12)
        self._head = _Head(_log(energies, R * C), _in_units(_FIRST_POWERS), predict)
        self._means_RC = np.zeros((R, C if predict else 0), np.int32)
        # The cost of the matrix before the first step, in 2^-24 bits; endless until it is observed.
        self.cost = math.inf

    def observe(self, covariance: Covariance) -> None:
        """Take the first step and keep all means; with a covariance, up to the end of the
        matrix."""
        walk = _Walk(self._side, self._head, covariance)
        self._step(walk)
        self.cost = int(walk.row[NLL])
        walk.go(FIT, self.codes_RC[self._rows :], self._means_RC[self._rows :])

    def finish(self) -> None:
        """Take the other steps."""
        for _ in range(_FIT_STEPS - 1):
            self._step(self._walk())

    def encode(self, cells: Ints, coder: Ints) -> list[bytes]:
        """Return the pieces of the matrix's part of a stream."""
        walk, parts, C = self._walk(), [], self._side.shape[1]
        at_once = max(1, _CODES_AT_ONCE // C)
        buffer = np.zeros(min(at_once, self._side.shape[0]) * C * _ROOM_BYTES, np.uint8)
        for first in range(0, len(self.codes_RC), at_once):
            rows = slice(first, first + at_once)
            walk.go(ENCODE, self.codes_RC[rows], self._means_RC[rows], cells, coder, buffer)
            parts.append(buffer[: coder[AT]].tobytes())
            coder[AT] = 0
        return parts

    def packed(self) -> bytes:
        """Return the bytes of the head, which precede the stream."""
        return _HEAD.pack(self._head.log_energy, *self._head.powers)

    def _walk(self) -> _Walk:
        head = replace(self._head, predict=GIVEN) if self._predict else self._head
        return _Walk(self._side, head, Covariance(0))

    def _step(self, walk: _Walk) -> None:
        met = walk.go(FIT, self.codes_RC[: self._rows], self._means_RC[: self._rows])
        change = _solve(walk.curvature, walk.gradient)
        powers = [
            p / POWER_UNIT + min(max(d, -1.0), 1.0)
            for p, d in zip(self._head.powers, change, strict=True)
        ]
        log_energy = _log(met, self._rows * self._side.shape[1])
        self._head = _Head(log_energy, _in_units(powers), self._predict)


def _log(total: int, count: int) -> int:
    return min(int(log2_256(max(total // count, 1))), LARGEST_LOG)


def _in_units(powers: Sequence[float]) -> tuple[int, ...]:
    return tuple(min(max(round(p * POWER_UNIT), -128), 127) for p in powers)


def _solve(lower: Ints, gradient: Ints) -> list[float]:
    """Return the Newton step of the powers, by elimination in a fixed order, equal on all
    machines."""
    n = len(gradient)
    rows = [
        [float(lower[max(i, j), min(i, j)]) + (_RIDGE if i == j else 0.0) for j in range(n)]
        + [float(gradient[i]) * _NEWTON]
        for i in range(n)
    ]
    for k in range(n):
        for i in range(k + 1, n):
            ratio = rows[i][k] / rows[k][k]
            rows[i] = [a - ratio * b for a, b in zip(rows[i], rows[k], strict=True)]
    found = [0.0] * n
    for i in reversed(range(n)):
        known = sum(rows[i][j] * found[j] for j in range(i + 1, n))
        found[i] = (rows[i][n] - known) / rows[i][i]
    return found


# ---------------------------------------------------------------------------------------------
# A stream of matrices


def encode_codes(codes: Sequence[NDArray[np.integer]], sides: Sequence[Side]) -> bytes:
    """Return the stream of some matrices of int16 codes, each with the facts that the decoder
    knows.

    Equal input gives equal bytes on every machine. Fits run in parallel on all cores.
    """
    wide = [_widened(codes_RC, side) for codes_RC, side in zip(codes, sides, strict=True)]
    with ThreadPoolExecutor(usable_cores()) as pool:
        predict, fits = _best_prediction(wide, sides, pool)
        list(pool.map(_Fit.finish, fits))
    cells, coder = _gaussian_cells().copy(), new_coder()
    parts = [part for fit in fits for part in fit.encode(cells, coder)]
    heads = [fit.packed() for fit in fits]
    return bytes([predict]) + b"".join(heads) + b"".join(parts) + ending(coder)


def decode_codes(data: bytes, sides: Sequence[Side]) -> list[NDArray[np.int16]]:
    """Return the codes that `encode_codes` was given, int16 [R, C] each.

    Memory is little more than the codes, and time is in proportion to their number, even for
    damaged bytes. Raises UserError for a stream that was not made from these shapes.
    """
    size = 1 + _HEAD.size * len(sides)
    if len(data) < size or data[0] > COVARIANCE:
        raise UserError(DAMAGED)
    predict = data[0]
    if predict == COVARIANCE and not _width(sides):
        raise UserError(DAMAGED)
    buffer = np.frombuffer(bytearray(data[size:]), np.uint8)
    cells, coder = _gaussian_cells().copy(), new_coder(data[size:])
    covariance = Covariance(_width(sides) if predict == COVARIANCE else 0)
    found = []
    for i, side in enumerate(sides):
        log_energy, *powers = _HEAD.unpack_from(data, 1 + i * _HEAD.size)
        if log_energy > LARGEST_LOG:
            raise UserError(DAMAGED)
        walk = _Walk(side, _Head(log_energy, tuple(powers), predict), covariance)
        R, C = side.shape
        codes_RC = np.zeros(side.shape, np.int16)
        at_once = max(1, _CODES_AT_ONCE // C)
        for first in range(0, R, at_once):
            some_RC = np.zeros((min(at_once, R - first), C), np.int64)
            walk.go(DECODE, some_RC, None, cells, coder, buffer)
            # A coder that has read past the end decodes zeros, so stop there.
            beyond = coder[AT] > len(buffer) + 4
            if beyond or some_RC.min() < -LARGEST_CODE - 1 or some_RC.max() > LARGEST_CODE:
                raise UserError(DAMAGED)
            codes_RC[first : first + len(some_RC)] = some_RC
        found.append(codes_RC)
    if not read_to_the_end(coder, data[size:]):
        raise UserError(DAMAGED)
    return found


def _widened(codes_RC: NDArray[np.integer], side: Side) -> Ints:
    assert codes_RC.shape == side.shape and len(side.step_logs) == side.shape[0]
    wide_RC = codes_RC.astype(np.int64)
    assert wide_RC.min() >= -LARGEST_CODE - 1 and wide_RC.max() <= LARGEST_CODE, "beyond int16"
    return wide_RC


def _width(sides: Sequence[Side]) -> int:
    """Return the number of columns if it is equal for all matrices and allows a covariance, else
    0."""
    widths = {side.shape[1] for side in sides}
    return widths.pop() if len(widths) == 1 and max(widths) <= WIDEST else 0


def _best_prediction(
    matrices: Sequence[Ints], sides: Sequence[Side], pool: ThreadPoolExecutor
) -> tuple[int, list[_Fit]]:
    """Return the way to predict means that makes the stream shortest, if Gaussian, and its fits."""
    ways = [NO_PREDICTION, COLUMN_MEANS, *([COVARIANCE] if _width(sides) else [])]
    found = {
        predict: [
            _Fit(codes_RC, side, predict) for codes_RC, side in zip(matrices, sides, strict=True)
        ]
        for predict in ways
    }
    covariance = Covariance(_width(sides))
    plain = [found[predict] for predict in ways if predict != COVARIANCE]
    waiting = [pool.submit(fit.observe, covariance) for fits in plain for fit in fits]
    if COVARIANCE in found:
        # The last one: it waits for the others, which the pool takes before it.
        rivals = list(waiting)
        waiting.append(pool.submit(_observe_all, found[COVARIANCE], covariance, plain, rivals))
    for each in waiting:
        each.result()
    costs = {predict: sum(fit.cost for fit in fits) for predict, fits in found.items()}
    best = min(ways, key=lambda predict: costs[predict])
    return best, found[best]


def _observe_all(
    fits: list[_Fit],
    covariance: Covariance,
    plain: list[list[_Fit]],
    waiting: list[Future[None]],
) -> None:
    """Observe all matrices, or stop if the ways without a covariance cost less so far.

    The covariance continues from matrix to matrix, which takes as long as coding them, and only
    embeddings and keys gain from it. Before PRIOR_ROWS rows it has learned too little to be judged.
    """
    wait(waiting)
    rows = 0
    for number, fit in enumerate(fits, 1):
        fit.observe(covariance)
        rows += len(fit.codes_RC)
        least = min(sum(rival.cost for rival in rivals[:number]) for rivals in plain)
        if rows >= PRIOR_ROWS and sum(fit.cost for fit in fits[:number]) > least:
            return


def new_coder(data: bytes | None = None) -> Ints:
    """Return the state of a coder about to write, or to read some bytes."""
    coder = np.array([0, 0xFFFFFFFF, 0, 0, 0], np.int64)
    if data is not None:
        coder[CODE] = int.from_bytes(data[:4].ljust(4, b"\0"), "big")
        coder[AT], coder[SIZE] = 4, len(data)
    return coder


def ending(coder: Ints) -> bytes:
    """Return the fewest bytes that end a stream: zeros after them stay inside the interval."""
    low, high = int(coder[LOW]), int(coder[HIGH])
    for count in range(4):
        unit = 1 << (32 - 8 * count)
        first = -(-low // unit) * unit
        if first <= high:
            return first.to_bytes(4, "big")[:count]
    return low.to_bytes(4, "big")


def read_to_the_end(coder: Ints, data: bytes) -> bool:
    """Return whether the decoder's bytes are exactly the encoder's output."""
    tail = ending(coder)
    read = int(coder[AT]) - 4
    return read + len(tail) == len(data) and data[read:] == tail
