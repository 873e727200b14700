"""Outputs replace files of ours, and nothing else that the system has."""

import os
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fairway.base.errors import UserError
from fairway.base.files import write_atomic
from fairway.base.outputs import (
    is_standard_output,
    place_of,
    require_absent,
    require_file,
    require_folder,
    require_new,
)


def node(path: Path, kind: int, major: int, minor: int) -> Path:
    """Return a device made for a test; only the superuser can make one."""
    try:
        os.mknod(path, kind | 0o600, os.makedev(major, minor))
    except PermissionError:
        pytest.skip("making a device needs the superuser")
    return path


@contextmanager
def reader(path: Path) -> Iterator[list[bytes]]:
    """Read a pipe until whoever writes it closes it."""
    got: list[bytes] = []
    thread = threading.Thread(target=lambda: got.append(path.read_bytes()))
    thread.start()
    yield got
    thread.join(10)


def test_a_device_is_written_into(tmp_path: Path) -> None:
    device = node(tmp_path / "null", stat.S_IFCHR, 1, 3)
    before = device.stat()
    write_atomic(device, b"data")
    after = device.lstat()
    assert (after.st_ino, after.st_rdev, after.st_mode) == (
        before.st_ino,
        before.st_rdev,
        before.st_mode,
    )
    assert [path.name for path in tmp_path.iterdir()] == ["null"]


def test_a_full_device_says_so(tmp_path: Path) -> None:
    device = node(tmp_path / "full", stat.S_IFCHR, 1, 7)
    with pytest.raises(OSError, match="No space left") as caught:
        write_atomic(device, b"data")
    assert caught.value.filename == str(device)


def test_the_null_device_of_this_machine_is_opened(tmp_path: Path) -> None:
    """After the tests with nodes of our own: nothing is renamed over what is there."""
    place = place_of(Path("/dev/null"))
    assert (place.lent, place.old) == (True, None)
    link = tmp_path / "link"
    link.symlink_to("/dev/null")
    assert place_of(link).lent


def test_a_pipe_is_written_into(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with reader(pipe) as got:
        write_atomic(pipe, b"data" * 100_000)
    assert got == [b"data" * 100_000]
    assert stat.S_ISFIFO(pipe.lstat().st_mode)


def test_a_pipe_without_a_reader_says_what_it_waits_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=write_atomic, args=(pipe, b"data"))
    writer.start()
    told, end_s = "", time.monotonic() + 30
    while not told and time.monotonic() < end_s:
        told = capsys.readouterr().err
        time.sleep(0.01)
    assert told == f"fairway: waiting until a program reads the pipe {pipe}\n"
    assert pipe.read_bytes() == b"data"
    writer.join()
    # With a reader, and for a device, nothing is said.
    held = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_atomic(pipe, b"data")
    os.close(held)
    write_atomic(Path("/dev/null"), b"data")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("form", ["/dev/fd/{}", "/proc/self/fd/{}", "/proc/{pid}/fd/{}"])
def test_an_open_pipe_is_written_into(form: str) -> None:
    """As a shell's >(command) names one."""
    read, write = os.pipe()
    write_atomic(Path(form.format(write, pid=os.getpid())), b"data")
    os.close(write)
    with os.fdopen(read, "rb") as stream:
        assert stream.read() == b"data"


def test_an_open_file_is_gone_on_with(tmp_path: Path) -> None:
    """As `--out /dev/stdout >> file` means it."""
    file = tmp_path / "file"
    file.write_bytes(b"before ")
    with file.open("ab") as stream:
        write_atomic(Path(f"/dev/fd/{stream.fileno()}"), b"after")
    assert file.read_bytes() == b"before after"


def test_a_socket_that_is_open_is_written_into() -> None:
    here, there = socket.socketpair()
    with here, there:
        write_atomic(Path(f"/dev/fd/{here.fileno()}"), b"data")
        assert there.recv(9) == b"data"


def test_what_is_no_open_file_is_told() -> None:
    with pytest.raises(OSError, match="Bad file descriptor") as caught:
        write_atomic(Path("/dev/fd/987"), b"")
    assert caught.value.filename == "/dev/fd/987"


def test_a_reader_that_has_gone_is_told() -> None:
    read, write = os.pipe()
    os.close(read)
    with pytest.raises(UserError, match="its reader has closed it"):
        write_atomic(Path(f"/dev/fd/{write}"), b"data")
    os.close(write)


