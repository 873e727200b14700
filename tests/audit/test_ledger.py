"""Trails of ledgers: what a valid account leaves, and every way to tamper with one."""

import gzip
import hashlib
import json
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from audit.honest import V, text

from fairway.audit.scorers import trails as audit
from fairway.audit.scorers.trails import check_trail_file, check_trails, read_trails
from fairway.audit.scorers.verdicts import Probe
from fairway.base.arrays import FloatArray, IntArray
from fairway.base.names import trail_file
from fairway.machine.ranks import Ranks
from fairway.score.ledger import Ledger, Text
from fairway.score.predictor import Context, Distribution, Receipt
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

    meet = threading.Barrier(2, timeout=10)
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


# ---------------------------------------------------------------------------------------------
# One entry at a time, and where every bound lies


def judged(targets: int, nats: float, *trails: list[str]) -> Probe:
    """Return what is said of some trails with right digests."""
    digests = []
    for lines in trails:
        found = START
        for line in lines:
            found = sealed(found, line)
        digests.append(found)
    return check_trails(trails, digests, targets, nats)


READ, SCORE = '["read",0]', '["score",0,[[0,6,0]],3.0]'


def scored(event: int, *windows: tuple[int, int, int], nats: float = 1.0) -> list[str]:
    return [json.dumps(["read", event]), json.dumps(["score", event, windows, nats])]


def test_a_probe_says_what_it_is_about() -> None:
    found = judged(6, 3.0, [READ, SCORE, '["learn",0,6]'])
    assert (found.name, found.rules, found.samples) == ("P4 ledger", ("C1", "C3", "C4"), 3)
    assert (found.verdict, found.worst, found.position) == ("valid", None, None)


@pytest.mark.parametrize(
    ("lines", "why", "position"),
    [
        ([*scored(0, (0, 4, 0)), *scored(1, (2, 6, 3))], "position 3 was scored twice", 3),
        ([*scored(0, (0, 4, 0), (0, 4, 1)), *scored(1, (2, 6, 4))], "1 was scored twice", 1),
        ([*scored(0, (0, 2, 0)), *scored(1, (0, 6, 3))], "1 of 6 positions have no score", 2),
        ([*scored(0, (2, 6, 2))], "2 of 6 positions have no score", 0),
        ([*scored(0, (0, 3, 0)), *scored(1, (2, 6, 5)), *scored(2, (3, 5, 3))], "with 3 in", 3),
        ([*scored(0, (0, 2, 0)), *scored(1, (1, 6, 4)), *scored(2, (2, 4, 2))], "with 2 in", 2),
        ([*scored(0, (0, 4, 2)), *scored(1, (0, 2, 0)), *scored(2, (4, 6, 4))], "with 0 in", 0),
        ([*scored(0, (0, 3, 0)), '["learn",1,5]', *scored(1, (0, 6, 3))], "3 was learned", 3),
        ([*scored(0, (0, 3, 0)), '["learn",4,6]', *scored(1, (0, 6, 3))], "4 was learned", 4),
        ([*scored(0, (0, 6, 0)), '["learn",2,7]'], "a lesson 2..7 fits no text", None),
        ([*scored(0, (0, 6, 0)), '["learn",-1,3]'], "a lesson -1..3 fits no text", None),
        ([*scored(0, (0, 6, 0)), '["learn",3,3]'], "a lesson 3..3 fits no text", None),
        ([*scored(0, (0, 6, 0)), *scored(1, (0, 6, 6))], "0..6 scored from 6 fits no text", None),
        ([*scored(0, (0, 7, 0))], "0..7 scored from 0 fits no text", None),
        ([*scored(0, (1, 6, 0))], "1..6 scored from 0 fits no text", None),
        ([*scored(0, (4, 6, 4)), *scored(1, (0, 6, 0))], "position 4 was scored twice", 4),
        ([*scored(0, (3, 6, 3)), '["learn",0,3]', *scored(1, (0, 3, 0))], "0 was learned", 0),
        (["[]"], "'[]' is no entry of a trail", None),
        (['"read"'], "is no entry", None),
        (['{"0":"read"}'], "is no entry", None),
        (["3"], "is no entry", None),
        (['["read",1]', SCORE], "event 0 was scored without having been read", None),
        ([*scored(0, (0, 3, 0)), '["score",0,[[0,6,3]],1.0]'], "without having been read", None),
    ],
)  # fmt: skip
def test_what_may_not_be_in_a_trail(lines: list[str], why: str, position: int | None) -> None:
    nats = sum(json.loads(line)[3] for line in lines if '"score"' in line)
    found = judged(6, nats, lines)
    assert (found.verdict, why in found.why, found.position) == ("invalid", True, position), found
    assert found.samples == len(lines)


