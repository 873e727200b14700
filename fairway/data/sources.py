"""Documents from the user's own files: .txt and .md, .jsonl and .jsonl.zst, .parquet, folders.

Compressed and columnar files are read as streams, so memory is bounded by the longest document
rather than by the file. What cannot be read is refused with its file and line.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pyarrow
import pyarrow.parquet

from fairway.data.documents import Document
from fairway.errors import UserError
from fairway.progress import progress

TEXT_FIELD = "text"
KINDS = (".txt", ".md", ".jsonl", ".jsonl.zst", ".parquet")
_READ_BYTES = 1 << 20
_MAX_LINE_BYTES = 1 << 28
_BATCH_ROWS = 256
_BOM = "\ufeff"


def read_documents(paths: list[Path]) -> Iterator[Document]:
    """Yield the documents of files and folders (searched in depth, by name).

    A text file is one document; a line of JSON or a row of Parquet is one, its field `text`.
    Raises UserError for what is missing, unknown, damaged or not UTF-8, when it is reached.
    """
    files = [item for path in paths for item in _files(path)]
    with progress("reading text", len(files)) as advance:
        for name, file in files:
            try:
                yield from _documents(name, file)
            except OSError as error:
                raise UserError(f"cannot read {file}: {error.strerror or error}") from None
            advance(1)


def _kind(path: Path) -> str | None:
    return next((kind for kind in KINDS if path.name.lower().endswith(kind)), None)


def _files(path: Path) -> list[tuple[str, Path]]:
    """Return (name, file) for a file, or for all files of known kinds below a folder."""
    if path.is_file() and _kind(path):
        return [(path.name, path)]
    if path.is_file():
        raise UserError(f"{path} is of no known kind; expected {', '.join(KINDS)}, or a folder")
    if not path.is_dir():
        raise UserError(f"{path} does not exist")
    inside = sorted((item.relative_to(path), item) for item in path.rglob("*") if item.is_file())
    known = [
        (relative.as_posix(), item)
        for relative, item in inside
        if _kind(item) and not any(part.startswith(".") for part in relative.parts)
    ]
    if not known:
        raise UserError(f"no text in the folder {path}; expected files of kind {', '.join(KINDS)}")
    return known


def _documents(name: str, path: Path) -> Iterator[Document]:
    kind = _kind(path)
    if kind in (".txt", ".md"):
        yield Document(name, _text(path.read_bytes(), str(path)))
    elif kind == ".parquet":
        yield from _parquet(name, path)
    else:
        for number, line in enumerate(_lines(path, "zstd" if kind == ".jsonl.zst" else None), 1):
            if text := line.strip():
                yield Document(f"{name}:{number}", _json_text(text, f"{path} line {number}"))


def _text(data: bytes, place: str) -> str:
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{place} is not UTF-8 (line {line}); convert it first") from None
    return text.removeprefix(_BOM).replace("\r\n", "\n")


def _lines(path: Path, compression: str | None) -> Iterator[bytes]:
    """Yield the lines of a file; pyarrow's reader also notices a compressed stream cut short."""
    rest = b""
    number = 1
    with pyarrow.input_stream(str(path), compression=compression) as stream:
        while piece := stream.read(_READ_BYTES):
            *whole, rest = (rest + piece).split(b"\n")
            yield from whole
            number += len(whole)
            if len(rest) > _MAX_LINE_BYTES:
                raise UserError(f"{path} line {number} is longer than {_MAX_LINE_BYTES} bytes")
    yield rest


def _json_text(line: bytes, place: str) -> str:
    text = _text(line, place)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deeply"
        raise UserError(f"{place} is not JSON: {reason}") from None
    if not isinstance(value, dict) or not isinstance(value.get(TEXT_FIELD), str):
        raise UserError(f'{place} has no text; expected {{"{TEXT_FIELD}": "..."}}')
    return _checked(value[TEXT_FIELD], place)


def _checked(text: str, place: str) -> str:
    """Return a text that can be written as UTF-8; JSON may smuggle in halves of characters."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(f"{place} has half a character (a lone surrogate) in its text") from None
    return text


def _parquet(name: str, path: Path) -> Iterator[Document]:
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            _check_column(table.schema_arrow, path)
            for batch in table.iter_batches(_BATCH_ROWS, columns=[TEXT_FIELD]):
                for value in batch.column(0):
                    number += 1
                    if (text := value.as_py()) is not None:
                        yield Document(f"{name}:{number}", text)
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        _refuse_parquet(path, number, error)


def _check_column(schema: Any, path: Path) -> None:
    if TEXT_FIELD not in schema.names:
        raise UserError(f"{path} has no column '{TEXT_FIELD}'; it has {', '.join(schema.names)}")
    kind = schema.field(TEXT_FIELD).type
    if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
        raise UserError(f"{path}: the column '{TEXT_FIELD}' holds {kind}, not strings")


def _refuse_parquet(path: Path, number: int, error: Exception) -> NoReturn:
    reason = str(error).splitlines()[0]
    raise UserError(f"{path} is damaged after row {number}: {reason}") from None
