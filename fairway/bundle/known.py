"""How large a bundle was when it was measured before, on this machine, by this user.

To measure one takes seconds, and a run that asks for its settings' size, a dry run before it and
every seed of it ask for the same number. Only that number is kept, never a program: what is shipped
is always made anew.
"""

from fairway.base.notes import Notes

_NOTES = Notes("bundle-bytes", "bytes")


def known_bytes(key: str) -> int | None:
    """Return the bytes that were noted for a key; None if there is no whole note of it."""
    found = _NOTES.find(key)
    return found if type(found) is int else None


def note_bytes(key: str, size_bytes: int) -> None:
    """Note the bytes for a key, if the user's folder for caches can be written."""
    _NOTES.keep(key, size_bytes)
