"""Audits records in a separate process, which is stopped if a record takes too much.

The findings so far are kept, and one more says that the audit was not finished. One process reads
many records in turn; it starts in a fifth of a second.
"""

import json
import os
import select
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from fairway.audit.findings import Finding, ordered
from fairway.audit.records import serving
from fairway.audit.records.audit import RecordAudit
from fairway.base.children import begin, end

# The limit of wall-clock time, for a process that waits. It is long, because an honest record must
# pass on a machine with twenty other tasks.
MOST_WALL_S = 15 * serving.MOST_S
# The limit of output for one record.
_MOST_SAID_BYTES = 1 << 26


class Reader:
    """Audits records in turn, each within its limits. Close it, or use it in a `with` block.

    `cpu_s` is the processor time of the last record.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self.cpu_s = 0.0

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the reading process."""
        if self._process is not None:
            if self._process.stdin:
                self._process.stdin.close()
            self._process.kill()
            end([self._process])
            if self._process.stdout:
                self._process.stdout.close()
        self._process = None

    def audit(self, path: Path) -> RecordAudit:
        """Return the audit of a record's folder, or of a single log or script."""
        found: list[Finding] = []
        facts: dict[str, Any] = {}
        failure = self._asked(path, found, facts)
        if failure:
            found.append(Finding("warning", "not-audited", failure))
        return RecordAudit(path, ordered(found), facts)

    def _asked(self, path: Path, found: list[Finding], facts: dict[str, Any]) -> str:
        """Send a path to the process; return why the audit was not finished, or an empty text."""
        process = self._process = self._process or _started()
        assert process.stdin and process.stdout
        until_s, rest, said = time.monotonic() + MOST_WALL_S, b"", 0
        try:
            process.stdin.write(json.dumps(os.fspath(path)).encode() + b"\n")
            while True:
                piece = _piece(process.stdout.fileno(), until_s)
                said += len(piece)
                if not piece or said > _MOST_SAID_BYTES:
                    break
                *lines, rest = (rest + piece).split(b"\n")
                for line in map(json.loads, lines):
                    if "facts" in line:
                        facts |= line["facts"]
                        self.cpu_s = line["cpu_s"]
                        return ""
                    found.append(Finding(**line["finding"]))
        except (BrokenPipeError, ValueError):
            # The process ended before the question, or in the middle of a line.
            pass
        self.cpu_s = serving.MOST_S
        late = time.monotonic() >= until_s
        why = _why(process, late, said)
        self.close()
        return why


def _started() -> "subprocess.Popen[bytes]":
    # No buffer: after the process has ended, a buffered question would fail only later.
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    return begin([], module=serving.__name__, bufsize=0, **pipes)


def _piece(handle: int, until_s: float) -> bytes:
    """Return the next output of a process; nothing if it has ended or the time is over."""
    ready, _, _ = select.select([handle], [], [], max(0.0, until_s - time.monotonic()))
    return os.read(handle, 1 << 16) if ready else b""


def _why(process: "subprocess.Popen[bytes]", late: bool, said: int) -> str:
    """Return the reason why a process did not finish a record."""
    if said > _MOST_SAID_BYTES:
        return f"it gives more than {_MOST_SAID_BYTES:,} bytes of findings"
    if late:
        return f"it could not be audited within {MOST_WALL_S:.0f} s"
    code = process.wait()
    if code == -signal.SIGPROF:
        return f"it could not be audited within {serving.MOST_S:.0f} s of processor time"
    return f"the process that audited it ended with code {code}"
