"""Results of measuring, kept in the user's folder for caches, one small file each.

A note serves every process without a word between them. It counts only with its own digest and the
digest of all that the result follows from; what cannot be read or written is measured again.
"""

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairway.base.errors import UserError
from fairway.base.files import digest_json, read_json, write_json

# Two hex digits name a note: the folder never grows beyond 256, and a later one takes its place.
_DIGITS = 2
_MOST_BYTES = 1 << 12


@dataclass(frozen=True, slots=True)
class Notes:
    """Notes of one kind: the folder they lie in, and what a result is called in them."""

    folder: str
    result: str

    def find(self, key: str) -> Any:
        """Return the result that was noted for a key; None if there is no whole note of it."""
        place = self._place(key)
        with suppress(UserError, OSError, TypeError, KeyError):
            if place:
                found = read_json(place, _MOST_BYTES)
                if found == self._note(key, found[self.result]):
                    return found[self.result]
        return None

    def keep(self, key: str, value: Any) -> None:
        """Note a result, plain values, if the user's folder for caches can be written."""
        place = self._place(key)
        with suppress(UserError, OSError):
            # Into a pipe or a device in its place nothing is written.
            if place and (place.is_file() or not os.path.lexists(place)):
                write_json(place, self._note(key, value))

    def _place(self, key: str) -> Path | None:
        """Return where the note of a key is, or None where the user has no place for it."""
        named = os.environ.get("XDG_CACHE_HOME", "")
        with suppress(RuntimeError):
            # A relative one is to be ignored, says the XDG base directory specification.
            base = Path(named) if Path(named).is_absolute() else Path.home() / ".cache"
            return base / "fairway" / self.folder / f"{key[:_DIGITS]}.json"
        return None

    def _note(self, key: str, value: Any) -> dict[str, Any]:
        return {"key": key, self.result: value, "digest": digest_json([key, value])}
