"""Ways to spoil a folder, and what a refusal must look like: for the tests of bad input."""

import json
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fairway.cli import main as cli

FIXED = "--set runtime.threads=1 --set runtime.dtype=float32 --set runtime.matmul=highest"
SHORT = "--set train.steps=2 --set train.warmup_steps=0"


@dataclass(frozen=True)
class Place:
    """A folder with copies of everything a command reads, free to be damaged."""

    path: Path
    settings: str

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def words(self, line: str) -> list[str]:
        """Return the arguments of a line, `SMOKE` being the settings of the tests' smoke run."""
        return line.replace("SMOKE", f"{self.settings} {SHORT}").split()


Call = Callable[[str], tuple[int, str]]


def contents(folder: Path) -> dict[str, bytes]:
    """Return the bytes of every file below a folder but the locks, which mean nothing."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def refused(call: Call, line: str, told: str) -> None:
    """Assert that a command is refused in one sentence with exit code 2."""
    code, errors = call(line)
    assert code == 2, errors
    assert errors.startswith("fairway: ") and errors.endswith("\n"), errors
    assert errors.count("\n") == 1, errors
    assert told in errors


def untouched(place: Place, call: Call, line: str, told: str) -> None:
    """Assert that a command is refused and leaves every file as it was, and no new one."""
    before = contents(place.path)
    refused(call, line, told)
    assert contents(place.path) == before


# ---------------------------------------------------------------------------------------------
# Text and data

Damage = Callable[[Place], object]


def rewrite(name: str, change: Callable[[bytes], bytes]) -> Damage:
    """Return a damage: the bytes of one file changed."""

    def damage(place: Place) -> None:
        (place / name).write_bytes(change((place / name).read_bytes()))

    return damage


def remove(*names: str) -> Damage:
    return lambda place: [(place / name).unlink() for name in names]


def both(*damages: Damage) -> Damage:
    return lambda place: [damage(place) for damage in damages]


def flip(at: float) -> Callable[[bytes], bytes]:
    """Return a change: one bit of the byte at a share of the length."""

    def change(data: bytes) -> bytes:
        index = min(int(at * len(data)), len(data) - 1)
        return data[:index] + bytes([data[index] ^ 1]) + data[index + 1 :]

    return change


def halve(data: bytes) -> bytes:
    return data[: len(data) // 2]


TRAIN, VAL = "data/fairway_train_000000.bin", "data/fairway_val_000000.bin"
TRAINS = [f"data/fairway_train_00000{n}.bin" for n in range(3)]
WITHOUT_RECORD = remove("data/manifest.json")
HOSTILE = b"\x0a\xff\xff\xff\xff\x0f" + b"x" * 64
ARTIFACT = "run/artifact.fwy"


def run_command(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> tuple[int, str, str]:
    """Run the command line in this process; return its exit code, output and errors."""
    monkeypatch.setattr(sys, "argv", ["fairway", *words])
    handler = signal.getsignal(signal.SIGTERM)
    capsys.readouterr()
    try:
        cli.main()
        code: Any = 0
    except SystemExit as ending:
        code = ending.code or 0
    finally:
        signal.signal(signal.SIGTERM, handler)
    return code, *capsys.readouterr()


@dataclass(frozen=True)
class Outcome:
    """The end of a command line: its exit code, what it printed, what it said on stderr."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """What was printed, which must be one JSON value and nothing else."""
        assert (self.code, self.out[:1]) == (0, "{"), self.err
        return json.loads(self.out)


Cli = Callable[..., Outcome]
