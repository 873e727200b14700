"""The ends of a command: signals, and readers of its output that go away."""

import errno
import io
import os
import signal
import stat
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# Set for a process that shall end with the one that started it: see `fairway.base.children`.
HELD = "FAIRWAY_HELD"
_GONE = (errno.EPIPE, errno.ECONNRESET, errno.ESHUTDOWN)


def interrupt_by_signals() -> None:
    """Let whoever ends this process by a signal end it as Ctrl-C does: cleaned up, and saved.

    A closed terminal (SIGHUP) counts, unless the process was started to outlive it, as by nohup.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    for closed in _closed_terminal():
        signal.signal(closed, signal.default_int_handler)


def _closed_terminal() -> list[signal.Signals]:
    """Return the signal of a closed terminal, unless nohup asked to outlive it or there is none."""
    found = getattr(signal, "SIGHUP", None)
    return [] if found is None or signal.getsignal(found) is signal.SIG_IGN else [found]


@contextmanager
def stop_requested() -> Iterator[threading.Event]:
    """Yield an event that a signal to end sets, so that a step is never cut in half."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    numbers = [signal.SIGINT, signal.SIGTERM, *_closed_terminal()]
    before = {number: signal.signal(number, lambda *_: event.set()) for number in numbers}
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Patient(io.FileIO):
    """Standard output or errors: once nobody takes what is written, it is dropped.

    `error` is the first failure that is more than a reader or a terminal that went away.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number, "wb", closefd=False)
        self.is_terminal = stat.S_ISCHR(os.fstat(number).st_mode)
        self.error: OSError | None = None

    def write(self, data: Any, /) -> int:
        """Write, or drop what nobody takes."""
        try:
            return super().write(data) or 0
        except OSError as error:
            if not (error.errno in _GONE or (error.errno == errno.EIO and self.is_terminal)):
                self.error = error
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self.fileno())
        os.close(null)
        return memoryview(data).nbytes


def outlive_readers() -> None:
    """Go on in silence when the reader of standard output or errors has gone (`| head`)."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, io.TextIOWrapper):
            continue
        try:
            raw = _Patient(stream.fileno())
        except (OSError, ValueError):
            continue
        stream.flush()
        patient = io.TextIOWrapper(
            io.BufferedWriter(raw),
            encoding=stream.encoding,
            errors=stream.errors,
            line_buffering=stream.line_buffering,
        )
        setattr(sys, name, patient)


def unwritten() -> str:
    """Return why standard output could not be written, or nothing; a reader that left is no
    reason."""
    sys.stdout.flush()
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    error = raw.error if isinstance(raw, _Patient) else None
    return f"standard output could not be written: {error.strerror}" if error else ""


def end_with_parent() -> None:
    """If this process is held, interrupt it once the one that started it is gone, however that
    ended: nobody holds the other end of its standard input then."""
    if os.environ.pop(HELD, None):
        threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
