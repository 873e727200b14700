"""Reads a record's folder without trusting it: the list of its files, and bounded pieces of them.

Nothing is executed, no link is followed, and nothing outside the folder is opened.
"""

import codecs
import heapq
import io
import itertools
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from fairway.audit.findings import plain
from fairway.base.errors import UserError
from fairway.base.files import opened, parse_json, read_bytes

# Honest records have few files. Files beyond this number are not audited.
MOST_FILES = 2_000
# The most names of one folder that are read, in a tenth of a second.
_MOST_ENTRIES = 200_000
MOST_JSON_BYTES = 4_000_000
MOST_TEXT_BYTES = 4_000_000
_MOST_DEPTH = 6
_BLOCK_BYTES = 1 << 22
# The files of every record; they are read first if there are too many files.
CLAIM, SCRIPT, README = "submission.json", "train_gpt.py", "readme.md"
_TEXTS = (".log", ".py", ".txt", ".json", ".md", ".out")
# A record is in the folder of its track, which is in a folder of all tracks.
_DEPTH_OF_RECORDS = 3
_MOST_RECORDS = 5_000
_CLAIMED = re.compile(r"submission.*\.json")
_RAN = re.compile(r"train.*\.(py|log|txt)|.*\.log")


@dataclass(frozen=True, slots=True)
class File:
    """A regular file of a record: its path, its printable name, its size."""

    path: Path
    name: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Folder:
    """The regular files of a record in order of name, and the names of skipped entries.

    `left_out` counts the files beyond the limit. `whole` is false for a file without a folder.
    """

    path: Path
    files: tuple[File, ...]
    skipped: tuple[str, ...] = ()
    left_out: int = 0
    whole: bool = True

    def named(self, *names: str) -> list[File]:
        """Return the files of these names (in lower case); deeper ones come last."""
        found = [file for file in self.files if file.path.name.lower() in names]
        return sorted(found, key=lambda file: (file.name.count("/"), file.name))

    def ending(self, *suffixes: str) -> list[File]:
        """Return the files with these suffixes (in lower case)."""
        return [file for file in self.files if file.path.suffix.lower() in suffixes]


def open_folder(path: Path) -> Folder:
    """Return the files of a folder; UserError if it is not a folder, or cannot be read."""
    if not path.is_dir():
        raise UserError(f"{path} is not a folder; name the folder of a record")
    walk = _Walk(path)
    walk.into(path, 0)
    walk.files.sort(key=lambda file: file.name)
    return Folder(path, tuple(walk.files), tuple(sorted(walk.skipped)), walk.left_out)


def open_file(path: Path) -> Folder:
    """Return a single log or script as a folder with `whole` false; UserError if it is no file."""
    with opened(path) as stream:
        size = os.fstat(stream.fileno()).st_size
    return Folder(path, (File(path, plain(path.name), size),), whole=False)


class _Walk:
    """Collects the files below a folder, within limits."""

    def __init__(self, root: Path) -> None:
        self.root, self.left_out = root, 0
        self.files: list[File] = []
        self.skipped: list[str] = []

    def into(self, path: Path, depth: int) -> None:
        """Add the entries of a folder."""
        try:
            with os.scandir(path) as found:
                first = list(itertools.islice(found, _MOST_ENTRIES))
                more = sum(1 for _ in itertools.islice(found, _MOST_ENTRIES))
        except OSError:
            self._skip(path)
            return
        entries = heapq.nsmallest(2 * MOST_FILES, first, key=_importance)
        self.left_out += len(first) - len(entries) + more
        for entry in entries:
            if entry.name in (".git", "__pycache__"):
                continue
            if len(self.files) >= MOST_FILES or len(self.skipped) >= MOST_FILES:
                self.left_out += 1
            else:
                self._add(entry, depth)

    def _add(self, entry: "os.DirEntry[str]", depth: int) -> None:
        try:
            info = entry.stat(follow_symlinks=False)
        except OSError:
            # The file disappeared while the folder was read.
            self._skip(Path(entry.path))
            return
        if stat.S_ISDIR(info.st_mode) and depth < _MOST_DEPTH:
            before = len(self.files) + len(self.skipped)
            self.into(Path(entry.path), depth + 1)
            if len(self.files) + len(self.skipped) == before:
                # Record empty folders, so that endless ones also reach the limit.
                self._skip(Path(entry.path))
        elif stat.S_ISREG(info.st_mode):
            self.files.append(File(Path(entry.path), self._name(entry.path), info.st_size))
        else:
            self._skip(Path(entry.path))

    def _skip(self, path: Path) -> None:
        self.skipped.append(self._name(path))

    def _name(self, path: str | Path) -> str:
        return plain(os.path.relpath(path, self.root))


