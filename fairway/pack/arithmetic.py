"""Every compiled function of the entropy coder: cells, range coder, context, one row of a matrix.

A bit is coded with the probability in a cell, which learns from the bit. The expected mean and
variance of a weight, known before it is coded, select the cell. Given row and column, trained
weights are nearly independent Gaussians, so these two numbers hold all context.

All numbers are whole numbers in int64, far from overflow. Tables are rounded from decimal
arithmetic, whose exp and ln are exact to the last place. So the bytes are the same on every
machine, compiled or not (NUMBA_DISABLE_JIT=1). All of it is in one file, because numba renews a
compiled function on disk if its own file changes, but not if the file of a called function changes.
Range coding: Martin 1979; 32 bits without carries and adaptive cells as in Mahoney's lpaq, 2007.

Shapes: R rows, C columns.
"""

from collections.abc import Callable
from decimal import Decimal, localcontext

import numpy as np
from numpy.typing import NDArray

from fairway.base.native import compiled, int64

Ints = NDArray[np.int64]
Narrow = NDArray[np.int32]
Bytes = NDArray[np.uint8]

FIT, ENCODE, DECODE = 0, 1, 2

# The coder's state: interval [LOW, HIGH], the CODE being read, next byte AT, the input's SIZE.
LOW, HIGH, CODE, AT, SIZE = range(5)

USES_BITS, MOST_USES = 12, (1 << 12) - 1
# Probabilities of 16 bits stay this far from 0 and 1.
MARGIN = 16


def _table(of: Callable[[Decimal], Decimal], count: int) -> Ints:
    with localcontext() as context:
        context.prec = 30
        return np.array([int(of(Decimal(i)).to_integral_value()) for i in range(count)], np.int64)


# 256 log2(1 + i / 256); 2^16 2^(i / 256); 2^24 / (n + 1.6).
_LOG = _table(lambda i: 256 * (1 + i / 256).ln() / Decimal(2).ln(), 256)
_EXP = _table(lambda i: 65_536 * (Decimal(2).ln() * i / 256).exp(), 256)
_RATE = _table(lambda n: 2**24 / (n + Decimal("1.6")), MOST_USES + 1)


@compiled
def log2_256(x: int) -> int:
    """Return 256 log2(x), truncated to 8 bits of mantissa, for 1 <= x < 2^63."""
    # Shift the leading one to bit 62, so that the eight bits below it are the mantissa.
    top = 62
    for shift in (32, 16, 8, 4, 2, 1):
        if x < 1 << (63 - shift):
            x <<= shift
            top -= shift
    return 256 * top + int(_LOG[(x >> 54) & 255])


@compiled
def exp2_256(v: int) -> int:
    """Return 2^(v / 256) in whole numbers, for 0 <= v < 46 * 256."""
    return int(_EXP[v & 255] << (v >> 8)) >> 16


@compiled
def adapt(cells: Ints, at: int, bit: int) -> None:
    """Move a cell towards the coded bit."""
    uses = cells[at] & MOST_USES
    p = cells[at] >> USES_BITS
    p += (((bit << 28) - p) * _RATE[uses]) >> 24
    if uses < MOST_USES:
        uses += 1
    cells[at] = p << USES_BITS | uses


@compiled
def narrow(coder: Ints, buffer: Bytes, mode: int, bit: int, p: int) -> int:
    """Code a bit that is 1 with probability p / 65536; return the bit (when decoding, the bit
    read)."""
    low, high = coder[LOW], coder[HIGH]
    span = high - low
    middle = low + (span >> 16) * p + (((span & 0xFFFF) * p) >> 16)
    if mode == DECODE:
        bit = 1 if coder[CODE] <= middle else 0
    if bit:
        high = middle
    else:
        low = middle + 1
    while (low ^ high) < 1 << 24:
        if mode == DECODE:
            byte = buffer[coder[AT]] if coder[AT] < coder[SIZE] else 0
            coder[CODE] = (coder[CODE] & 0xFFFFFF) << 8 | byte
        else:
            buffer[coder[AT]] = low >> 24
        coder[AT] += 1
        low = (low & 0xFFFFFF) << 8
        high = (high & 0xFFFFFF) << 8 | 255
    coder[LOW], coder[HIGH] = low, high
    return bit


@compiled
def code_bit(coder: Ints, buffer: Bytes, mode: int, bit: int, cells: Ints, at: int) -> int:
    """Code a bit with the probability in a cell, which learns from it; return the bit."""
    p = min(max(cells[at] >> 24, MARGIN), 65_536 - MARGIN)
    bit = narrow(coder, buffer, mode, bit, p)
    adapt(cells, at, bit)
    return bit


