"""Runs as separate processes, several side by side: their start, resumption and end.

One that fails takes none with it. What it says goes into a log; none outlives this process.
"""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from fairway.base import children
from fairway.base.errors import UserError
from fairway.base.names import CHECKPOINT
from fairway.pipeline.folder import locked

_LOOK_S = 0.1
# A process that was left alone saves its state and ends within this time.
_WAIT_S = 60.0
# The end of a log that may hold a last word.
_LAST_BYTES = 1 << 16
_GPUS = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True, slots=True)
class Job:
    """A command of Fairway that makes a run in a folder; its log and its number of processes."""

    name: str
    words: tuple[str, ...]
    folder: Path
    log: Path
    processes: int = 1

    def command(self) -> list[str]:
        """Return the words behind `fairway`: those that go on with a run that was left."""
        # An earlier call that was killed may have left a process that saves its state now.
        with locked(self.folder, wait_s=_WAIT_S):
            pass
        return [*self.words, *(["--resume"] if (self.folder / CHECKPOINT).exists() else [])]


class Running(Protocol):
    """A job that was begun."""

    def reason(self) -> str | None:
        """Return what it failed of, nothing if it did its work, None as long as it runs."""


class Place(Protocol):
    """Where jobs run: a host, or a cluster."""

    slots: int

    def begin(self, job: Job, slot: int) -> Running:
        """Start a job in one of the slots."""

    def end(self, running: Iterable[Running]) -> None:
        """End jobs, gently if that is possible, and return when they have."""


def run_jobs(
    following: Callable[[], Job | None],
    ended: Callable[[Job, str], None],
    place: Place,
    until_s: float = float("inf"),
) -> None:
    """Run the jobs that `following` names one by one, as many at once as the place has slots.

    None from it means that none can begin before one ends. `ended` is told what each failed of, or
    nothing. At the time `until_s` (`time.monotonic`) those that still run are ended.
    """
    running: dict[int, tuple[Job, Running]] = {}
    try:
        while time.monotonic() < until_s:
            for slot in range(place.slots):
                if slot not in running and (job := following()):
                    running[slot] = job, place.begin(job, slot)
            if not running:
                return
            for slot, (job, one) in list(running.items()):
                if (reason := one.reason()) is not None:
                    del running[slot]
                    ended(job, reason)
            time.sleep(_LOOK_S)
    finally:
        place.end(one for _, one in running.values())


def gpus_of_slots(slots: int, processes: int = 1) -> list[str | None]:
    """Return the GPUs of every slot as CUDA names them, those that this process may use in order.

    Raises UserError for fewer GPUs than slots and processes ask for, where their number is told.
    """
    named = os.environ.get(_GPUS)
    count = slots * processes
    gpus = [gpu.strip() for gpu in named.split(",")] if named else list(map(str, range(count)))
    if len(gpus) < count:
        raise UserError(
            f"{slots} runs side by side with {processes} GPUs each need {count}, but "
            f"{_GPUS} is {named}; lower --at-once"
        )
    return [",".join(gpus[at : at + processes]) for at in range(0, count, processes)]


class Host:
    """This host: a slot for every set of GPUs that is named, or None for what there is."""

    def __init__(self, gpus: Sequence[str | None]) -> None:
        self.gpus, self.slots = list(gpus), len(gpus)

    def begin(self, job: Job, slot: int) -> Running:
        """Start a job as a child of this process."""
        gpus = self.gpus[slot]
        env = {} if gpus is None else {_GPUS: gpus}
        words = job.command()
        with job.log.open("ab") as log:
            start = log.tell()
            process = children.begin(
                words, job.processes, stdout=log, stderr=subprocess.STDOUT, env=env
            )
        return _Child(job, process, start)

    def end(self, running: Iterable[Running]) -> None:
        """Interrupt the children, so that they save their state."""
        children.end(one.process for one in running if isinstance(one, _Child))


@dataclass(frozen=True, slots=True, eq=False)
class _Child:
    """A job's process, and how long its log was before."""

    job: Job
    process: "subprocess.Popen[bytes]"
    log_bytes: int

    def reason(self) -> str | None:
        """Return its own last word if it failed, nothing if not, None as long as it runs."""
        code = self.process.poll()
        if code is None:
            return None
        assert self.process.stdin is not None
        self.process.stdin.close()
        return last_word(self.job.log, self.log_bytes, code) if code else ""


def last_word(log: Path, start: int, code: int) -> str:
    """Return what a process failed of, by the part of its log behind `start` bytes."""
    with log.open("rb") as stream:
        stream.seek(max(start, stream.seek(0, os.SEEK_END) - _LAST_BYTES))
        lines = stream.read().decode(errors="replace").strip().splitlines()
    own = [line for line in lines if line.startswith("fairway: ")]
    if own:
        return own[-1]
    if code < 0:
        return f"killed by signal {-code} ({signal.Signals(-code).name})"
    return lines[-1] if lines else f"exit code {code}"
