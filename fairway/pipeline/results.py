"""results.json: all facts of a finished run in a versioned schema. Of the machine it holds only the
facts that affect the numbers: no host, no path, no environment.

Reading it needs no PyTorch, whose import takes longer than all other work of `compare`.
`fairway.pipeline.composing` composes it."""

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
    """Return the versions of the software that a result depends on."""
    found = {name: metadata.version(name) for name in _PACKAGES}
    return {"fairway": VERSION, "python": platform.python_version(), **found}


def read_results(path: Path) -> dict[str, Any]:
    """Return the results.json of a run folder.

    Raises UserError unless the last report wrote it for the present artifact.
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