# --------------------------------------------------------------------------------------------- The
# context of a weight

# Weights are multiples of the step, energies their squares in 2^-12, logarithms in 1/256 octave.
# The variables per column: sum of energies, mean and its log2, energy of the last rows (about 16
# and 64) relative to the mean (2^16 means 1), sum of multiples, and the multiple in this row.
SUM, MEAN, LOG, NEAR, FAR, TOTAL, MULTIPLE = range(7)
PER_COLUMN = 7

# The variance of a weight is a product of powers of seven numbers: the energies of its column, of
# the rest of the row, of the row so far, of the row's last 16 weights, of the column's last 16 and
# 64, and the row's step; and of a constant factor 2^power. The encoder fits the powers and writes
# them, a byte each.
POWERS = 8
OF_COLUMN, OF_REST, OF_ROW, OF_LEFT, OF_NEAR, OF_FAR, OF_STEP, CONSTANT = range(POWERS)
POWER_UNIT = 32  # a power is a signed byte in 1/32

# Weights of the priors: of the matrix's mean energy in rows, of a row's energy in weights, of a
# mean of 0 in rows.
_COLUMN_PRIOR, _ROW_PRIOR, _TOTAL_PRIOR = 40, 64, 64
_MOST_RELATIVE = 1 << 22
_SOFT = 20_000  # added to relative energies before their logarithm, which must not jump at 0
_LOG_SOFT = 16 * 256 + int(_LOG[(65_536 + _SOFT) >> 8 & 255])
LARGEST_LOG = 40 * 256
_EVERY = 8  # columns between two updates from the row's sums

# The variables of a row: step relative to the matrix's, number of the row, log2 of the matrix's
# energy, that energy, the way to predict; then running sums: energies so far, means so far, all
# means; recent energy.
STEP, NUMBER, LOG_ENERGY, ENERGY, PREDICT, MET, EXPECTED, ALL, LEFT, NLL = range(10)
PER_ROW = 10

# A stream never has GIVEN: with it an encoder uses means that it computed before.
NO_PREDICTION, COLUMN_MEANS, COVARIANCE, GIVEN = range(4)
LARGEST_MULTIPLE = 4095  # in statistics; larger weights count as this
_MOST, _LEAST_PIVOT, _STEEPEST = 1 << 44, 1 << 24, 1 << 18


@compiled
def dot(a: Narrow, b: Narrow, count: int) -> int:
    """Return the sum of products of the first this many numbers."""
    total = 0
    for i in range(count):
        total += int(a[i]) * int(b[i])
    return total


@compiled
def begin_row(row: Ints, columns: Ints) -> None:
    """Compute the columns' mean energies from the rows before and clear the row's sums."""
    row[MET], row[EXPECTED], row[ALL], row[LEFT] = 0, 0, 0, 65_536
    belief, log_rows = _COLUMN_PRIOR * row[ENERGY], log2_256(row[NUMBER] + _COLUMN_PRIOR)
    for c in range(columns.shape[1]):
        columns[LOG, c] = max(log2_256(columns[SUM, c] + belief) - log_rows, 0)
        columns[MEAN, c] = exp2_256(columns[LOG, c])
        row[ALL] += columns[MEAN, c]


