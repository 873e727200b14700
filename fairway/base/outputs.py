"""Output paths: the command's own files, and devices or pipes of the system.

An existing file is replaced in one step, at the target of links, and its permissions are kept.
Devices and pipes are written directly. Folders, sockets and disks are refused.
"""

import errno
import os
import re
import stat
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from fairway.base.errors import UserError
from fairway.base.terminal import put

# As many links as Linux follows.
_MOST_LINKS = 40
_NO_TERMINAL = getattr(os, "O_NOCTTY", 0)
# The folders in which systems list the open files of a process; /dev/stdout and <(command) lead
# there.
_OPEN_FILES = re.compile(r"/dev/fd|/proc/(\d+)(?:/task/\d+)?/fd")
_HEAD_BYTES = 1 << 16
_HOME = re.compile(r"~[^/]*(/|$)")


def why_no_path(text: str) -> str:
    """Return why a word is no path, or probably not the intended one; nothing if it is one."""
    if not text:
        return "the path is empty; was a variable of the shell not set?"
    if "\0" in text:
        return "the path has a zero byte in it, which no path may have"
    if text == "-":
        return "- is no path; name /dev/stdin or /dev/stdout, or ./- for a file of that name"
    if _HOME.match(text) and not os.path.lexists(text):
        return f"the shell left ~ as it is in {text}; write $HOME in its place, or ./ before it"
    return ""


@dataclass(frozen=True, slots=True)
class Place:
    """The place of an output after following links.

    `old` is the state of a file that will be replaced, and `descriptor` an open file of this
    process. A `lent` place is a device, a pipe or an open file, and is written directly.
    """

    path: Path
    lent: bool = False
    descriptor: int | None = None
    old: os.stat_result | None = None


def place_of(out: Path) -> Place:
    """Return the place of an output.

    Raises UserError if it may not be written: a folder, a socket, a disk, a link that leads to
    itself, a read-only file, or a path below a file.
    """
    path = _behind(out)
    if _open_file(path):
        return Place(path, lent=True, descriptor=_descriptor(path))
    try:
        old = path.stat()
    except FileNotFoundError:
        return Place(path)
    except NotADirectoryError:
        raise _below_file(out, path) from None
    mode = old.st_mode
    if stat.S_ISCHR(mode) or stat.S_ISFIFO(mode):
        return Place(path, lent=True)
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a socket" if stat.S_ISSOCK(mode) else "a disk"
        raise UserError(f"cannot write {out}: it is {kind}; name a file with --out")
    if not os.access(path, os.W_OK):
        raise UserError(f"cannot write {out}: it is read-only; name another file with --out")
    return Place(path, old=old)


def _below_file(out: Path, path: Path) -> UserError:
    above = next(folder for folder in path.parents if folder.exists())
    return UserError(f"cannot write {out}: {above} is a file, not a folder")


def _behind(out: Path) -> Path:
    """Return the path that links lead to; it need not exist."""
    path = out
    for _ in range(_MOST_LINKS):
        if _open_file(path) or not path.is_symlink():
            return path
        path = path.parent / path.readlink()
    raise UserError(f"cannot write {out}: it is a link to itself")


def _open_file(path: Path) -> re.Match[str] | None:
    """Return how a path names an open file of a process, or None."""
    number = path.name.isascii() and path.name.isdecimal()
    return _OPEN_FILES.fullmatch(os.path.realpath(path.parent)) if number else None


def _descriptor(path: Path) -> int | None:
    """Return which open file of this process a path names, or None."""
    found = _open_file(path)
    ours = found is not None and found[1] in (None, str(os.getpid()))
    return int(path.name) if ours else None


@contextmanager
def lent_stream(place: Place) -> Iterator[BinaryIO]:
    """Yield a device, a pipe or an open file for writing; it is neither truncated nor replaced."""
    try:
        if place.descriptor is None:
            handle = _opened(place.path)
        else:
            # Earlier output must come first.
            sys.stdout.flush()
            # A copy of the descriptor has the same position, and this works for sockets too.
            handle = os.dup(place.descriptor)
        with os.fdopen(handle, "wb") as stream:
            yield stream
    except BrokenPipeError:
        raise UserError(f"cannot write {place.path}: its reader has closed it") from None
    except OSError as error:
        if error.filename is None:
            error.filename = str(place.path)
        raise


