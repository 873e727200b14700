"""A campaign over one format: inputs are read in a process that can be watched and ended.

Compiled loops hear no signals, so the reader is a child. The parent looks at its processor time and
ends it after `MOST_S` for one input; another child goes on with the next. Processor time counts
because the machine may be shared; what sleeps ends after ten times as long, the time not counted
in which it could have run and others did.

Memory is bounded twice: the child's address space by what it has before an input and what the
format allows for the input's size, and the growth of its resident memory is measured.
"""

import json
import mmap
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fairway.base.errors import UserError

from . import MOST_S, Case, Change, Files, Format, most_bytes

# Seconds by the clock for each that is allowed.
_MOST_WALL_S = 10.0
_LOOK_S = 0.1
# Threads of a library map stacks and arenas at their first use, however small the input.
_SLACK_BYTES = 256_000_000
# A refusal names a value, and no value is a page.
_LONGEST_SENTENCE = 1_000
# A format with so many failures is looked at first.
_MOST_FAILURES = 20
# Places of what parent and child share, as float64.
_NUMBER, _CPU_S, _WALL_S, _REFUSED, _READ, _SLOWEST_S, _SLOWEST, _GREW, _GREATEST = range(9)
_QUEUED_S = 9


@dataclass(slots=True)
class Outcome:
    """What a campaign came to. Failures name the input by its number."""

    name: str
    seed: int
    first: int
    inputs: int
    refused: int = 0
    read: int = 0
    slowest_s: float = 0.0
    slowest: int = -1
    peak_bytes: int = 0
    peak: int = -1
    seconds: float = 0.0
    failures: list[dict[str, Any]] = field(default_factory=list)

    def line(self) -> str:
        """Return it as one line for people."""
        return (
            f"{self.name}: {self.inputs:,} inputs, {self.refused:,} refused, {self.read:,} read; "
            f"slowest {self.slowest_s:.2f} s (number {self.slowest}), memory grew by up to "
            f"{self.peak_bytes / 1e6:.1f} MB (number {self.peak}); {len(self.failures)} failures "
            f"({self.seconds:.0f} s)"
        )

    def record(self) -> str:
        """Return it as a line of JSON."""
        return json.dumps(asdict(self))


def run(format: Format, count: int, seed: int, first: int = 0) -> Outcome:
    """Read `count` spoiled inputs from number `first` on; return what happened."""
    specimens = format.specimens()
    outcome = Outcome(format.name, seed, first, 0)
    start_s = time.perf_counter()
    with tempfile.TemporaryDirectory() as place:
        reader = _Reader(format, specimens, Path(place), seed)
        # In this process, so that every child has the libraries loaded and loops compiled.
        reader.warm()
        number = first
        while number < first + count and len(reader.told()) < _MOST_FAILURES:
            number = _Watch(reader, number, first + count).until_end(outcome)
        outcome.inputs = number - first
        outcome.failures = reader.told()
    outcome.seconds = time.perf_counter() - start_s
    return outcome


def once(format: Format, seed: int, number: int, keep: Path) -> str:
    """Make one input again in a folder that stays, read it, and return what happened."""
    specimens = format.specimens()
    files, case = _made(format, specimens, seed, number)
    for name, data in files.items():
        _put(keep / name, data)
    for name, change in case.changes.items():
        _put(keep / name, change)
    print(f"{case.note or 'no note'}; digests made right: {case.repaired}")
    try:
        found = format.read(keep)
    except UserError as error:
        return f"refused: {error}"
    except BaseException:
        return traceback.format_exc()
    return format.wrong(files, case, found) or "read, and right"


def _made(format: Format, specimens: list[Files], seed: int, number: int) -> tuple[Files, Case]:
    rng = random.Random(f"{format.name}/{seed}/{number}")
    files = specimens[number % len(specimens)]
    return files, format.spoil(files, rng)


