"""Folders that are complete or invalid: written beside their place and swapped in, or filled.

A folder being written has a random name and a system lock (flock), so other processes, also in
other containers, can see that it is in use. Folders of killed processes are unlocked; the next
write to the same place removes them.
"""

import ctypes
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from fairway.base import locks
from fairway.base.errors import UserError
from fairway.base.outputs import allowed, require_absent, require_folder

_PART = ".part"
# renameat2 of Linux: both names exist before and after, always with complete contents.
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
# Names that an empty disk may contain.
_EMPTY = frozenset({"lost+found"})


@contextmanager
def new_folder(
    out: Path, ours: Callable[[str], bool], mark: Callable[[Path], None], last: str
) -> Iterator[Path]:
    """Yield an empty folder whose files are those of `out` when the block ends without an error.

    A link is followed: the folder that it leads to is written. If `out` does not exist, the folder
    is renamed to it. A folder with files is exchanged in one step, and the old one is deleted. A
    folder that cannot be exchanged (it is empty, the working folder, a mount point, in a folder
    that cannot be written, or the system has no such call) is filled: `mark(out)` makes it invalid
    for readers, old files are removed, and the new ones are moved in, `last` at the end. Raises
    UserError if `out` has a file whose name is not `ours`, or if another process fills it at the
    same time.
    """
    final = behind(out)
    refuse_foreign(out, ours)
    inside = final.is_dir() and _must_stay(final)
    with _beside(final, inside) as part:
        yield part
        part.chmod(_mode(final))
        refuse_foreign(out, ours)
        if inside or not _swapped(part, final):
            with locked_folder(final):
                mark(final)
                _fill(part, final, last)


@contextmanager
def added_files(out: Path, *names: str) -> Iterator[Path]:
    """Yield an empty folder whose files `names` lie in `out` when the block ends without an error.

    After an error, as on a full disk, there are none of them, so the same command can be repeated.
    The last of the names is moved last, so a folder that has it is complete. Other files of `out`
    stay. Raises UserError if one of the names exists already, or if `out` is no folder.
    """
    require_folder(out)
    require_absent(out, *names)
    final = behind(out)
    there = final.is_dir()
    with _beside(final, inside=there) as part:
        yield part
        if not there and not final.exists():
            part.chmod(_mode(final))
            part.rename(final)
            return
        with locked_folder(final):
            require_absent(out, *names)
            _move(part, final, names)


def _move(part: Path, final: Path, names: Sequence[str]) -> None:
    """Move files into a folder, all or none."""
    moved: list[Path] = []
    try:
        for name in names:
            moved.append((part / name).rename(final / name))
    except BaseException:
        for path in moved:
            path.unlink(missing_ok=True)
        raise


@contextmanager
def _beside(final: Path, inside: bool) -> Iterator[Path]:
    """Yield a locked temporary folder inside a folder or beside it, and remove it at the end.

    Folders above it that were made for nothing are removed too.
    """
    home = final if inside else final.parent
    new = [folder for folder in (home, *home.parents) if not folder.exists()]
    home.mkdir(parents=True, exist_ok=True)
    _sweep(home, final.name)
    part, lock = _part(home, final.name)
    try:
        yield part
    except OSError as error:
        if isinstance(error.filename, str) and Path(error.filename).is_relative_to(part):
            # The caller does not know the temporary name.
            error.filename = str(final / Path(error.filename).relative_to(part))
        raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
        os.close(lock)
        with suppress(OSError):
            for folder in new:
                folder.rmdir()


def behind(out: Path) -> Path:
    """Return the target of a path; UserError for a link that leads to itself."""
    try:
        return out.resolve()
    except (OSError, RuntimeError):
        raise UserError(f"{out} is a link to itself; name another folder") from None


def held(folder: Path) -> list[str]:
    """Return the sorted names in a folder, without those of an empty disk or a killed write."""
    own = f".{behind(folder).name}."
    names = (path.name for path in folder.iterdir())
    return sorted(
        name
        for name in names
        if name not in _EMPTY and not (name.startswith(own) and name.endswith(_PART))
    )


def refuse_foreign(out: Path, ours: Callable[[str], bool]) -> None:
    """Raise UserError when there is a file at `out`, or a folder with a name that is not `ours`."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; name a folder for the data")
    foreign = [name for name in held(out) if not ours(name)] if out.is_dir() else []
    if foreign:
        raise UserError(
            f"{out} holds something other than Fairway data ({foreign[0]}); name another folder"
        )


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder; UserError if another process holds it.

    Without locks for folders, as on some network disks, nothing is locked.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        if not _lock(handle):
            raise UserError(f"another process is writing {folder}; wait for it to end")
        yield
    finally:
        os.close(handle)


def _must_stay(folder: Path) -> bool:
    """Return whether a folder cannot be exchanged for another one."""
    here = Path.cwd()
    return (
        not held(folder)
        or any(folder.samefile(known) for known in (here, *here.parents))
        or os.path.ismount(folder)
        or not os.access(folder.parent, os.W_OK)
    )


def _mode(final: Path) -> int:
    """Return the permissions of an existing folder, or those that the user's mask allows."""
    return final.stat().st_mode & 0o7777 if final.is_dir() else allowed(0o777)


def _lock(handle: int) -> bool:
    """Return whether this process has the lock now, or this disk has no locks."""
    try:
        locks.lock(handle)
    except OSError as error:
        return not locks.is_taken(error)
    return True


def _part(home: Path, name: str) -> tuple[Path, int]:
    """Return a new folder in `home` and the handle that holds its lock."""
    while True:
        try:
            part = Path(tempfile.mkdtemp(prefix=f".{name}.", suffix=_PART, dir=home))
        except OSError as error:
            error.filename = str(home / name)
            raise
        if not locks.are_known():
            return part, os.open(os.devnull, os.O_RDONLY)
        with suppress(FileNotFoundError):
            lock = os.open(part, os.O_RDONLY)
            # Another process may have removed it before it was locked.
            if _lock(lock) and part.exists():
                return part, lock
            os.close(lock)


def _sweep(home: Path, name: str) -> None:
    """Delete temporary folders of killed processes for this name; a locked one is in use."""
    for part in home.iterdir():
        if not part.name.startswith(f".{name}.") or part.suffix != _PART or part.is_symlink():
            continue
        with suppress(OSError):
            lock = os.open(part, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
            try:
                locks.lock(lock)
                shutil.rmtree(part, ignore_errors=True)
            finally:
                os.close(lock)


def _swapped(part: Path, final: Path) -> bool:
    """Exchange a new folder with the one at its place; return False if that is not possible."""
    if final.exists():
        return _exchange(part, final)
    part.rename(final)
    return True


def _exchange(a: Path, b: Path) -> bool:
    """Exchange two names in one step; return whether this system and disk support it."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    places = _AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b)
    return bool(rename(*places, _RENAME_EXCHANGE) == 0)


def _fill(part: Path, final: Path, last: str) -> None:
    for name in held(final):
        if name != last:
            (final / name).unlink()
    for new in sorted(part.iterdir(), key=lambda path: path.name == last):
        new.rename(final / new.name)
