import errno
import hashlib
import json
import math
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from streams import piped

from fairway.base.errors import UserError
from fairway.base.files import (
    atomic_file,
    canonical_json,
    digest_bytes,
    digest_file,
    digest_json,
    parse_json,
    read_bytes,
    read_json,
    stream_number,
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
    with pytest.raises(UserError, match=r"it is a folder, not a file"):
        read_json(tmp_path)


def make_sparse(path: Path) -> None:
    with path.open("wb") as stream:
        stream.truncate(4 << 30)


def test_a_stream_is_read_to_its_end_and_not_beyond_its_limit(tmp_path: Path) -> None:
    data = os.urandom(300_000)
    for most_bytes in (1 << 30, len(data)):
        with piped(data) as path:
            assert read_bytes(path, most_bytes) == data
    with piped(data[:1000]) as path, pytest.raises(UserError, match="more than 999 bytes"):
        read_bytes(path, 999)
    # Another number is no open file, and a file's own number is no stream.
    with (tmp_path / "file").open("wb") as file:
        assert stream_number(Path(f"/dev/fd/{file.fileno()}")) is None
    with pytest.raises(UserError, match="/dev/fd/98765 does not exist"):
        read_bytes(Path("/dev/fd/98765"))


ODD_FILES = [
    (make_sparse, r"has 4,294,967,296 bytes; at most 8,388,608 are read"),
    (os.mkfifo, "it is a pipe, not a file; write its content to a file, and name that"),
    (Path.mkdir, "it is a folder, not a file"),
    (lambda path: path.symlink_to("/dev/zero"), "it is a device, not a file"),
    (lambda path: path.symlink_to(path.name), "cannot read .*symbolic links"),
    (lambda path: path.symlink_to("nowhere"), "is a link that leads nowhere"),
]


@pytest.mark.parametrize(("make", "told"), ODD_FILES)
def test_what_is_no_file_or_too_large_is_refused_at_once(
    tmp_path: Path, make: Callable[[Path], object], told: str
) -> None:
    make(tmp_path / "file")
    with pytest.raises(UserError, match=told) as caught:
        read_json(tmp_path / "file")
    assert str(tmp_path / "file") in str(caught.value)
    if make is not make_sparse:
        with pytest.raises(UserError, match=told):
            digest_file(tmp_path / "file")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"a": 1, "b": 2, "a": 3}', "the key 'a' twice"),
        ("[" * 65 + "]" * 65, "nested more than 64 deep"),
        ('{"a":' * 50_000 + "1" + "}" * 50_000, "nested more than 64 deep"),
        ("9" * 41, "a number of 41 digits"),
        ('{"seed": ' + "1" * 5_000 + "}", "a number of 5,000 digits"),
        ("[NaN]", "the number NaN, which is not finite"),
        ("[-Infinity]", "the number -Infinity"),
        ("[1e999]", "the number 1e999"),
    ],
)
def test_json_that_others_read_otherwise_is_refused(text: str, told: str) -> None:
    for given in (text, text.encode()):
        with pytest.raises(ValueError, match=told):
            parse_json(given)


def test_json_at_its_bounds_is_read() -> None:
    assert parse_json("9" * 40) == 10**40 - 1
    assert parse_json("[" * 64 + "]" * 64) == json.loads("[" * 64 + "]" * 64)
    assert parse_json('["' + "9" * 50 + '", 1e308, -0.0]') == ["9" * 50, 1e308, -0.0]


def test_a_file_that_grows_while_it_is_read_is_bounded() -> None:
    # The kernel says of it that it has no bytes.
    with pytest.raises(UserError, match="at most 10 are read"):
        read_bytes(Path("/proc/self/status"), 10)


def test_what_a_killed_writer_left_goes_with_the_next_write(tmp_path: Path) -> None:
    left = [tmp_path / f".out.{name}.part" for name in ("abcd1234", "efgh_678")]
    others = [tmp_path / name for name in (".out.part", ".other.abcd1234.part", ".out.abc.part")]
    for path in (*left, *others):
        path.write_text("half")
    (tmp_path / ".out.abcdefgh.part").symlink_to(others[0])
    write_atomic(tmp_path / "out", b"whole")
    assert not any(path.exists() for path in left)
    assert all(path.exists() for path in others)
    assert (tmp_path / ".out.abcdefgh.part").is_symlink()
    assert (tmp_path / "out").read_bytes() == b"whole"


def test_a_file_that_another_is_writing_is_left_alone(tmp_path: Path) -> None:
    with atomic_file(tmp_path / "out") as first:
        first.write(b"first")
        write_atomic(tmp_path / "out", b"second")
        assert (tmp_path / "out").read_bytes() == b"second"
    assert (tmp_path / "out").read_bytes() == b"first"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_json_has_one_encoding_and_one_digest() -> None:
    value, same = {"b": [1, 2.5, None], "a": {"é": True}}, {"a": {"é": True}, "b": [1, 2.5, None]}
    text = b'{"a":{"\\u00e9":true},"b":[1,2.5,null]}'
    assert canonical_json(value) == canonical_json(same) == text
    assert digest_json(value) == hashlib.sha256(text).hexdigest()
    for wrong in (math.nan, math.inf):
        with pytest.raises(ValueError, match="not JSON compliant"):
            canonical_json([wrong])
