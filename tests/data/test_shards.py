import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fairway.base.errors import UserError
from fairway.data.shards import check_vocabulary, find_shards, open_shard, write_shard
from fairway.data.streams import lines
from fairway.data.tokens import Tokenizer

TOKENS = np.array([1, 5, 65_535, 0], np.uint16)


def test_a_shard_has_the_published_layout(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.bin", TOKENS)
    raw = (tmp_path / "a.bin").read_bytes()
    words = np.frombuffer(raw[:1024], "<i4")
    assert words[:3].tolist() == [20240520, 1, 4] and not words[3:].any()
    assert raw[1024:] == bytes([1, 0, 5, 0, 255, 255, 0, 0])
    assert open_shard(tmp_path / "a.bin").tolist() == TOKENS.tolist()


def test_a_mapped_shard_cannot_be_written(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.bin", TOKENS)
    with pytest.raises(ValueError, match="read-only"):
        open_shard(tmp_path / "a.bin")[0] = 7


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda raw: raw[:100], "has 100 bytes; a token shard has at least 1024"),
        (lambda raw: b"\x00" * 4 + raw[4:], "its first word is 0, not 20240520"),
        (lambda raw: raw[:4] + b"\x02" + raw[5:], "of version 2; expected 1"),
        (lambda raw: raw[:-1], "4 tokens, so 1032 bytes, but has 1031"),
        (lambda raw: raw + b"\x00", "4 tokens, so 1032 bytes, but has 1033"),
        (lambda raw: raw[:8] + b"\xff" * 4 + raw[12:], "announces -1 tokens"),
        (lambda raw: raw[:8] + b"\xff\xff\xff\x7f" + raw[12:], "announces 2147483647 tokens"),
        (lambda raw: raw[:8] + b"\x00" * 4 + raw[12:1024], "announces 0 tokens"),
    ],
)
def test_a_damaged_shard_is_refused(tmp_path: Path, damage, sentence: str) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "fairway_train_000000.bin"
    write_shard(path, TOKENS)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=sentence) as caught:
        open_shard(path)
    assert path.name in str(caught.value)


def test_a_missing_shard_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"x\.bin does not exist"):
        open_shard(tmp_path / "x.bin")


@pytest.mark.parametrize("tokens", [np.zeros(0, np.uint16), np.zeros(3, np.int64)])
def test_only_rows_of_uint16_are_written(tmp_path: Path, tokens: np.ndarray) -> None:
    with pytest.raises(UserError, match="uint16"):
        write_shard(tmp_path / "a.bin", tokens)
    assert list(tmp_path.iterdir()) == []


def test_shards_are_found_by_split_and_name(tmp_path: Path) -> None:
    for name in (
        "fineweb_val_000001.bin",
        "fineweb_val_000000.bin",
        "fineweb_val_bytes_000000.bin",
        "fairway_train_000000.bin",
        "fineweb_train_000000.bin.part",
        "other_train_000000.bin",
    ):
        (tmp_path / name).touch()
    val = [path.name for path in find_shards(tmp_path, "val")]
    assert val == ["fineweb_val_000000.bin", "fineweb_val_000001.bin"]
    assert [path.name for path in find_shards(tmp_path, "train")] == ["fairway_train_000000.bin"]


def test_a_folder_without_shards_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no train shards"):
        find_shards(tmp_path, "train")


def test_ids_must_be_inside_the_vocabulary() -> None:
    check_vocabulary(TOKENS[:2], 6, "a.bin")
    with pytest.raises(UserError, match=r"a\.bin has token id 5, outside the vocabulary of 5"):
        check_vocabulary(TOKENS[:2], 5, "a.bin")


@pytest.mark.parametrize(
    "read",
    [open_shard, Tokenizer.load, lambda path: list(lines(path, True)),
     lambda path: list(lines(path, False))],
)  # fmt: skip
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(
    tmp_path: Path, read: Callable[[Path], Any]
) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="it is a pipe, not a file"):
        read(tmp_path / "pipe")
