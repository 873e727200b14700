import errno
import hashlib
import math
import os
import stat
from pathlib import Path

import pytest

from fairway.errors import UserError
from fairway.files import (
    atomic_file,
    digest_bytes,
    digest_file,
    read_json,
    write_atomic,
    write_json,
)


def test_a_digest_is_sha256_whatever_the_size(tmp_path: Path) -> None:
    data = bytes(range(256)) * 9000
    (tmp_path / "file").write_bytes(data)
    assert digest_file(tmp_path / "file") == digest_bytes(data) == hashlib.sha256(data).hexdigest()
    (tmp_path / "empty").touch()
    assert digest_file(tmp_path / "empty") == hashlib.sha256().hexdigest()


def test_a_file_is_written_whole_with_its_folders(tmp_path: Path) -> None:
    file = tmp_path / "a" / "b" / "file"
    write_atomic(file, b"first")
    write_atomic(file, b"second")
    assert file.read_bytes() == b"second"
    assert [path.name for path in file.parent.iterdir()] == ["file"]


def test_a_file_is_as_readable_as_the_mask_allows(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_atomic(tmp_path / "file", b"")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_leaves_the_old_file_and_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    write_atomic(file, b"old")
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError) as caught:
        write_atomic(file, b"new")
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(file))
    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]


def test_an_error_in_the_block_leaves_nothing_and_keeps_its_own_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught, atomic_file(tmp_path / "file") as stream:
        stream.write(b"half")
        (tmp_path / "other").read_bytes()
    assert caught.value.filename == str(tmp_path / "other")
    assert list(tmp_path.iterdir()) == []


def test_json_comes_back_and_ends_with_a_line(tmp_path: Path) -> None:
    value = {"b": [1, 2.5, None, True], "a": "\u2581"}
    write_json(tmp_path / "file", value)
    assert read_json(tmp_path / "file") == value
    assert (tmp_path / "file").read_bytes().endswith(b"}\n")


def test_what_json_cannot_say_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "file", {"loss": math.nan})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "does not exist"),
        (b"", "is not valid JSON"),
        (b'{"a": 1', "was it cut short"),
        (b"\xff\xfe\x00", "is not valid JSON"),
        (b"[" * 100_000, "is not valid JSON"),
    ],
)
def test_json_that_cannot_be_read(tmp_path: Path, content: bytes | None, told: str) -> None:
    if content is not None:
        (tmp_path / "file").write_bytes(content)
    with pytest.raises(UserError, match=told) as caught:
        read_json(tmp_path / "file")
    assert str(tmp_path / "file") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_is_not_json(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read .*directory"):
        read_json(tmp_path)
