import functools
import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fairway.base.errors import UserError
from fairway.base.files import digest_json
from fairway.base.names import ARTIFACT
from fairway.pack.artifact import Artifact, load_artifact
from fairway.pipeline import context
from fairway.pipeline import folder as stages
from fairway.pipeline.folder import MEMORY, RunFolder, key_of

# Another process that holds a folder's lock until its standard input is closed.
HOLDER = """
import sys
from pathlib import Path
from fairway.pipeline.folder import RunFolder
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


# ---------------------------------------------------------------------------------------------
# The memory and the files of a folder, by their names


def test_the_memory_is_run_json_of_schema_2_with_its_digest(folder: RunFolder) -> None:
    with folder.locked():
        assert (folder.path / ".lock").is_file()
        folder.remember("text", {"b": 1, "a": 2})
    memory = json.loads((folder.path / "run.json").read_text())
    told = memory.pop("digest")
    assert memory == {"schema": 2, "stages": {}, "text": {"b": 1, "a": 2}}
    plain = '{"schema":2,"stages":{},"text":{"a":2,"b":1}}'
    assert told == hashlib.sha256(plain.encode()).hexdigest()
    for schema in (1, 3):
        (folder.path / "run.json").write_text(json.dumps({**memory, "schema": schema}))
        with pytest.raises(UserError, match=f"has schema {schema}, this Fairway reads 2; choose"):
            RunFolder(folder.path)


def test_the_order_of_a_memorys_names_does_not_matter(folder: RunFolder) -> None:
    Stage(folder)("key")
    file = folder.path / MEMORY
    memory = json.loads(file.read_text())
    file.write_text(json.dumps(dict(sorted(memory.items(), reverse=True))))
    assert RunFolder(folder.path).is_done("one", KEY)


@pytest.mark.parametrize(
    "change",
    [
        lambda memory: memory.update(stages=[]),
        lambda memory: memory["stages"]["one"].pop("files"),
        lambda memory: memory["stages"]["one"].update(seconds="long"),
    ],
)
def test_a_memory_of_other_kinds_is_refused_though_its_digest_is_right(
    folder: RunFolder, change: Callable[[dict[str, Any]], object]
) -> None:
    Stage(folder)("key")
    file = folder.path / MEMORY
    memory = json.loads(file.read_text())
    del memory["digest"]
    change(memory)
    file.write_text(json.dumps({**memory, "digest": digest_json(memory)}))
    with pytest.raises(UserError) as caught:
        RunFolder(folder.path)
    assert str(file) in str(caught.value) and "does not match" not in str(caught.value)


def test_a_folders_files_are_digested_in_one_order_and_folders_in_it_walked(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work() -> dict[str, Any]:
        (folder.file("out") / "inner").mkdir(parents=True)
        for name in ("b", "a", "inner/c"):
            (folder.file("out") / name).write_text(name)
        return {}

    folder.stage("one", KEY, ["out"], work, print)
    found = Path.rglob
    for backwards in (True, False):
        monkeypatch.setattr(
            Path, "rglob", lambda p, pattern, b=backwards: sorted(found(p, pattern), reverse=b)
        )
        assert folder.is_done("one", KEY)
    (folder.file("out") / "inner" / "c").write_text("d")
    assert not folder.is_done("one", KEY)


# What a kill leaves of each kind of output, and what only looks like that.
LEFT = [
    ".run.json.abcd1234", ".results.json.a_9zzzzz", ".report.json.00000000.part",
    ".report.html.abcd1234", ".weights.safetensors.abcd1234", ".checkpoint.safetensors.abcd1234",
    ".steps.jsonl.abcd1234", ".artifact.fwy.abcd1234", ".proof.fwp.abcd1234",
    ".tokenizer.model.abcd1234", ".ledger-sliding.jsonl.gz.abcd1234.part", ".data.abcd1234",
    ".data.abcd1234.old", ".data.abcd1234.part",
]  # fmt: skip
KEPT = [
    "run.json.abcd1234", ".run.json", ".run.json.abcd123", ".run.json.abcd12345",
    ".run.json.ABCD1234", ".run.json.abcd1234.bak", ".notes.txt.abcd1234", ".lock",
    ".results.jsonx.abcd1234", ".xdata.abcd1234", ".ledger-.jsonl.gz.abcd1234", ".abcd1234",
    "artifact.fwy",
]  # fmt: skip


def test_what_kills_left_is_swept_by_the_next_writer_and_nothing_else(folder: RunFolder) -> None:
    (folder.path / "elsewhere").mkdir()
    (folder.path / "elsewhere" / "file").touch()
    for name in (*LEFT, *KEPT):
        (folder.path / name).touch()
    for name in (".data.dddddddd", ".data.dddddddd.old"):
        (folder.path / name / "inner").mkdir(parents=True)
        (folder.path / name / "inner" / "file").touch()
    (folder.path / ".data.linked00").symlink_to(folder.path / "elsewhere")
    (folder.path / ".notes.abcd1234").mkdir()
    with folder.locked():
        names = {item.name for item in folder.path.iterdir()}
    assert names == {*KEPT, "elsewhere", ".notes.abcd1234"}
    assert (folder.path / "elsewhere" / "file").is_file()


def test_a_run_is_begun_by_its_lock_or_its_memory(tmp_path: Path) -> None:
    told = {"nothing": "is not a run folder", ".lock": "has no finished stage yet"}
    for name in ("nothing", ".lock", "run.json"):
        path = tmp_path / name.strip(".")
        path.mkdir()
        if name == "run.json":
            RunFolder(path).remember("text", {})
        elif name == ".lock":
            (path / name).touch()
        assert RunFolder(path).is_begun() == (name != "nothing")
        if name in told:
            with pytest.raises(UserError, match=told[name]):
                RunFolder.existing(path)
        else:
            assert RunFolder.existing(path).memory["text"] == {}


def on_disk(folder: RunFolder) -> dict[str, Any]:
    memory = RunFolder(folder.path).memory
    assert memory == folder.memory
    return memory


def test_what_is_proposed_enters_with_the_next_stage_that_succeeds(folder: RunFolder) -> None:
    folder.remember("old", {"threads": 3})
    folder.propose(note=1, old=None)
    folder.propose(more={"a": 2})
    assert on_disk(folder) == {"schema": 2, "stages": {}, "old": {"threads": 3}}

    def fail() -> dict[str, Any]:
        raise UserError("no")

    with pytest.raises(UserError, match="no"):
        folder.stage("one", KEY, [], fail, print)
    assert on_disk(folder) == {"schema": 2, "stages": {}, "old": {"threads": 3}}
    folder.stage("one", KEY, [], lambda: {"f": 1}, print)
    memory = on_disk(folder)
    [record] = memory.pop("stages").values()
    assert memory == {"schema": 2, "note": 1, "more": {"a": 2}}
    assert record.pop("seconds") < 5
    assert record == {"key": key_of(KEY), "reads": KEY, "files": {}, "facts": {"f": 1}}
    folder.propose(note=5)
    # A stage that is kept takes nothing in; the end of a verb does.
    assert folder.stage("one", KEY, [], fail, print) == {"f": 1}
    assert on_disk(folder)["note"] == 1
    folder.settle()
    assert on_disk(folder)["note"] == 5 and set(on_disk(folder)["stages"]) == {"one"}


def test_a_stage_is_forgotten_alone(folder: RunFolder) -> None:
    for name in ("a", "b", "c"):
        folder.stage(name, KEY, [], dict, print)
    folder.propose(text=1)
    folder.forget("none of them")
    assert set(on_disk(folder)["stages"]) == {"a", "b", "c"} and "text" not in folder.memory
    folder.forget("b")
    assert set(on_disk(folder)["stages"]) == {"a", "c"} and folder.memory["text"] == 1
    assert folder.facts("b") is None and folder.facts("a") == {}


def test_files_that_changed_are_named_where_they_are_asked_for(folder: RunFolder) -> None:
    def work() -> dict[str, Any]:
        for name in ("a", "b", "c"):
            folder.file(name).write_text(name)
        return {}

    for stage in ("train", "pack"):
        folder.stage(stage, KEY, ["a", "b", "c"], work, print)
    folder.require_unchanged("pack")
    folder.file("b").write_text("x")
    folder.file("c").unlink()
    assert folder.changed("pack") == folder.file("b") == folder.changed("pack", "b", "c")
    assert folder.changed("pack", "c") == folder.file("c")
    assert folder.changed("pack", "a") is None
    folder.require_unchanged("pack", "a")
    told = rf"^{folder.file('b')} is not what was written .+; run `fairway (pack|train)` again$"
    for stage in ("pack", "train"):
        with pytest.raises(UserError, match=told):
            folder.require_unchanged(stage, "a", "b")
    with pytest.raises(UserError, match=r"run `fairway run smoke` again$"):
        folder.require_unchanged("train", "b", again="fairway run smoke")
    folder.remember("begun", {})
    with pytest.raises(UserError, match="holds an unfinished training; run it with --resume"):
        folder.require_unchanged("train", "b")
    folder.require_unchanged("train", "a")
    with pytest.raises(UserError, match="run `fairway pack` again"):
        folder.require_unchanged("pack", "b")


@pytest.mark.parametrize(
    "error", [ZeroDivisionError, AttributeError, KeyError, IndexError, TypeError, ValueError]
)
def test_a_memory_of_odd_values_is_one_sentence(folder: RunFolder, error: type[Exception]) -> None:
    told = r"run\.json lacks facts of a finished run \("
    with pytest.raises(UserError, match=told), folder.reading():
        raise error("odd")
    for other in (UserError("mine"), OSError("disk"), KeyboardInterrupt()):
        with pytest.raises(type(other)) as caught, folder.reading():
            raise other
        assert caught.value is other


def test_a_second_writer_waits_as_long_as_it_is_told(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert holder.stdout and holder.stdout.readline() == "locked\n"
    told = f"^{tmp_path} is being written by another process; wait for it, or choose another --out$"
    for wait_s, least_s in ((0.0, 0.0), (0.4, 0.35)):
        start_s = time.monotonic()
        with pytest.raises(UserError, match=told), stages.locked(tmp_path, wait_s):
            pass
        assert least_s <= time.monotonic() - start_s
    holder.communicate()
    with stages.locked(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b" / ".lock").is_file()
    (tmp_path / "file").touch()
    told = r"file is a file; name a folder with --out"
    with pytest.raises(UserError, match=told), stages.locked(tmp_path / "file"):
        pass


def test_facts_are_copies_and_seconds_are_those_of_the_work(folder: RunFolder) -> None:
    folder.stage("slow", KEY, [], lambda: time.sleep(0.03) or {"a": 1}, print)
    assert 0.03 <= folder.seconds()["slow"] < 5
    for facts in (folder.facts("slow"), folder.stage("slow", KEY, [], dict, lambda text: None)):
        assert facts == {"a": 1}
        facts["a"] = 2
    assert folder.facts("slow") == {"a": 1}


def test_an_artifact_is_decoded_once_until_its_file_changes(
    smoke_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[Path] = []

    def load(path: Path) -> Artifact:
        decoded.append(path)
        return load_artifact(path)

    monkeypatch.setattr(context, "load_artifact", load)
    file = tmp_path / ARTIFACT
    file.write_bytes((smoke_run / ARTIFACT).read_bytes())
    run: Any = SimpleNamespace(file=tmp_path.joinpath)
    first, second = (context.Run.artifact(run) for _ in range(2))
    assert first is second and decoded == [file]
    data = file.read_bytes()
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(UserError, match="is damaged"):
        context.Run.artifact(run)
