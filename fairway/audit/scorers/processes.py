"""Finds all processes that a program has started, and ends them (Linux).

A child may leave its process group and its parent (setsid, two forks). Orphans of a subreaper stay
its descendants, and all inherit a mark in their environment. A process that clears the mark after
its program has ended looks like any other, and is not ended.
"""

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

MARK = "FAIRWAY_AUDITED"
_SET_CHILD_SUBREAPER = 36
_PROCESSES = Path("/proc")
_ROUNDS, _PAUSE_S = 50, 0.01


def keeper_of_orphans() -> Callable[[], None] | None:
    """Return a function that a program runs before it starts, so that it keeps its orphans."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        control = ctypes.CDLL(None, use_errno=True).prctl
    except (OSError, AttributeError):
        return None
    return lambda: control(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def end_all(leader: int, mark: str, alive: bool) -> None:
    """Kill a program's process group, its descendants, and every process with its mark.

    `alive` means that nobody has waited for the leader yet, so its process number is still its own.
    """
    for _ in range(_ROUNDS):
        found = _family({leader} if alive else set(), f"{MARK}={mark}".encode())
        # The leader comes last: while it lives, no descendant can leave it.
        for pid in sorted(found, key=lambda pid: pid == leader):
            _kill(os.kill, pid)
        _kill(getattr(os, "killpg", os.kill), leader)
        if not found - {leader}:
            return
        time.sleep(_PAUSE_S)


def _kill(how: Callable[[int, int], None], number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        how(number, getattr(signal, "SIGKILL", signal.SIGTERM))


def _family(found: set[int], mark: bytes) -> set[int]:
    """Return the living processes that descend from the given ones or have the mark."""
    found, parents = set(found), dict[int, int]()
    for folder in _PROCESSES.glob("[0-9]*") if _PROCESSES.is_dir() else ():
        with suppress(OSError, ValueError, IndexError):
            # The name is in brackets and may contain any character.
            state, parent = (folder / "stat").read_text("latin-1").rpartition(")")[2].split()[:2]
            if state in "ZX":
                continue
            pid = int(folder.name)
            parents[pid] = int(parent)
            if mark in (folder / "environ").read_bytes().split(b"\0"):
                found.add(pid)
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found
