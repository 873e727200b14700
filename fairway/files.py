"""Files: digests, and writes that either happen whole or not at all."""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from fairway.errors import UserError
from fairway.outputs import keep_permissions, lent_stream, place_of

_READ_BYTES = 1 << 20
# So many characters of a name, of four bytes at most, and 15 bytes more make 255.
_NAME_CHARACTERS = 60


def digest_bytes(data: bytes) -> str:
    """Return the SHA-256 of some bytes in hex."""
    return hashlib.sha256(data).hexdigest()


def digest_file(path: Path) -> str:
    """Return the SHA-256 of a file in hex, read in pieces."""
    total = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(_READ_BYTES):
            total.update(piece)
    return total.hexdigest()


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Yield a binary file that takes its final name only if the block ends without an error.

    It stands behind links and keeps the permissions of a file that it replaces. Devices and pipes
    are written into. Raises UserError for what `fairway.outputs` refuses.
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
        raise UserError(f"cannot write {path}: {error.filename} is no folder") from None
    # A name of the longest that there may be has no room for an addition.
    start = f".{place.path.name[:_NAME_CHARACTERS]}."
    handle, name = tempfile.mkstemp(prefix=start, suffix=".part", dir=folder)
    try:
        with os.fdopen(handle, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        keep_permissions(Path(name), place.old)
        Path(name).replace(place.path)
    except BaseException as error:
        with suppress(OSError):
            Path(name).unlink()
        if isinstance(error, OSError) and error.filename in (None, name):
            # The temporary name means nothing to whoever asked for this file.
            error.filename = str(path)
        raise


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file under a temporary name, then rename it into place."""
    with atomic_file(path) as stream:
        stream.write(data)


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON with a final newline, atomically; NaN is refused."""
    text = json.dumps(value, indent=2, allow_nan=False)
    write_atomic(path, (text + "\n").encode())


def read_json(path: Path) -> Any:
    """Return a parsed JSON file; a missing, unreadable or malformed one is a UserError."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({error}); was it cut short?") from None
