"""Rows of an array, divided among as many threads as torch uses, for compiled loops.

They are threads of Python and run in parallel, because compiled loops release the interpreter's
lock. A pool of numba or OpenMP would not survive a fork, and takes seconds of compilation for each
loop.
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import torch

# Pieces per thread: if another process delays a thread, the others take its pieces.
_PIECES = 4
# By process: a forked process does not have the threads of the pool.
_pools: dict[tuple[int, int], ThreadPoolExecutor] = {}


def in_pieces(rows: int, values: int, work: Callable[[int, int], object], least: int) -> None:
    """Call `work(first, end)` for pieces of all rows, in parallel if that pays.

    `values` is the size of all rows together; no piece has fewer than `least` of them. Which rows
    form a piece depends on the number of threads, so `work` must treat every row by itself.
    """
    threads = min(torch.get_num_threads(), values // least)
    if threads <= 1:
        work(0, rows)
        return
    count = min(rows, _PIECES * threads, values // least)
    # One iterator for all threads: `next` holds the interpreter's lock.
    pieces = iter([(rows * n // count, rows * (n + 1) // count) for n in range(count)])
    helpers = [_pool(threads - 1).submit(_drain, pieces, work) for _ in range(threads - 1)]
    try:
        _drain(pieces, work)
    finally:
        _finish(helpers)


def _pool(size: int) -> ThreadPoolExecutor:
    key = (os.getpid(), size)
    if key not in _pools:
        _pools[key] = ThreadPoolExecutor(size, thread_name_prefix="fairway-rows")
    return _pools[key]


def _drain(pieces: Iterator[tuple[int, int]], work: Callable[[int, int], object]) -> None:
    for first, end in pieces:
        work(first, end)


def _finish(helpers: list["Future[None]"]) -> None:
    """Wait for the threads that have begun; later ones find no work."""
    for helper in helpers:
        if not helper.cancel():
            helper.result()
