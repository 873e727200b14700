"""Locks of open files, and limits of a process, where the system has them: POSIX does.

Their modules are imported when they are needed, so that Fairway can be imported anywhere.
"""

import errno
from types import ModuleType


def limits() -> ModuleType | None:
    """Return the module that tells the limits and the use of a process, or None."""
    try:
        import resource
    except ImportError:
        return None
    return resource


def lock(handle: int) -> None:
    """Lock an open file or folder for this process; OSError if another one has it.

    Some disks have no locks, which is another OSError, and some systems none: nothing is locked.
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
    """Return whether another process has a lock, by what `lock` raised."""
    return error.errno in (errno.EWOULDBLOCK, errno.EACCES)
