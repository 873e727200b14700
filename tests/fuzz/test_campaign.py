"""The campaigns: each kind of failure is noticed, and a few inputs of every format pass."""

import importlib
import mmap
import os
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.fuzz import FORMATS, Case, Files, Format, bundles, campaign, runs
from benchmarks.fuzz.campaign import once, run
from fairway.base.errors import UserError
from fairway.base.native import compiled


@compiled
def turn(count: int) -> int:
    found = 0
    while count:
        found = found * 3 + 1
    return found


class Toy:
    """One byte says what happens when it is read: number 5 of each campaign is the odd one."""

    name = "toy"
    most_s = 0.5

    def __init__(self, kind: str) -> None:
        self.kind = kind
        turn(0)

    def specimens(self) -> list[Files]:
        return [{"a/b": b"good"}]

    def spoil(self, files: Files, rng: random.Random) -> Case:
        self.made = getattr(self, "made", -1) + 1
        return Case({"a/b": b"odd" if self.made == 5 else b"bad"}, False)

    def read(self, folder: Path) -> Any:
        data = (folder / "a" / "b").read_bytes()
        if data == b"bad":
            raise UserError("it is bad")
        if data == b"odd":
            self.misbehave()
        return data

    def misbehave(self) -> None:
        match self.kind:
            case "traceback":
                raise KeyError("text")
            case "hang":
                turn(1)
            case "sleep":
                time.sleep(60)
            case "memory":
                # 120 MB: far above the 64 MB that are justified, below what is refused. Pages of
                # its own: the C library may have freed memory to give that is resident already.
                with mmap.mmap(-1, 120_000_000) as room:
                    room[:: mmap.PAGESIZE] = bytes(len(range(0, len(room), mmap.PAGESIZE)))
            case "claimed memory":
                np.zeros(1 << 33)
            case "crash":
                os._exit(7)

    def wrong(self, files: Files, case: Case, found: Any) -> str:
        return "" if found == files["a/b"] else "taken"


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("traceback", "traceback"),
        ("hang", "hang"),
        ("memory", "memory"),
        ("claimed memory", "traceback"),
        ("crash", "crash"),
        ("nothing", "accepted"),
    ],
)
def test_every_kind_of_failure_is_noticed_and_the_rest_goes_on(kind: str, told: str) -> None:
    start_s = time.perf_counter()
    found = run(Toy(kind), 8, 1)
    assert [(f["number"], f["kind"]) for f in found.failures] == [(5, told)]
    assert (found.inputs, found.refused) == (8, 7)
    assert time.perf_counter() - start_s < 60


@pytest.mark.long
def test_what_sleeps_is_ended_and_what_waits_for_its_turn_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(campaign, "_MOST_WALL_S", 0.8)
    assert [f["kind"] for f in run(Toy("sleep"), 8, 1).failures] == ["hang"]
    # As on a machine on which others run all the time.
    start_s = time.monotonic()
    monkeypatch.setattr(campaign, "_queued_s", lambda pid: time.monotonic() - start_s)
    toy = Toy("sleep")
    monkeypatch.setattr(toy, "misbehave", lambda: time.sleep(1.0))
    assert [f["kind"] for f in run(toy, 8, 1).failures] == ["accepted"]


def test_an_input_is_made_again_from_its_number(tmp_path: Path) -> None:
    format = format_named("artifact")
    for seed in (1, 2):
        once(format, seed, 3, tmp_path / f"a{seed}")
        once(format, seed, 3, tmp_path / f"b{seed}")
    a1, b1, a2 = ((tmp_path / name / "a.fwy").read_bytes() for name in ("a1", "b1", "a2"))
    assert a1 == b1 != a2


def format_named(name: str) -> Format:
    module, made = FORMATS[name]
    found: Format = getattr(importlib.import_module(f"benchmarks.fuzz.{module}"), made)()
    return found


@pytest.mark.long
@pytest.mark.parametrize("name", FORMATS)
def test_spoiled_inputs_are_refused_or_right(
    name: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What other tests have made already.
    if name == "run":
        finished = request.getfixturevalue("smoke_run")
        monkeypatch.setattr(runs, "_good", lambda: (runs.files_of(finished), None))
    elif name == "bundle":
        made = request.getfixturevalue("smoke_bundle")
        monkeypatch.setattr(bundles, "_whole", lambda: bundles.files_of(made))
    # A bundle takes a sixth of a second, a report of a run half of one.
    count = {"run": 3, "bundle": 5, "record": 15}.get(name, 20)
    found = run(format_named(name), count, 1)
    assert found.failures == []
    assert found.refused + found.read == found.inputs == count
    # An audit asks; only what is invalid counts as refused.
    assert found.refused > (0 if name == "record" else count // 10)
