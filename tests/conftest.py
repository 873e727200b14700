"""What every process of a test session does first; the fixtures are in `everywhere`."""

import atexit
import gc
import importlib
import os
import signal
import sys

import pytest
import shared

# A shell without job control starts what runs in its background (`make test &`) with interrupts
# ignored, and so would be all that tests start: those that interrupt a process would wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Test processes run side by side: threads of one would wait for those of the other.
os.environ["OMP_NUM_THREADS"] = "1"
# Until all is imported and collected: what is looked through lives, and would be again and again.
gc.disable()
# What this process compiles, those that it starts need not.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


def pytest_configure(config: pytest.Config) -> None:
    works = hasattr(config, "workerinput")
    if not works:
        shared.begin()
    # With `-n` the first process only hands out tests, and the others wait for it to begin: it
    # imports neither Fairway nor PyTorch.
    if works or config.getoption("dist", "no") == "no":
        config.pluginmanager.register(importlib.import_module("everywhere"))


def pytest_collection_finish() -> None:
    gc.freeze()
    # Tests make many objects and few cycles: at the usual 700 one second in twenty goes into this.
    gc.set_threshold(10_000, 10, 10)
    gc.enable()


def pytest_unconfigure(config: pytest.Config) -> None:
    # pytest now looks for garbage several times. Python does so when it ends, and that suffices.
    gc.freeze()
    atexit.register(gc.unfreeze)
    if not hasattr(config, "workerinput"):
        shared.end()
