"""Trails of ledgers: what a valid account leaves, and every way to tamper with one."""

import gzip
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from audit.honest import V, text

from fairway.audit.ledger import check_trail_file, check_trails
from fairway.audit.verdicts import Probe
from fairway.runtime import Ranks
from fairway.score.ledger import Context, Distribution, FloatArray, IntArray, Ledger, Receipt, Text
from fairway.score.trail import START, Trail, sealed, write_trails
from fairway.score.windows import Event, Window, events, sliding_windows

IDS = text(3)
TARGETS = len(IDS) - 1


class Uniform:
    def log_prob(self, targets: IntArray) -> FloatArray:
        return np.full(len(targets), -np.log(V))

    def row(self, position: int) -> FloatArray:
        return np.full(V, -np.log(V))


def predicted(context: Context) -> Distribution:
    return Uniform()


def kept() -> tuple[Trail, float]:
    """Return the trail of an account that learns along, and its nats."""
    trail = Trail()
    ledger = Ledger(Text(IDS, np.ones(TARGETS, int), TARGETS, V), TARGETS, witness=trail)
    learned = 0
    for event in events(sliding_windows(TARGETS, 12, 4), 2):
        ledger.commit(event, predicted(ledger.context(event)))
        if event.end - learned >= 16:
            ledger.lesson(learned, event.end)
            learned = event.end
    return trail, ledger.finish().nats


def check(lines: list[str], digest: str | None = None) -> Probe:
    """Check lines, sealed anew unless a digest is given."""
    found = START
    for line in lines:
        found = sealed(found, line)
    return check_trails([lines], [digest or found], TARGETS, kept()[1])


def test_what_a_ledger_writes_down_holds() -> None:
    trail, nats = kept()
    found = check_trails([trail.lines], [trail.digest], TARGETS, nats)
    assert (found.verdict, found.samples) == ("valid", len(trail.lines))
    kinds = [json.loads(line)[0] for line in trail.lines]
    assert kinds[:2] == ["read", "score"] and kinds.count("learn") >= 2


def swap(lines: list[str], kind: str, other: str) -> list[str]:
    """Exchange the first entry of a kind with the next one of another."""
    kinds = [json.loads(line)[0] for line in lines]
    at = kinds.index(kind)
    after = kinds.index(other, at)
    found = list(lines)
    found[at], found[after] = found[after], found[at]
    return found


def edited(lines: list[str], kind: str, old: str, new: str) -> list[str]:
    at = next(n for n, line in enumerate(lines) if f'"{kind}"' in line and old in line)
    return [*lines[:at], lines[at].replace(old, new, 1), *lines[at + 1 :]]


@pytest.mark.parametrize("at", [0, 5, -1])
def test_any_edit_breaks_the_seal(at: int) -> None:
    trail, _ = kept()
    lines = list(trail.lines)
    lines[at] += " "
    assert "were changed after the score" in check(lines, trail.digest).why
    assert "were changed" in check(trail.lines[:-1], trail.digest).why


def test_every_disorder_is_found_even_if_sealed_anew() -> None:
    lines = kept()[0].lines
    scores = [n for n, line in enumerate(lines) if '"score"' in line]
    wrong = {
        "was learned before it was scored": [lines[0], '["learn",0,4]', *lines[1:]],
        "was scored without having been read": swap(lines, "read", "score"),
        "was scored twice": [*lines, lines[scores[0]]],
        "have no score": lines[: scores[-1]],
        "the score says": edited(lines, "score", "]],", "]],1"),
        "fits no text": edited(lines, "score", "[[0,", "[[-1,"),
        "is no entry of a trail": [*lines, '["erase",1]'],
        "malformed": [*lines, '["learn","a","b"]'],
    }
    for why, changed in wrong.items():
        found = check(changed)
        assert (found.verdict, why in found.why) == ("invalid", True), (why, found)


def test_a_window_that_reads_what_comes_later_is_found() -> None:
    lines = ['["read",0]', '["score",0,[[0,4,2]],1.0]', '["read",1]', '["score",1,[[0,2,0]],1.0]']
    found = START
    for line in lines:
        found = sealed(found, line)
    probe = check_trails([lines], [found], 4, 2.0)
    assert (probe.verdict, probe.position) == ("invalid", 0)
    assert "with 0 in view, not scored yet" in probe.why


def test_processes_join_their_trails() -> None:
    parts = [
        ['["read",0]', '["score",0,[[0,2,0]],1.0]', '["learn",0,4]'],
        ['["read",1]', '["score",1,[[0,4,2]],1.0]', '["learn",0,4]'],
    ]
    digests = []
    for lines in parts:
        found = START
        for line in lines:
            found = sealed(found, line)
        digests.append(found)
    assert check_trails(parts, digests, 4, 2.0).verdict == "valid"
    assert check_trails(parts[:1], digests[:1], 4, 1.0).verdict == "invalid"
    assert check_trails(parts, digests[:1], 4, 2.0).verdict == "invalid"


class Threads(Ranks):
    """Processes that are threads: they add up at a barrier."""

    meet = threading.Barrier(2)
    sent: ClassVar[dict[int, FloatArray]] = {}

    def total(self, values: FloatArray) -> FloatArray:
        self.sent[self.rank] = values
        self.meet.wait()
        found = self.sent[0] + self.sent[1]
        self.meet.wait()
        return np.asarray(found)


def test_processes_write_one_file(tmp_path: Path) -> None:
    trails = [Trail(), Trail()]
    window = Window(0, 2, 0)
    trails[0].read(Event(0, (window,)))
    trails[0].scored(Receipt(Event(0, (window,)), np.array([3, 4]), np.array([0.5, 0.5])))
    trails[1].read(Event(1, (Window(0, 4, 2),)))
    trails[1].scored(
        Receipt(Event(1, (Window(0, 4, 2),)), np.array([3, 4]), np.array([0.25, 0.75]))
    )
    path = tmp_path / "ledger-x.jsonl.gz"
    with ThreadPoolExecutor(2) as pool:
        found = list(
            pool.map(lambda n: write_trails(trails[n], Threads(rank=n, world=2), path), range(2))
        )
    assert found == [[trails[0].digest, trails[1].digest], []]
    assert check_trail_file(path, found[0], 4, 2.0).verdict == "valid"


def test_the_file_is_written_and_damage_is_told(tmp_path: Path) -> None:
    trail, nats = kept()
    path = tmp_path / "ledger-x.jsonl.gz"
    digests = write_trails(trail, Ranks(), path)
    assert digests == [trail.digest]
    assert check_trail_file(path, digests, TARGETS, nats).verdict == "valid"
    before = path.read_bytes()
    write_trails(trail, Ranks(), path)
    assert path.read_bytes() == before
    for data in (before[:-9], b"junk", gzip.compress(b"{]\n"), gzip.compress(b"[1]\n")):
        path.write_bytes(data)
        found = check_trail_file(path, digests, TARGETS, nats)
        assert (found.verdict, "is damaged" in found.why) == ("invalid", True)
    path.unlink()
    assert check_trail_file(path, digests, TARGETS, nats).verdict == "not decidable"
