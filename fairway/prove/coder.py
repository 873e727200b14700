"""A range coder in whole numbers, and probabilities as whole numbers that sum to a power of two.

A coder narrows an interval by the share of every symbol and writes the shortest number inside the
last one. Encoder and decoder do the same integer arithmetic on the same frequencies, so only the
frequencies must be the same on both sides.

The interval is [low, low + range) with range below 2^64. The leading byte is written as soon as the
range fits into 56 bits. A later carry out of `low` is added to the bytes already written. Range
coding: G. N. N. Martin (1979).

Encoder and decoder exist in two forms: symbol by symbol in Python's exact integers, and compiled
for many symbols at once.

Shapes: [...] any, V vocabulary, N symbols, S rows, A coded rows.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fairway.base.arrays import FloatArray, IntArray
from fairway.base.native import compiled, int64

BitsArray = NDArray[np.uint32]

# Frequencies sum to 2^32. With 8,192 symbols, the least frequency of 1 costs the other symbols 3e-6
# bits each; a sum of 2^24 would cost 7e-4. Products with the range stay exact, since Python's
# integers are exact.
TOTAL_BITS = 32
_STATE_BITS = 64
_RENORM = 1 << (_STATE_BITS - 8)
# This constant and others for compiled code, where one signed number among them would give floats.
uint64: Any = np.uint64
_MOST, _LEAST = uint64((1 << _STATE_BITS) - 1), uint64(_RENORM)
_TOTAL, _HALF, _BYTE, _TOP = uint64(1 << TOTAL_BITS), uint64(32), uint64(8), uint64(56)
_ONE, _NOTHING = uint64(1), uint64(0)
# The number of zeros that a decoder may assume after the end of a file, beyond those of its state;
# the encoder writes all others. A file that no encoder wrote soon exceeds this number.
SPARE_BYTES = 8
# |sum of the probabilities - 1| accepted; float64 log-probabilities are off by about 1e-13.
SUM_TOLERANCE = 1e-9


def spare_of(size: int, total_bits: int) -> int:
    """Return the rest of 2^total_bits after each of `size` symbols has 1; ValueError if it is not
    above 0."""
    spare = (1 << total_bits) - size
    if spare < size or total_bits > 48:
        raise ValueError(f"{size} symbols do not fit frequencies that sum to 2^{total_bits}")
    return spare


def frequencies(log_probs: FloatArray, total_bits: int = TOTAL_BITS) -> IntArray:
    """Return whole numbers of at least 1 that sum to 2^total_bits, int64[..., V].

    Each symbol gets 1 and its share of the rest, rounded down. The remainder goes to the likeliest
    symbol, or the first one of several. Raises ValueError for rows that are not distributions and
    for totals that leave no room.
    """
    size = log_probs.shape[-1]
    spare = spare_of(size, total_bits)
    # PyTorch's exp takes a third of the time of NumPy's; compiled shares take a third of the time
    # of array operations.
    probs = torch.from_numpy(np.ascontiguousarray(log_probs)).exp().numpy()
    counts: IntArray = np.empty(log_probs.shape, np.int64)
    if not _shares(probs.reshape(-1, size), spare, counts.reshape(-1, size)):
        raise ValueError("the probabilities of a row do not sum to 1")
    return counts


@compiled
def _shares(probs_NV: FloatArray, spare: int, counts_NV: IntArray) -> bool:
    """Fill in the frequencies; return whether all rows are distributions."""
    for n in range(probs_NV.shape[0]):
        total = 0.0
        rest = spare
        # The likeliest has at least a V-th of `spare`, far more than a negative remainder could
        # take.
        top = 0
        for v in range(probs_NV.shape[1]):
            total += probs_NV[n, v]
            count = int64(probs_NV[n, v] * spare)
            counts_NV[n, v] = count + 1
            rest -= count
            if count + 1 > counts_NV[n, top]:
                top = v
        counts_NV[n, top] += rest
        if not abs(total - 1.0) <= SUM_TOLERANCE:
            return False
    return True


def cost_bits(frequencies_N: IntArray, total_bits: int = TOTAL_BITS) -> FloatArray:
    """Return the cost of coding symbols of these frequencies, in bits."""
    return np.asarray(total_bits - np.log2(frequencies_N))


class Encoder:
    """Writes symbols, each given by the start and the width of its share of the total."""

    def __init__(self) -> None:
        self._low, self._range = 0, (1 << _STATE_BITS) - 1
        self._written = bytearray()

    def encode(self, cumulative: int, frequency: int, total_bits: int = TOTAL_BITS) -> None:
        """Add a symbol whose share is [cumulative, cumulative + frequency) of 2^total_bits.

        Raises ValueError for a share that is empty or outside the total.
        """
        if not 0 <= cumulative < cumulative + frequency <= 1 << total_bits:
            raise ValueError(f"share {cumulative} + {frequency} is not within 2^{total_bits}")
        unit = self._range >> total_bits
        self._low += unit * cumulative
        self._range = unit * frequency
        if self._low >> _STATE_BITS:
            self._low &= int(_MOST)
            self._carry()
        while self._range < _RENORM:
            self._written.append(self._low >> (_STATE_BITS - 8))
            self._low = self._low << 8 & int(_MOST)
            self._range <<= 8

    def encode_all(self, starts_N: IntArray, widths_N: IntArray) -> None:
        """Add symbols as `encode` does, given the starts and widths of their shares of
        2^TOTAL_BITS.

        Raises ValueError for a share that is empty or outside the total.
        """
        ends_N = starts_N + widths_N
        if not ((starts_N >= 0) & (widths_N > 0) & (ends_N <= 1 << TOTAL_BITS)).all():
            raise ValueError(f"a share is not within 2^{TOTAL_BITS}")
        state = np.array([self._low, self._range], np.uint64)
        # A symbol narrows a range of 2^56 to 2^24 at the least, which writes four bytes.
        out = np.empty(4 * len(starts_N), np.uint8)
        count, carried = _encode_all(
            state, starts_N.astype(np.uint64), widths_N.astype(np.uint64), out
        )
        if carried:
            self._carry()
        self._written += out[:count].tobytes()
        self._low, self._range = (int(value) for value in state)

    def _carry(self) -> None:
        at = len(self._written) - 1
        while self._written[at] == 0xFF:
            self._written[at] = 0
            at -= 1
        self._written[at] += 1

    def finish(self) -> bytes:
        """Return all bytes written: the fewest that decode if zeros follow them.

        At most SPARE_BYTES zeros at the end are left out, beside those of the last 64 bits.
        """
        end = self._low + self._range
        for bits in (_STATE_BITS, _STATE_BITS - 8):
            # The first multiple of 2^bits within the interval, if there is one. The interval is at
            # least 2^56 long, so it has a multiple of that.
            multiple = (self._low + (1 << bits) - 1) >> bits << bits
            if multiple < end:
                self._low = multiple
                break
        if self._low >> _STATE_BITS:
            self._low &= int(_MOST)
            self._carry()
        tail = self._low.to_bytes(_STATE_BITS // 8, "big")
        least = max(0, len(self._written) - SPARE_BYTES)
        return (bytes(self._written) + tail).rstrip(b"\0").ljust(least, b"\0")


class Decoder:
    """Reads the output of an `Encoder`; bytes after its end count as zeros.

    The caller must check `beyond` from time to time: whether it read past the possible end of a
    code.
    """

    def __init__(self, data: bytes) -> None:
        self._data, self._next = data, _STATE_BITS // 8
        self._offset = int.from_bytes(data[: self._next].ljust(self._next, b"\0"), "big")
        self._range = (1 << _STATE_BITS) - 1

    @property
    def exhausted(self) -> bool:
        """Return whether all bytes were read."""
        return self._next >= len(self._data)

    @property
    def beyond(self) -> bool:
        """Return whether more zeros were read than an encoder leaves out; then symbols are
        meaningless."""
        return self._next > len(self._data) + _STATE_BITS // 8 + SPARE_BYTES

    def is_whole(self, least_bytes: int) -> bool:
        """Return whether an encoder writes exactly as many bytes for the symbols read, if zeros
        fill a code up to `least_bytes`.

        It has written one byte for each that the decoder shifted in, and ends them with one more
        at most. Zeros at the end are left out, except those that SPARE_BYTES does not cover.
        """
        written, last = self._next - _STATE_BITS // 8, len(self._data.rstrip(b"\0"))
        fewest = max(last, written - SPARE_BYTES, least_bytes)
        return last <= written + 1 and len(self._data) == fewest

    def decode(self, counts_V: IntArray, total_bits: int = TOTAL_BITS) -> int:
        """Return the next symbol, given all frequencies; bytes that no encoder wrote give an
        arbitrary symbol."""
        unit = self._range >> total_bits
        target = min(self._offset // unit, (1 << total_bits) - 1)
        ends_V = counts_V.cumsum()
        symbol = int(ends_V.searchsorted(target, side="right"))
        frequency = int(counts_V[symbol])
        self._offset -= unit * (int(ends_V[symbol]) - frequency)
        self._range = unit * frequency
        while self._range < _RENORM:
            byte = self._data[self._next] if self._next < len(self._data) else 0
            # Only damaged data can put the offset outside the interval; this keeps it within 64
            # bits.
            self._offset = (self._offset << 8 | byte) & int(_MOST)
            self._range <<= 8
            self._next += 1
        return symbol

    def decode_rows(self, starts_SV: BitsArray, rows_A: IntArray, ids_S: IntArray) -> None:
        """Fill in the next symbols of some rows, one row after another, with the same results as
        `decode`.

        The input is the start of each share of 2^TOTAL_BITS; damaged data give an arbitrary symbol.
        """
        state = np.array([self._offset, self._range, self._next], np.uint64)
        data = np.frombuffer(self._data, np.uint8)
        _decode_rows(state, data, starts_SV, rows_A, ids_S)
        self._offset, self._range, self._next = (int(value) for value in state)


# ---------------------------------------------------------------------------------------------
# The same, compiled: `state` holds the fields of the classes


@compiled
def _encode_all(
    state: NDArray[np.uint64],
    starts_N: NDArray[np.uint64],
    widths_N: NDArray[np.uint64],
    out: NDArray[np.uint8],
) -> tuple[int, bool]:
    """Return how many bytes were filled in, and whether a carry left their first byte.

    That happens at most once: the number written before is within 1 of its final value.
    """
    low, width = state[0], state[1]
    count, carried = 0, False
    for n in range(len(starts_N)):
        unit = width >> _HALF
        added = unit * starts_N[n]
        room = _MOST - low
        if added > room:
            low = added - room - _ONE
            at = count - 1
            while at >= 0 and out[at] == 255:
                out[at] = 0
                at -= 1
            if at >= 0:
                out[at] += 1
            else:
                carried = True
        else:
            low = low + added
        width = unit * widths_N[n]
        while width < _LEAST:
            out[count] = low >> _TOP
            count += 1
            low = low << _BYTE
            width = width << _BYTE
    state[0], state[1] = low, width
    return count, carried


@compiled
def _decode_rows(
    state: NDArray[np.uint64],
    data: NDArray[np.uint8],
    starts_SV: BitsArray,
    rows_A: IntArray,
    ids_S: IntArray,
) -> None:
    """Fill in the symbols."""
    offset, width, place = state[0], state[1], int64(state[2])
    size = starts_SV.shape[1]
    for row in rows_A:
        unit = width >> _HALF
        # Only damaged data have a target of 2^32 or more, which is beyond every start.
        target = offset // unit
        # The last share that begins at or before the target, while the next share begins after it.
        # So the share is not empty, even if the table is not sorted.
        symbol, after = 0, size
        while after - symbol > 1:
            middle = (symbol + after) >> 1
            if uint64(starts_SV[row, middle]) <= target:
                symbol = middle
            else:
                after = middle
        start = uint64(starts_SV[row, symbol]) if symbol > 0 else _NOTHING
        end = uint64(starts_SV[row, after]) if after < size else _TOTAL
        ids_S[row] = symbol
        offset = offset - unit * start
        width = unit * (end - start)
        while width < _LEAST:
            byte = uint64(data[place]) if place < len(data) else _NOTHING
            offset = (offset << _BYTE) | byte
            width = width << _BYTE
            place += 1
    state[0], state[1], state[2] = offset, width, uint64(place)
