from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from fairway.base.errors import UserError
from fairway.data import streams
from fairway.data.columns import column_texts

TEXTS = ["one", None, "caf\u00e9 \r\n", "one", ""]


def write(path: Path, column: Any, **options: Any) -> Path:
    pyarrow.parquet.write_table(
        pa.table({"id": range(len(column)), "text": column}), path, **options
    )
    return path


STRINGS = {
    "string": pa.string(),
    "large": pa.large_string(),
    "view": pa.string_view(),
    "dictionary": pa.dictionary(pa.int32(), pa.string()),
    "small dictionary": pa.dictionary(pa.int8(), pa.string()),
    "large dictionary": pa.dictionary(pa.int32(), pa.large_string()),
    "binary": pa.binary(),
    "large binary": pa.large_binary(),
}


@pytest.mark.parametrize("kind", STRINGS.values(), ids=STRINGS)
@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_every_kind_of_string_is_read(tmp_path: Path, kind: Any, compression: str) -> None:
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        column = pa.array([text and text.encode() for text in TEXTS], kind)
    elif pa.types.is_dictionary(kind):
        column = pa.array(TEXTS).cast(kind.value_type).dictionary_encode().cast(kind)
    else:
        column = pa.array(TEXTS, kind)
    path = write(tmp_path / "a.parquet", column, compression=compression, row_group_size=2)
    assert list(column_texts(path, "text")) == list(enumerate(TEXTS, 1))


def test_a_column_of_nulls_and_an_empty_one_are_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", pa.nulls(3))
    assert list(column_texts(path, "text")) == [(1, None), (2, None), (3, None)]
    assert list(column_texts(write(path, pa.array([], pa.string())), "text")) == []


REFUSED = {
    "numbers": (pa.array([1, 2]), "holds int64, not strings"),
    "lists": (pa.array([["a"], ["b"]]), "holds list<.*>, not strings"),
    "structs": (pa.array([{"text": "a"}]), "holds struct<.*>, not strings"),
    "number dictionary": (pa.array([1, 1]).dictionary_encode(), "not strings"),
    "latin-1": (pa.array([b"fine", b"caf\xe9"]), "row 2 is not UTF-8"),
}


@pytest.mark.parametrize(("column", "sentence"), REFUSED.values(), ids=REFUSED)
def test_other_columns_are_refused(tmp_path: Path, column: Any, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        list(column_texts(write(tmp_path / "a.parquet", column), "text"))


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(UserError, match="has 2 columns 'text'"):
        list(column_texts(tmp_path / "a.parquet", "text"))


@pytest.mark.parametrize(("letter", "rows"), [("x", 1000), ("\u00e9", 8), ("\U0001f600", 4)])
def test_a_bomb_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, letter: str, rows: int
) -> None:
    """Bytes are counted, not characters."""
    monkeypatch.setattr(streams, "FREE_TEXT_BYTES", 1_000_000)
    column = pa.array([letter * 100_000] * rows).dictionary_encode()
    path = write(tmp_path / "a.parquet", column, compression="zstd")
    with pytest.raises(UserError, match="too much for its size"):
        list(column_texts(path, "text"))
