"""Exported folders run in a process that can import neither Fairway nor what only Fairway needs."""

import json
import os
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import torch

# What an exported folder may import, with what these packages need themselves.
_ABSENT = ("fairway", "__editable__", "numba", "llvmlite", "brotli", "scipy", "pyarrow", "_pytest")


def bare_python(folder: Path, *paths: Path) -> Path:
    """Return the Python of a new environment that has PyTorch and its kind, and no Fairway.

    `paths` are folders of packages that come first.
    """
    venv.create(folder, with_pip=False, symlinks=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    target = folder / "lib" / version / "site-packages"
    sources = [*paths, *(Path(p) for p in sys.path if p.endswith("site-packages"))]
    for source in [*sources, Path(torch.__file__).parents[1]]:
        for item in source.iterdir():
            absent = item.name.lower().startswith(_ABSENT) or item.suffix == ".pth"
            if not absent and not (target / item.name).exists():
                (target / item.name).symlink_to(item)
    return folder / "bin" / "python"


def run(python: Path, code: str, cwd: Path, **env: str) -> Any:
    """Return the JSON value that a program prints last."""
    ended = subprocess.run(
        [python, "-c", code],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", **env},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout.splitlines()[-1])
