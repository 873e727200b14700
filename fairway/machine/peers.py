"""Processes of a run end together: one prints the reason, and none is left waiting.

`torchrun` starts equal processes and ends those of a host when one of them fails. Three problems
remain: a process inside a GPU collective does not react to signals (`torchrun` kills it after 30
s), other hosts are not informed, and every process would print its own reason. So a failing process
writes a message into the store that `torchrun` keeps for its processes, and a thread in each
process reads the store.
"""

import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from typing import NoReturn, Protocol

import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from fairway.base.errors import UserError
from fairway.base.terminal import line, put

_FAILED, _SPOKEN, _TOLD = "fairway/failed", "fairway/spoken", "fairway/told"
_PROCESS = "fairway/process"

# The time within which all processes must have started.
_MEET = timedelta(minutes=5)
# The interval at which a process reads the store; a request costs 50 microseconds.
_LOOK_S = 0.1
# The message about a process that could not write one itself.
_LOST = (
    "fairway: another process of this run ended without a message (killed, or out of memory?); the "
    "last checkpoint is kept, --resume continues"
)
# The time that a killed process may take to vanish; not every launcher waits for it.
_VANISH_S = 0.5
# The time for a process to end by itself after another has failed, without an incomplete file.
_GRACE_S = 2.0


class Store(Protocol):
    """The used methods of a torch.distributed store; RuntimeError if its host process has ended."""

    def set(self, key: str, value: str) -> None:
        """Keep a value."""

    def get(self, key: str) -> bytes:
        """Return a value, waiting for it."""

    def add(self, key: str, amount: int) -> int:
        """Add to a counter, and return it."""

    def check(self, keys: list[str]) -> bool:
        """Return whether all keys have a value."""


class Peers:
    """The processes of this run as seen by one of them; without a store there is only one."""

    def __init__(self, rank: int = 0, store: Store | None = None) -> None:
        self._rank, self._store = rank, store
        self._told = 0
        self._heard = False
        self._over = threading.Event()

    def tell(self, text: str) -> str:
        """Return rank 0's text on every rank; the others wait for rank 0.

        Every rank must call this equally often. Unlike a collective it has no time limit, since
        packing a model may take longer than NCCL's limit. If rank 0 fails, the waiting processes
        end.
        """
        if self._store is None:
            return text
        key = f"{_TOLD}/{self._told}"
        self._told += 1
        if self._rank == 0:
            self._store.set(key, text)
            return text
        while not self._store.check([key]):
            time.sleep(_LOOK_S)
        return self._store.get(key).decode()

    def watch(self) -> None:
        """From now on, end this process soon after another one fails."""
        assert self._store is not None
        self._store.set(f"{_PROCESS}/{self._rank}", _name_of(os.getpid()))
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        code = None
        while code is None and not self._over.wait(_LOOK_S):
            code = self._failure()
        self._heard = code is not None
        if code is not None and not self._over.wait(_GRACE_S):
            _exit(code)

    def _failure(self) -> int | None:
        """Return the exit code of a process that failed; 1 if the store is lost."""
        assert self._store is not None
        try:
            return int(self._store.get(_FAILED)) if self._store.check([_FAILED]) else None
        except RuntimeError:
            return 1

    def fail(self, sentence: str, code: int) -> NoReturn:
        """End this process at once, and then the others; the first to fail prints the reason."""
        assert self._store is not None
        try:
            if self._store.add(_SPOKEN, 1) == 1:
                _speak(sentence)
                # This comes last: others may end as soon as they read it, and then torchrun ends
                # this one.
                self._store.set(_FAILED, str(code))
        except RuntimeError:
            # The store ends with the first host, which printed the reason if this process got its
            # message.
            if not self._heard:
                _speak(sentence)
        _exit(code)

    def explained(self, error: BaseException) -> tuple[str, int]:
        """Return the sentence for an error that ends this process, and its exit code."""
        if _is_of_a_lost_process(error):
            return _LOST, 1
        if isinstance(error, KeyboardInterrupt):
            return self.told_apart("fairway: interrupted")
        return "".join(traceback.format_exception(error)), 1

    def told_apart(self, interrupted: str) -> tuple[str, int]:
        """Return the sentence for a signal, and the exit code.

        torchrun sends the same signal when another process has ended and when its user stops it.
        """
        end_s = time.monotonic() + _VANISH_S
        while not (lost := self._lost_one()) and time.monotonic() < end_s:
            time.sleep(_LOOK_S)
        return (_LOST, 1) if lost else (interrupted, 130)

    def _lost_one(self) -> bool:
        """Return whether another process of this host has ended already."""
        assert self._store is not None
        try:
            keys = [f"{_PROCESS}/{rank}" for rank in range(int(os.environ.get("WORLD_SIZE", "1")))]
            started = [self._store.get(key).decode() for key in keys if self._store.check([key])]
        except RuntimeError:
            return False
        ours = [int(name.split()[0]) for name in started if name == _name_of(int(name.split()[0]))]
        return not all(map(_is_alive, ours))

    def part(self) -> None:
        """End without error: all processes wait until rank 0 has finished."""
        self.tell("finished")
        if dist.is_initialized():
            dist.destroy_process_group()
        self._over.set()


def _is_of_a_lost_process(error: BaseException) -> bool:
    """Return whether an error of Gloo or NCCL means that messages between processes failed."""
    if isinstance(error, dist.DistError):
        return True
    return isinstance(error, RuntimeError) and "gloo/transport" in str(error)


def _name_of(process: int) -> str:
    return f"{process} {socket.gethostname()}"


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _speak(sentence: str) -> None:
    if sentence:
        put(sentence, sys.stderr)


def _exit(code: int) -> NoReturn:
    """Leave without waiting for collectives that will never end."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


@cache
def peers() -> Peers:
    """Return the peers of this process; the first call connects to them.

    Raises UserError if the environment names others that cannot be reached.
    """
    world = os.environ.get("WORLD_SIZE", "1")
    if world == "1":
        return Peers()
    try:
        store, rank, _ = next(rendezvous("env://", timeout=_MEET))
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"WORLD_SIZE is {world}, but the processes cannot meet "
            f"({str(error).splitlines()[0]}); start them with torchrun, or unset WORLD_SIZE"
        ) from None
    return Peers(rank, store)


def end_together(attempt: Callable[[], tuple[str, int]]) -> None:
    """Run a function in every process, and end all with its (last sentence, exit code).

    This returns only if the exit code is 0. An unexpected error counts as exit code 1, with its
    traceback as the sentence.
    """
    try:
        group = peers()
    except UserError as error:
        put(line(f"fairway: {error}"), sys.stderr)
        raise SystemExit(2) from None
    group.watch()
    try:
        sentence, code = _tried(group, attempt)
        if code:
            # torchrun's signal comes if another process ended faster. It must not end this one
            # before its sentence.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
    except KeyboardInterrupt as late:
        # The signal came while the sentence of an error was made.
        sentence, code = group.explained(late.__context__ or late)
    if code:
        group.fail(sentence, code)


def _tried(group: Peers, attempt: Callable[[], tuple[str, int]]) -> tuple[str, int]:
    try:
        sentence, code = attempt()
        if code == 0:
            group.part()
        return group.told_apart(sentence) if code == 130 else (sentence, code)
    except BaseException as error:
        return group.explained(error)
