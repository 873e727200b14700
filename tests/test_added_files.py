"""Files that a command adds to a folder appear together, or not at all."""

import errno
import os
import tempfile
from pathlib import Path

import pytest
from damage import Cli

from fairway.base.errors import UserError
from fairway.base.files import write_atomic
from fairway.base.folders import added_files
from fairway.base.outputs import require_file, require_folder


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def add(out: Path, *names: str) -> None:
    with added_files(out, "a", "last") as folder:
        for name in names:
            (folder / name).write_text("new")


@pytest.mark.parametrize("there", [False, True])
def test_all_files_are_added_or_none(tmp_path: Path, there: bool) -> None:
    out = tmp_path / "above" / "out"
    before = {}
    if there:
        out.mkdir(parents=True)
        (out / "other").write_text("mine")
        before = {"other": "mine"}
    with pytest.raises(OSError, match="full"), added_files(out, "a", "last") as folder:
        (folder / "a").write_text("half")
        raise OSError("the disk is full")
    # Nothing is left of it, not even a folder above.
    assert contents(out) == before if there else not list(tmp_path.iterdir())
    add(out, "a", "last")
    assert contents(out) == {**before, "a": "new", "last": "new"}
    assert not list(tmp_path.rglob(".*"))


def test_a_move_that_fails_is_undone(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        add(tmp_path, "a")
    assert list(tmp_path.iterdir()) == []


def test_files_that_are_there_stay(tmp_path: Path) -> None:
    (tmp_path / "last").write_text("mine")
    with pytest.raises(UserError, match="last exists already; name another folder"):
        add(tmp_path, "a", "last")
    with (
        pytest.raises(UserError, match="a exists already"),
        added_files(tmp_path / "out", "a") as folder,
    ):
        (folder / "a").write_text("new")
        # Another process is faster.
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "a").write_text("theirs")
    assert (tmp_path / "out" / "a").read_text() == "theirs"
    (tmp_path / "link").symlink_to("out")
    with pytest.raises(UserError, match="is a file; name a folder"):
        add(tmp_path / "last", "a")
    (tmp_path / "out" / "a").unlink()
    add(tmp_path / "link", "a", "last")
    assert (tmp_path / "link").is_symlink() and set(contents(tmp_path / "out")) == {"a", "last"}


# ---------------------------------------------------------------------------------------------
# Places that cannot be written


def test_a_place_that_cannot_be_written_is_refused_before_the_work(
    tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A read-only disk, or a folder of another user; the superuser may write in the latter."""
    closed = tmp_path / "closed"
    closed.mkdir()
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != closed and access(path, mode))
    told = f"the folder {closed}, which is read-only or belongs to another user"
    for place in (closed / "file", closed / "deep" / "file"):
        with pytest.raises(UserError, match=f"cannot write {place}: no file can be .*{told}"):
            require_file(place, {})
        with pytest.raises(UserError, match=told):
            require_folder(place)
    with pytest.raises(UserError, match=told):
        require_folder(closed)
    with pytest.raises(UserError, match="name another place with --html"):
        require_file(closed / "file", {}, option="--html")
    for words in (
        "plan --seconds 20 --out",
        "bundle smoke --out",
        f"data build {__file__}.txt --out",
    ):
        done = cli(*words.split(), closed / "x")
        assert done.code == 2 and told in done.err
    require_file(tmp_path / "file", {})
    require_folder(tmp_path / "new" / "folder")


def test_no_error_names_a_temporary_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **how: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(tmp_path / ".x.abc.part"))

    with pytest.raises(OSError, match="full") as caught, added_files(tmp_path / "x", "a") as part:
        raise OSError(errno.ENOSPC, "full", str(part / "a"))
    assert caught.value.filename == str(tmp_path / "x" / "a")
    monkeypatch.setattr(tempfile, "mkstemp", full)
    monkeypatch.setattr(tempfile, "mkdtemp", full)
    with pytest.raises(OSError, match="Read-only") as caught:
        write_atomic(tmp_path / "x", b"")
    assert caught.value.filename == str(tmp_path / "x")
    with pytest.raises(OSError, match="Read-only") as caught, added_files(tmp_path / "x", "a"):
        pass
    assert caught.value.filename == str(tmp_path / "x")