@pytest.mark.parametrize("exists", [True, False])
@pytest.mark.parametrize("absolute", [True, False])
def test_a_link_stays_and_its_target_is_written(
    tmp_path: Path, exists: bool, absolute: bool
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    target = home / "target"
    if exists:
        target.write_bytes(b"old")
    link, second = tmp_path / "link", home / "second"
    second.symlink_to(target if absolute else "target")
    link.symlink_to("home/second")
    write_atomic(link, b"new")
    assert link.is_symlink() and second.is_symlink() and not target.is_symlink()
    assert target.read_bytes() == b"new"
    assert sorted(path.name for path in home.iterdir()) == ["second", "target"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "link"]


def test_a_link_below_a_linked_folder_leads_where_the_system_says(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "door").symlink_to("a/b")
    (tmp_path / "a" / "b" / "link").symlink_to("../target")
    write_atomic(tmp_path / "door" / "link", b"x")
    assert (tmp_path / "a" / "target").read_bytes() == b"x"


def socket_file(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


def loop(path: Path) -> None:
    path.symlink_to("second")
    (path.parent / "second").symlink_to(path.name)


REFUSED: list[tuple[Callable[[Path], object], str]] = [
    (Path.mkdir, "it is a folder"),
    (socket_file, "it is a socket"),
    (lambda path: node(path, stat.S_IFBLK, 7, 200), "it is a disk"),
    (loop, "a link to itself"),
    (lambda path: path.symlink_to("."), "it is a folder"),
]


@pytest.mark.parametrize(("make", "told"), REFUSED)
def test_what_is_no_file_is_refused(
    tmp_path: Path, make: Callable[[Path], object], told: str
) -> None:
    make(tmp_path / "out")
    before = (tmp_path / "out").lstat()
    with pytest.raises(UserError, match=told):
        write_atomic(tmp_path / "out", b"")
    assert (tmp_path / "out").lstat().st_ino == before.st_ino


def test_nothing_is_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for below in ("file/x", "file/x/y"):
        with pytest.raises(UserError, match=r"file is a file, not a folder"):
            write_atomic(tmp_path / below, b"")
    (tmp_path / "gone").symlink_to("nowhere")
    with pytest.raises(UserError, match=r"gone is not a folder"):
        write_atomic(tmp_path / "gone" / "x", b"")


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o755])
def test_permissions_stay_and_other_names_keep_what_they_had(tmp_path: Path, mode: int) -> None:
    file, other = tmp_path / "file", tmp_path / "other"
    file.write_bytes(b"old")
    file.chmod(mode)
    os.link(file, other)
    write_atomic(file, b"new")
    assert stat.S_IMODE(file.stat().st_mode) == mode
    assert (file.read_bytes(), other.read_bytes()) == (b"new", b"old")


def test_a_file_stays_its_owners(tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("giving files away needs the superuser")
    file = tmp_path / "file"
    file.write_bytes(b"old")
    os.chown(file, 1234, 1234)
    write_atomic(file, b"new")
    assert (file.stat().st_uid, file.stat().st_gid) == (1234, 1234)


def test_a_read_only_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"old")
    # The superuser may write everything.
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(UserError, match="it is read-only"):
        write_atomic(tmp_path / "file", b"new")


@pytest.mark.parametrize("name", ["x" * 255, "\u4e2d" * 85, os.fsdecode(b"\xff" * 255)])
def test_the_longest_names_are_written(tmp_path: Path, name: str) -> None:
    write_atomic(tmp_path / name, b"data")
    assert [path.name for path in tmp_path.iterdir()] == [name]


# ---------------------------------------------------------------------------------------------
# What commands check


def ours(head: bytes) -> bool:
    return head.startswith(b"OURS")


def test_only_files_of_the_same_kind_are_replaced(tmp_path: Path) -> None:
    file = tmp_path / "file"
    for content in (None, b"", b"OURS and more"):
        if content is not None:
            file.write_bytes(content)
        require_file(file, {}, ours)
    with pytest.raises(UserError, match="this command did not write it"):
        require_file(file, {})
    file.write_bytes(b"a thesis")
    with pytest.raises(UserError, match="this command did not write it"):
        require_file(file, {}, ours)


def test_what_is_read_is_not_replaced(tmp_path: Path) -> None:
    read, folder = tmp_path / "read", tmp_path / "folder"
    read.write_bytes(b"OURS")
    folder.mkdir()
    (folder / "inside").write_bytes(b"OURS")
    os.link(read, tmp_path / "name")
    (tmp_path / "link").symlink_to("read")
    for out in ("read", "name", "link"):
        with pytest.raises(UserError, match="is the text itself"):
            require_file(tmp_path / out, {"text": read}, ours)
    with pytest.raises(UserError, match=r"lies in .*folder, which is read"):
        require_file(folder / "inside", {"artifact": folder}, ours)
    require_file(folder / "new", {"artifact": folder, "tokenizer": None}, ours)
    require_file(tmp_path / "other", {"text": tmp_path / "nowhere"}, ours)


def test_a_folder_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "gone").symlink_to("nowhere")
    (tmp_path / "here").symlink_to(".")
    os.mkfifo(tmp_path / "pipe")
    for good in (".", "here", "new", "new/er"):
        require_folder(tmp_path / good)
    for bad, told in (
        ("file", "is a file"),
        ("file/x", "is a file, not a folder"),
        ("gone", "is a broken link"),
        ("pipe", "is no folder"),
    ):
        with pytest.raises(UserError, match=told):
            require_folder(tmp_path / bad)
    require_new(tmp_path / "new")
    for there in ("file", "gone", "here", "pipe"):
        with pytest.raises(UserError, match="exists already"):
            require_new(tmp_path / there)


def test_standard_output_is_known_by_all_its_names(tmp_path: Path, capfd: object) -> None:
    (tmp_path / "link").symlink_to("/dev/stdout")
    for name in ("/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", tmp_path / "link"):
        assert is_standard_output(Path(name))
    for name in ("/dev/null", "/dev/stderr", "/dev/fd/987", tmp_path / "file", "1"):
        assert not is_standard_output(Path(name))


def test_a_file_that_would_be_overwritten_is_named(tmp_path: Path) -> None:
    require_absent(tmp_path / "none yet", "a", "b")
    require_absent(tmp_path, "a", "b")
    (tmp_path / "b").symlink_to(tmp_path / "nothing")
    with pytest.raises(UserError, match="/b exists already; name another folder with --out"):
        require_absent(tmp_path, "a", "b")
