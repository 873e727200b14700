"""Records audited in a process of their own, which is ended where one takes too much.

What was found until then stays, and that the audit did not come to its end is a finding. One
process reads many records, one after another; it starts in a fifth of a second.
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

# By the clock, for what waits instead of working: an honest record on a machine with twenty other
# tasks must not be ended.
MOST_WALL_S = 15 * serving.MOST_S
# What a process may say of one record.
_MOST_SAID_BYTES = 1 << 26


class Reader:
    """Audits records one after another, each within its bounds. Close it, or use it in a `with`.

    `cpu_s` is the processor time that the last one took.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self.cpu_s = 0.0

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process that reads."""
        if self._process is not None:
            if self._process.stdin:
                self._process.stdin.close()
            self._process.kill()
            end([self._process])
            if self._process.stdout:
                self._process.stdout.close()
        self._process = None

    def audit(self, path: Path) -> RecordAudit:
        """Return the audit of a record's folder, or of a log or script alone."""
        found: list[Finding] = []
        facts: dict[str, Any] = {}
        failure = self._asked(path, found, facts)
        if failure:
            found.append(Finding("warning", "not-audited", failure))
        return RecordAudit(path, ordered(found), facts)

    def _asked(self, path: Path, found: list[Finding], facts: dict[str, Any]) -> str:
        """Have a path read; return why it was not read to its end, or an empty text."""
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
            # It ended before it was asked, or in the middle of a word.
            pass
        self.cpu_s = serving.MOST_S
        late = time.monotonic() >= until_s
        why = _why(process, late, said)
        self.close()
        return why


def _started() -> "subprocess.Popen[bytes]":
    # Without a buffer, in which a word to a process that has ended would wait to fail.
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    return begin([], module=serving.__name__, bufsize=0, **pipes)


def _piece(handle: int, until_s: float) -> bytes:
    """Return what a process says next; nothing if it has ended, or the time has."""
    ready, _, _ = select.select([handle], [], [], max(0.0, until_s - time.monotonic()))
    return os.read(handle, 1 << 16) if ready else b""


def _why(process: "subprocess.Popen[bytes]", late: bool, said: int) -> str:
    """Return in words why a process did not finish a record."""
    if said > _MOST_SAID_BYTES:
        return f"it gives more than {_MOST_SAID_BYTES:,} bytes of findings"
    if late:
        return f"it could not be audited within {MOST_WALL_S:.0f} s"
    code = process.wait()
    if code == -signal.SIGPROF:
        return f"it could not be audited within {serving.MOST_S:.0f} s of processor time"
    return f"the process that audited it ended with code {code}"
