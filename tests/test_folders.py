import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fairway.base import folders
from fairway.base.errors import UserError
from fairway.base.folders import held, locked_folder, new_folder

NAMES = {"last", "a", "b"}


def ours(name: str) -> bool:
    return name in NAMES


def mark(folder: Path) -> None:
    (folder / "last").write_text("unfinished")


def write(out: Path, text: str, names: tuple[str, ...] = ("a", "last")) -> None:
    with new_folder(out, ours, mark, "last") as folder:
        for name in names:
            (folder / name).write_text(text)


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def nothing(place: Path) -> Path:
    return place / "out"


def empty(place: Path) -> Path:
    (place / "out").mkdir()
    return place / "out"


def older(place: Path) -> Path:
    write(place / "out", "old", ("a", "b", "last"))
    return place / "out"


def linked(place: Path) -> Path:
    (place / "far").mkdir()
    write(place / "far" / "data", "old", ("b", "last"))
    (place / "out").symlink_to(place / "far" / "data")
    return place / "out"


def linked_to_nothing(place: Path) -> Path:
    (place / "out").symlink_to("far/data")
    return place / "out"


PLACES = [nothing, empty, older, linked, linked_to_nothing]


@pytest.mark.parametrize("can_exchange", [True, False])
@pytest.mark.parametrize("make", PLACES)
def test_a_folder_is_written_whole(
    tmp_path: Path,
    make: Callable[[Path], Path],
    can_exchange: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not can_exchange:
        monkeypatch.setattr(folders, "_exchange", lambda a, b: False)
    out = make(tmp_path)
    was_link = out.is_symlink()
    write(out, "new")
    assert contents(out) == {"a": "new", "last": "new"}
    assert out.is_symlink() == was_link
    assert not list(tmp_path.rglob(".*"))
    assert out.stat().st_mode & 0o777 == 0o777 & ~umask()


def umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize("make", PLACES)
@pytest.mark.parametrize("error", [OSError(28, "full"), KeyboardInterrupt(), UserError("no")])
def test_a_failure_leaves_what_was_there(
    tmp_path: Path, make: Callable[[Path], Path], error: BaseException
) -> None:
    out = make(tmp_path)
    before = contents(out) if out.exists() else None
    with pytest.raises(type(error)), new_folder(out, ours, mark, "last") as folder:
        (folder / "a").write_text("half")
        raise error
    assert (contents(out) if out.exists() else None) == before
    assert not list(tmp_path.rglob(".*"))


@pytest.mark.parametrize("make", [empty, older])
def test_the_working_folder_stays_itself(
    tmp_path: Path, make: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = make(tmp_path)
    inode = out.stat().st_ino
    monkeypatch.chdir(out)
    for place in (Path(), out):
        write(place, "new")
        assert contents(out) == {"a": "new", "last": "new"}
    assert out.stat().st_ino == inode == Path.cwd().stat().st_ino


def test_a_mount_point_is_filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = older(tmp_path)
    (out / "lost+found").mkdir()
    inode = out.stat().st_ino
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == out)
    write(out, "new")
    assert out.stat().st_ino == inode and held(out) == ["a", "last"]
    assert (out / "a").read_text() == "new" and (out / "lost+found").is_dir()


def test_the_marker_stands_before_anything_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = older(tmp_path)
    monkeypatch.setattr(folders, "_exchange", lambda a, b: False)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(folders, "_fill", stop)
    with pytest.raises(KeyboardInterrupt):
        write(out, "new")
    assert contents(out) == {"a": "old", "b": "old", "last": "unfinished"}


@pytest.mark.parametrize("name", ["notes.txt", ".hidden", "sub"])
def test_what_is_not_ours_is_kept(tmp_path: Path, name: str) -> None:
    out = older(tmp_path)
    (out / name).mkdir() if name == "sub" else (out / name).write_text("mine")
    with pytest.raises(UserError, match=f"holds something other than Fairway data .{name}"):
        write(out, "new")
    assert (out / name).exists() and (out / "a").read_text() == "old"


def test_what_comes_while_we_write_is_kept(tmp_path: Path) -> None:
    out = older(tmp_path)
    with (
        pytest.raises(UserError, match="holds something other than Fairway data"),
        new_folder(out, ours, mark, "last") as folder,
    ):
        (folder / "a").write_text("new")
        (out / "mine.txt").write_text("mine")
    assert (out / "mine.txt").read_text() == "mine" and (out / "a").read_text() == "old"


def test_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    with pytest.raises(UserError, match="is a file"):
        write(tmp_path / "out", "new")


def _hang(out: str, ready: str) -> None:
    with new_folder(Path(out), ours, mark, "last") as folder:
        (folder / "a").write_text("half")
        Path(ready).touch()
        time.sleep(60)


def test_a_living_writer_keeps_its_folder_and_a_killed_one_does_not(tmp_path: Path) -> None:
    out, ready = tmp_path / "out", tmp_path / "ready"
    child = multiprocessing.get_context("spawn").Process(target=_hang, args=(str(out), str(ready)))
    child.start()
    while not ready.exists():
        time.sleep(0.05)
    (part,) = tmp_path.glob(".out.*.part")
    write(out, "other")
    assert part.exists() and contents(out) == {"a": "other", "last": "other"}
    os.kill(child.pid or 0, signal.SIGKILL)
    child.join()
    assert part.exists()
    write(out, "next")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "ready"]


def test_a_stale_folder_of_another_name_is_left(tmp_path: Path) -> None:
    (tmp_path / ".other.x1.part").mkdir()
    (tmp_path / ".out.x1.part").mkdir()
    (tmp_path / ".out.x2.part").symlink_to(tmp_path)
    write(tmp_path / "out", "new")
    assert {path.name for path in tmp_path.iterdir()} == {".other.x1.part", ".out.x2.part", "out"}


def test_two_cannot_fill_one_folder(tmp_path: Path) -> None:
    out = empty(tmp_path)
    with (
        locked_folder(out),
        pytest.raises(UserError, match="another process is writing"),
    ):
        write(out, "new")
    write(out, "new")


def test_a_reader_always_finds_a_whole_folder(tmp_path: Path) -> None:
    """Open while it is exchanged: each time one of the two contents, never nothing."""
    out = older(tmp_path)
    child = multiprocessing.get_context("fork").Process(target=_rewrite, args=(out,))
    child.start()
    seen = set()
    while child.is_alive():
        seen.add((out / "last").read_text())
    child.join()
    assert child.exitcode == 0 and len(seen) > 1


def _rewrite(out: Path) -> None:
    for number in range(200):
        write(out, str(number))
