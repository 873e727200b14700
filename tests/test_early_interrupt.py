"""Ctrl-C while the command line is being imported ends it with one sentence."""

import subprocess
import sys

import pytest

# Sends Ctrl-C at the moment at which a module is looked for.
PROGRAM = """
import os, signal, sys
module, ignored = sys.argv[1], sys.argv[2] == "ignored"
if ignored:
    signal.signal(signal.SIGINT, signal.SIG_IGN)

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == module:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Finder())
sys.argv = ["fairway", "--version"]
from fairway.__main__ import main
main()
"""


def ended(module: str, how: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, module, how], capture_output=True, text=True
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("module", ["fairway.cli", "typer", "fairway.cli.main", "fairway.version2"])
def test_an_early_interrupt_is_one_sentence(module: str) -> None:
    code, out, err = ended(module, "heard")
    if module == "fairway.version2":
        assert (code, err) == (0, "") and out.startswith("fairway ")
    else:
        assert (code, out, err) == (130, "", "fairway: interrupted\n")


def test_a_process_that_ignores_interrupts_goes_on() -> None:
    code, out, err = ended("typer", "ignored")
    assert (code, err) == (0, "") and out.startswith("fairway ")
