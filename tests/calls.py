"""A process that imports once what many calls need, and forks for every call.

Libraries such as the Hub's client read the environment when they are imported, so that neither this
process nor the one of `warm` may import them; to import them for every call takes longer than the
call.
"""

import json
import os
import subprocess
from collections.abc import Sequence
from typing import NamedTuple

from shared import forking

# `work` is a function of a list of words; a fork answers with a line, and its words are on it.
_SERVE = """
import contextlib, io, json, os, sys, traceback

def answer(words):
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            work(words)
        except SystemExit as end:
            code = end.code or 0
        except BaseException:
            traceback.print_exc()
            code = 1
    print(json.dumps([code, out.getvalue(), err.getvalue()]), flush=True)

for line in sys.stdin:
    if not os.fork():
        answer(json.loads(line))
        os._exit(0)
    os.wait()
"""


class Done(NamedTuple):
    """The end of a call: its exit code, what it printed, what it said on stderr."""

    code: int
    out: str
    err: str


class Calls:
    """`program` imports what is needed and defines `work`, a function of a list of words."""

    def __init__(self, program: str, environment: dict[str, str]) -> None:
        command = [*forking(), "-c", program + _SERVE]
        self._process = subprocess.Popen(
            command, env={**os.environ, **environment}, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def __call__(self, words: Sequence[object]) -> Done:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps([str(word) for word in words]) + "\n")
        self._process.stdin.flush()
        return Done(*json.loads(self._process.stdout.readline()))

    def close(self) -> None:
        self._process.communicate(timeout=60)


def hub_environment(port: int, home: object) -> dict[str, str]:
    """Return the environment in which the Hub's client talks to a port of this machine."""
    return {
        "HF_ENDPOINT": f"http://127.0.0.1:{port}",
        "HF_HOME": str(home),
        "HF_TOKEN": "hf_none",
        # Tests of the harness, which may run in this process, fetch nothing.
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "NO_PROXY": "127.0.0.1",
    }
