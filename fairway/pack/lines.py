"""Entropy coding of the steps of rows: a line of int16 numbers per matrix.

float16 scales are coded by their bits, which grow with the number. Each line is reduced by its
median and a share of the previous number (neighbouring rows are alike in some matrices). `cabac`
codes the rest as a matrix of one column.
"""

import struct
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fairway.base.errors import UserError
from fairway.pack.arithmetic import Ints
from fairway.pack.cabac import DAMAGED, Side, decode_codes, encode_codes

# In front of the stream, for each line: its median, and the share in quarters.
_HEAD = struct.Struct("<hB")
_SHARES = range(5)


def encode_lines(lines: Sequence[NDArray[np.int16]]) -> bytes:
    """Return the stream of some lines of at least one number each."""
    if not lines:
        return b""
    heads, rests = [], []
    for line in lines:
        wide = line.astype(np.int64)
        base = int(np.sort(wide)[len(wide) // 2])
        rest, share = min(
            ((_without(wide - base, share), share) for share in _SHARES),
            key=lambda pair: _size(*pair),
        )
        heads.append(_HEAD.pack(base, share))
        rests.append(rest)
    whole = np.concatenate(rests)[:, None]
    return b"".join(heads) + encode_codes([whole], [_side(len(whole))])


def decode_lines(data: bytes, counts: Sequence[int]) -> list[NDArray[np.int16]]:
    """Return the lines that `encode_lines` was given, of this many numbers each.

    Raises UserError for a stream that was not made from such lines.
    """
    first = _HEAD.size * len(counts)
    if len(data) < first:
        raise UserError(DAMAGED)
    if not counts:
        if data:
            raise UserError(DAMAGED)
        return []
    [whole] = decode_codes(data[first:], [_side(sum(counts))])
    lines = []
    for i, rest in enumerate(np.split(whole[:, 0], np.cumsum(counts)[:-1])):
        base, share = _HEAD.unpack_from(data, i * _HEAD.size)
        if share not in _SHARES:
            raise UserError(DAMAGED)
        line = _with(rest.tolist(), base, share)
        if min(line) < -32_768 or max(line) > 32_767:
            raise UserError(DAMAGED)
        lines.append(np.array(line, np.int16))
    return lines


def _side(count: int) -> Side:
    return Side((count, 1), np.zeros(count, np.int64))


def _without(line: Ints, share: int) -> Ints:
    """Return each number less a share of the one before, in quarters, to the nearest."""
    before = np.concatenate([[0], line[:-1]])
    return np.asarray(line - ((share * before + 2) >> 2))


def _with(rest: list[int], base: int, share: int) -> list[int]:
    """Return the numbers that `_without` reduced to this, with their median."""
    line, before = [], 0
    for left in rest:
        before = left + ((share * before + 2) >> 2)
        # Only a damaged stream leaves the range; keep its numbers small.
        before = min(max(before, -(1 << 17)), 1 << 17)
        line.append(base + before)
    return line


def _size(rest: Ints, share: int) -> tuple[bool, float, int]:
    """Return the sort key of a share: whether the rest exceeds int16, its bits, the share
    itself."""
    magnitudes = np.abs(rest)
    # In whole numbers' bit lengths, which no library rounds.
    bits = sum(int(m).bit_length() for m in magnitudes * 16)
    return bool(magnitudes.max() > 32_767), bits, share
