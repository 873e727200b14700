"""Files and folders of another kind in the place of an artifact or a text are told by name."""

from pathlib import Path

import pytest
from damage import Cli

from fairway.base.errors import UserError
from fairway.base.mistaken import artifact_at

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 9\n"


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (POINTER, "is a pointer of Git LFS, not the file itself; fetch the file with: git lfs"),
        (b"PK\x03\x04\x14\x00", "is a ZIP archive; unpack it"),
        (b"\x1f\x8b\x08", "is a gzip file; unpack it"),
        (b"<!DOCTYPE html>\n<p>", "is an HTML page; name the artifact"),
        (b"\x10\0\0\0\0\0\0\0" + b'{"a":{}}', "holds bare weights .safetensors."),
    ],
)
def test_a_file_of_another_kind(tmp_path: Path, cli: Cli, data: bytes, told: str) -> None:
    path = tmp_path / "model"
    path.write_bytes(data)
    with pytest.raises(UserError, match=f"model {told}"):
        artifact_at(path)
    done = cli("unpack", path, "--out", tmp_path / "w")
    assert done.code == 2 and done.err.count("\n") == 1 and not (tmp_path / "w").exists()


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["run.json"], "has no artifact yet; finish it with the command that began it"),
        (["run.json", "weights.safetensors"], "has no artifact yet; make it with: fairway pack "),
        (["config.json", "model.safetensors"], "an exported model .*; name the run or artifact"),
        (["manifest.json"], "data and no artifact.fwy; name a run that was trained on it"),
        (["study.jsonl"], "a study and no artifact.fwy; name one of its runs, in .*/runs"),
    ],
)
def test_a_folder_of_another_kind(tmp_path: Path, names: list[str], told: str) -> None:
    for name in names:
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(UserError, match=told):
        artifact_at(tmp_path)
    (tmp_path / "artifact.fwy").write_bytes(b"")
    assert artifact_at(tmp_path) == tmp_path / "artifact.fwy"


def test_what_is_unknown_is_judged_by_its_reader(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("text")
    for path in (tmp_path / "text", tmp_path / "nowhere", Path("a" * 5000), Path("a\0")):
        assert artifact_at(path) == path
    assert artifact_at(tmp_path) == tmp_path / "artifact.fwy"


@pytest.mark.parametrize("ending", ["txt", "jsonl", "parquet", "jsonl.zst"])
def test_a_pointer_is_no_text(tmp_path: Path, cli: Cli, ending: str) -> None:
    """As .txt it used to be scored and learned as if it were the text."""
    (tmp_path / f"a.{ending}").write_bytes(POINTER)
    done = cli("data", "build", tmp_path, "--out", tmp_path / "out")
    assert done.code == 2 and f"a.{ending} is a pointer of Git LFS" in done.err
    assert not (tmp_path / "out").exists()
