"""Reads documents from the user's own files: .txt, .md, .jsonl, .jsonl.zst, .parquet, and folders.

One rule applies to all kinds: a text is used unchanged. No character is removed or replaced, not
even a carriage return, a byte order mark or a control character, so the same text has the same
bytes in every kind of file. Unreadable text is refused with its file and line. Skipped items are
counted.

Lines and columns are read as streams, so memory depends on the longest document and not on the
file.
"""

import json
import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fairway.base.errors import UserError, shown
from fairway.base.files import opened, read_bytes, stream_number
from fairway.base.mistaken import require_no_pointer
from fairway.base.progress import progress
from fairway.base.units import megabytes
from fairway.data.columns import column_texts
from fairway.data.documents import Document, LeftOut
from fairway.data.streams import lines

TEXT_FIELD = "text"
KINDS = (".txt", ".md", ".jsonl", ".jsonl.zst", ".parquet")
# A text file is one document, and several copies of it are in memory.
_MAX_FILE_BYTES = 1 << 32
_BOM = b"\xef\xbb\xbf"


def read_documents(paths: list[Path], left_out: LeftOut | None = None) -> Iterator[Document]:
    """Yield the documents of files and folders (searched in depth, by name).

    A text file is one document, and so is a stream (/dev/stdin, <(command)), the field `text`
    of a line of JSON, or a row of Parquet. In a
    folder, links are followed and each folder is read once. Hidden files, files of other kinds and
    entries that are not files are left out; so are null texts. `left_out` counts them by reason.
    Raises UserError for missing, unknown, damaged and non-UTF-8 files, when they are reached.
    """
    left_out = LeftOut() if left_out is None else left_out
    files = [item for path in paths for item in _files(path, left_out)]
    with progress("reading text", len(files)) as advance:
        for name, file in files:
            try:
                if stream_number(file) is not None:
                    yield Document(name, _decoded(read_bytes(file, _MAX_FILE_BYTES), str(file)))
                else:
                    require_no_pointer(file)
                    yield from _documents(name, file, left_out)
            except OSError as error:
                raise UserError(f"cannot read {file}: {error.strerror or error}") from None
            advance(1)


def _kind(path: Path) -> str | None:
    return next((kind for kind in KINDS if path.name.lower().endswith(kind)), None)


def require_text(path: Path) -> None:
    """Raise UserError for a path that is neither a folder nor a file that may be read."""
    if not path.is_dir() and stream_number(path) is None:
        opened(path).close()


def _files(path: Path, left_out: LeftOut) -> list[tuple[str, Path]]:
    """Return (name, file) for a file, or for all files of known kinds below a folder."""
    require_text(path)
    if stream_number(path) is not None:
        return [(path.name, path)]
    if path.is_dir():
        return _inside(path, left_out)
    if not _kind(path):
        raise UserError(f"{path} has an unknown ending; expected {', '.join(KINDS)}, or a folder")
    return [(_name(path.name), path)]


def _inside(top: Path, left_out: LeftOut) -> list[tuple[str, Path]]:
    try:
        files = list(_walk(top, left_out))
    except OSError as error:
        raise UserError(f"cannot read {error.filename or top}: {error.strerror}") from None
    known = [file for file in files if _kind(file)]
    if not known:
        raise UserError(f"no text in the folder {top}; expected files of kind {', '.join(KINDS)}")
    left_out["unknown_kind"] += len(files) - len(known)
    return sorted((_name(file.relative_to(top).as_posix()), file) for file in known)


def _walk(top: Path, left_out: LeftOut) -> Iterator[Path]:
    """Yield the files below a folder; links to folders are read after all folders.

    A folder is entered once, and links to folders above `top` are skipped, so loops end.
    """
    above = {_identity(folder) for folder in top.resolve().parents}
    seen = set(above)
    waiting = deque([top])
    while waiting:
        folder = waiting.popleft()
        if _identity(folder) in seen:
            left_out["linked_again"] += 1
            continue
        seen.add(_identity(folder))
        for path in sorted(folder.iterdir()):
            if path.name.startswith("."):
                left_out["hidden"] += 1
            elif path.is_dir():
                (waiting.append if path.is_symlink() else waiting.appendleft)(path)
            elif path.is_file():
                yield path
            else:
                left_out["broken_link" if path.is_symlink() else "not_a_file"] += 1


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _name(path: str) -> str:
    """Return a file's name as text; bytes that are not UTF-8 are written as `\\xff`."""
    return os.fsencode(path).decode(errors="backslashreplace")


def _documents(name: str, path: Path, left_out: LeftOut) -> Iterator[Document]:
    kind = _kind(path)
    if kind in (".txt", ".md"):
        if (size := path.stat().st_size) > _MAX_FILE_BYTES:
            raise UserError(f"{path} has {megabytes(size)}; split it into documents")
        yield Document(name, _decoded(path.read_bytes(), str(path)))
        return
    rows = column_texts(path, TEXT_FIELD) if kind == ".parquet" else _line_texts(path, kind)
    for number, text in rows:
        if text is None:
            left_out["null_text"] += 1
        else:
            yield Document(f"{name}:{number}", text)


def _decoded(data: bytes, place: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{place} is not UTF-8 (line {line}); convert it first") from None


# ---------------------------------------------------------------------------------------------
# Lines of JSON


class _Object(list[tuple[str, Any]]):
    """A JSON object as its pairs, so that repeated keys are noticed."""


def _line_texts(path: Path, kind: str | None) -> Iterator[tuple[int, str | None]]:
    """Yield (number, text) of every line that is not blank; None for a null text."""
    for number, line in enumerate(lines(path, kind == ".jsonl.zst"), 1):
        if bare := (line.removeprefix(_BOM) if number == 1 else line).strip():
            yield number, _json_text(bare, f"{path} line {number}")


def _json_text(line: bytes, place: str) -> str | None:
    value = _json(_decoded(line, place), place)
    found = [item for key, item in value if key == TEXT_FIELD] if isinstance(value, _Object) else []
    if len(found) > 1:
        raise UserError(f'{place} has {len(found)} fields "{TEXT_FIELD}"; keep one')
    if not found or not isinstance(found[0], str | None):
        raise UserError(f'{place} has {_instead(value)}; expected {{"{TEXT_FIELD}": "..."}}')
    return _whole(found[0], place) if found[0] is not None else None


def _instead(value: Any) -> str:
    """Return what a line of JSON has in place of a text, in words."""
    if not isinstance(value, _Object):
        return "no text: it is not a JSON object"
    names = [key for key, _ in value]
    if TEXT_FIELD in names:
        return f'no text: the field "{TEXT_FIELD}" is not a string'
    fields = shown(", ".join(names))
    return f'no field "{TEXT_FIELD}": its fields are {fields}' if names else "no text: it is empty"


def _json(text: str, place: str) -> Any:
    """Return a parsed line; its numbers, of any length, are read as zero, because none is used."""
    try:
        return json.loads(text, object_pairs_hook=_Object, parse_int=lambda digits: 0)
    except json.JSONDecodeError as error:
        reason = "more than one value on a line" if error.msg == "Extra data" else error.msg
    except RecursionError:
        reason = "nested too deeply"
    raise UserError(f"{place} is not JSON: {reason}")


def _whole(text: str, place: str) -> str:
    """Return a text if it can be written as UTF-8; JSON may contain halves of characters."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(
            f"{place} has half a character (an unpaired surrogate) in its text"
        ) from None
    return text
