"""Recorded launches of a GPU: launching small kernels takes longer than running them."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch

from fairway.base.memory import untaken_bytes


def rounded_rows(rows: int, most: int) -> int:
    """Return the number of rows to compute: the next power of two, or three quarters of it.

    So a few recordings serve all numbers of rows.
    """
    power = 1 << (rows - 1).bit_length()
    return min(most, power * 3 // 4 if rows <= power * 3 // 4 else power)


@contextmanager
def recording(
    pool: Any = None, stream: Any = None, room_bytes: float = float("inf")
) -> Iterator[Any]:
    """Record the launches inside as a CUDA graph, which is yielded; they do not run.

    They are recorded on `stream`, or on a new one, with memory of `pool`. No garbage is collected
    meanwhile, because freeing memory of the device, as old graphs do, would end the recording. For
    the same reason memory that PyTorch keeps for later use is released before, unless the device
    has `room_bytes` free without it: PyTorch cannot release memory while it records, and afterwards
    it allocates all of it again. An error inside ends the recording.
    """
    if untaken_bytes(torch.device("cuda", torch.cuda.current_device())) < room_bytes:
        torch.cuda.empty_cache()
    stream = stream or torch.cuda.Stream()  # type: ignore[no-untyped-call]
    graph = torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    collecting = gc.isenabled()
    gc.disable()
    try:
        with torch.cuda.stream(stream):
            graph.capture_begin(pool=pool, capture_error_mode="thread_local")
            try:
                yield graph
            except BaseException:
                # An open recording would make all later work of the device fail.
                with suppress(RuntimeError):
                    graph.capture_end()
                raise
            graph.capture_end()
    finally:
        if collecting:
            gc.enable()
    torch.cuda.current_stream().wait_stream(stream)
