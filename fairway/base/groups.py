"""The control groups of this process (a container, a job of a batch system), in both versions."""

from collections.abc import Iterator
from pathlib import Path


def groups(controller: str, root: Path) -> Iterator[tuple[Path, int]]:
    """Yield the folders of this process's group and of its parents, each with its version."""
    top = root / "sys/fs/cgroup"
    for line in text_of(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        kinds, _, place = rest.partition(":")
        if number == "0" and not kinds:
            base, version = top, 2
        elif controller in kinds.split(","):
            base, version = top / controller, 1
        else:
            continue
        folder = base / place.strip("/")
        # In a container the path may be a path of the host, where only the top is mounted.
        for group in (folder, *(p for p in folder.parents if p.is_relative_to(base))):
            yield group, version


def text_of(path: Path) -> str:
    """Return the text of a file of the system, or nothing if it cannot be read."""
    try:
        return path.read_text()
    except (OSError, ValueError):
        return ""


def number_of(path: Path) -> int | None:
    """Return the whole number in a file of the system, if there is one."""
    text = text_of(path).strip()
    return int(text) if text.isdigit() else None