def _opened(path: Path) -> int:
    """Return a device or a pipe, open for writing; print a line if a pipe waits for a reader."""
    try:
        handle = os.open(path, os.O_WRONLY | _NO_TERMINAL | getattr(os, "O_NONBLOCK", 0))
    except OSError as error:
        if error.errno != errno.ENXIO or not path.is_fifo():
            raise
        put(f"fairway: waiting until a program reads the pipe {path}", sys.stderr)
        return os.open(path, os.O_WRONLY | _NO_TERMINAL)
    os.set_blocking(handle, True)
    return handle


def allowed(mode: int) -> int:
    """Return a mode without the permissions that the user's mask removes."""
    mask = os.umask(0)
    os.umask(mask)
    return mode & ~mask


def keep_permissions(path: Path, old: os.stat_result | None) -> None:
    """Give a new file the owner and mode of the one it replaces, or what the user's mask allows."""
    if old is None:
        path.chmod(allowed(0o666))
        return
    if hasattr(os, "chown") and (old.st_uid, old.st_gid) != (os.geteuid(), os.getegid()):
        # Only the superuser may give files away.
        with suppress(PermissionError):
            os.chown(path, old.st_uid, old.st_gid)
    path.chmod(stat.S_IMODE(old.st_mode))


def is_standard_output(out: Path) -> bool:
    """Return whether a path names this process's standard output."""
    descriptor = _descriptor(_behind(out))
    with suppress(OSError):
        return descriptor is not None and os.path.sameopenfile(descriptor, sys.stdout.fileno())
    return False


# ---------------------------------------------------------------------------------------------
# Checks before a command begins


def require_file(
    out: Path,
    inputs: Mapping[str, Path | None],
    ours: Callable[[bytes], bool] | None = None,
    option: str = "--out",
    same: Callable[[Path], bool] | None = None,
) -> None:
    """Raise UserError unless a command that reads `inputs` may write its file to `out`.

    An input is not replaced, and nothing in an input folder. An existing file that is not empty is
    replaced only if its beginning shows that the same command wrote it (`ours`), or if it holds the
    `same` content, so that nothing is lost. `option` names the option for the file.
    """
    place = place_of(out)
    if not place.lent:
        _require_writable(out, place.path.parent, f"name another place with {option}")
    if place.old is None:
        return
    for name, read in inputs.items():
        if read is not None and _is_part(place.path, read):
            what = f"lies in {read}, which is read" if read.is_dir() else f"is the {name} itself"
            raise UserError(f"{out} {what}; name another file with {option}")
    with place.path.open("rb") as stream:
        head = stream.read(_HEAD_BYTES)
    if not head or (same(place.path) if same else ours and ours(head)):
        return
    why = "holds something else" if same else "this command did not write it"
    raise UserError(
        f"{out} exists already, and {why}; name another file with {option}, or delete it first"
    )


def _require_writable(out: Path, folder: Path, remedy: str) -> None:
    """Raise UserError if no file can be made in a folder, or where the folder would be made.

    Otherwise this would be noticed only when the work is done.
    """
    above = next((path for path in (folder, *folder.parents) if path.is_dir()), folder)
    if above.is_dir() and not os.access(above, os.W_OK | os.X_OK):
        raise UserError(
            f"cannot write {out}: no file can be made in the folder {above}, which is read-only "
            f"or belongs to another user; {remedy}"
        )


def _is_part(path: Path, read: Path) -> bool:
    """Return whether a path is the same file as another, or is inside it."""
    if not read.exists():
        return False
    if not read.is_dir():
        return path.samefile(read)
    return path.resolve().is_relative_to(read.resolve())


def require_absent(folder: Path, *names: str) -> None:
    """Raise UserError if a folder already has one of the files that will be written to it."""
    for name in names:
        if os.path.lexists(folder / name):
            raise UserError(f"{folder / name} exists already; name another folder with --out")


def require_new(out: Path) -> None:
    """Raise UserError if a path exists, or if no folder can be made there."""
    if os.path.lexists(out):
        raise UserError(f"{out} exists already; name a new folder with --out")
    require_folder(out)


def require_folder(out: Path, remedy: str = "name another place with --out") -> None:
    """Raise UserError unless a folder that can be written exists at a path, or can be made there.

    `remedy` is told if it cannot be written.
    """
    _behind(out)
    try:
        if stat.S_ISDIR(out.stat().st_mode):
            _require_writable(out, out, remedy)
            return
    except FileNotFoundError:
        if not out.is_symlink():
            _require_writable(out, out.absolute().parent, remedy)
            return
        raise UserError(f"{out} is a broken link; name a folder with --out") from None
    except NotADirectoryError:
        raise _below_file(out, out) from None
    kind = "a file" if out.is_file() else "no folder"
    raise UserError(f"{out} is {kind}; name a folder with --out")
