"""What is made once for all processes of a test session (`pytest -n 2`), in a folder of theirs."""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import warm
from filelock import FileLock

_FOLDER, _OWNER = "FAIRWAY_TESTS_SHARED", "FAIRWAY_TESTS_OWNER"


def begin() -> None:
    """Make the folder; the process that starts the others does so, and theirs find it."""
    os.environ[_FOLDER] = tempfile.mkdtemp(prefix="fairway-tests-")
    os.environ[_OWNER] = str(os.getpid())


def end() -> None:
    shutil.rmtree(os.environ.pop(_FOLDER), ignore_errors=True)


def once(name: str, make: Callable[[Path], object]) -> Path:
    """Return a path of the folder, made by the first process that asks for it."""
    place = Path(os.environ[_FOLDER]) / name
    made = place.with_name(f"{name}.made")
    with FileLock(f"{place}.lock"):
        if not made.exists():
            make(place)
            made.touch()
    return place


def forking() -> list[str]:
    """Return the words that stand for `python -m fairway` without its start; see `warm`."""
    owner = int(os.environ[_OWNER])
    os.environ[warm.PLACE] = str(once("warm", lambda place: warm.keep(str(place), owner)))
    return warm.COMMAND
