"""Locks of open files, and limits of a process, on systems that have them (POSIX).

Their modules are imported when they are needed, so that Fairway can be imported anywhere.
"""

import errno
from types import ModuleType


def limits() -> ModuleType | None:
    """Return the module for limits and resources of a process, or None."""
    try:
        import resource
    except ImportError:
        return None
    return resource


def lock(handle: int) -> None:
    """Lock an open file or folder for this process; OSError if another one has it.

    Disks without locks raise another OSError; on systems without locks nothing happens.
    """
    try:
        import fcntl
    except ImportError:
        return
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def are_known() -> bool:
    """Return whether this system has such locks, and opens folders as files."""
    try:
        import fcntl
    except ImportError:
        return False
    return bool(fcntl.LOCK_EX)


def is_taken(error: OSError) -> bool:
    """Return whether an error of `lock` means that another process has the lock."""
    return error.errno in (errno.EWOULDBLOCK, errno.EACCES)
