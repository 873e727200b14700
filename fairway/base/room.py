"""Main memory: how much this process may still take, by which limit, and its error.

Three bounds are read if the system has them: free memory of the machine, free memory of the control
group (a container, a batch system's job), and the limits of this process (`ulimit -v` and `-d`).
`ulimit -v` counts address space, so mapped and reserved memory counts too.
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fairway.base import units
from fairway.base.errors import UserError
from fairway.base.groups import groups, number_of, text_of
from fairway.base.locks import limits

# Python and PyTorch with their libraries map 0.93 GB before anything is computed.
START_BYTES = 1_150_000_000
# The value without a bound in control groups of version 1.
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
    """The bytes that one bound still allows; `reserved` if the bound counts address space."""

    bytes: int
    bound: str = "free"
    reserved: bool = False

    def told(self) -> str:
        """Return it as the end of a sentence."""
        return f"{units.megabytes(self.bytes)} are {self.bound}"


def rooms(root: Path = Path("/")) -> list[Room]:
    """Return the rest of every bound that is set and can be read."""
    return [*_of_machine(root), *_of_groups(root), *_of_process(root)]


def host_room() -> Room | None:
    """Return the narrowest of all bounds, or None if none can be read."""
    return min(rooms(), key=lambda room: room.bytes, default=None)


def _of_machine(root: Path) -> Iterator[Room]:
    for line in text_of(root / "proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            yield Room(int(line.split()[1]) * 1024)


def _of_groups(root: Path) -> Iterator[Room]:
    """Yield the rest of this process's control group and of its parents, in both versions."""
    named = "left by the limit of this container or job (cgroup)"
    names = {1: ("memory.limit_in_bytes", "memory.usage_in_bytes")}
    for group, version in groups("memory", root):
        most, used = names.get(version, ("memory.max", "memory.current"))
        limit = number_of(group / most)
        if limit is not None and limit < _UNBOUND:
            taken = (number_of(group / used) or 0) - _reclaimable(group)
            yield Room(max(0, limit - taken), named)


def _reclaimable(group: Path) -> int:
    """Return the bytes of cached files that a group can release; they count as used."""
    facts = dict(line.split()[:2] for line in text_of(group / "memory.stat").splitlines() if line)
    found = facts.get("total_inactive_file", facts.get("inactive_file", "0"))
    return int(found) if found.isdigit() else 0


def _of_process(root: Path) -> Iterator[Room]:
    """Yield the rest of this process's limits."""
    numbers, resource = text_of(root / "proc/self/statm").split(), limits()
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


# --------------------------------------------------------------------------------------------- Lack
# of memory


def require_start() -> None:
    """Raise UserError where the libraries would end the process: in a removed folder, or without
    memory."""
    try:
        Path.cwd()
    except FileNotFoundError:
        raise UserError(
            "the current folder does not exist any more; change to another one with cd"
        ) from None
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
    """Return whether an error means that main memory, or memory for a thread, was refused."""
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno == errno.ENOMEM
    # PyTorch, Python's threads and the system's loader say this only in their messages.
    told = isinstance(error, RuntimeError | ImportError | OSError)
    return told and any(word in str(error).lower() for word in _WORDS)


@contextmanager
def memory_told(what: str, remedy: str) -> Iterator[None]:
    """Turn a lack of main memory inside into one sentence: the purpose, the rest, the remedy."""
    try:
        yield
    except (MemoryError, OSError, RuntimeError, ImportError) as error:
        # Memory of a GPU has its own sentences.
        if type(error).__name__ == "OutOfMemoryError" or not is_lack_of_memory(error):
            raise
        raise UserError(lack_sentence(what, remedy)) from None


def lack_sentence(what: str, remedy: str) -> str:
    """Return that memory did not suffice for something, with the bounds that are known."""
    room = host_room()
    known = f": {room.told()} now" if room else ""
    return f"main memory does not suffice for {what}{known}; {remedy}, or give more memory"
