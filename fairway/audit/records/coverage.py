"""Measures which share of a log was read: of its settings, steps, scores, sizes and times.

Separate, simpler patterns decide which lines look like one of these, so that a gap is noticed.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from fairway.audit.findings import Finding
from fairway.audit.records.said import Line, Number, Stage, StepLine
from fairway.audit.records.settings import Setting, is_setting

KINDS = ("settings", "steps", "scores", "sizes", "times")
# Below this share, a finding reports the gap.
ENOUGH = 0.9
# With fewer lines a share has no meaning.
_FEW = 3

_SETTING = re.compile(
    r"^\s{0,12}(?!\w{0,30}_step\b)[\"']?[A-Za-z_]\w{1,60}[\"']?\s{0,30}[:=]\s{0,30}(?:[^\s,]{1,200},?$|"
    r"(?=.{0,200}\s\w{1,60}[:=][^\s:=]))"
)
_STEP = re.compile(r"\bstep\b.{0,40}(?:train_loss|train_time|\bloss)|train_loss.{0,40}\btrain_time")
_SCORE = re.compile(r"\bval_bpb[\"']?\s{0,3}[:=]\s{0,3}\d|\bbpb[\"']?\s{0,3}[:=]\s{0,20}\d\.\d{3}")
_SIZE = re.compile(
    r"(?:submission|artifact|serialized model|code size)\D{0,60}\d[\d,]{4,14}\s?bytes"
)
_TIME = re.compile(r"\b(?:train_time|eval_time)\w{0,8}[\"']?\s{0,3}[:=]\s{0,3}\d")
_OF_KIND = {"steps": _STEP, "scores": _SCORE, "sizes": _SIZE, "times": _TIME}
_WORD = {"steps": "train", "scores": "bpb", "sizes": "bytes", "times": "_time"}
_SIZES = ("total bytes", "model bytes", "code bytes", "raw bytes")
# Scores of something else than the text or the run.
_OTHER = re.compile(r"train_bpb|batch_bpb|delta|gain|improve|best|baseline|target")


@dataclass(slots=True)
class Coverage:
    """Lines by kind: how many look like it, how many were read, and the first unread one."""

    looked: Counter[str] = field(default_factory=Counter)
    read: Counter[str] = field(default_factory=Counter)
    missed: dict[str, tuple[int, str]] = field(default_factory=dict)

    def count(self, line: Line, said: Sequence[tuple[str, object]], preamble: bool) -> None:
        """Count a line, and whether it was read."""
        low = line.low
        for kind, pattern in _OF_KIND.items():
            if _WORD[kind] in low and pattern.search(low) and not _OTHER.search(low):
                self._add(kind, any(_is(kind, *one) for one in said), line)
        if preamble and _SETTING.match(line.text) and is_setting(line.text):
            self._add("settings", bool(said), line)

    def _add(self, kind: str, read: bool, line: Line) -> None:
        self.looked[kind] += 1
        self.read[kind] += read
        if not read:
            self.missed.setdefault(kind, (line.number, line.shown[:120]))

    def add(self, other: "Coverage") -> None:
        """Add the counts of another part of the same log."""
        self.looked.update(other.looked)
        self.read.update(other.read)
        for kind, place in other.missed.items():
            self.missed.setdefault(kind, place)

    def share(self, kind: str) -> float | None:
        """Return the share of a kind's lines that were read, or None without such lines."""
        return self.read[kind] / self.looked[kind] if self.looked[kind] else None

    def shares(self) -> dict[str, float]:
        """Return the shares of all kinds that the log has, rounded to three places."""
        found = {kind: self.share(kind) for kind in KINDS}
        return {kind: round(share, 3) for kind, share in found.items() if share is not None}


def _is(kind: str, meaning: str, event: object) -> bool:
    if kind == "steps":
        return isinstance(event, StepLine)
    if kind == "scores":
        return isinstance(event, Stage)
    if kind == "sizes":
        return meaning in _SIZES
    if kind == "times":
        timed = isinstance(event, Stage | StepLine) and event.seconds is not None
        return timed or (isinstance(event, Number) and meaning.endswith("seconds"))
    return isinstance(event, Setting | Number)


def gaps(file: str, coverage: Coverage) -> Iterator[Finding]:
    """Yield a finding for every kind of line of which less than nine tenths could be read."""
    for kind in KINDS:
        share, looked = coverage.share(kind), coverage.looked[kind]
        if share is None or share >= ENOUGH or looked < _FEW:
            continue
        line, text = coverage.missed[kind]
        why = f"less than {ENOUGH:.0%} of the {kind} in this log could be read: it proves nothing"
        value = f"{coverage.read[kind]} of {looked} lines; the first unread one: {text}"
        yield Finding("note", "log-unread", why, file, line, value)
