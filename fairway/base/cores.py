"""The processor cores that this process may use."""

import os


def usable_cores() -> int:
    """Return how many cores this process may use; containers and schedulers may allow a part."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1
