"""A ledger's trail, with what the score says of it: digests, targets and nats."""

import gzip
import json
import random
from pathlib import Path
from typing import Any

from fairway.audit.scorers.trails import check_trail_file
from fairway.base.errors import UserError
from fairway.base.files import read_json
from fairway.score.trail import START, sealed

from . import Case, Files
from .damage import damaged, odd_json, spoil_value

TRAIL, FACTS = "ledger-sliding.jsonl.gz", "facts.json"


class Trails:
    """Trails of one process and of two, of windows that overlap, with lessons in between."""

    name = "trail"

    def specimens(self) -> list[Files]:
        """Return a trail per kind of evaluation."""
        return [
            _files([_entries(range(0, 40), 8)]),
            _files([_entries(range(0, 40), 40, lessons=False)]),
            _files([_entries(range(0, 20), 5), _entries(range(20, 40), 5)]),
        ]

    def spoil(self, files: Files, rng: random.Random) -> Case:
        """Spoil the file's bytes, or its entries with digests and sums made right again."""
        if rng.random() < 0.3:
            return Case({TRAIL: damaged(files[TRAIL], rng)}, False, "bytes")
        trails = [
            [json.loads(line) for line in json.loads(text)]
            for text in gzip.decompress(files[TRAIL]).splitlines()
        ]
        note = "entry" + spoil_value(trails, rng, ("read", "score", "learn"))
        if rng.random() < 0.1:
            return Case({TRAIL: gzip.compress(odd_json(trails, rng), 1)}, True, "odd JSON")
        spoiled = _files(trails)
        if rng.random() < 0.2:
            facts = json.loads(files[FACTS])
            note += " facts" + spoil_value(facts, rng)
            spoiled[FACTS] = json.dumps(facts).encode()
        return Case(dict(spoiled), True, note)

    def read(self, folder: Path) -> Any:
        """Return what the audit of a run reads; UserError unless it finds the trail valid."""
        facts = read_json(folder / FACTS)
        try:
            known = facts["digests"], facts["targets"], facts["nats"]
            fits = isinstance(known[0], list) and type(known[1]) is int and known[1] < 10**9
            fits &= type(known[2]) in (int, float) and all(isinstance(d, str) for d in known[0])
        except (TypeError, KeyError):
            fits = False
        if not fits or known[1] < 1:
            # A score is the run's own, and run.json has its digest.
            raise UserError("no score")
        probe = check_trail_file(folder / TRAIL, *known)
        if probe.verdict != "valid":
            raise UserError(probe.why)
        return facts

    def wrong(self, files: Files, case: Case, found: Any) -> str:
        """Compare with the rules of docs/RULES.md, once more and one position at a time."""
        data = case.changes.get(TRAIL, files[TRAIL])
        assert isinstance(data, bytes)
        text = gzip.decompress(data)
        if not case.repaired:
            return "" if text == gzip.decompress(files[TRAIL]) else "another trail is valid"
        trails = [[json.loads(line) for line in json.loads(part)] for part in text.splitlines()]
        return _broken(trails, found["targets"], found["nats"])


def _entries(positions: range, step: int, lessons: bool = True) -> list[list[Any]]:
    found: list[list[Any]] = []
    for index, first in enumerate(positions[::step]):
        start, end = max(positions.start, first - 4), min(first + step, positions.stop)
        found.append(["read", index])
        found.append(["score", index, [[start, end, first]], 1.25 * (end - first)])
        if lessons:
            found.append(["learn", first, end])
    return found


def _files(trails: list[Any]) -> Files:
    """Return the file of some trails and the score that agrees with it, where it can be one."""
    lines = [
        [json.dumps(entry, separators=(",", ":")) for entry in trail]
        for trail in trails
        if isinstance(trail, list)
    ]
    digests = []
    for trail in lines:
        digest = START
        for line in trail:
            digest = sealed(digest, line)
        digests.append(digest)
    nats = 0.0
    for trail in trails:
        for entry in trail if isinstance(trail, list) else ():
            scored = isinstance(entry, list) and len(entry) == 4 and entry[0] == "score"
            if scored and type(entry[3]) in (int, float):
                nats += entry[3]
    text = "".join(json.dumps(trail) + "\n" for trail in lines)
    facts = {"digests": digests, "targets": 40, "nats": nats if abs(nats) < 1e300 else 0.0}
    return {TRAIL: gzip.compress(text.encode(), 1, mtime=0), FACTS: json.dumps(facts).encode()}


def _broken(trails: list[list[list[Any]]], targets: int, nats: float) -> str:
    """Return which rule trails break, by sets of positions."""
    every = [
        position
        for trail in trails
        for entry in trail
        if entry[0] == "score"
        for window in entry[2]
        for position in range(window[2], window[1])
    ]
    if sorted(every) != list(range(targets)):
        return "not every position is scored once"
    total = sum(entry[3] for trail in trails for entry in trail if entry[0] == "score")
    if abs(total - nats) > 1e-9 * max(1.0, abs(nats)):
        return f"the costs add up to {total}, not {nats}"
    for trail in trails:
        known: set[int] = set()
        own = {p for e in trail if e[0] == "score" for w in e[2] for p in range(w[2], w[1])}
        last_read = None
        for entry in trail:
            if entry[0] == "read":
                last_read = entry[1]
            elif entry[0] == "score":
                if entry[1] != last_read:
                    return "an event was scored that was not read"
                for start, end, first in entry[2]:
                    if len(trails) == 1 and not set(range(start, first)) <= known:
                        return "a position was in view before it was scored"
                    known |= set(range(first, end))
            elif not set(range(entry[1], entry[2])) & own <= known:
                return "a position was learned before it was scored"
    return ""
