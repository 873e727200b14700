"""New processes that run Fairway and end with the process that started them.

They import Fairway from the same place as this process, and no module from the current folder.
"""

import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fairway
from fairway.base.endings import HELD

# A process with these variables acts as one of many that work together.
_OF_MANY = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
# The time for a process to save its state: a step and a checkpoint, or one long compiled loop.
_GRACE_S = 30.0


def begin(
    words: Sequence[str], processes: int = 1, module: str = "fairway.cli", **options: Any
) -> "subprocess.Popen[bytes]":
    """Start `fairway WORDS`, or several processes of it by torchrun; options are those of Popen.

    `module` replaces the command line as the entry point. The standard input is a pipe that stays
    open while this process runs; see `fairway.base.endings.end_with_parent`.
    """
    start = [sys.executable]
    if processes > 1:
        start += ["-m", "torch.distributed.run", "--standalone"]
        start.append(f"--nproc-per-node={processes}")
    env = {**os.environ, **options.pop("env", {})}
    env = {name: value for name, value in env.items() if name not in _OF_MANY}
    home = str(Path(fairway.__file__).parents[1])
    env["PYTHONPATH"] = os.pathsep.join(filter(None, (home, env.get("PYTHONPATH"))))
    env |= {"PYTHONSAFEPATH": "1", HELD: "1"}
    command = [*start, "-m", module, *words]
    return subprocess.Popen(command, stdin=subprocess.PIPE, env=env, **options)


def end(processes: Iterable["subprocess.Popen[bytes]"]) -> None:
    """End processes that `begin` started, by a request, then by force; return after their end."""
    left = [process for process in processes if process.poll() is None]
    try:
        for process in left:
            process.terminate()
        for process in left:
            process.wait(_GRACE_S)
    except subprocess.TimeoutExpired:
        pass
    finally:
        for process in left:
            process.kill()
            process.wait()
            if process.stdin:
                process.stdin.close()


@contextmanager
def child(words: Sequence[str], **options: Any) -> Iterator["subprocess.Popen[bytes]"]:
    """Yield a process that `begin` started, and end it after the block."""
    process = begin(words, **options)
    try:
        yield process
    finally:
        end([process])
