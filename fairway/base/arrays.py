"""The NumPy arrays that pass between modules."""

import mmap
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]
ByteArray = NDArray[np.uint8]
# A function that makes a table of a shape and a dtype.
Zeros = Callable[[Any, Any], NDArray[Any]]


def untouched(shape: int | tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """Return zeros whose pages take memory only when they are written to.

    `np.zeros` does not guarantee this: glibc clears memory that it has kept (`machine.plan` lets it
    keep all), and NumPy asks for pages of 2 MB. Those are faster if all of a table is used, but
    this function is for tables whose size a file claims. The memory returns to the system when the
    array is deleted. Raises MemoryError.
    """
    size_bytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    try:
        pages = mmap.mmap(-1, max(1, size_bytes), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError:
        raise MemoryError(f"no address space for {size_bytes} bytes") from None
    return np.frombuffer(pages, dtype, size_bytes // np.dtype(dtype).itemsize).reshape(shape)
