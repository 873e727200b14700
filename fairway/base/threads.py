"""Rows of an array divided among the threads that torch uses, for compiled loops.

The threads are Python's: they run while the loops, which release the interpreter's lock, do. A pool
of numba's or OpenMP's own would not survive a fork, and costs seconds of compiling for each loop.
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import torch

# Pieces per thread: a thread that another process keeps from its core leaves them to the others.
_PIECES = 4
# By process: the threads of a pool are not there in a forked one.
_pools: dict[tuple[int, int], ThreadPoolExecutor] = {}


def in_pieces(rows: int, values: int, work: Callable[[int, int], object], least: int) -> None:
    """Call `work(first, end)` for pieces that make up all rows, side by side where that pays.

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
    """Wait for those that have begun; one that has not finds nothing to do any more."""
    for helper in helpers:
        if not helper.cancel():
            helper.result()