def _put(path: Path, change: Change) -> None:
    """Put something at a path where a file, a folder or nothing may be."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    if change is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(change, bytes):
        path.write_bytes(change)
    else:
        change(path)


class _Reader:
    """Reads inputs one after another, and tells the parent where it is."""

    def __init__(self, format: Format, specimens: list[Files], place: Path, seed: int) -> None:
        self._format, self._specimens, self._seed = format, specimens, seed
        self._folders = [place / str(n) for n in range(len(specimens))]
        self._failures = place / "failures.jsonl"
        self.shared = memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("d")
        for folder, files in zip(self._folders, specimens, strict=True):
            for name, data in files.items():
                _put(folder / name, data)
        self._most = getattr(format, "most_bytes", most_bytes)
        self.most_s: float = getattr(format, "most_s", MOST_S)

    def warm(self) -> None:
        """Read every good input; they must be right."""
        for folder, files in zip(self._folders, self._specimens, strict=True):
            for _ in range(2):
                found = self._format.read(folder)
            wrong = self._format.wrong(files, Case({}, False, "nothing changed"), found)
            assert not wrong, f"the good {self._format.name} is not right: {wrong}"

    def told(self) -> list[dict[str, Any]]:
        """Return the failures that children wrote down."""
        if not self._failures.exists():
            return []
        return [json.loads(line) for line in self._failures.read_text().splitlines()]

    def tell(self, number: int, kind: str, what: str, note: str = "") -> None:
        """Write a failure down."""
        entry = {"number": number, "kind": kind, "note": note, "what": what[-3000:]}
        with self._failures.open("a") as stream:
            stream.write(json.dumps(entry) + "\n")

    def restore(self, number: int) -> None:
        """Make an input's folder good again, whatever was left in it."""
        at = number % len(self._specimens)
        _, case = _made(self._format, self._specimens, self._seed, number)
        for name in case.changes:
            _put(self._folders[at] / name, self._specimens[at].get(name))

    def go(self, first: int, end: int) -> None:
        """Read inputs; stop behind the last, or behind many failures."""
        failures = 0
        for number in range(first, end):
            files, case = _made(self._format, self._specimens, self._seed, number)
            folder = self._folders[number % len(self._specimens)]
            for name, change in case.changes.items():
                _put(folder / name, change)
            size = sum(len(c) for c in {**files, **case.changes}.values() if isinstance(c, bytes))
            failures += not self._one(number, folder, files, case, self._most(size))
            for name in case.changes:
                _put(folder / name, files.get(name))
            self.shared[_NUMBER] = number + 1
            if failures >= _MOST_FAILURES:
                return

    def _one(self, number: int, folder: Path, files: Files, case: Case, most: int) -> bool:
        """Read one input; return whether all is well."""
        shared, found, refusal, trace = self.shared, None, "", ""
        _reset_peak()
        mapped, before = _memory()
        resource.setrlimit(resource.RLIMIT_AS, (mapped + most + _SLACK_BYTES, _NO_LIMIT))
        shared[_QUEUED_S], shared[_CPU_S] = _queued_s(os.getpid()), _used_s()
        shared[_WALL_S] = time.monotonic()
        try:
            found = self._format.read(folder)
        except UserError as error:
            refusal = str(error)
        except BaseException:
            trace = traceback.format_exc()
        took_s = _used_s() - shared[_CPU_S]
        shared[_WALL_S] = 0.0
        resource.setrlimit(resource.RLIMIT_AS, (_NO_LIMIT, _NO_LIMIT))
        grew = max(0, _peak() - before)
        if took_s > shared[_SLOWEST_S]:
            shared[_SLOWEST_S], shared[_SLOWEST] = took_s, number
        if grew > shared[_GREW]:
            shared[_GREW], shared[_GREATEST] = grew, number
        shared[_REFUSED if refusal else _READ] += not trace
        kind, what = "", ""
        if trace:
            kind, what = "traceback", trace
        elif took_s > self.most_s:
            kind, what = "hang", f"took {took_s:.2f} s"
        elif grew > most:
            kind, what = "memory", f"grew by {grew:,} bytes, {most:,} are justified"
        elif len(refusal) > _LONGEST_SENTENCE:
            kind, what = "sentence", f"has {len(refusal)} characters: {refusal[:200]}"
        elif not refusal and (wrong := self._format.wrong(files, case, found)):
            kind, what = "accepted", wrong
        if kind:
            self.tell(number, kind, what, case.note)
        return not kind


class _Watch:
    """A child that reads, and its parent's watch over it."""

    def __init__(self, reader: _Reader, first: int, end: int) -> None:
        self._reader = reader
        reader.shared[_NUMBER], reader.shared[_WALL_S] = first, 0.0
        sys.stdout.flush()
        self._pid = os.fork()
        if not self._pid:
            try:
                reader.go(first, end)
            except BaseException:
                # A mistake of the format itself.
                number = int(reader.shared[_NUMBER])
                reader.tell(number, "format", traceback.format_exc())
                os._exit(1)
            os._exit(0)

    def until_end(self, outcome: Outcome) -> int:
        """Wait until the child has ended or was ended; return the number to go on with."""
        shared = self._reader.shared
        while True:
            ended, status = os.waitpid(self._pid, os.WNOHANG)
            number = int(shared[_NUMBER])
            if ended:
                late = 0.0
                break
            if late := self._late(number):
                os.kill(self._pid, signal.SIGKILL)
                os.waitpid(self._pid, 0)
                break
            time.sleep(_LOOK_S)
        outcome.refused, outcome.read = int(shared[_REFUSED]), int(shared[_READ])
        outcome.slowest_s, outcome.slowest = shared[_SLOWEST_S], int(shared[_SLOWEST])
        outcome.peak_bytes, outcome.peak = int(shared[_GREW]), int(shared[_GREATEST])
        if not late and not status:
            return number
        what = f"was ended after {late:.2f} s" if late else f"the process ended with {status}"
        self._reader.tell(number, "hang" if late else "crash", what)
        self._reader.restore(number)
        return number + 1

    def _late(self, number: int) -> float:
        """Return how long the input in progress has taken, if that is too long, else 0."""
        began_s, began_cpu_s = self._reader.shared[_WALL_S], self._reader.shared[_CPU_S]
        most_s = self._reader.most_s
        if not began_s or time.monotonic() - began_s < most_s:
            return 0.0
        used_s = _cpu_s(self._pid) - began_cpu_s
        queued_s = _queued_s(self._pid) - self._reader.shared[_QUEUED_S]
        slept_s = time.monotonic() - began_s - queued_s
        if int(self._reader.shared[_NUMBER]) != number or self._reader.shared[_WALL_S] != began_s:
            return 0.0
        return used_s if used_s > most_s else slept_s if slept_s > _MOST_WALL_S * most_s else 0.0


_NO_LIMIT = resource.RLIM_INFINITY


# What is asked for every input: /proc/self/status and process_time take milliseconds in some
# sandboxes, and these a few microseconds.


def _reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _memory() -> tuple[int, int]:
    """Return the bytes that are mapped and those that are resident."""
    mapped, resident, *_ = Path("/proc/self/statm").read_text().split()
    return int(mapped) * mmap.PAGESIZE, int(resident) * mmap.PAGESIZE


def _peak() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _used_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _queued_s(pid: int) -> float:
    """Return the seconds in which a process could have run and others did, where that is known."""
    known = Path(f"/proc/{pid}/schedstat")
    return int(known.read_text().split()[1]) / 1e9 if known.exists() else 0.0


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
