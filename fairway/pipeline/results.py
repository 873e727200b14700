"""results.json: everything known of a finished run, in a versioned schema, nothing of its machine
but what the numbers depend on. No host, no path, no environment.

Who reads it needs no PyTorch, which takes longer to import than all that `compare` does; it is put
together in `fairway.pipeline.composing`."""

import platform
from importlib import metadata
from pathlib import Path
from typing import Any

from fairway.base.errors import UserError
from fairway.base.files import digest_file, read_json
from fairway.base.terminal import command
from fairway.pipeline.folder import RunFolder
from fairway.version import VERSION

SCHEMA = 1
RESULTS = "results.json"
_PACKAGES = ("torch", "numpy", "sentencepiece", "brotli", "safetensors", "zstandard")


def versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    found = {name: metadata.version(name) for name in _PACKAGES}
    return {"fairway": VERSION, "python": platform.python_version(), **found}


def read_results(path: Path) -> dict[str, Any]:
    """Return the results.json of a run folder.

    Raises UserError unless it is what the last report wrote, of the artifact that is there.
    """
    folder = RunFolder.existing(path)
    file, report = folder.file(RESULTS), f"`{command('report', path)}`"
    if not file.is_file():
        raise UserError(f"{path} has no results yet; score it, then run {report}")
    if folder.memory.get("results") != digest_file(file):
        raise UserError(f"{file} was changed after it was written; write it again with {report}")
    results: dict[str, Any] = read_json(file)
    packed = folder.facts("pack")
    with folder.reading():
        if packed is None or packed["digest"] != results["artifact"]["digest"]:
            raise UserError(f"{path} was packed again; score it, then run {report}")
    return results
