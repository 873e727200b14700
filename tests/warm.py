"""A process that has imported what commands need, and forks for each command line of a test.

`COMMAND` stands for `python -m fairway`, and `COMMAND -c` for `python -c`: a launcher passes its
words, folder, environment and open files to that process, which forks. The fork is a process of its
own, and the launcher ends as it does: with the same exit code, or by the same signal. Signals to
the launcher reach the fork; an end of the launcher by force ends the fork by force.

What this cannot show is how Python starts: variables that Python, torch and other libraries read
once (PYTHONUTF8, PYTHONIOENCODING, LC_ALL, OMP_NUM_THREADS), which modules are imported and from
where, and whether a command imports all that it uses. Such tests start `python -m fairway` itself.
"""

# ruff: noqa: PTH100, PTH109, PTH110, PTH120, PTH208
# The launcher must not cost what it saves: it starts without `site`, and imports little.
import functools
import gc
import json
import os
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any, NoReturn

COMMAND = [sys.executable, "-S", "-E", os.path.abspath(__file__)]
PLACE = "FAIRWAY_TESTS_WARM"
_PASSED = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)


def keep(place: str, owner: int) -> None:
    """Start the process, which listens at a path and ends with another process, its owner."""
    import subprocess

    words = [sys.executable, __file__, "--serve", place, str(owner)]
    process = subprocess.Popen(words, start_new_session=True, stdout=subprocess.PIPE)
    assert process.stdout and process.stdout.readline() == b"warm\n"


def launch(words: list[str]) -> NoReturn:
    """Have a command run, and end as it does."""
    files = [n for n in map(int, os.listdir("/dev/fd")) if os.path.exists(f"/dev/fd/{n}")]
    ignored = [n for n in _PASSED if signal.getsignal(n) is signal.SIG_IGN]
    asked: dict[str, Any] = {"words": words, "files": files, "ignored": ignored}
    text = json.dumps({**asked, "folder": os.getcwd(), "environment": dict(os.environ)}).encode()
    line = socket.socket(socket.AF_UNIX)
    line.connect(os.environ[PLACE])
    socket.send_fds(line, [len(text).to_bytes(4, "little")], files)
    line.sendall(text)
    fork = int.from_bytes(line.recv(4), "little")
    for number in set(_PASSED) - set(ignored):
        signal.signal(number, lambda number, _: os.kill(fork, number))
    found = line.recv(4)
    _leave(int.from_bytes(found, "little", signed=True) if found else -signal.SIGKILL)


def _leave(code: int) -> NoReturn:
    """End with an exit code, or by the signal of that number below 0."""
    if code < 0:
        if -code in _PASSED:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code & 0xFF)


def serve(place: str, owner: int) -> dict[str, Any]:
    """Fork for every launcher; return in the fork, with what its launcher asks for."""
    import select

    end = os.pidfd_open(owner)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(place)
        listener.listen(16)
        os.write(1, b"warm\n")
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        while end not in select.select([end, listener], [], [])[0]:
            with listener.accept()[0] as line:
                if not os.fork():
                    listener.close()
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    return _fork(line)
        os.killpg(0, signal.SIGKILL)
    raise SystemExit


def _fork(line: socket.socket) -> dict[str, Any]:
    """Fork once more and return in the fork; here, tell the launcher its number, then its end."""
    import fcntl
    import select
    from contextlib import suppress

    head, files, *_ = socket.recv_fds(line, 4, 64)
    text = line.recv(int.from_bytes(head, "little"), socket.MSG_WAITALL)
    if not (pid := os.fork()):
        line.close()
        asked: dict[str, Any] = json.loads(text)
        high = [fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, 256) for file in files]
        os.closerange(3, 256)
        for file, number in zip(high, asked["files"], strict=True):
            os.dup2(file, number)
            os.close(file)
        return asked
    for file in files:
        os.close(file)
    end = os.pidfd_open(pid)
    line.sendall(pid.to_bytes(4, "little"))
    if line in select.select([line, end], [], [])[0]:
        # It was ended by force.
        os.kill(pid, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with suppress(BrokenPipeError):
        line.sendall(code.to_bytes(4, "little", signed=True))
    os._exit(0)


def _become(asked: dict[str, Any]) -> None:
    """Take the folder, the environment, and the words of a launcher."""
    os.chdir(asked["folder"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    for number in asked["ignored"]:
        signal.signal(number, signal.SIG_IGN)
    sys.argv = ["fairway", *asked["words"]]
    sys.stdout.reconfigure(line_buffering=os.isatty(1))


def _program() -> None:
    sys.argv[:3], program = ["-c"], sys.argv[2]
    exec(program, {"__name__": "__main__"})


def _run(main: Callable[[], object]) -> NoReturn:
    """Do what Python does with a program and at its end, but for freeing all that was imported.

    That would take a second of every fork: it copies each page that it touches.
    """
    import atexit
    import threading

    code: object = 0
    try:
        main()
    except SystemExit as error:
        code = error.code or 0
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        code = -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    if not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
    except OSError as error:
        print(f"Exception ignored: {error!r}", file=sys.stderr)
        code = 120
    sys.stderr.flush()
    _leave(code)


if __name__ == "__main__":
    if sys.argv[1] != "--serve":
        launch(sys.argv[1:])
    else:
        sys.path[0] = os.path.dirname(os.path.dirname(__file__))
        import importlib
        from contextlib import suppress

        import torch

        # What the Hub's client imports, as far as this version has it; not the client itself, which
        # reads the environment. And what a report compares a run with.
        for name in ("scipy.optimize", "httpx", "httpx2", "yaml", "fsspec", "pyppmd"):
            with suppress(ImportError):
                importlib.import_module(name)

        import fairway.api
        import fairway.cli.main
        import fairway.cli.show
        import fairway.pipeline.run
        import fairway.pipeline.sizes
        import fairway.prove.archive
        import fairway.prove.proof
        import fairway.report.page
        from fairway.model.ops import norm

        # The tree of verbs, and what Typer imports with the first command line.
        build = functools.cache(importlib.import_module("typer.main").get_command)
        sys.modules["typer.main"].get_command = build  # type: ignore[attr-defined]
        build(fairway.cli.main.app)
        with suppress(ImportError):
            importlib.import_module("typer._adapters")

        # The first compiled loop that is called brings half a second of numba's modules.
        norm(torch.ones(1, 1))
        # Forks share what is here as long as they look at none of it.
        gc.freeze()
        _become(serve(sys.argv[2], int(sys.argv[3])))
        _run(_program if sys.argv[1:2] == ["-c"] else fairway.cli.main.main)
