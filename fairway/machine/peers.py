"""Processes that run together end together: one speaks for all, and none is left waiting.

`torchrun` starts equal processes and ends those of a host when one of them fails. That leaves
gaps: a process inside a GPU collective hears no signal (`torchrun` waits 30 s before it kills it),
another host is not told, and every process would explain the failure in its own words. So whoever
fails leaves word in the store that `torchrun` keeps for its processes, and a thread in each of
them looks there.
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

# All processes must have started within this time.
_MEET = timedelta(minutes=5)
# How often a process looks into the store: a question costs 50 microseconds.
_LOOK_S = 0.1
# What the others say of a process that could say nothing itself.
_LOST = (
    "fairway: another process of this run ended without a word (killed, or out of memory?); the "
    "last checkpoint is kept, --resume continues"
)
# What a process gets, once another has failed, to end by itself and leave no half-written file.
_GRACE_S = 2.0


class Store(Protocol):
    """What is needed of a torch.distributed store; RuntimeError when its keeper is gone."""

    def set(self, key: str, value: str) -> None:
        """Keep a value."""

    def get(self, key: str) -> bytes:
        """Return a value, waiting for it."""

    def add(self, key: str, amount: int) -> int:
        """Count, and return the count."""

    def check(self, keys: list[str]) -> bool:
        """Return whether all keys have a value."""


class Peers:
    """The processes of this run as one of them sees them; without a store, there is only one."""

    def __init__(self, rank: int = 0, store: Store | None = None) -> None:
        self._rank, self._store = rank, store
        self._told = 0
        self._heard = False
        self._over = threading.Event()

    def tell(self, text: str) -> str:
        """Return rank 0's text on every rank; they wait as long as it takes rank 0 to get here.

        Every rank must call this as often. Unlike a collective it has no time limit (packing a
        model may outlast that of NCCL); a rank 0 that fails ends the wait with the process.
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
        """From now on, end this process soon after another one has failed."""
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
        """Return the exit code of a process that failed; 1 if the store itself is gone."""
        assert self._store is not None
        try:
            return int(self._store.get(_FAILED)) if self._store.check([_FAILED]) else None
        except RuntimeError:
            return 1

    def fail(self, sentence: str, code: int) -> NoReturn:
        """End this process at once, and the others with it; the first to fail says why."""
        assert self._store is not None
        try:
            if self._store.add(_SPOKEN, 1) == 1:
                _speak(sentence)
                # Only now: others may end as soon as they see it, and torchrun ends this one then.
                self._store.set(_FAILED, str(code))
        except RuntimeError:
            # The store ends with the first host, which said why if this process heard of it.
            if not self._heard:
                _speak(sentence)
        _exit(code)

    def explained(self, error: BaseException) -> tuple[str, int]:
        """Return what to say of an error that ends this process, and its exit code."""
        if _is_of_a_lost_process(error):
            return _LOST, 1
        if isinstance(error, KeyboardInterrupt):
            return self.told_apart("fairway: interrupted")
        return "".join(traceback.format_exception(error)), 1

    def told_apart(self, interrupted: str) -> tuple[str, int]:
        """Return what to say of a signal, and the exit code.

        torchrun ends us by the same signal when another process is gone and when its user wants it.
        """
        return (_LOST, 1) if self._lost_one() else (interrupted, 130)

    def _lost_one(self) -> bool:
        """Return whether another process of this host has ended."""
        assert self._store is not None
        try:
            keys = [f"{_PROCESS}/{rank}" for rank in range(int(os.environ.get("WORLD_SIZE", "1")))]
            started = [self._store.get(key).decode() for key in keys if self._store.check([key])]
        except RuntimeError:
            return False
        ours = [int(name.split()[0]) for name in started if name == _name_of(int(name.split()[0]))]
        return not all(map(_is_alive, ours))

    def part(self) -> None:
        """End well: nobody leaves before rank 0 has finished."""
        self.tell("finished")
        if dist.is_initialized():
            dist.destroy_process_group()
        self._over.set()


def _is_of_a_lost_process(error: BaseException) -> bool:
    """Return whether an error says that messages between processes ended: Gloo's, NCCL's."""
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
    """Return the peers of this process, met when first asked for.

    Raises UserError where the environment promises others that cannot be met.
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
    """Run what returns (last sentence, exit code) in every process, and end them all alike.

    Only returns if the exit code is 0. An error that nobody foresaw counts as exit code 1, its
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
            # The signal by which torchrun ends us, when another was faster, must come no more.
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
    except KeyboardInterrupt as late:
        # It came while an error was being explained.
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