@compiled
def observe(features: Ints, row: Ints, columns: Ints, c: int) -> None:
    """Write the logarithms whose multiples by the powers sum to the log variance of a weight."""
    features[OF_COLUMN] = columns[LOG, c] - row[LOG_ENERGY]
    if c % _EVERY == 0:
        C, energy = columns.shape[1], row[ENERGY]
        # If the step of a row follows from its energy, the energy is known except for rounding. The
        # prior has as many weights as make both uncertainties equal (4 w^2 / 12 each against 2
        # w^4).
        doubt = 2 * energy + ((C << 12) // 6)
        rest = max(C * energy - row[MET], 0)
        belief = _ROW_PRIOR * energy
        features[OF_REST] = log2_256(rest + doubt) - log2_256(row[ALL] - row[EXPECTED] + doubt)
        features[OF_ROW] = log2_256(row[MET] + belief) - log2_256(row[EXPECTED] + belief)
    features[OF_LEFT] = log2_256(row[LEFT] + _SOFT) - _LOG_SOFT
    features[OF_NEAR] = log2_256(columns[NEAR, c] + _SOFT) - _LOG_SOFT
    features[OF_FAR] = log2_256(columns[FAR, c] + _SOFT) - _LOG_SOFT
    features[OF_STEP] = row[STEP]
    features[CONSTANT] = 256


@compiled
def log_variance(features: Ints, powers: Ints, row: Ints) -> int:
    """Return 256 log2 of the expected energy in 2^-12, within 0 and LARGEST_LOG."""
    total = 0
    for i in range(POWERS):
        total += int(powers[i] * features[i])
    return min(max(int(row[LOG_ENERGY]) + total // POWER_UNIT, 0), LARGEST_LOG)


@compiled
def likely(row: Ints, columns: Ints, factor: Narrow, left_over: Narrow, c: int) -> int:
    """Return the expected mean of a weight, in 1/64."""
    if row[PREDICT] == COLUMN_MEANS:
        return int(columns[TOTAL, c] << 6) // int(row[NUMBER] + _TOTAL_PRIOR)
    if row[PREDICT] == COVARIANCE:
        mean = (dot(factor[c], left_over, c) + 32_768) >> 16
        return min(max(mean, -(LARGEST_MULTIPLE << 6)), LARGEST_MULTIPLE << 6)
    return 0


@compiled
def learn(row: Ints, columns: Ints, left_over: Narrow, c: int, multiple: int, mean: int) -> int:
    """Learn from a weight after it is coded; return its energy about the mean."""
    multiple = min(max(multiple, -LARGEST_MULTIPLE), LARGEST_MULTIPLE)
    beyond = (multiple << 6) - mean
    beyond = min(max(beyond, -(LARGEST_MULTIPLE << 6)), LARGEST_MULTIPLE << 6)
    energy = beyond * beyond
    relative = min((energy << 16) // columns[MEAN, c], _MOST_RELATIVE)
    row[LEFT] += (relative - row[LEFT]) >> 4
    columns[NEAR, c] += (relative - columns[NEAR, c]) >> 4
    columns[FAR, c] += (relative - columns[FAR, c]) >> 6
    columns[SUM, c] += energy
    columns[TOTAL, c] += multiple
    columns[MULTIPLE, c] = multiple
    left_over[c] = beyond
    row[MET] += energy
    row[EXPECTED] += columns[MEAN, c]
    return energy


@compiled
def fit(
    features: Ints, row: Ints, variance: int, energy: int, gradient: Ints, curvature: Ints
) -> None:
    """Add a weight to the normal equations of the powers, and its cost to the row's."""
    ratio = min((energy << 16) // exp2_256(variance), 25 << 16)
    # The cost under a Gaussian: half the log variance, and 128 / ln 2 times the relative energy, in
    # 2^-24 bits.
    row[NLL] += (variance << 15) + 185 * ratio
    for i in range(POWERS):
        gradient[i] += (ratio - 65_536) * features[i]
        scaled = (ratio * features[i]) >> 16
        for j in range(i + 1):
            curvature[i, j] += scaled * features[j]


@compiled
def factorise(covariance_CC: Ints, factor_CC: Narrow, scaled_CC: Narrow) -> None:
    """Write L of covariance = L D L^T, unit lower triangular, in 2^-16; covariance is in 2^-40.

    Row c of L times the residuals of the columns before c predicts column c. scaled is scratch
    memory for L D in 2^-24. Clamps keep all numbers within their types; no trained matrix reaches
    them.
    """
    C = len(covariance_CC)
    pivots = np.zeros(C, np.int64)
    for i in range(C):
        for j in range(i):
            rest = covariance_CC[i, j] - dot(factor_CC[i], scaled_CC[j], j)
            rest = min(max(rest, -_MOST), _MOST)
            scaled_CC[i, j] = rest >> 16
            ratio = (rest << 16) // pivots[j]
            factor_CC[i, j] = min(max(ratio, -_STEEPEST), _STEEPEST)
        rest = covariance_CC[i, i] - dot(factor_CC[i], scaled_CC[i], i)
        pivots[i] = min(max(rest, _LEAST_PIVOT), _MOST)


# ---------------------------------------------------------------------------------------------
# A code and a row

# A code is written as its distance from the code nearest to the mean: whether it is 0, its sign,
# then 1, 2, ... by unary decisions, and larger distances by exponent (unary) and mantissa
# (Exp-Golomb of order 0).
UNARY, EXPONENTS = 20, 18
# Cells of one context.
ZERO, SIDE, BEYOND = range(3)
EXPONENT = BEYOND + 2 * UNARY
MANTISSA = EXPONENT + EXPONENTS
SLOTS = MANTISSA + 3 * EXPONENTS
# Contexts: the distance of the mean from the nearest code (in eighths, 0 to 4), and the log
# variance.
OFFSETS, LEVELS = 5, 192
LOWEST_LOG, LEVEL_LOG_BITS = 6 * 256, 5


@compiled
def _centre(mean: int, grid: int, fold: int) -> tuple[int, int]:
    """Return the code nearest to a mean given in 1/64, and its distance in 1/64 of a spacing."""
    if not fold:
        nearest = (mean + 32) >> 6
        return nearest, mean - (nearest << 6)
    # Codes are two steps apart; on the second grid they are one step lower.
    mean += 64 * grid
    nearest = (mean + 64) >> 7
    return nearest, (mean - (nearest << 7)) >> 1


@compiled
def _far(mode: int, x: int, base: int, cells: Ints, coder: Ints, buffer: Bytes) -> int:
    """Code a whole number from 0: the exponent of x + 1 in unary, then the bits below it."""
    exponent = 0
    while exponent < EXPONENTS - 1 and code_bit(
        coder, buffer, mode, min((x + 1) >> (exponent + 1), 1), cells, base + EXPONENT + exponent
    ):
        exponent += 1
    found = 1
    for i in range(exponent - 1, -1, -1):
        bit = ((x + 1) >> i) & 1
        if found < 4:
            at = base + MANTISSA + 3 * exponent + found - 1
            found = 2 * found + code_bit(coder, buffer, mode, bit, cells, at)
        else:
            found = 2 * found + narrow(coder, buffer, mode, bit, int64(32_768))
    return found - 1


@compiled
def _code(
    mode: int, k: int, grid: int, fold: int, mean: int, log_var: int,
    cells: Ints, coder: Ints, buffer: Bytes,
) -> int:  # fmt: skip
    """Encode or decode one code k; return it."""
    nearest, off = _centre(mean, grid, fold)
    up = 1 if off >= 0 else -1
    level = (log_var - 512 * fold - LOWEST_LOG + 16) >> LEVEL_LOG_BITS
    level = min(max(level, 0), LEVELS - 1)
    base = (((off * up + 4) >> 3) * LEVELS + level) * SLOTS
    if code_bit(coder, buffer, mode, 1 if k == nearest else 0, cells, base + ZERO):
        return nearest
    bit = 1 if (k - nearest) * up > 0 else 0
    ahead = code_bit(coder, buffer, mode, bit, cells, base + SIDE)
    step = up if ahead else -up
    distance = (k - nearest) * step
    for n in range(1, UNARY + 1):
        at = base + BEYOND + ahead * UNARY + n - 1
        if not code_bit(coder, buffer, mode, 1 if distance > n else 0, cells, at):
            return nearest + n * step
    beyond = _far(mode, distance - UNARY - 1, base, cells, coder, buffer)
    return nearest + (beyond + UNARY + 1) * step


@compiled
def code_rows(
    mode: int, codes_RC: Ints, row: Ints, steps_R: Ints, columns: Ints, powers: Ints,
    factor: Narrow, left_over: Narrow, means_RC: Narrow, multiples_RC: Narrow, moves: Ints,
    cells: Ints, coder: Ints, buffer: Bytes, features: Ints, gradient: Ints, curvature: Ints,
) -> int:  # fmt: skip
    """Encode rows, decode them into codes_RC, or fit: add them to the normal equations.

    means_RC is read if the means are GIVEN; else they are written to it, unless it is empty.
    multiples_RC receives the weights in steps, unless it is empty. Returns the energy about the
    means.
    """
    fold, met = 1 if len(moves) > 1 else 0, int64(0)
    given, taken, kept = row[PREDICT] == GIVEN, means_RC.size > 0, multiples_RC.size > 0
    for r in range(len(codes_RC)):
        row[STEP] = steps_R[row[NUMBER]]
        begin_row(row, columns)
        state = 0
        for c in range(codes_RC.shape[1]):
            observe(features, row, columns, c)
            variance = log_variance(features, powers, row)
            mean = int64(means_RC[r, c]) if given else likely(row, columns, factor, left_over, c)
            if taken:
                means_RC[r, c] = mean
            k, grid = codes_RC[r, c], moves[state, 2]
            if mode != FIT:
                k = _code(mode, k, grid, fold, mean, variance, cells, coder, buffer)
                codes_RC[r, c] = k
            multiple = (k << fold) - grid
            energy = learn(row, columns, left_over, c, multiple, mean)
            if kept:
                multiples_RC[r, c] = columns[MULTIPLE, c]
            if mode == FIT:
                fit(features, row, variance, energy, gradient, curvature)
            state = moves[state, k & 1]
        row[NUMBER] += 1
        met += row[MET]
    return int(met)
