"""Reads the text column of a Parquet file, for all kinds of strings."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
from pyarrow import types

from fairway.base.errors import UserError
from fairway.base.units import megabytes
from fairway.data.streams import MAX_LINE_BYTES, Budget

_MAX_BATCH_ROWS, _BATCH_BYTES = 256, 1 << 26
_STRINGS = (types.is_string, types.is_large_string, types.is_string_view)
# Some writers do not declare strings as such; bytes that are not UTF-8 are refused.
_BYTES = (types.is_binary, types.is_large_binary, types.is_binary_view)


def column_texts(path: Path, name: str) -> Iterator[tuple[int, str | None]]:
    """Yield (number, text) of every row from 1, None for a null; a few rows are read at a time.

    Plain, large, view, dictionary and undeclared strings can be read. Raises UserError for a file
    that is damaged, larger than its budget, or without such a column of strings.
    """
    number = 0
    budget = Budget(path)
    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            _check(table.schema_arrow, path, name)
            for batch in table.iter_batches(_batch_rows(table.metadata), columns=[name]):
                for value in batch.column(0):
                    number += 1
                    text = _text(value.as_py(), f"{path} row {number}")
                    budget.spend(_size_bytes(text))
                    yield number, text
            if number != table.metadata.num_rows:
                raise pyarrow.ArrowInvalid(f"{table.metadata.num_rows} rows are announced")
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError, MemoryError) as error:
        reason = (str(error) or "out of memory").splitlines()[0]
        raise UserError(f"{path} is damaged after row {number}: {reason}") from None


def _batch_rows(metadata: Any) -> int:
    """Return how many rows are read at once, for about 64 MB."""
    rows = max(1, metadata.num_rows)
    size = sum(metadata.row_group(n).total_byte_size for n in range(metadata.num_row_groups))
    return int(min(_MAX_BATCH_ROWS, max(1, _BATCH_BYTES * rows // max(1, size))))


def _check(schema: Any, path: Path, name: str) -> None:
    if (count := schema.names.count(name)) > 1:
        raise UserError(f"{path} has {count} columns '{name}'; keep one")
    if not count:
        raise UserError(f"{path} has no column '{name}'; it has {', '.join(schema.names)}")
    kind = schema.field(name).type
    inner = kind.value_type if types.is_dictionary(kind) else kind
    if not any(fits(inner) for fits in (*_STRINGS, *_BYTES, types.is_null)):
        raise UserError(f"{path}: the column '{name}' holds {kind}, not strings")


def _size_bytes(value: str | bytes | None) -> int:
    """Return the bytes of a text; a character has up to four."""
    return len(value.encode() if isinstance(value, str) else value or b"")


def _text(value: str | bytes | None, place: str) -> str | None:
    if _size_bytes(value) > MAX_LINE_BYTES:
        raise UserError(f"{place} is longer than {megabytes(MAX_LINE_BYTES)}")
    if not isinstance(value, bytes):
        return value
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise UserError(f"{place} is not UTF-8; convert it first") from None
