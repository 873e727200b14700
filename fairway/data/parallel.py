"""Applies a pure function to many items in several processes, in order, with a progress bar."""

import multiprocessing
import os
import sys
import threading
import types
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TypeVar

from fairway.base.cores import usable_cores
from fairway.base.errors import UserError
from fairway.base.progress import progress

Item = TypeVar("Item")
Result = TypeVar("Result")
_MAX_PROCESSES = 16


def processes() -> int:
    """Return how many processes this machine can run at once."""
    return min(usable_cores(), _MAX_PROCESSES)


def map_parallel(
    function: Callable[[Item], Result], items: Sequence[Item], description: str, chunk: int = 1
) -> Iterator[Result]:
    """Yield function(item) for every item, in order, with any number of processes.

    `function` must be at module level. Work of a single chunk stays in this process, because
    starting another one takes about half a second. Processes are spawned: forking a process whose
    libraries have threads can hang. Raises UserError if a process is killed.
    """
    workers = min(processes(), -(-len(items) // chunk))
    with progress(description, len(items)) as advance:
        if workers < 2:
            for item in items:
                yield function(item)
                advance(1)
            return
        spawn = multiprocessing.get_context("spawn")
        # Creating a pool's locks also starts a process.
        with _modules_of_this_process():
            pool = ProcessPoolExecutor(workers, spawn, initializer=_end_with_parent)
        try:
            with _modules_of_this_process():
                results = pool.map(function, items, chunksize=chunk)
            for result in results:
                yield result
                advance(1)
        except BrokenProcessPool:
            raise UserError(
                f"a process that helped with '{description}' was killed, perhaps because memory "
                "ran out; free some memory and run the same command again"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


@contextmanager
def _modules_of_this_process() -> Iterator[None]:
    """Prevent processes started here from importing modules from their working folder, and from
    executing the caller's script, which would start again without `if __name__ == "__main__"`."""
    before, script = os.environ.get("PYTHONSAFEPATH"), sys.modules["__main__"]
    os.environ["PYTHONSAFEPATH"] = "1"
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = script
        del os.environ["PYTHONSAFEPATH"]
        if before is not None:
            os.environ["PYTHONSAFEPATH"] = before


def _end_with_parent() -> None:
    """End this worker when its parent process is killed; it would wait for ever."""
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
