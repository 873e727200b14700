"""A foreign program that answers lines of JSON with lines of JSON, within limits.

It runs in its own session. When the conversation ends, it is stopped with all processes that it has
started (`processes`). It may write only answers, each line has a maximum length, and its time is
limited. Every wait here has a limit: for a line, for a program that reads nothing, and for its end.
"""

import json
import os
import secrets
import select
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from fairway.audit.scorers.processes import MARK, end_all, keeper_of_orphans
from fairway.base.errors import UserError, shown
from fairway.base.terminal import sentence

_PIECE_BYTES = 1 << 16
_END_S = 2.0
# How long to wait for the end of a program that has closed its output.
_LAST_S = 0.5


class Pipe:
    """A running program; `answer_s` is the time for one answer, `total_s` the time for all.

    Error texts call it by its `name`, or else by the first word of its command."""

    def __init__(
        self, command: Sequence[str], answer_s: float, total_s: float, name: str = ""
    ) -> None:
        self.name = name or command[0]
        self._answer_s, self._total_s, self._used_s = answer_s, total_s, 0.0
        self._unread = b""
        self._mark = secrets.token_hex(16)
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,
                start_new_session=True,
                env={**os.environ, MARK: self._mark},
                preexec_fn=keeper_of_orphans(),
            )
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise UserError(f"cannot start {self.name}: {reason}") from None
        assert self._process.stdin is not None and self._process.stdout is not None
        self._to, self._from = self._process.stdin, self._process.stdout
        os.set_blocking(self._to.fileno(), False)
        os.set_blocking(self._from.fileno(), False)

    def close(self) -> None:
        """End the program and all processes it has started; later output is ignored."""
        end_all(self._process.pid, self._mark, self._process.returncode is None)
        for stream in (self._to, self._from):
            with suppress(OSError):
                stream.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_S)

    def ask(self, question: dict[str, Any], most_bytes: int) -> dict[str, Any]:
        """Return the answer to a question, a line of at most this many bytes."""
        if not self._unread and self._ready(self._from, 0.0):
            self._unread = self._piece()
        if self._unread:
            raise UserError(
                f"{self.name} wrote {shown(self._text())} without a question; it must write one "
                "line for every line it reads, and everything else to standard error"
            )
        start_s = time.monotonic()
        self._send(json.dumps(question).encode() + b"\n", start_s)
        return self.answer(most_bytes, start_s)

    def answer(self, most_bytes: int, start_s: float | None = None) -> dict[str, Any]:
        """Return the JSON object of the next line."""
        start_s = time.monotonic() if start_s is None else start_s
        while b"\n" not in self._unread:
            if len(self._unread) > most_bytes:
                raise UserError(
                    f"{self.name} wrote a line of more than {most_bytes:,} bytes, more than any "
                    "answer needs"
                )
            self._wait(self._from, start_s)
            self._unread += self._piece()
        self._used_s += time.monotonic() - start_s
        line, _, self._unread = self._unread.partition(b"\n")
        return self._parsed(line)

    def _parsed(self, line: bytes) -> dict[str, Any]:
        try:
            # Costs may be infinite, but not NaN.
            found = json.loads(line, parse_constant=_constant)
        except _NoNumber:
            raise UserError(
                f"{self.name} wrote NaN, which is not a number; a cost is a number of nats, or "
                "Infinity for a token that cannot come"
            ) from None
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            text = line.decode("utf-8", "replace").strip()
            raise UserError(
                f"{self.name} wrote {shown(text)}, which is not a JSON object of numbers"
            )
        if "error" in found:
            raise UserError(f"{self.name} cannot answer: {sentence(str(found['error']))}")
        return found

    def _send(self, data: bytes, start_s: float) -> None:
        while data:
            self._wait(self._to, start_s)
            try:
                data = data[self._to.write(data) or 0 :]
            except OSError:
                raise UserError(f"{self.name} {self._ending()}; nothing can be asked") from None

    def _piece(self) -> bytes:
        """Return the available output; UserError if the output is closed."""
        data = self._from.read(_PIECE_BYTES)
        if not data:
            raise UserError(f"{self.name} {self._ending()} and gave no answer")
        return data

    def _ending(self) -> str:
        with suppress(subprocess.TimeoutExpired):
            return f"has ended with exit code {self._process.wait(_LAST_S)}"
        return "has closed its output"

    def _text(self) -> str:
        return self._unread[:100].decode("utf-8", "replace").strip()

    def _wait(self, stream: Any, start_s: float) -> None:
        """Wait until a stream is ready; UserError after the time limit."""
        taken_s = time.monotonic() - start_s
        left_s = min(self._answer_s - taken_s, self._total_s - self._used_s - taken_s)
        if left_s > 0 and self._ready(stream, left_s):
            return
        if self._used_s + self._answer_s > self._total_s:
            raise UserError(
                f"{self.name} took {self._total_s:g} s, three times the budget, and answered "
                "only a part of the minimum of questions; raise --budget"
            )
        raise UserError(
            f"{self.name} gave no answer within {self._answer_s:g} s; it must write the first "
            "line, flush every line, and read one question after another, or raise --budget"
        )

    def _ready(self, stream: Any, seconds: float) -> bool:
        reads, writes = ([stream], []) if stream is self._from else ([], [stream])
        return any(select.select(reads, writes, [], seconds)[:2])


class _NoNumber(ValueError):  # noqa: N818 - it becomes a sentence
    """NaN in the place of a number."""


def _constant(name: str) -> float:
    if name == "NaN":
        raise _NoNumber(name)
    return float(name)
