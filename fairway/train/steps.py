"""Step records: one JSON line per optimiser step, and the line that shows a run's progress."""

import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from fairway.base import units
from fairway.base.errors import UserError
from fairway.base.files import digest_bytes, parse_json, read_bytes, write_atomic
from fairway.base.progress import Advance
from fairway.config.settings import Config

STEPS = "steps.jsonl"
# A record takes 250 bytes, so this is a million steps.
_MOST_STEPS_BYTES = 1 << 28
# Seconds between two updates of the step line: as fast as people can read.
_LOG_EVERY_S = 2.0
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One line of steps.jsonl: the state and the result of a step."""

    step: int
    progress: float
    progress_after: float
    seconds: float
    loss: float
    lr: float
    tokens: int
    tokens_per_s: float
    grad_norm: float
    looping: bool


# A watcher of a training: it gets the training and each record, and returns the seconds it took.
Beside = Callable[[Any, StepRecord], float]


def nobody(training: Any, record: StepRecord) -> float:
    """Watch nothing."""
    return 0.0


def read_steps(path: Path) -> list[dict[str, Any]]:
    """Return the step records of a run folder's steps.jsonl, in order."""
    lines = read_bytes(path, _MOST_STEPS_BYTES).splitlines()
    try:
        return [parse_json(line) for line in lines]
    except ValueError as error:
        raise UserError(f"{path} cannot be read as step records ({error})") from None


def cut_steps(path: Path, count: int, digest: str) -> None:
    """Keep the first `count` records, whose digest is known. After a crash the file may have more
    records, and a part of one."""
    data = read_bytes(path, _MOST_STEPS_BYTES) if path.exists() else b""
    lines = data.splitlines(keepends=True)
    kept = b"".join(lines[:count])
    if digest_bytes(kept) != digest:
        raise UserError(
            f"{path} is damaged: its first {count} step records do not match the checkpoint; "
            "begin again with --restart"
        )
    write_atomic(path, kept)


def recorded_progress(run: Path) -> list[float]:
    """Return the progress before each step of a recorded run, and after its last one."""
    records = read_steps(run / STEPS)
    try:
        return [r["progress"] for r in records] + [records[-1]["progress_after"]]
    except (IndexError, KeyError, TypeError):
        raise UserError(f"{run / STEPS} holds no step records to replay") from None


class StepLine:
    """The line that shows a run's progress: at most 80 columns, with the time left."""

    def __init__(
        self,
        config: Config,
        bytes_per_token: float,
        estimate_bytes: Callable[[], int],
        say: Say,
    ) -> None:
        self.config, self.bytes_per_token = config, bytes_per_token
        self.estimate_bytes, self.say = estimate_bytes, say
        self.smooth_loss: float | None = None
        self.shown_s = -math.inf
        # Steps, tokens and seconds at the last lasting line. On a GPU, times of single steps are
        # not meaningful, because the host sees them end only when it checks.
        self.since = 0, 0, 0.0
        self.size_bytes = 0
        self.printed = -1
        self.permille = 0

    def lasting(self, progress: float) -> bool:
        """Return whether the next line, at this progress, stays on the screen."""
        return int(progress * 10) != self.printed

    def show(self, record: StepRecord, advance: Advance) -> None:
        """Update the bar; print a lasting line at every tenth of the run."""
        mean = record.loss if self.smooth_loss is None else self.smooth_loss
        self.smooth_loss = mean + 0.1 * (record.loss - mean)
        tenth, permille = int(record.progress_after * 10), int(record.progress_after * 1000)
        now_s = time.perf_counter()
        lasting = self.lasting(record.progress_after)
        if not lasting and now_s - self.shown_s < _LOG_EVERY_S:
            return
        self.shown_s = now_s
        if lasting:
            # Measuring the size of weights waits for the device, so it is done ten times a run.
            self.size_bytes = self.estimate_bytes()
        text = self.text(record)
        # The bar itself shows the share and the time left.
        advance(permille - self.permille, f"step {record.step + 1} loss {self.smooth_loss:.4f}")
        self.permille = permille
        if lasting:
            self.printed = tenth
            self.since = record.step + 1, record.tokens, record.seconds
            self.say(text)

    def text(self, record: StepRecord) -> str:
        """Return the step line; `bpb~` uses the training text's bytes per token.

        Time and pace are means since the last lasting line. The size is the estimate for artifact
        and code.
        """
        assert self.smooth_loss is not None
        bpb = units.nats_to_bits(self.smooth_loss) / self.bytes_per_token
        steps, tokens, seconds = self.since
        passed_s = max(record.seconds - seconds, 1e-9)
        batch_ms = 1000.0 * passed_s / (record.step + 1 - steps)
        pace = _pace((record.tokens - tokens) / passed_s)
        done = record.progress_after
        left_s = record.seconds * (1.0 - done) / max(done, 1e-9)
        return (
            f"step {record.step + 1:05d} {done:4.0%} loss {self.smooth_loss:6.4f} bpb~{bpb:6.4f}"
            f" {_step_time(batch_ms)} {pace} {_clock(left_s)} left {self.size_bytes / 1e6:5.2f} MB"
        )


def _step_time(milliseconds: float) -> str:
    seconds = milliseconds >= 99_999.5
    return f"{milliseconds / 1e3:6.0f} s" if seconds else f"{milliseconds:5.0f} ms"


def _pace(tokens_per_s: float) -> str:
    kilo = tokens_per_s / 1e3
    return f"{kilo:5.1f} ktok/s" if kilo < 999.95 else f"{kilo / 1e3:5.2f} Mtok/s"


def _clock(seconds: float) -> str:
    """Return a duration in four characters or a few more: 0:08, 9:59, 1h05."""
    minutes, rest_s = divmod(round(seconds), 60)
    return f"{minutes}:{rest_s:02d}" if minutes < 100 else f"{minutes // 60}h{minutes % 60:02d}"


class StepLog:
    """Writes a run's records to its file and its step line; only the first rank does."""

    def __init__(self, file: TextIO, line: StepLine, advance: Advance, active: bool) -> None:
        self.file, self.line, self.advance, self.active = file, line, advance, active

    def lasting(self, progress: float) -> bool:
        """Return whether the record at this progress will cause a read of the weights."""
        return self.active and self.line.lasting(progress)

    def write(self, record: StepRecord) -> None:
        """Write a record and show it."""
        if self.active:
            self.file.write(json.dumps(asdict(record)) + "\n")
            self.line.show(record, self.advance)

    def keep(self) -> None:
        """Return after all records are on disk."""
        self.file.flush()
        os.fsync(self.file.fileno())
