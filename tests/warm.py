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
import json
import os
import signal
import socket
import sys
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
    ended = int.from_bytes(found, "little", signed=True) if found else -signal.SIGKILL
    if ended < 0:
        if -ended in _PASSED:
            signal.signal(-ended, signal.SIG_DFL)
        os.kill(os.getpid(), -ended)
    os._exit(ended)


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


if __name__ == "__main__":
    if sys.argv[1] != "--serve":
        launch(sys.argv[1:])
    else:
        sys.path[0] = os.path.dirname(os.path.dirname(__file__))
        import importlib
        from contextlib import suppress

        # What optimisers and the Hub's client import, as far as this version has it; not they
        # themselves: torch._dynamo has work to do at the end, the client reads the environment.
        for name in (
            *("sympy", "torch.fx.experimental.symbolic_shapes", "torch.distributed.fsdp"),
            *("httpx", "httpx2", "yaml", "fsspec"),
        ):
            with suppress(ImportError):
                importlib.import_module(name)

        import fairway.api
        import fairway.cli.main
        import fairway.cli.show
        import fairway.pipeline.run
        import fairway.prove.archive
        import fairway.prove.proof
        import fairway.report.page

        _become(serve(sys.argv[2], int(sys.argv[3])))
        if sys.argv[1:2] == ["-c"]:
            sys.argv[:3], program = ["-c"], sys.argv[2]
            exec(program, {"__name__": "__main__"})
        else:
            fairway.cli.main.main()
