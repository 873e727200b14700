"""How large a bundle was when it was measured before, on this machine, by this user.

To measure one takes seconds, and a run that asks for its settings' size, a dry run before it and
every seed of it ask for the same number. Only that number is kept, never a program: what is shipped
is always made anew. A note in the user's folder for caches serves every process without a word
between them. It counts only with its own digest and the digest of all that the size follows from;
what cannot be read or written is measured again.
"""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from fairway.base.errors import UserError
from fairway.base.files import digest_bytes, read_json, write_json

# Two hex digits name a note: the folder never grows beyond 256, and a later one takes its place.
_DIGITS = 2
_MOST_BYTES = 1 << 10


def _place(key: str) -> Path | None:
    """Return where the note of a key is, or None where the user has no place for it."""
    named = os.environ.get("XDG_CACHE_HOME", "")
    with suppress(RuntimeError):
        # A relative one is to be ignored, says the XDG base directory specification.
        base = Path(named) if Path(named).is_absolute() else Path.home() / ".cache"
        return base / "fairway" / "bundle-bytes" / f"{key[:_DIGITS]}.json"
    return None


def _note(key: str, size_bytes: int) -> dict[str, Any]:
    return {"key": key, "bytes": size_bytes, "digest": digest_bytes(f"{key} {size_bytes}".encode())}


def known_bytes(key: str) -> int | None:
    """Return the bytes that were noted for a key; None if there is no whole note of it."""
    place = _place(key)
    with suppress(UserError, OSError, TypeError, KeyError):
        if place:
            found = read_json(place, _MOST_BYTES)
            if type(found["bytes"]) is int and found == _note(key, found["bytes"]):
                return int(found["bytes"])
    return None


def note_bytes(key: str, size_bytes: int) -> None:
    """Note the bytes for a key, if the user's folder for caches can be written."""
    place = _place(key)
    with suppress(UserError, OSError):
        # Into a pipe or a device in its place nothing is written.
        if place and (place.is_file() or not os.path.lexists(place)):
            write_json(place, _note(key, size_bytes))
