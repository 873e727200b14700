"""The process that forks for tests: a fork is a process of its own, and its launcher ends as it."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

PROGRAM = """
import os, signal, sys
print(os.getcwd(), os.environ["MARK"], sys.argv[1:], sys.stdin.read(), flush=True)
if sys.argv[1] == "signal":
    os.kill(os.getpid(), signal.SIGUSR1)
sys.exit(int(sys.argv[1]))
"""
WAITING = "import time; print('x', flush=True); time.sleep(60)"


@pytest.mark.parametrize(("word", "code"), [("0", 0), ("7", 7), ("signal", -signal.SIGUSR1)])
def test_a_launcher_ends_as_its_fork_does(
    forked: list[str], tmp_path: Path, word: str, code: int
) -> None:
    ended = subprocess.run(
        [*forked, "-c", PROGRAM, word],
        cwd=tmp_path, env={**os.environ, "MARK": "here"}, input="read", capture_output=True,
        text=True,
    )  # fmt: skip
    assert (ended.returncode, ended.stderr) == (code, "")
    assert ended.stdout == f"{tmp_path} here ['{word}'] read\n"


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, -2), (signal.SIGTERM, -15), (signal.SIGKILL, -9)]
)
def test_a_signal_ends_the_fork(forked: list[str], number: int, code: int) -> None:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen([*forked, "-c", WAITING], **pipes)
    assert process.stdout and process.stdout.readline() == b"x\n"
    process.send_signal(number)
    # The pipes end when the fork does.
    _, errors = process.communicate(timeout=30)
    assert process.returncode == code
    assert (b"KeyboardInterrupt" in errors) == (number == signal.SIGINT)
