"""Files: bounded reading, digests, and writes that are either complete or absent.

All files that others may have written are opened here: only regular files up to a given size, and
JSON of bounded depth and numbers.
"""

import glob
import hashlib
import json
import math
import os
import re
import stat
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from fairway.base.errors import UserError
from fairway.base.locks import lock
from fairway.base.outputs import keep_permissions, lent_stream, place_of

_READ_BYTES = 1 << 20
# Without following a link or waiting for a writer, if the system supports that.
_NOT_ELSEWHERE = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
# The largest JSON file that Fairway writes, results.json, has about 100 kB. Objects of Python take
# up to 32 times the bytes of hostile JSON.
MOST_JSON_BYTES = 1 << 23
# The largest files that are held in memory: files to compress and compressed files.
MOST_BYTES = 1 << 31
_STREAMS = re.compile(r"/dev/(?:stdin|fd/(\d{1,9}))")
_MOST_DEPTH = 64
# Seeds and counts have at most 20 digits.
_MOST_DIGITS = 40
_MANY_DIGITS = re.compile(rf"\d{{{_MOST_DIGITS + 1}}}")
_KINDS = (
    (stat.S_ISDIR, "folder"),
    (stat.S_ISFIFO, "pipe"),
    (stat.S_ISCHR, "device"),
    (stat.S_ISBLK, "device"),
    (stat.S_ISSOCK, "socket"),
)
# This many characters of at most four bytes and 15 more bytes make a name of 255 bytes.
_NAME_CHARACTERS = 60


def opened(path: Path, what: str = "") -> BinaryIO:
    """Return a regular file, open for reading; sentences call it `what`.

    UserError if it is missing, may not be read, or is not a regular file: a pipe would wait for a
    writer, and a device has no end.
    """
    named = f"{what} {path}" if what else str(path)
    try:
        # Opening does not wait, so that a pipe can be refused.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except FileNotFoundError:
        raise UserError(f"{named} {missing(path)}") from None
    except OSError as error:
        raise UserError(f"cannot read {named}: {error.strerror}") from None
    except ValueError:
        raise UserError(f"{str(path)!r} cannot be the name of a file") from None
    mode = os.fstat(handle).st_mode
    if not stat.S_ISREG(mode):
        os.close(handle)
        kind = next((name for holds, name in _KINDS if holds(mode)), "special file")
        remedy = "; write its content to a file, and name that" if kind == "pipe" else ""
        raise UserError(f"cannot read {named}: it is a {kind}, not a file{remedy}")
    return os.fdopen(handle, "rb")


def missing(path: Path) -> str:
    """Return in words what is wrong with a path that does not exist."""
    return "is a link that leads nowhere" if path.is_symlink() else "does not exist"


def stream_number(path: Path) -> int | None:
    """Return the number of the open file that a path names, if it is the standard input or a pipe.

    A shell gives /dev/stdin for a pipe into a command, and /dev/fd/63 for <(command).
    """
    found = _STREAMS.fullmatch(str(path))
    if found is None or (found[1] and not path.is_fifo()):
        return None
    return int(found[1] or 0)


