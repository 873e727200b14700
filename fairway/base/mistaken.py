"""What a file or a folder is that was named in the place of an artifact or a text."""

from contextlib import suppress
from pathlib import Path

from fairway.base.errors import UserError
from fairway.base.names import ARTIFACT, WEIGHTS
from fairway.base.terminal import command

# How files begin, what they are, and what to do with them.
_POINTER = b"version https://git-lfs.github.com/"
_HEADS = (
    (_POINTER, "a pointer of Git LFS, not the file itself", "fetch the file with: git lfs pull"),
    (b"PK\x03\x04", "a ZIP archive", "unpack it, and name what was in it"),
    (b"\x1f\x8b", "a gzip file", "unpack it, and name what was in it"),
    (b"\x28\xb5\x2f\xfd", "a zstandard file", "unpack it, and name what was in it"),
    (b"<!doctype html", "an HTML page", "name the artifact, or the folder of its run"),
    (b"<html", "an HTML page", "name the artifact, or the folder of its run"),
    (b"\x89hdf", "an HDF5 file", "name an artifact of Fairway"),
    (b"gguf", "a GGUF file of another program", "name an artifact of Fairway"),
)
_HEAD_BYTES = 64
# A pointer names a version, a digest and a size.
_MOST_POINTER_BYTES = 1024


def artifact_at(path: Path) -> Path:
    """Return the artifact at a path: the file itself, or the one in the folder of a run.

    The file need not exist. Raises UserError for another kind of file or folder that is known.
    """
    # What cannot be looked at is told where it is opened.
    with suppress(OSError):
        if path.is_dir():
            _require_run(path)
            return path / ARTIFACT
        if path.is_file():
            _require_no_other(path)
    return path


def require_no_pointer(path: Path) -> None:
    """Raise UserError if a file is a pointer of Git LFS, as in a clone without the large files."""
    if path.stat().st_size <= _MOST_POINTER_BYTES and _head(path).startswith(_POINTER):
        what, remedy = _HEADS[0][1:]
        raise UserError(f"{path} is {what}; {remedy}")


def _require_no_other(path: Path) -> None:
    head = _head(path)
    for beginning, what, remedy in _HEADS:
        if head.lower().startswith(beginning.lower()):
            raise UserError(f"{path} is {what}; {remedy}")
    # The length of a JSON object, in 8 bytes, and the object.
    if head[8:10] == b'{"':
        raise UserError(
            f"{path} holds bare weights (safetensors), without settings and tokenizer; name the "
            "artifact that they are from"
        )


def _head(path: Path) -> bytes:
    with path.open("rb") as stream:
        return stream.read(_HEAD_BYTES)


def _require_run(folder: Path) -> None:
    """Raise UserError if a folder without an artifact is of another known kind."""
    names = {path.name for path in folder.iterdir()}
    if ARTIFACT in names:
        return
    if "run.json" in names:
        pack = f"make it with: {command('pack', folder)}"
        remedy = pack if WEIGHTS in names else "finish it with the command that began it"
        raise UserError(f"the run {folder} has no artifact yet; {remedy}")
    for name, what, remedy in (
        ("model.safetensors", "an exported model", "name the run or artifact that it is from"),
        ("study.jsonl", "a study", f"name one of its runs, in {folder / 'runs'}"),
        ("manifest.json", "data", "name a run that was trained on it"),
        ("digests.json", "a record", "name the folder of one of its runs"),
    ):
        if name in names:
            raise UserError(f"the folder {folder} holds {what} and no {ARTIFACT}; {remedy}")
