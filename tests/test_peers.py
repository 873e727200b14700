"""Processes that end together, played by threads on one store."""

import os
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import NoReturn

import pytest
import torch
from torch.distributed import HashStore

from fairway.machine import peers as module
from fairway.machine.peers import Peers, end_together, peers

HOST = socket.gethostname()
LOST = "fairway: another process of this run ended without a message"


class Gone:
    """A store whose keeper has died."""

    def set(self, key: str, value: str) -> NoReturn:
        raise RuntimeError("connection reset")

    def get(self, key: str) -> NoReturn:
        raise RuntimeError("connection reset")

    def add(self, key: str, amount: int) -> NoReturn:
        raise RuntimeError("connection reset")

    def check(self, keys: list[str]) -> NoReturn:
        raise RuntimeError("connection reset")


@pytest.fixture
def exits(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Return the exit codes with which this process would have ended; waits are short."""
    codes: list[int] = []

    def leave(code: int) -> NoReturn:
        codes.append(code)
        raise SystemExit(code)

    monkeypatch.setattr(module, "_exit", leave)
    monkeypatch.setattr(module, "_LOOK_S", 0.01)
    monkeypatch.setattr(module, "_GRACE_S", 0.1)
    return codes


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Return a way to set the environment, which is asked anew."""
    peers.cache_clear()
    yield monkeypatch
    peers.cache_clear()


def watching(group: Peers) -> threading.Thread:
    def watch() -> None:
        with suppress(SystemExit):
            group._watch()

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


def watched(group: Peers, seconds: float = 5.0) -> None:
    """Run a watch until it ends."""
    thread = watching(group)
    thread.join(seconds)
    assert not thread.is_alive()


def test_what_the_first_tells_reaches_all_in_order() -> None:
    store = HashStore()
    first, second = Peers(0, store), Peers(1, store)
    heard: list[str] = []
    listener = threading.Thread(target=lambda: heard.extend(second.tell("") for _ in range(2)))
    listener.start()
    listener.join(0.3)
    assert listener.is_alive() and heard == []
    assert first.tell("one") == "one"
    listener.join(0.3)
    assert listener.is_alive() and heard == ["one"]
    first.tell("two")
    listener.join(5)
    assert heard == ["one", "two"]
    assert Peers().tell("alone") == "alone"


def test_only_the_first_to_fail_speaks(
    exits: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    store = HashStore()
    for rank, code in ((1, 2), (0, 1)):
        with pytest.raises(SystemExit):
            Peers(rank, store).fail(f"fairway: said by {rank}", code)
    assert exits == [2, 1]
    assert capsys.readouterr().err == "fairway: said by 1\n"
    assert Peers(0, store)._failure() == 2


def test_a_failure_ends_the_others_with_its_code(exits: list[int]) -> None:
    store = HashStore()
    group = Peers(0, store)
    thread = watching(group)
    thread.join(0.3)
    assert thread.is_alive() and exits == []
    with pytest.raises(SystemExit):
        Peers(1, store).fail("", 2)
    thread.join(5)
    assert not thread.is_alive() and exits == [2, 2]


def test_who_has_parted_is_not_ended(exits: list[int]) -> None:
    store = HashStore()
    group = Peers(0, store)
    group.part()
    watched(group)
    with pytest.raises(SystemExit):
        Peers(1, store).fail("", 2)
    assert exits == [2]


def test_a_lost_store_ends_the_process(
    exits: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    group = Peers(1, Gone())
    with pytest.raises(SystemExit):
        group.fail("fairway: nobody else can say it", 2)
    assert capsys.readouterr().err == "fairway: nobody else can say it\n"
    watched(group)
    assert exits == [2, 1]
    # Later errors are echoes of the same end.
    with pytest.raises(SystemExit):
        group.fail("fairway: an echo", 1)
    assert capsys.readouterr().err == ""


def test_processes_that_cannot_meet_say_so(
    world: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    world.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        world.delenv(name, raising=False)
    with pytest.raises(SystemExit) as ending:
        end_together(lambda: pytest.fail("not before all have met"))
    assert ending.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith("fairway: WORLD_SIZE is 2, but the processes cannot meet")
    assert told.endswith("start them with torchrun, or unset WORLD_SIZE\n")


@pytest.mark.parametrize(
    ("error", "said", "code"),
    [
        (KeyboardInterrupt(), "fairway: interrupted\n", 130),
        (ZeroDivisionError("x"), "Error: x", 1),
        (RuntimeError("[third_party/gloo/transport/tcp/pair.cc:1] Connection closed"), LOST, 1),
        (torch.distributed.DistBackendError("NCCL error: remote process exited"), LOST, 1),
        (torch.distributed.DistNetworkError("the store is gone"), LOST, 1),
        (RuntimeError("gloomy"), "RuntimeError: gloomy", 1),
    ],
)
def test_what_nobody_foresaw_ends_all_too(
    exits: list[int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    said: str,
    code: int,
) -> None:
    group = Peers(0, HashStore())
    monkeypatch.setattr(module, "peers", lambda: group)

    def attempt() -> tuple[str, int]:
        raise error

    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit):
        end_together(attempt)
    signal.signal(signal.SIGTERM, handler)
    group._over.set()
    assert exits[0] == code and said in capsys.readouterr().err


def test_the_signal_for_a_lost_process_is_told_from_that_of_a_user(
    exits: list[int], world: pytest.MonkeyPatch
) -> None:
    world.setenv("WORLD_SIZE", "3")
    store = HashStore()
    group = Peers(0, store)
    gone = subprocess.Popen(["true"])
    gone.wait()
    for rank, name in enumerate((f"{os.getpid()} {HOST}", f"{gone.pid} of another host")):
        store.set(f"fairway/process/{rank}", name)
    assert group.explained(KeyboardInterrupt()) == ("fairway: interrupted", 130)
    store.set("fairway/process/2", f"{gone.pid} {HOST}")
    for sentence, code in (group.explained(KeyboardInterrupt()), group.told_apart("saved")):
        assert sentence.startswith(LOST) and code == 1


def test_a_process_that_is_just_ending_is_waited_for(
    exits: list[int], world: pytest.MonkeyPatch
) -> None:
    world.setenv("WORLD_SIZE", "2")
    store = HashStore()
    ending = subprocess.Popen(["sleep", "0.2"])
    threading.Thread(target=ending.wait).start()
    store.set("fairway/process/1", f"{ending.pid} {HOST}")
    sentence, code = Peers(0, store).told_apart("fairway: interrupted")
    assert sentence.startswith(LOST) and code == 1


def test_a_signal_that_comes_while_an_error_is_explained_hides_nothing(
    exits: list[int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    group = Peers(0, HashStore())
    explained = group.explained
    asked: list[BaseException] = []

    def late(error: BaseException) -> tuple[str, int]:
        asked.append(error)
        if len(asked) == 1:
            raise KeyboardInterrupt
        return explained(error)

    def attempt() -> tuple[str, int]:
        raise RuntimeError("[gloo/transport/tcp/pair.cc:1] Connection closed")

    monkeypatch.setattr(group, "explained", late)
    monkeypatch.setattr(module, "peers", lambda: group)
    with pytest.raises(SystemExit):
        end_together(attempt)
    group._over.set()
    assert exits == [1] and len(asked) == 2 and asked[0] is asked[1]
    assert capsys.readouterr().err.count(LOST) == 1