def _importance(entry: "os.DirEntry[str]") -> tuple[int, str]:
    """Return the sort key of an entry: files that the audit reads come first."""
    name = entry.name.lower()
    if name in (CLAIM, SCRIPT, README):
        return 0, entry.name
    return (1 if name.endswith(_TEXTS) else 2), entry.name


# ---------------------------------------------------------------------------------------------
# Records below a folder


def records_in(path: Path) -> list[Path]:
    """Return the records in a folder, or the path itself if it is a record or has none.

    A record is a folder with a submission.json. Below a folder of records, a folder with a training
    script or a log counts, too.
    """
    return sorted(_records(path, _DEPTH_OF_RECORDS))[:_MOST_RECORDS] or [path]


def _records(path: Path, depth: int) -> list[Path]:
    try:
        with os.scandir(path) as found:
            entries = list(itertools.islice(found, _MOST_ENTRIES))
    except OSError:
        return []
    names = [entry.name.lower() for entry in entries]
    if any(_CLAIMED.fullmatch(name) for name in names):
        return [path]
    inner = [Path(entry.path) for entry in entries if depth and _is_folder(entry)]
    below = [record for folder in inner for record in _records(folder, depth - 1)]
    return below or ([path] if any(_RAN.fullmatch(name) for name in names) else [])


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir(follow_symlinks=False) and not entry.name.startswith(".")
    except OSError:
        return False


# ---------------------------------------------------------------------------------------------
# Pieces of files


def read_text(file: File, most_bytes: int = MOST_TEXT_BYTES) -> str:
    """Return the beginning of a file as text; invalid bytes become U+FFFD."""
    with opened(file.path) as stream:
        return decoded(stream.read(most_bytes))


def open_text(file: File, most_bytes: int) -> BinaryIO:
    """Return a file as UTF-8 lines; UTF-16 and line ends of CR alone are converted.

    Of a file that is converted, only `most_bytes` are read.
    """
    stream = opened(file.path)
    head = stream.read(4_096)
    stream.seek(0)
    wide = _encoding(head) != "utf-8"
    if not wide and (b"\n" in head or b"\r" not in head):
        return stream
    with stream:
        data = stream.read(most_bytes)
    return io.BytesIO(decoded(data).encode() if wide else data.replace(b"\r", b"\n"))


def longest_line(file: File, most_bytes: int) -> tuple[int, int]:
    """Return the number of the longest line in the beginning of a file, and its bytes."""
    longest, number, rest = (1, 0), 1, 0
    with open_text(file, most_bytes) as stream:
        for _ in range(0, most_bytes, _BLOCK_BYTES):
            lines = stream.read(_BLOCK_BYTES).split(b"\n")
            lengths = [len(lines[0]) + rest, *map(len, lines[1:])]
            if max(lengths) > longest[1]:
                longest = number + lengths.index(max(lengths)), max(lengths)
            rest = lengths[-1]
            number += len(lines) - 1
    return longest


def decoded(data: bytes) -> str:
    """Return the text of UTF-8 or UTF-16, with or without a byte order mark."""
    return data.decode(_encoding(data[:4_096]), "replace").removeprefix("\ufeff")


def _encoding(head: bytes) -> str:
    """Return the encoding of a text, from a byte order mark or a zero in every other byte."""
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    half = len(head) // 2
    if half > 8:
        for codec, zeros, letters in (
            ("utf-16-le", head[1::2], head[::2]), ("utf-16-be", head[::2], head[1::2]),
        ):  # fmt: skip
            if zeros.count(0) > 0.7 * half and letters.count(0) < 0.1 * half:
                return codec
    return "utf-8"


def read_object(file: File) -> dict[str, Any] | str:
    """Return a JSON object, or a text that says why it cannot be read."""
    if file.size_bytes > MOST_JSON_BYTES:
        return f"{file.size_bytes:,} bytes are more than the limit of {MOST_JSON_BYTES:,}"
    try:
        value = parse_json(read_bytes(file.path, MOST_JSON_BYTES))
    except UserError as error:
        return str(error)
    except ValueError as error:
        return f"it is not valid JSON ({error})"
    return value if isinstance(value, dict) else "it is not a JSON object"
