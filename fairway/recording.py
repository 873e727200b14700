"""Launches of a GPU recorded once and replayed: launching small ones takes longer than they do."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def recording(pool: Any = None, stream: Any = None) -> Iterator[Any]:
    """Record what is launched inside as a CUDA graph, which is yielded; nothing of it runs.

    On a `stream`, a new one if it is not given, with memory of `pool`. No garbage is collected
    meanwhile: a recording ends when memory of the device is freed, as old graphs would.
    """
    stream = stream or torch.cuda.Stream()  # type: ignore[no-untyped-call]
    graph = torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    collecting = gc.isenabled()
    gc.disable()
    try:
        with torch.cuda.stream(stream):
            graph.capture_begin(pool=pool, capture_error_mode="thread_local")
            yield graph
            graph.capture_end()
    finally:
        if collecting:
            gc.enable()
    torch.cuda.current_stream().wait_stream(stream)
