"""Orders of columns as bytes: the number of a permutation among all, one copy of equal ones.

A permutation of C things is one of C!, so its number takes log2(C!) bits: 485 bytes for 512
columns, 2,447 for 2,048. Matrices that read the same input share an order.
"""

import functools
import math
import struct
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fairway.base.errors import UserError

Order = NDArray[np.int32]
_DAMAGED = "the column orders are damaged; copy the file again"


@functools.cache
def rank_bytes(columns: int) -> int:
    """Return the bytes of one order of so many columns."""
    return ((math.factorial(columns) - 1).bit_length() + 7) // 8


def rank(order: Sequence[int]) -> int:
    """Return the number of a permutation in the order of the dictionary (Lehmer's code)."""
    left = list(range(len(order)))
    found = 0
    for column in order:
        at = left.index(column)
        found = found * len(left) + at
        del left[at]
    return found


def unrank(number: int, columns: int) -> list[int]:
    """Return the permutation of a number below `columns` factorial."""
    places = []
    for size in range(1, columns + 1):
        number, at = divmod(number, size)
        places.append(at)
    left = list(range(columns))
    return [left.pop(at) for at in reversed(places)]


def pack_orders(orders: Sequence[Order | None]) -> bytes:
    """Return the orders of some matrices: which distinct one each has, uint16 from 1, 0 for none;
    then the distinct ones as big-endian numbers."""
    distinct: dict[bytes, int] = {}
    which, numbers = [], []
    for order in orders:
        if order is None:
            which.append(0)
            continue
        key = order.tobytes()
        if key not in distinct:
            distinct[key] = len(distinct) + 1
            numbers.append(rank(order.tolist()).to_bytes(rank_bytes(len(order)), "big"))
        which.append(distinct[key])
    return struct.pack(f"<{len(which)}H", *which) + b"".join(numbers)


def most_bytes(columns: Sequence[int]) -> int:
    """Return the most bytes that orders of matrices with so many columns can take."""
    return sum(2 + rank_bytes(count) for count in columns)


def unpack_orders(data: bytes, columns: Sequence[int]) -> list[Order | None]:
    """Return the orders of matrices with so many columns; UserError if the bytes hold no such."""
    if len(data) < 2 * len(columns):
        raise UserError(_DAMAGED)
    which = struct.unpack_from(f"<{len(columns)}H", data)
    at = 2 * len(columns)
    distinct: list[Order] = []
    found: list[Order | None] = []
    for index, count in zip(which, columns, strict=True):
        if index == len(distinct) + 1:
            number = int.from_bytes(data[at : at + rank_bytes(count)], "big")
            at += rank_bytes(count)
            if number >= math.factorial(count):
                raise UserError(_DAMAGED)
            distinct.append(np.array(unrank(number, count), np.int32))
        if index > len(distinct) or (index and len(distinct[index - 1]) != count):
            raise UserError(_DAMAGED)
        found.append(distinct[index - 1] if index else None)
    if at != len(data):
        raise UserError(_DAMAGED)
    return found
