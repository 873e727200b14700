import functools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fairway import stages
from fairway.errors import UserError
from fairway.stages import MEMORY, RunFolder, key_of

# Another process that holds a folder's lock until its standard input is closed.
HOLDER = """
import sys
from pathlib import Path
from fairway.stages import RunFolder
with RunFolder(Path(sys.argv[1])).locked():
    print("locked", flush=True)
    sys.stdin.read()
"""


KEY = {"key": "key"}


class Stage:
    """A stage that writes one file, counts how often it worked and keeps what was said."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self.runs = 0
        self.said: list[str] = []

    def __call__(self, key: str, content: str = "x") -> dict[str, Any]:
        reads = {"key": key}
        work = functools.partial(self.work, content)
        return self.folder.stage("one", reads, ["out"], work, self.said.append)

    def work(self, content: str) -> dict[str, Any]:
        self.runs += 1
        self.folder.file("out").write_text(content)
        return {"run": self.runs}


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path)


def test_a_key_depends_on_every_part_and_on_the_version(monkeypatch: pytest.MonkeyPatch) -> None:
    key = key_of("a", {"x": 1, "y": 2})
    assert key == key_of("a", {"y": 2, "x": 1})
    assert len({key, key_of("a", {"x": 1, "y": 3}), key_of("a"), key_of("b", {"x": 1})}) == 4
    monkeypatch.setattr(stages, "VERSION", "0.0.0")
    assert key_of("a", {"x": 1, "y": 2}) != key


def test_a_stage_runs_once_and_is_kept_by_a_later_process(folder: RunFolder) -> None:
    stage = Stage(folder)
    assert stage("key") == {"run": 1}
    assert stage("key") == {"run": 1}
    again = Stage(RunFolder(folder.path))
    assert again("key") == {"run": 1}
    assert again.runs == 0
    assert again.said == ["one: unchanged, kept"]
    assert folder.facts("one") == {"run": 1}
    assert folder.seconds().keys() == {"one"}


def damage(file: Path) -> None:
    file.write_text("y")


@pytest.mark.parametrize("change", [damage, Path.unlink, lambda file: file.write_text("")])
def test_a_changed_file_is_noticed_and_rebuilt(
    folder: RunFolder, change: Callable[[Path], None]
) -> None:
    stage = Stage(folder)
    stage("key")
    change(folder.file("out"))
    assert not folder.is_done("one", KEY)
    assert stage("key") == {"run": 2}
    assert folder.file("out").read_text() == "x"


def test_a_folder_is_an_output_with_all_its_files(folder: RunFolder) -> None:
    def work() -> dict[str, Any]:
        for name in ("a", "b"):
            (folder.file("out") / name).parent.mkdir(exist_ok=True)
            (folder.file("out") / name).write_text(name)
        return {}

    folder.stage("one", KEY, ["out"], work, print)
    assert folder.is_done("one", KEY)
    (folder.file("out") / "b").write_text("c")
    assert not folder.is_done("one", KEY)
    work()
    (folder.file("out") / "a").rename(folder.file("out") / "c")
    assert not folder.is_done("one", KEY)


def test_another_key_runs_the_stage_again(folder: RunFolder) -> None:
    stage = Stage(folder)
    stage("key")
    assert stage("other") == {"run": 2}
    assert stage("key") == {"run": 3}


def test_a_stage_that_fails_is_not_done(folder: RunFolder) -> None:
    stage = Stage(folder)
    stage("key")

    def fail() -> dict[str, Any]:
        folder.file("out").write_text("half")
        raise UserError("no")

    with pytest.raises(UserError):
        folder.stage("one", {"key": "other"}, ["out"], fail, stage.said.append)
    again = RunFolder(folder.path)
    assert not again.is_done("one", KEY)
    assert not again.is_done("one", {"key": "other"})


def test_facts_of_an_unknown_stage_are_none(folder: RunFolder) -> None:
    assert folder.facts("one") is None
    assert not folder.is_done("one", KEY)


def test_what_is_remembered_comes_back(folder: RunFolder) -> None:
    folder.remember("text", {"bytes": 3})
    assert RunFolder.existing(folder.path).memory == {
        "schema": stages.SCHEMA,
        "stages": {},
        "text": {"bytes": 3},
    }


def test_what_is_known_is_not_written_again(folder: RunFolder) -> None:
    folder.remember("text", {"bytes": 3})
    written = (folder.path / MEMORY).stat()
    folder.remember("text", {"bytes": 3})
    assert (folder.path / MEMORY).stat() == written
    folder.remember("text", {"bytes": 4})
    assert RunFolder(folder.path).memory["text"] == {"bytes": 4}


def damaged_by(change: Callable[[dict[str, Any]], object]) -> Callable[[str], str]:
    """Return a change of run.json's text, made on its parsed content."""

    def apply(text: str) -> str:
        memory = json.loads(text)
        change(memory)
        return json.dumps(memory)

    return apply


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda text: text[: len(text) // 2], "is not valid JSON"),
        (lambda text: "[]", "has schema None"),
        (lambda text: "null", "has schema None"),
        (lambda text: "{}", "has schema None"),
        (damaged_by(lambda memory: memory.update(schema=99)), "has schema 99"),
        (damaged_by(lambda memory: memory.pop("digest")), "is damaged"),
        (damaged_by(lambda memory: memory.update(stages=[])), "is damaged"),
        (damaged_by(lambda memory: memory["stages"]["one"].pop("files")), "is damaged"),
        (damaged_by(lambda memory: memory["stages"]["one"].update(seconds=0.0)), "is damaged"),
    ],
)
def test_a_damaged_memory_is_refused(
    folder: RunFolder, change: Callable[[str], str], told: str
) -> None:
    Stage(folder)("key")
    file = folder.path / MEMORY
    file.write_text(change(file.read_text()))
    with pytest.raises(UserError, match=told) as caught:
        RunFolder(folder.path)
    assert str(file) in str(caught.value)


def test_a_folder_without_memory_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a run folder"):
        RunFolder.existing(tmp_path)


def test_a_file_is_no_run_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file"), RunFolder(tmp_path / "file").locked():
        pass


def test_two_writers_are_kept_apart_and_the_second_learns_what_the_first_did(
    tmp_path: Path,
) -> None:
    early = RunFolder(tmp_path)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout and holder.stdout.readline() == "locked\n"
    with pytest.raises(UserError, match="is being written by another process"), early.locked():
        pass
    # A lock dies with its process, however that ends.
    holder.kill()
    holder.communicate()
    Stage(RunFolder(tmp_path))("key")
    with early.locked():
        assert early.is_done("one", KEY)


def test_the_lock_is_released_after_an_error(folder: RunFolder) -> None:
    with pytest.raises(UserError), folder.locked():
        raise UserError("no")
    with folder.locked():
        pass
