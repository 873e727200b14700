"""A record's folder, read without trusting it: which files it has, and bounded pieces of them.

Nothing is executed, no link is followed, and nothing outside the folder is opened.
"""

import itertools
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairway.audit.findings import plain
from fairway.errors import UserError
from fairway.files import opened, parse_json, read_bytes

# A record has a handful of files; whoever puts in more is not audited further than this.
MOST_FILES = 2_000
_MOST_ENTRIES = 10_000
MOST_JSON_BYTES = 4_000_000
MOST_TEXT_BYTES = 4_000_000
_MOST_DEPTH = 6


@dataclass(frozen=True, slots=True)
class File:
    """A regular file of a record: its path, its name as it may be printed, its size."""

    path: Path
    name: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Folder:
    """The regular files of a record in order of name, and the names that were left alone."""

    path: Path
    files: tuple[File, ...]
    skipped: tuple[str, ...]

    def named(self, *names: str) -> list[File]:
        """Return the files of these names (in lower case), wherever in the folder they lie."""
        return [file for file in self.files if file.path.name.lower() in names]

    def ending(self, *suffixes: str) -> list[File]:
        """Return the files with these suffixes (in lower case)."""
        return [file for file in self.files if file.path.suffix.lower() in suffixes]


def open_folder(path: Path) -> Folder:
    """Return the files of a folder; UserError if it is none, or cannot be read."""
    if not path.is_dir():
        raise UserError(f"{path} is not a folder; name the folder of a record")
    files: list[File] = []
    skipped: list[str] = []
    _walk(path, path, files, skipped, 0)
    files.sort(key=lambda file: file.name)
    return Folder(path, tuple(files), tuple(sorted(skipped)))


def _walk(root: Path, path: Path, files: list[File], skipped: list[str], depth: int) -> None:
    try:
        with os.scandir(path) as found:
            entries = sorted(itertools.islice(found, _MOST_ENTRIES), key=lambda entry: entry.name)
    except OSError:
        skipped.append(plain(os.path.relpath(path, root)))
        return
    for entry in entries:
        name = plain(os.path.relpath(entry.path, root))
        if entry.name in (".git", "__pycache__"):
            continue
        if len(files) >= MOST_FILES or len(skipped) >= MOST_FILES:
            skipped.append(name)
            return
        info = entry.stat(follow_symlinks=False)
        if stat.S_ISDIR(info.st_mode) and depth < _MOST_DEPTH:
            before = len(files) + len(skipped)
            _walk(root, Path(entry.path), files, skipped, depth + 1)
            if len(files) + len(skipped) == before:
                # Folders without an end would be walked in silence.
                skipped.append(name)
        elif stat.S_ISREG(info.st_mode):
            files.append(File(Path(entry.path), name, info.st_size))
        else:
            skipped.append(name)


def read_text(file: File, most_bytes: int = MOST_TEXT_BYTES) -> str:
    """Return the beginning of a file as text; bytes that are none become U+FFFD."""
    with opened(file.path) as stream:
        return stream.read(most_bytes).decode("utf-8", "replace")


def read_object(file: File) -> dict[str, Any] | str:
    """Return a JSON object, or in words why there is none."""
    if file.size_bytes > MOST_JSON_BYTES:
        return f"{file.size_bytes:,} bytes are too many for it"
    try:
        value = parse_json(read_bytes(file.path, MOST_JSON_BYTES))
    except UserError as error:
        return str(error)
    except ValueError as error:
        return f"it is not valid JSON ({error})"
    return value if isinstance(value, dict) else "it holds no JSON object"