@pytest.mark.parametrize(
    ("apart", "verdict"),
    [(0.9e-12, "valid"), (-0.9e-12, "valid"), (1.2e-12, "invalid"), (-1.2e-12, "invalid"),
     (1e-3, "invalid"), (-0.5, "invalid")],
)  # fmt: skip
def test_costs_add_up_to_a_trillionth(apart: float, verdict: str) -> None:
    assert judged(6, 3.0 * (1 + apart), [READ, SCORE]).verdict == verdict


def test_every_trail_has_its_digest() -> None:
    whole, more = [READ, SCORE], ["x"]
    digests = [sealed(sealed(START, READ), SCORE), START]
    assert "1 trails for 2 digests of the score" in check_trails([whole], digests, 6, 3.0).why
    assert "2 trails for 1 digests" in check_trails([whole, more], digests[:1], 6, 3.0).why
    assert "process 1 were changed" in check_trails([whole, more], digests, 6, 3.0).why


def test_a_process_may_not_read_its_own_unscored_positions() -> None:
    """What others score first is theirs to order; what is its own is not."""
    other = scored(0, (0, 2, 0))
    assert judged(6, 3.0, other, [*scored(1, (0, 4, 2)), *scored(2, (2, 6, 4))]).verdict == "valid"
    found = judged(6, 3.0, other, [*scored(1, (2, 6, 4)), *scored(2, (0, 4, 2))])
    assert (found.verdict, found.position) == ("invalid", 2)
    early = ['["learn",0,4]', *scored(1, (0, 4, 2)), *scored(2, (2, 6, 4))]
    found = judged(6, 3.0, other, early)
    assert (found.verdict, found.position) == ("invalid", 2) and "was learned" in found.why


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b'["a"]\n["b", 1]\n', "it does not hold lines"),
        (b'["a", "b"]\n"ab"\n', "it does not hold lines"),
        (b'{"a": 1}\n', "it does not hold lines"),
        (b"{\n", "it cannot be read (JSONDecodeError)"),
    ],
)
def test_a_file_of_something_else_is_told(tmp_path: Path, text: bytes, why: str) -> None:
    path = tmp_path / "trail.gz"
    path.write_bytes(gzip.compress(text))
    assert read_trails(path) == why
    found = check_trail_file(path, [START], 6, 3.0)
    assert found.why == f"trail.gz is damaged: {why}" and found.samples == 0
    assert check_trail_file(tmp_path / "none", [], 6, 3.0).samples == 0


def test_a_file_that_unpacks_to_too_much_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "trail.gz"
    path.write_bytes(gzip.compress(b'["ab"]\n'))
    assert (audit._FREE_BYTES, audit._MOST_EXPANSION) == (4_194_304, 64)
    monkeypatch.setattr(audit, "_MOST_EXPANSION", 0)
    monkeypatch.setattr(audit, "_FREE_BYTES", 7)
    assert read_trails(path) == [["ab"]]
    monkeypatch.setattr(audit, "_FREE_BYTES", 6)
    assert read_trails(path) == "it unpacks to more than 6 bytes"
    # What is read at once ends where the budget does, and the file goes on.
    path.write_bytes(gzip.compress(b'["' + b"a" * ((1 << 20) - 5) + b'"]\n["b"]\n'))
    monkeypatch.setattr(audit, "_FREE_BYTES", 1 << 20)
    assert read_trails(path) == "it unpacks to more than 1,048,576 bytes"


def test_of_a_file_that_unpacks_to_much_only_the_budget_is_read(tmp_path: Path) -> None:
    path, lines = tmp_path / "trail.gz", [f"{n:064x}" for n in range(60_000)]
    path.write_bytes(gzip.compress(json.dumps(lines).encode()))
    assert read_trails(path) == [lines]
    path.write_bytes(gzip.compress(bytes(1 << 26), 1))
    tracemalloc.start()
    assert "it unpacks to more than" in str(read_trails(path))
    assert tracemalloc.get_traced_memory()[1] < 40 << 20
    tracemalloc.stop()


def test_a_trail_is_these_bytes(tmp_path: Path) -> None:
    """Its lines, its seal and its file are a format."""
    trail, window = Trail(), Window(0, 2, 0)
    trail.read(Event(0, (window,)))
    trail.scored(Receipt(Event(0, (window,)), np.array([3, 4]), np.array([0.5, 0.25])))
    trail.learned(0, 2)
    assert trail.lines == ['["read",0]', '["score",0,[[0,2,0]],0.75]', '["learn",0,2]']
    path = tmp_path / trail_file("sliding")
    assert path.name == "ledger-sliding.jsonl.gz"
    write_trails(trail, Ranks(), path)
    assert path.read_bytes()[4:8] == bytes(4), "no time of day"
    assert hashlib.sha256(b"fairway trail 1").hexdigest() == START
    assert sealed("ab", "c") == hashlib.sha256(b"ab\nc").hexdigest()
