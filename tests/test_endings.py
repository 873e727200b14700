"""How commands end: signals, terminals, readers that leave; and what they never import."""

import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from damage import Cli, Outcome, Place

from fairway.base.errors import InterruptedRun
from fairway.base.names import CHECKPOINT
from fairway.cli import doctor
from fairway.train.checkpoint import load_checkpoint
from fairway.train.steps import STEPS, read_steps

HERE = Path(__file__).parents[1]


# ---------------------------------------------------------------------------------------------
# Signals and readers


COLD = [sys.executable, "-m", "fairway"]


def started(
    start: list[str], place: Place, *more: str, **options: Any
) -> "subprocess.Popen[bytes]":
    words = place.words("train smoke --out new SMOKE")
    sets = ["--set", "train.steps=300", *more]
    return subprocess.Popen([*start, *words, *sets], **options)


def wait_for(condition: Callable[[], bool], seconds: float = 90.0) -> None:
    end_s = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end_s
        time.sleep(0.02)


def test_a_closed_terminal_saves(place: Place, forked: list[str]) -> None:
    ours, theirs = pty.openpty()
    process = started(
        forked, place, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    )
    os.close(theirs)
    said = b""
    while b"step " not in said:
        said += os.read(ours, 4096)
    os.close(ours)
    process.send_signal(signal.SIGHUP)
    assert process.wait(60) == 130
    assert load_checkpoint(place / "new" / CHECKPOINT)[1]["step"] >= 1


def test_nohup_outlives_its_terminal(place: Place, forked: list[str]) -> None:
    process = started(
        forked,
        place,
        *("--set", "train.steps=8"),
        stdout=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )
    assert process.stdout
    assert any(line.startswith(b"step ") for line in process.stdout)
    process.send_signal(signal.SIGHUP)
    process.communicate(timeout=90)
    assert process.returncode == 0
    assert len(read_steps(place / "new" / STEPS)) == 8


@pytest.mark.parametrize("which", ["stdout", "stderr", "both"])
def test_a_reader_that_leaves_silences_the_lines_and_training_goes_on(
    place: Place, forked: list[str], which: str
) -> None:
    pipes = {name: subprocess.PIPE for name in ("stdout", "stderr") if which in (name, "both")}
    more = ["--json"] if which == "stderr" else []
    process = started(forked, place, *("--set", "train.steps=6"), *more, **pipes)
    for pipe in (process.stdout, process.stderr):
        if pipe:
            pipe.close()
    assert process.wait(120) == 0
    assert len(read_steps(place / "new" / STEPS)) == 6


def test_output_to_a_full_disk_is_told_when_the_work_is_done(
    place: Place, forked: list[str]
) -> None:
    with Path("/dev/full").open("wb") as full:
        steps = ("--set", "train.steps=3")
        process = started(forked, place, *steps, stdout=full, stderr=subprocess.PIPE)
        _, errors = process.communicate(timeout=120)
    told = b"fairway: standard output could not be written: the disk is full; free some space"
    assert process.returncode == 2 and errors.startswith(told) and errors.count(b"\n") == 1
    assert len(read_steps(place / "new" / STEPS)) == 3


def in_shell(line: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    """Run `fairway` in a shell whose line names it $0."""
    command = ["bash", "-c", line.replace("fairway", '"$0" -m fairway', 1), sys.executable]
    paths = {**os.environ, "PYTHONPATH": str(HERE)}
    return subprocess.run(command, cwd=folder, env=paths, capture_output=True, text=True)


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_streams_that_the_shell_closed_lead_nowhere(closed: str, tmp_path: Path) -> None:
    done = in_shell(f"fairway doctor --json {closed}", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("{") != (">&-" in closed.split())


def test_a_removed_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    done = in_shell("cd gone && rmdir ../gone && fairway doctor", tmp_path)
    told = "fairway: the current folder does not exist any more; change to another one with cd\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", told)


# ---------------------------------------------------------------------------------------------
# Errors


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (InterruptedRun("stopped after step 3"), 130, "stopped after step 3"),
        (IsADirectoryError(21, "Is a directory", "x"), 2, "Is a directory (x)"),
        (OSError("odd"), 2, "odd"),
        (OSError(28, "No space left on device", "x"), 2, "the disk is full (x); free some space "
         "and run the same command again"),
    ],
)  # fmt: skip
def test_how_a_command_ends(
    cli: Cli,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    code: int,
    sentence: str,
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr(doctor, "examine", fail)
    assert cli("doctor", "--json") == Outcome(code, "", f"fairway: {sentence}\n")


def test_a_bug_is_not_hidden(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise AssertionError("ours")

    monkeypatch.setattr(doctor, "examine", fail)
    with pytest.raises(AssertionError, match="ours"):
        cli("doctor")


# ---------------------------------------------------------------------------------------------
# Modules of strangers

NAMES = ("torch", "json", "numpy", "typing", "typer", "rich", "signal", "pickle", "fairway_data")


@pytest.mark.long
@pytest.mark.parametrize("module", ["fairway", "fairway.cli"])
def test_no_module_of_the_folder_it_starts_in_is_imported(
    place: Place, smoke_run: Path, module: str
) -> None:
    for name in NAMES:
        (place / f"{name}.py").write_text(f"open('taken-{name}', 'w')\nraise SystemExit(9)\n")
    env = {**os.environ, "PYTHONPATH": str(HERE)}
    env.pop("PYTHONSAFEPATH", None)
    runtime = [w for w in place.words("SMOKE") if w.startswith("runtime.")]
    sets = [word for text in runtime for word in ("--set", text)]
    # Both begin alike; one of them shows what a command imports later.
    score = [["score", "run/artifact.fwy", "text.txt", *sets]] if module == "fairway" else []
    for words in (["--version"], *score):
        command = [sys.executable, "-m", module, *words]
        ended = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr
    assert not list(place.path.glob("taken-*"))


def test_processes_that_fairway_starts_import_none_either(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fairway.base import children
    from fairway.data.parallel import map_parallel

    for name in NAMES:
        (place / f"{name}.py").write_text(f"open('taken-{name}', 'w')\nraise SystemExit(9)\n")
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    # As they start where no test forks them.
    monkeypatch.setattr(children, "subprocess", subprocess)
    with children.child(["--version"], stdout=subprocess.PIPE) as process:
        assert process.stdout and process.stdout.read().startswith(b"fairway ")
        assert process.wait(60) == 0
    monkeypatch.setattr("fairway.data.parallel.processes", lambda: 2)
    assert list(map_parallel(abs, [-1, 2, -3], "counting")) == [1, 2, 3]
    assert not list(place.path.glob("taken-*"))
    assert "PYTHONSAFEPATH" not in os.environ
