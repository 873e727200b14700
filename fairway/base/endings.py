"""The standard streams of a command, and its end by signals or by readers that leave."""

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

# Set for a process that must end with the one that started it: see `fairway.base.children`.
HELD = "FAIRWAY_HELD"
_GONE = (errno.EPIPE, errno.ECONNRESET, errno.ESHUTDOWN)


def interrupt_by_signals() -> None:
    """Let a signal to end have the effect of Ctrl-C: the process cleans up and saves its state.

    A closed terminal (SIGHUP) counts too, unless the process was started to survive it, as by
    nohup.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    for closed in _closed_terminal():
        signal.signal(closed, signal.default_int_handler)


def _closed_terminal() -> list[signal.Signals]:
    """Return the signal of a closed terminal, or None if nohup disabled it or there is none."""
    found = getattr(signal, "SIGHUP", None)
    return [] if found is None or signal.getsignal(found) is signal.SIG_IGN else [found]


@contextmanager
def stop_requested() -> Iterator[threading.Event]:
    """Yield an event that a signal to end sets, so that a step is always completed."""
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
    """Standard output or errors; text is dropped after the reader has closed it.

    `error` is the first failure that has another reason than a closed reader or terminal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number, "wb", closefd=False)
        self.is_terminal = stat.S_ISCHR(os.fstat(number).st_mode)
        self.error: OSError | None = None

    def write(self, data: Any, /) -> int:
        """Write a text, or drop it if the reader has closed."""
        try:
            return super().write(data) or 0
        except OSError as error:
            if not (error.errno in _GONE or (error.errno == errno.EIO and self.is_terminal)):
                self.error = error
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self.fileno())
        os.close(null)
        return memoryview(data).nbytes


def open_missing_streams() -> None:
    """Lead the standard streams that the shell closed (`>&-`) nowhere.

    Otherwise the next opened file would get the number of standard output, and libraries would
    print into it.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            # The lowest free number.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
        if getattr(sys, name) is None:
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115


def outlive_readers() -> None:
    """Continue without output if the reader of standard output or errors closes (`| head`)."""
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
    """Return why standard output could not be written, or nothing; a closed reader is no reason."""
    sys.stdout.flush()
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    error = raw.error if isinstance(raw, _Patient) else None
    told = "".join(why_unwritten(error)) if error else ""
    return f"standard output could not be written: {told}" if error else ""


def why_unwritten(error: OSError) -> tuple[str, str]:
    """Return why a file could not be written, and the remedy, which may be empty."""
    again = "and run the same command again"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full", f"; free some space {again}"
    if error.errno == errno.EFBIG:
        told = "the file would be larger than this process may write"
        return told, f"; raise the limit (ulimit -f) {again}"
    remedy = "; name another place with --out" if error.errno == errno.EROFS else ""
    return error.strerror or str(error), remedy


def end_with_parent() -> None:
    """If this process must end with its parent, interrupt it when the parent has ended in any way.

    The other end of its standard input is then closed.
    """
    if os.environ.pop(HELD, None):
        threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
