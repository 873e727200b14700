"""Runs as separate processes, several at the same time: their start, resumption and end.

A failed run does not stop the others. Its output goes to a log. No run outlives this process.
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
from fairway.base.cores import usable_cores
from fairway.base.errors import UserError
from fairway.base.names import CHECKPOINT
from fairway.pipeline.folder import locked

_LOOK_S = 0.1
# An interrupted process saves its state and ends within this time.
_WAIT_S = 60.0
# The part at the end of a log that is searched for the last message.
_LAST_BYTES = 1 << 16
_GPUS = "CUDA_VISIBLE_DEVICES"
_THREADS = "OMP_NUM_THREADS"


@dataclass(frozen=True, slots=True)
class Job:
    """A Fairway command that makes a run in a folder, its log and its number of processes."""

    name: str
    words: tuple[str, ...]
    folder: Path
    log: Path
    processes: int = 1

    def command(self) -> list[str]:
        """Return the arguments of `fairway`; for an unfinished run, those that continue it."""
        # A process of an earlier, killed call may still be saving its state.
        with locked(self.folder, wait_s=_WAIT_S):
            pass
        return [*self.words, *(["--resume"] if (self.folder / CHECKPOINT).exists() else [])]


class Running(Protocol):
    """A started job."""

    def reason(self) -> str | None:
        """Return the reason of its failure, '' after success, None while it runs."""


class Place(Protocol):
    """The place where jobs run: a host, or a cluster.

    `cards` names the GPU of each slot; it is empty if slots have none or are not known.
    """

    slots: int
    cards: Sequence[str]

    def begin(self, job: Job, slot: int) -> Running:
        """Start a job in a slot."""

    def end(self, running: Iterable[Running]) -> None:
        """Stop jobs, by an interrupt if possible, and return when they have ended."""


def run_jobs(
    following: Callable[[int], Job | None],
    ended: Callable[[Job, str], None],
    place: Place,
    until_s: float = float("inf"),
) -> None:
    """Run the jobs that `following` returns for free slots, at most as many at once as the place
    has slots.

    None from `following` means that no job can start in this slot before another ends. `ended`
    receives the reason of failure of each job, or ''. At the time `until_s` (`time.monotonic`)
    running jobs are stopped.
    """
    running: dict[int, tuple[Job, Running]] = {}
    try:
        while time.monotonic() < until_s:
            for slot in range(place.slots):
                if slot not in running and (job := following(slot)):
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
    """Return the GPUs of each slot by CUDA's names, in the order in which this process may use
    them.

    Raises UserError if CUDA_VISIBLE_DEVICES names fewer GPUs than slots times processes.
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


def host_of(slots: int, processes: int, gpus: int, cards: Sequence[str] = ()) -> "Host":
    """Return the slots of this host, of which torch sees a number of GPUs; without any, CPU slots.

    A single run gets all GPUs that this process sees. Raises UserError if the GPUs do not suffice.
    """
    if slots == 1 or not gpus:
        return Host([None] * slots)
    if slots * processes > gpus:
        each = f" with {processes} GPUs each" if processes > 1 else ""
        raise UserError(f"--at-once is {slots}{each}, but torch sees {gpus} GPUs; lower it")
    return Host(gpus_of_slots(slots, processes), cards)


class Host:
    """This host: one slot for each given set of GPUs; None uses the visible ones.

    `cards` are the GPUs of the slots by names that no other GPU has.
    """

    def __init__(self, gpus: Sequence[str | None], cards: Sequence[str] = ()) -> None:
        self.gpus, self.slots, self.cards = list(gpus), len(gpus), cards

    def begin(self, job: Job, slot: int) -> Running:
        """Start a job as a child of this process."""
        gpus = self.gpus[slot]
        env = self._threads(job) | ({} if gpus is None else {_GPUS: gpus})
        words = job.command()
        with job.log.open("ab") as log:
            start = log.tell()
            process = children.begin(
                words, job.processes, stdout=log, stderr=subprocess.STDOUT, env=env
            )
        return _Child(job, process, start)

    def _threads(self, job: Job) -> dict[str, str]:
        """Return the setting that divides the cores among jobs, unless the user has set it.

        Each process would start a thread for every core. On 64 cores, four of them scored the same
        text in 40 to 75 s instead of 3 s, and their GPUs waited (2026-11-27).
        """
        if self.slots == 1 or _THREADS in os.environ:
            return {}
        return {_THREADS: str(max(1, usable_cores() // (self.slots * job.processes)))}

    def end(self, running: Iterable[Running]) -> None:
        """Interrupt the child processes, so that they save their state."""
        children.end(one.process for one in running if isinstance(one, _Child))


@dataclass(frozen=True, slots=True, eq=False)
class _Child:
    """The process of a job, and the length of its log before the start."""

    job: Job
    process: "subprocess.Popen[bytes]"
    log_bytes: int

    def reason(self) -> str | None:
        """Return its last message if it failed, '' after success, None while it runs."""
        code = self.process.poll()
        if code is None:
            return None
        assert self.process.stdin is not None
        self.process.stdin.close()
        return last_word(self.job.log, self.log_bytes, code) if code else ""


def last_word(log: Path, start: int, code: int) -> str:
    """Return the reason of a process's failure, from the part of its log after `start` bytes."""
    with log.open("rb") as stream:
        stream.seek(max(start, stream.seek(0, os.SEEK_END) - _LAST_BYTES))
        lines = stream.read().decode(errors="replace").strip().splitlines()
    own = [line for line in lines if line.startswith("fairway: ")]
    if own:
        return own[-1]
    if code < 0:
        # Signals of real time have no name.
        named = {int(one): f" ({one.name})" for one in signal.Signals}
        return f"killed by signal {-code}{named.get(-code, '')}"
    return lines[-1] if lines else f"exit code {code}"
