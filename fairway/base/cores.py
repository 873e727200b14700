"""The processor cores that this process may use."""

import functools
import os
from pathlib import Path

from fairway.base.groups import groups, number_of, text_of


def usable_cores() -> int:
    """Return how many cores this process may use; containers and schedulers may allow a part.

    A container may see all cores of a host and get the time of a few: then it is those few.
    """
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return min(cores, _quota(Path("/")) or cores)


@functools.cache
def _quota(root: Path) -> int | None:
    """Return the cores whose time the control groups allow, rounded up; None without a bound."""
    found = []
    for group, version in groups("cpu", root):
        if version == 2:
            words = text_of(group / "cpu.max").split()
        else:
            words = [str(number_of(group / f"cpu.cfs_{name}_us")) for name in ("quota", "period")]
        if len(words) == 2 and all(word.isdigit() and int(word) for word in words):
            found.append(-(-int(words[0]) // int(words[1])))
    return min(found, default=None)
