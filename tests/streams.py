"""Streams as a shell gives them to a command."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def piped(data: bytes) -> Iterator[Path]:
    """Yield the path of an open pipe with some bytes in it: what <(command) stands for."""
    number, end = os.pipe()

    def write() -> None:
        # A reader may stop at its limit.
        with suppress(BrokenPipeError), os.fdopen(end, "wb") as stream:
            stream.write(data)

    thread = threading.Thread(target=write)
    thread.start()
    yield Path(f"/dev/fd/{number}")
    os.close(number)
    thread.join(10)
