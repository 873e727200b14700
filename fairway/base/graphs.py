"""Launches of a GPU recorded once and replayed: launching small ones takes longer than they do."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch

from fairway.base.memory import untaken_bytes


@contextmanager
def recording(
    pool: Any = None, stream: Any = None, room_bytes: float = float("inf")
) -> Iterator[Any]:
    """Record what is launched inside as a CUDA graph, which is yielded; nothing of it runs.

    On a `stream`, a new one if it is not given, with memory of `pool`. No garbage is collected
    meanwhile: a recording ends when memory of the device is freed, as old graphs would. For the
    same reason memory that PyTorch keeps for later use is given back before, unless the device has
    `room_bytes` beside it: while PyTorch records, it cannot do so, and afterwards it takes all of
    it anew. An error inside ends the recording.
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
                # Left open, it would refuse everything that the device is asked for later.
                with suppress(RuntimeError):
                    graph.capture_end()
                raise
            graph.capture_end()
    finally:
        if collecting:
            gc.enable()
    torch.cuda.current_stream().wait_stream(stream)
