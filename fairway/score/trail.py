"""The trail of a ledger: its reads, scores and lessons in order, each entry sealed with a digest.

Every entry is sealed with the digest of all earlier entries. So an entry that is changed, left out
or moved later does not match the last digest. `fairway.audit.scorers.trails` checks what it says.

An entry is a line of JSON: ["read", event], ["score", event, [[start, end, score_from], ...], nats]
or ["learn", first, end]. Several processes keep one trail each.
"""

import gzip
import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fairway.base.files import write_atomic
from fairway.machine.ranks import Ranks
from fairway.score.ledger import Witness
from fairway.score.predictor import Receipt
from fairway.score.windows import Event

START = hashlib.sha256(b"fairway trail 1").hexdigest()


def sealed(before: str, line: str) -> str:
    """Return the digest of a line and of everything before it."""
    return hashlib.sha256(f"{before}\n{line}".encode()).hexdigest()


class Trail(Witness):
    """Writes every action of a ledger; `digest` seals all entries so far."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.digest = START

    def _add(self, *entry: Any) -> None:
        line = json.dumps(entry, separators=(",", ":"))
        self.lines.append(line)
        self.digest = sealed(self.digest, line)

    def read(self, event: Event) -> None:
        """Note that the inputs of an event were given out."""
        self._add("read", event.index)

    def scored(self, receipt: Receipt) -> None:
        """Note an event's windows and its cost."""
        windows = [(w.start, w.end, w.score_from) for w in receipt.event.windows]
        self._add("score", receipt.event.index, windows, math.fsum(receipt.nats))

    def learned(self, first: int, end: int) -> None:
        """Note that positions first..end-1 were given out to be learned."""
        self._add("learn", first, end)


def write_trails(trail: Trail, ranks: Ranks, path: Path) -> list[str]:
    """Write the trails of all processes to one gzip file; return their digests.

    All `ranks` call this; the first writes. The file is one line of JSON per process: its entries.
    """
    own = gzip.compress(json.dumps(trail.lines).encode())
    parts = _gathered(own, ranks)
    if not ranks.first:
        return []
    trails: list[list[str]] = [json.loads(gzip.decompress(part)) for part in parts]
    text = "".join(json.dumps(lines) + "\n" for lines in trails)
    write_atomic(path, gzip.compress(text.encode(), mtime=0))
    return [_digest(lines) for lines in trails]


def _digest(lines: Sequence[str]) -> str:
    digest = START
    for line in lines:
        digest = sealed(digest, line)
    return digest


def _gathered(own: bytes, ranks: Ranks) -> list[bytes]:
    """Return the bytes of all processes, on every process."""
    sizes = np.zeros(ranks.world)
    sizes[ranks.rank] = len(own)
    ends = np.cumsum(ranks.total(sizes)).astype(np.int64)
    starts = [0, *ends[:-1].tolist()]
    together = np.zeros(int(ends[-1]))
    together[starts[ranks.rank] : ends[ranks.rank]] = np.frombuffer(own, np.uint8)
    received = ranks.total(together).astype(np.uint8).tobytes()
    return [received[first:end] for first, end in zip(starts, ends.tolist(), strict=True)]
