"""Results of measurements, kept in the user's folder for caches, one small file each.

All processes can use a note without messages between them. A note is valid only with its own digest
and the digest of everything that the result depends on. Otherwise the measurement is repeated.
"""

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairway.base.errors import UserError
from fairway.base.files import digest_json, read_json, write_json

# Names have two hex digits, so there are at most 256 notes; a later note may replace another.
_DIGITS = 2
_MOST_BYTES = 1 << 12


@dataclass(frozen=True, slots=True)
class Notes:
    """Notes of one kind: their folder, and the name of the result in them."""

    folder: str
    result: str

    def find(self, key: str) -> Any:
        """Return the result that was noted for a key; None if there is no valid note."""
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
            # Nothing is written to a pipe or a device at this path.
            if place and (place.is_file() or not os.path.lexists(place)):
                write_json(place, self._note(key, value))

    def _place(self, key: str) -> Path | None:
        """Return the path of the note of a key, or None if the user has no folder for caches."""
        named = os.environ.get("XDG_CACHE_HOME", "")
        with suppress(RuntimeError):
            # The XDG base directory specification says that relative paths are to be ignored.
            base = Path(named) if Path(named).is_absolute() else Path.home() / ".cache"
            return base / "fairway" / self.folder / f"{key[:_DIGITS]}.json"
        return None

    def _note(self, key: str, value: Any) -> dict[str, Any]:
        return {"key": key, self.result: value, "digest": digest_json([key, value])}
