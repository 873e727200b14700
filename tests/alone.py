"""Runs a bundle where the package is absent."""

import os
import subprocess
import sys
from pathlib import Path

from shared import forking

# Imports nothing of Fairway: a finder in front of all others refuses it.
ABSENT = """
import sys
for name in [n for n in sys.modules if n.partition(".")[0] == "fairway"]:
    del sys.modules[name]
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name == "fairway" or name.startswith("fairway."):
            raise ImportError("the package is absent")
sys.meta_path.insert(0, Absent())
import runpy
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def start(
    script: Path, *arguments: str, cwd: Path, warm: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run a script in a folder, and return what became of it.

    `warm` it finds PyTorch imported, which takes two seconds; how it starts is not tested then.
    """
    cwd.mkdir(exist_ok=True)
    return subprocess.run(
        [*(forking() if warm else [sys.executable]), "-c", ABSENT, str(script), *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": ""},
    )
