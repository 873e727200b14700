"""Main memory: how much this process may still take, by which limit, and the error if it is short.

Three bounds are read where the system tells them: the memory that the machine has free, that of the
control group (a container, a batch system's job), and the limits of this process (`ulimit -v` and
`-d`). The first of these counts address space: what is mapped or only set aside counts too.
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fairway.base import units
from fairway.base.errors import UserError
from fairway.base.locks import limits

# Python and PyTorch with their libraries map 0.93 GB before anything is computed.
START_BYTES = 1_150_000_000
# What control groups of the first version write for no bound.
_UNBOUND = 1 << 60
_WORDS = (
    "allocate memory",
    "not enough memory",
    "out of memory",
    "can't start new thread",
    "failed to map segment",
    "thread creation failed",
)


@dataclass(frozen=True, slots=True)
class Room:
    """Bytes that may still be taken by one bound; `reserved` if address space is what it counts."""

    bytes: int
    bound: str = "free"
    reserved: bool = False

    def told(self) -> str:
        """Return it as the end of a sentence."""
        return f"{units.megabytes(self.bytes)} are {self.bound}"


def rooms(root: Path = Path("/")) -> list[Room]:
    """Return what each bound leaves; one that is not set, or not told, is left out."""
    return [*_of_machine(root), *_of_groups(root), *_of_process(root)]


def host_room() -> Room | None:
    """Return the narrowest of all bounds, or None where the system tells none."""
    return min(rooms(), key=lambda room: room.bytes, default=None)


def _of_machine(root: Path) -> Iterator[Room]:
    for line in _text(root / "proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            yield Room(int(line.split()[1]) * 1024)


def _of_groups(root: Path) -> Iterator[Room]:
    """Yield the room of this process's control group and of those around it, of both versions."""
    top, named = root / "sys/fs/cgroup", "left by the limit of this container or job (cgroup)"
    for line in _text(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        kinds, _, place = rest.partition(":")
        if number == "0" and not kinds:
            base, most, used = top, "memory.max", "memory.current"
        elif "memory" in kinds.split(","):
            base, most, used = top / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        folder = base / place.strip("/")
        # In a container the path may be that of the host, of which only the top is mounted.
        for group in (folder, *(p for p in folder.parents if p.is_relative_to(base))):
            limit = _number(group / most)
            if limit is not None and limit < _UNBOUND:
                taken = (_number(group / used) or 0) - _reclaimable(group)
                yield Room(max(0, limit - taken), named)


def _reclaimable(group: Path) -> int:
    """Return the bytes of files that a group holds and would give up: they count as used."""
    facts = dict(line.split()[:2] for line in _text(group / "memory.stat").splitlines() if line)
    found = facts.get("total_inactive_file", facts.get("inactive_file", "0"))
    return int(found) if found.isdigit() else 0


def _of_process(root: Path) -> Iterator[Room]:
    """Yield what the limits of this process leave."""
    numbers, resource = _text(root / "proc/self/statm").split(), limits()
    if len(numbers) < 6 or resource is None:
        return
    page = resource.getpagesize()
    for limit, taken, named, reserved in (
        (resource.RLIMIT_AS, int(numbers[0]), "left by `ulimit -v`", True),
        (resource.RLIMIT_DATA, int(numbers[5]), "left by `ulimit -d`", False),
    ):
        soft, _ = resource.getrlimit(limit)
        if soft != resource.RLIM_INFINITY:
            yield Room(max(0, soft - taken * page), named, reserved)


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, ValueError):
        return ""


def _number(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if text.isdigit() else None


# ---------------------------------------------------------------------------------------------
# Where it ends


def require_start() -> None:
    """Raise UserError where not even the libraries fit: they end the process by themselves."""
    if (resource := limits()) is None:
        return
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY and soft < START_BYTES:
        raise UserError(
            f"`ulimit -v` allows this process {units.megabytes(soft)} of address space, but "
            f"Python and PyTorch alone need about {units.megabytes(START_BYTES)}; raise it, or "
            "remove it with `ulimit -v unlimited`"
        )


def is_lack_of_memory(error: BaseException) -> bool:
    """Return whether an error says that main memory, or a thread's part of it, was not given."""
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno == errno.ENOMEM
    # PyTorch, Python's threads and the system's loader say so in words alone.
    told = isinstance(error, RuntimeError | ImportError | OSError)
    return told and any(word in str(error).lower() for word in _WORDS)


@contextmanager
def memory_told(what: str, remedy: str) -> Iterator[None]:
    """Turn a lack of main memory inside into one sentence: for what, what is left, the remedy."""
    try:
        yield
    except (MemoryError, OSError, RuntimeError, ImportError) as error:
        # A GPU's memory has sentences of its own.
        if type(error).__name__ == "OutOfMemoryError" or not is_lack_of_memory(error):
            raise
        raise UserError(lack_sentence(what, remedy)) from None


def lack_sentence(what: str, remedy: str) -> str:
    """Return that memory did not suffice for something, with the bounds that are known."""
    room = host_room()
    known = f": {room.told()} now" if room else ""
    return f"main memory does not suffice for {what}{known}; {remedy}, or give more memory"