def read_bytes(path: Path, most_bytes: int = MOST_BYTES) -> bytes:
    """Return the bytes of a regular file, or of a stream to its end.

    UserError as `opened`, and for more than `most_bytes`.
    """
    if (number := stream_number(path)) is not None:
        return _read_stream(path, number, most_bytes)
    with opened(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        # `read` allocates the size requested; only a growing file has more bytes than it stated.
        data = b"" if size > most_bytes else stream.read(size + 1)
        while size < len(data) <= most_bytes and (piece := stream.read(_READ_BYTES)):
            data += piece
    if max(size, len(data)) > most_bytes:
        raise UserError(f"{path} has {size:,} bytes; at most {most_bytes:,} are read")
    return data


def _read_stream(path: Path, number: int, most_bytes: int) -> bytes:
    data = bytearray()
    while len(data) <= most_bytes and (piece := os.read(number, _READ_BYTES)):
        data += piece
    if len(data) > most_bytes:
        raise UserError(f"{path} has more than {most_bytes:,} bytes; at most that many are read")
    return bytes(data)


def digest_bytes(data: bytes) -> str:
    """Return the SHA-256 of some bytes in hex."""
    return hashlib.sha256(data).hexdigest()


def canonical_json(value: Any) -> bytes:
    """Return the canonical JSON of a value: sorted keys, no blanks, ASCII; ValueError for NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def digest_json(value: Any) -> str:
    """Return the SHA-256 in hex of a value, independent of the order of its keys."""
    return digest_bytes(canonical_json(value))


def digest_file(path: Path) -> str:
    """Return the SHA-256 of a file in hex, read in pieces; UserError as `opened`."""
    total = hashlib.sha256()
    with opened(path) as stream:
        while piece := stream.read(_READ_BYTES):
            total.update(piece)
    return total.hexdigest()


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Yield a binary file that takes its final name only if the block ends without an error.

    Links are followed, and the permissions of a replaced file are kept. Devices and pipes are
    written directly. Raises UserError for what `fairway.base.outputs` refuses.
    """
    place = place_of(path)
    if place.lent:
        with lent_stream(place) as stream:
            yield stream
        return
    folder = place.path.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise UserError(f"cannot write {path}: {error.filename} is not a folder") from None
    # A name of the greatest length has no room for an addition.
    start = f".{place.path.name[:_NAME_CHARACTERS]}."
    _sweep(folder, start)
    try:
        handle, name = _part(folder, start)
    except OSError as error:
        # The caller does not know the temporary name.
        error.filename = str(path)
        raise
    try:
        with os.fdopen(handle, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
            keep_permissions(Path(name), place.old)
            # Before closing, which releases the lock.
            Path(name).replace(place.path)
    except BaseException as error:
        with suppress(OSError):
            Path(name).unlink()
        if isinstance(error, OSError) and error.filename in (None, name):
            # The caller does not know the temporary name.
            error.filename = str(path)
        raise


def _part(folder: Path, start: str) -> tuple[int, str]:
    """Return a new file in a folder, locked while it is open, and its name."""
    while True:
        handle, name = tempfile.mkstemp(prefix=start, suffix=".part", dir=folder)
        # Some network disks have no locks: there nothing is removed.
        with suppress(OSError):
            lock(handle)
        # Another process may have removed it before it was locked.
        if Path(name).exists():
            return handle, name
        os.close(handle)


def _sweep(folder: Path, start: str) -> None:
    """Remove temporary files of killed writers of this file; a locked one is in use."""
    for left in folder.glob(f"{glob.escape(start)}????????.part"):
        with suppress(OSError):
            handle = os.open(left, os.O_RDONLY | _NOT_ELSEWHERE)
            try:
                lock(handle)
                left.unlink()
            finally:
                os.close(handle)


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file under a temporary name, then rename it into place."""
    with atomic_file(path) as stream:
        stream.write(data)


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON with a final newline, atomically; NaN is refused."""
    text = json.dumps(value, indent=2, allow_nan=False)
    write_atomic(path, (text + "\n").encode())


def read_json(path: Path, most_bytes: int = MOST_JSON_BYTES) -> Any:
    """Return a parsed JSON file; one that is missing, unreadable, too large or malformed is a
    UserError."""
    data = read_bytes(path, most_bytes)
    try:
        return parse_json(data)
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}); was it cut short?") from None


def parse_json(text: bytes | str) -> Any:
    """Return a JSON value.

    Raises ValueError with a few words if the text is no JSON, or if other programs could read it
    differently: with repeated keys, NaN and infinities, numbers of more than 40 digits, or values
    nested more than 64 deep.
    """
    if isinstance(text, bytes):
        text = text.decode(json.detect_encoding(text), "surrogatepass")
    try:
        value = json.loads(
            text,
            # A check of every number takes as long as all the rest.
            parse_int=_whole if _MANY_DIGITS.search(text) else None,
            parse_float=_finite,
            parse_constant=_finite,
            object_pairs_hook=_once_each,
        )
    except RecursionError:
        raise ValueError(f"it is nested more than {_MOST_DEPTH} deep") from None
    level, depth = [[value]], 0
    while level := [item for part in level for item in _inner(part)]:
        depth += 1
        if depth > _MOST_DEPTH:
            raise ValueError(f"it is nested more than {_MOST_DEPTH} deep")
    return value


def _inner(value: Any) -> list[Any]:
    """Return the lists and objects inside a list or an object."""
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [item for item in inside if isinstance(item, dict | list)]


def _whole(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:
        raise ValueError(f"it has a number of {len(digits):,} digits, {_MOST_DIGITS} at most")
    return int(digits)


def _finite(number: str) -> float:
    if not math.isfinite(found := float(number)):
        raise ValueError(f"it has the number {number[:_MOST_DIGITS]}, which is not finite")
    return found


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        raise ValueError(f"it has the key {counts.most_common(1)[0][0][:_MOST_DIGITS]!r} twice")
    return found
