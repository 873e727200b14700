"""P4: checks a ledger afterwards by its sealed trail (`fairway.score.trail`).

At every entry, all positions that were read or learned must be recorded before, each exactly once.
With several processes each has sealed its own order; a lesson is given out only after all processes
have reached it.
"""

import gzip
import io
import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fairway.audit.scorers.verdicts import Probe, Verdict
from fairway.base.files import parse_json, read_bytes
from fairway.score.trail import START, sealed

# A trail of the challenge's whole validation text has about 50 MB; gzip makes that a sixth.
_FREE_BYTES, _MOST_EXPANSION = 1 << 22, 64

_DID = "read the sealed entries of the ledger again: reads, scores and lessons, in their order"


class _Broken(Exception):  # noqa: N818 - it is a finding, not an error of this code
    """A trail that is wrong: why, and at which position."""

    def __init__(self, why: str, position: int | None = None) -> None:
        super().__init__(why)
        self.position = position


def read_trails(path: Path) -> list[list[str]] | str:
    """Return the trails of a stage of scoring, or a text that says why they cannot be read."""
    try:
        packed = read_bytes(path)
        most_bytes = _FREE_BYTES + _MOST_EXPANSION * len(packed)
        with gzip.open(io.BytesIO(packed)) as stream:
            pieces = list(_pieces(stream, most_bytes))
        if sum(map(len, pieces)) > most_bytes:
            return f"it unpacks to more than {most_bytes:,} bytes"
        trails = [parse_json(line) for line in b"".join(pieces).splitlines()]
    except (OSError, EOFError, zlib.error, ValueError) as error:
        return f"it cannot be read ({type(error).__name__})"
    if not all(isinstance(t, list) and all(isinstance(x, str) for x in t) for t in trails):
        return "it does not hold lines"
    return trails


def _pieces(stream: gzip.GzipFile, most_bytes: int) -> Iterator[bytes]:
    """Yield a stream up to `most_bytes`, and one more piece if it is longer."""
    while most_bytes >= 0 and (piece := stream.read(1 << 20)):
        most_bytes -= len(piece)
        yield piece


def check_trails(
    trails: Sequence[Sequence[str]], digests: Sequence[str], targets: int, nats: float
) -> Probe:
    """Return whether trails account for `targets` positions and `nats`, in a valid order.

    `digests` are the digests stored with the score, one for each process.
    """
    entries = sum(map(len, trails))
    try:
        if len(trails) != len(digests):
            raise _Broken(f"{len(trails)} trails for {len(digests)} digests of the score")
        for number, (lines, digest) in enumerate(zip(trails, digests, strict=True)):
            _check_seal(number, lines, digest)
        _check_order([[_parsed(line) for line in lines] for lines in trails], targets, nats)
    except _Broken as broken:
        return _probe("invalid", str(broken), entries, broken.position)
    except (TypeError, ValueError, IndexError) as error:
        return _probe("invalid", f"an entry is malformed ({error})", entries)
    why = f"every one of {targets:,} positions is scored once, and learned only after that"
    return _probe("valid", why, entries)


def check_trail_file(path: Path, digests: Sequence[str], targets: int, nats: float) -> Probe:
    """Return the result for the trail file of a stage; see `check_trails`."""
    if not path.is_file():
        return _probe("not decidable", f"{path.name} could not be found", 0)
    trails = read_trails(path)
    if isinstance(trails, str):
        return _probe("invalid", f"{path.name} is damaged: {trails}", 0)
    return check_trails(trails, digests, targets, nats)


def _probe(verdict: Verdict, why: str, entries: int, position: int | None = None) -> Probe:
    return Probe("P4 ledger", ("C1", "C3", "C4"), _DID, entries, None, position, verdict, why)


def _check_seal(number: int, lines: Sequence[str], digest: str) -> None:
    found = START
    for line in lines:
        found = sealed(found, line)
    if found != digest:
        raise _Broken(
            f"the entries of process {number} were changed after the score: their digest is "
            f"{found[:12]}, and the score stores {digest[:12]}"
        )


def _parsed(line: str) -> list[Any]:
    try:
        entry = parse_json(line)
    except ValueError:
        entry = None
    if not isinstance(entry, list) or not entry or entry[0] not in ("read", "score", "learn"):
        raise _Broken(f"'{line[:60]}' is no entry of a trail")
    return entry


@dataclass(eq=False)
class _Walk:
    """The state of one trail: its own positions, and the recorded ones."""

    own: NDArray[np.bool_]
    scored: NDArray[np.bool_]
    reading: int | None = None

    def step(self, entry: list[Any]) -> None:
        """Process one entry; _Broken if it may not come here."""
        kind, numbers = entry[0], entry[1:]
        if kind == "read":
            self.reading = numbers[0]
        elif kind == "score":
            if numbers[0] != self.reading:
                raise _Broken(f"event {numbers[0]} was scored without having been read")
            self.reading = None
            for start, end, score_from in numbers[1]:
                self._score(start, end, score_from)
        else:
            self._learn(*numbers)

    def _score(self, start: int, end: int, score_from: int) -> None:
        if (at := self._not_yet(start, score_from)) is not None:
            raise _Broken(f"position {score_from} was scored with {at} in view, not scored yet", at)
        self.scored[score_from:end] = True

    def _learn(self, first: int, end: int) -> None:
        if not 0 <= first < end <= len(self.own):
            raise _Broken(f"a lesson {first}..{end} fits no text")
        if (at := self._not_yet(first, end)) is not None:
            raise _Broken(f"position {at} was learned before it was scored", at)

    def _not_yet(self, first: int, end: int) -> int | None:
        """Return the trail's first own position in the range that is not yet recorded, or None."""
        early = np.flatnonzero((self.own & ~self.scored)[first:end])
        return first + int(early[0]) if len(early) else None


def _check_order(trails: list[list[list[Any]]], targets: int, nats: float) -> None:
    """Raise _Broken unless the entries cover the text once and come in a valid order."""
    owned = [np.zeros(targets, bool) for _ in trails]
    taken = np.zeros(targets, bool)
    costs: list[float] = []
    for entries, own in zip(trails, owned, strict=True):
        for entry in entries:
            if entry[0] != "score":
                continue
            costs.append(entry[3])
            for start, end, score_from in entry[2]:
                if not 0 <= start <= score_from < end <= targets:
                    raise _Broken(f"a window {start}..{end} scored from {score_from} fits no text")
                again = np.flatnonzero(taken[score_from:end])
                if len(again):
                    at = score_from + int(again[0])
                    raise _Broken(f"position {at} was scored twice", at)
                taken[score_from:end] = own[score_from:end] = True
    if not taken.all():
        at = int(np.flatnonzero(~taken)[0])
        raise _Broken(f"{targets - int(taken.sum()):,} of {targets:,} positions have no score", at)
    if not math.isclose(math.fsum(costs), nats, rel_tol=1e-12):
        raise _Broken(f"the events add up to {math.fsum(costs)!r} nats, the score says {nats!r}")
    for entries, own in zip(trails, owned, strict=True):
        walk = _Walk(own, np.zeros(targets, bool))
        for entry in entries:
            walk.step(entry)
