"""Files that a command adds to a folder appear together, or not at all."""

from pathlib import Path

import pytest

from fairway.base.errors import UserError
from fairway.base.folders import added_files


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
