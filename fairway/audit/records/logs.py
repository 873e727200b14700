"""Reads the numbers of a training log of the challenge in one pass, with bounded time and memory.

The beginning of a file is read line by line. After it, only lines with certain words are read. A
file may contain several runs in turn; each becomes a log of its own.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

from fairway.audit.records.coverage import Coverage
from fairway.audit.records.folder import File, open_text
from fairway.audit.records.said import (
    Epoch,
    Line,
    Number,
    Pass,
    Stage,
    StepLine,
    epoch_of,
    numbers,
    pass_of,
    scores,
    step_of,
    value_of,
    warms_on_text,
)
from fairway.audit.records.settings import Setting, SettingsReader

# The rest of a longer line is not read; programs print shorter lines for people.
_LINE_BYTES = 16_384
# The beginning that is read line by line; the log of one run has 10 to 400 kB.
_HEAD_BYTES, _HEAD_LINES = 1 << 21, 20_000
# After that, this many lines of every kind are read, and the last one of every block.
_MOST_OF_A_KIND = 2_000
_MOST_EVENTS = 20_000
_MOST_RUNS = 50
# Lines before the training that are read as settings; a longer beginning is not a list of them.
_MOST_AHEAD = 3_000
# Long runs of blanks make the patterns slow; text for people has short ones.
_BLANKS = re.compile(r"\s{10,}")
_BLOCK_BYTES = 1 << 22
_COLOUR = re.compile(r"\x1b\[[0-9;?]{0,20}[A-Za-z]")
# Prefixes of loggers and launchers.
_PREFIX = re.compile(
    r"\s{0,4}(?:"
    r"\[?\d{4}[-/]\d\d[-/]\d\d[T ]\d\d:\d\d(?::\d\d)?(?:[.,]\d{1,9})?"
    r"(?:Z|[+-]\d\d:?\d\d)?\]?[ :|,-]{0,4}|"
    r"\d{9,10}\.\d{1,9}\s{1,4}|"
    r"\[?\d\d:\d\d:\d\d(?:[.,]\d{1,9})?\]?[ :|,-]{1,4}|"
    r"\[?(?:INFO|DEBUG|WARNING|ERROR|root|__main__)\]?(?:\s{0,2}[:|-]\s{0,2}|\s{1,4})|"
    r"\[(?:rank|default|worker|gpu|node)?\s?\d{1,4}\]:?\s?|"
    r"\[(?!TTT|ttt|[Pp]ass|PASS|[Ss]lot|SLOT)[A-Za-z][\w .:-]{0,30}\]:?\s(?=\S)|"
    r"\((?:\w{1,40} )?pid=\d{1,9}[^()]{0,40}\)\s?|"
    r"\d{1,3}:\s(?=[A-Za-z ])"
    r")"
)


@dataclass(eq=False)
class Log:
    """The content of a run's log. `numbers` are by meaning, such as 'seed' or 'total bytes'.

    `listed` are the settings in a list, and `mentioned` those between other words. `totals` are all
    printed sizes of a submission. `source` is the hash of the script at the beginning of the log,
    or None.
    """

    name: str
    part: int = 1
    first_line: int = 1
    numbers: dict[str, Number] = field(default_factory=dict)
    totals: list[Number] = field(default_factory=list)
    settings: dict[str, str] = field(default_factory=dict)
    setting_lines: dict[str, int] = field(default_factory=dict)
    listed: set[str] = field(default_factory=set)
    mentioned: dict[str, str] = field(default_factory=dict)
    stages: list[Stage] = field(default_factory=list)
    last_step: StepLine | None = None
    epochs: list[Epoch] = field(default_factory=list)
    passes: list[Pass] = field(default_factory=list)

    warm_up: Number | None = None
    source: str | None = None
    coverage: Coverage = field(default_factory=Coverage)
    # The evaluation that the record claims, if it is known (`runs.choose`).
    claimed: Stage | None = None
    # Whether this log only has the training; another log has its evaluation.
    training_only: bool = False

    @property
    def shown(self) -> str:
        """Return the printable name of the log, with the number of the run in the file."""
        return self.name if self.part == 1 else f"{self.name} (run {self.part})"

    @property
    def seed(self) -> int | None:
        """Return the seed that the log states, else the one in its file name."""
        if "seed" in self.numbers:
            return int(self.numbers["seed"].value)
        found = re.search(r"(?:seed|(?<![a-z])s)[_-]?(\d{1,10})(?!\d)", self.name, re.IGNORECASE)
        return int(found[1]) if found else None

    @property
    def ran(self) -> bool:
        """Return whether this is the log of a run."""
        return bool(self.stages or self.last_step)

    @property
    def trained(self) -> bool:
        """Return whether the run trained; a pure evaluation has no steps."""
        return self.last_step is not None and self.last_step.step > 1

    def get(self, name: str) -> float | None:
        """Return a number by its meaning, or None."""
        return self.numbers[name].value if name in self.numbers else None

    @property
    def packed_totals(self) -> list[Number]:
        """Return the sizes of a submission, except those of the model before packing."""
        raw = self.get("raw bytes")
        codes = {0.0, self.get("code bytes") or 0.0}
        return [n for n in self.totals if raw is None or n.value - raw not in codes]

    @property
    def evaluations(self) -> list[Stage]:
        """Return the evaluations without intermediate ones."""
        return [stage for stage in self.stages if not stage.running]

    @property
    def scores(self) -> dict[str, float]:
        """Return the last score of every stage by name, in bits per byte."""
        return {stage.name: stage.bpb.value for stage in self.stages}

    @property
    def processes(self) -> int | None:
        """Return the number of processes that the log states, or None."""
        stated = self.settings.get("world_size", "")
        if stated.isdecimal() and len(stated) < 9:
            return int(stated)
        return int(self.numbers["processes"].value) if "processes" in self.numbers else None

    @property
    def train_s(self) -> Number | None:
        """Return the seconds of training: at its stated end, else at the last step."""
        if "stop seconds" in self.numbers:
            return self.numbers["stop seconds"]
        last = self.last_step
        if last is None or last.seconds is None:
            return None
        return Number(last.seconds, self.name, last.line, last.text)

    @property
    def steps(self) -> int | None:
        """Return the number of steps of training."""
        if "stop steps" in self.numbers:
            return int(self.numbers["stop steps"].value)
        return self.last_step.step if self.last_step else None


# ---------------------------------------------------------------------------------------------
# Lines of a file

_WORDS = (
    b"bpb", b"bits per byte", b"train_time", b"hyperparameters", b"submission", b"serialized model",
    b"code size", b"artifact", b"val_tokens", b"val_loader", b"train_shards", b"hessian",
    b"total_eval_time", b"within_gate", b"model_params", b"epoch", b"pass", b"seed", b"stopping",
)  # fmt: skip


def read_runs(file: File, most_bytes: int = 1 << 26) -> list[Log]:
    """Return the logs of the runs in the first `most_bytes` of a file, at least one."""
    reader = _Reader(file.name)
    table: list[str] | None = None
    for number, raw in _lines(file, most_bytes):
        texts = raw.decode("utf-8", "replace").rstrip("\r\n").split("\r")[-50:]
        for text in texts:
            text = _clean(text)
            if table is not None:
                text = _as_pairs(table, text)
            elif number == 1 and file.path.suffix.lower() in (".csv", ".tsv"):
                table = re.split(r"[,\t]", text)[:200]
                continue
            reader.read(text, number)
    return reader.runs()


def _as_pairs(names: list[str], row: str) -> str:
    """Return a row of a table as pairs of name and value."""
    cells = zip(names, re.split(r"[,\t]", row), strict=False)
    return " ".join(f"{n.strip()}:{v.strip()}" for n, v in cells)


def _clean(text: str) -> str:
    """Return a line without colours and without a logger's prefix."""
    if "\x1b" in text:
        text = _COLOUR.sub("", text)
    for _ in range(4):
        found = _PREFIX.match(text) if text[:5].strip()[:1] in _PREFIXED else None
        if not found or found.end() == len(text):
            break
        text = text[found.end() :]
    text = text.rstrip()
    return _BLANKS.sub(" " * 9, text) if "  " in text or "\t" in text else text


_PREFIXED = frozenset("[(0123456789IDWEr_")


def _lines(file: File, most_bytes: int) -> Iterator[tuple[int, bytes]]:
    """Yield lines with their numbers: all in the beginning, then those with one of the words."""
    seen: Counter[bytes] = Counter()
    number, offset = 1, 0
    with open_text(file, most_bytes) as stream:
        for block in _blocks(stream):
            if offset >= most_bytes:
                return
            at = 0
            while offset + at < _HEAD_BYTES and number <= _HEAD_LINES and at < len(block):
                end = block.find(b"\n", at) + 1 or len(block)
                yield number, block[at : min(end, at + _LINE_BYTES)]
                number += block.endswith(b"\n", at, end)
                at = end
            low = block.lower() if at < len(block) else b""
            for start in _hits(low, at, seen):
                number += low.count(b"\n", at, start)
                at = start
                yield number, block[start : start + _LINE_BYTES].partition(b"\n")[0]
            number += low.count(b"\n", at)
            offset += len(block)


def _blocks(stream: BinaryIO) -> Iterator[bytes]:
    """Yield a file in blocks that end at the end of a line, if they contain one."""
    rest = b""
    while data := stream.read(_BLOCK_BYTES):
        block = rest + data
        end = block.rfind(b"\n") + 1 or len(block)
        rest = block[end:]
        yield block[:end]
    if rest:
        yield rest


def _hits(low: bytes, first: int, seen: Counter[bytes]) -> list[int]:
    """Return the starts of lines with a word; of a frequent word, also the block's last line."""
    found: set[int] = set()
    for word in _WORDS:
        at = low.find(word, first)
        while at >= 0 and seen[word] < _MOST_OF_A_KIND:
            seen[word] += 1
            found.add(max(first, low.rfind(b"\n", first, at) + 1))
            end = low.find(b"\n", at)
            at = low.find(word, end) if end >= 0 else -1
        if at >= 0:
            last = low.rfind(word, first)
            found.add(max(first, low.rfind(b"\n", first, last) + 1))
    return sorted(found)


# ---------------------------------------------------------------------------------------------
# The events of the lines, and where a run begins

_SOURCE = re.compile(
    r"(?:from [\w.]{1,60} import\b|import [\w., ]{1,80}$)|#!/|\"\"\"|'''|# -\*- coding"
)
_RULE = re.compile(r"^={20,}$")
_RUNNING = re.compile(r"^Running (?:Python|PyTorch)", re.IGNORECASE)
# Such a line shows that the script at the beginning of a log has ended.
_LOGS = re.compile(
    r"^(?:hyperparameters:$|(?:warmup_)?step:\d|model_params:\d|seed:\d{1,10}$|train_loader:|"
    r"val_loader:|\d{1,9}/\d{1,9} (?:train|val)_loss)",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class _Begin:
    """A line that may begin a run; a `strong` line always begins one after another run."""

    line: int
    strong: bool


_Event = Number | Stage | StepLine | Setting | Epoch | Pass | _Begin


def source_hash(text: str) -> str:
    """Return the hash that a log with this script at its beginning would have."""
    lines = iter(text.splitlines())
    first = next((line for line in lines if _SOURCE.match(line)), "")
    digest = hashlib.sha256()
    for line in (first, *lines):
        _update(digest, _clean(line))
    return digest.hexdigest()


def _update(digest: "hashlib._Hash", text: str) -> None:
    if text.strip():
        digest.update(text.encode("utf-8", "replace") + b"\n")


class _Reader:
    """Reads lines and keeps their events; of consecutive steps or scores only two are kept."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.events: list[tuple[str, _Event]] = []
        self.settings = SettingsReader()
        self.coverage: list[tuple[int, Coverage]] = [(1, Coverage())]
        self.sources: list[tuple[int, str]] = []
        self._source: hashlib._Hash | None = None
        self._source_line = 0
        self._step: StepLine | None = None
        # Whether the run has not trained yet, and whether its final score was printed.
        self._preamble, self._scored = True, False
        self._ahead = 0
        self._said: list[tuple[str, _Event]] = []

    def read(self, text: str, line: int) -> None:
        """Read one line."""
        if not text or self._is_source(text, line):
            return
        self._said = []
        if _RUNNING.match(text) or self.settings.begins(text):
            self._begin(line)
        self._ahead += 1
        preamble = self._preamble and self._ahead <= _MOST_AHEAD
        for setting in self.settings.read(text, line, preamble):
            self._add("setting", setting)
        listed = bool(self._said) and not self.settings.loose
        whole = Line(text, text.lower(), self.name, line)
        self._measures(whole)
        if not listed:
            self._adaptation(whole)
        self.coverage[-1][1].count(whole, self._said, preamble)

    def _measures(self, line: Line) -> None:
        low = line.low
        if "bpb" in low or "bits" in low:
            for stage in scores(line):
                self._add("running" if stage.running else "stage", stage)
                self._scored = self._scored or not stage.running
        if "step" in low or "iter" in low or "train_" in low:
            step = step_of(line)
            if step:
                self._add_step(step)
        for meaning, number in numbers(line):
            if meaning in ("seed", "parameters"):
                self._add("begin", _Begin(line.number, strong=False))
                self._preamble = self._preamble or self._scored
            self._add(meaning, number)

    def _adaptation(self, line: Line) -> None:
        low = line.low
        if "epoch" in low and (epoch := epoch_of(line)):
            self._add("epoch", epoch)
        if ("pass" in low or "rescor" in low) and (found := pass_of(line)):
            self._add("pass", found)
        if "warm" in low and "val" in low and warms_on_text(line.text):
            self._add("warm-up", line.holds(0.0))

    def _is_source(self, text: str, line: int) -> bool:
        """Return whether a line belongs to a script at the beginning of the log."""
        if self._source is None:
            if not _SOURCE.match(text):
                return False
            self._source, self._source_line = hashlib.sha256(), line
        elif _RULE.match(text) or _RUNNING.match(text) or _LOGS.match(text):
            self.sources.append((self._source_line, self._source.hexdigest()))
            self._source = None
            return False
        _update(self._source, text)
        return True

    def _begin(self, line: int) -> None:
        self._add("begin", _Begin(line, strong=True))
        self._ahead = 0
        self._preamble = self._preamble or self._scored
        if line > self.coverage[-1][0] and len(self.coverage) < 2 * _MOST_RUNS:
            self.coverage.append((line, Coverage()))

    def _add(self, kind: str, event: _Event) -> None:
        self._said.append((kind, event))
        last = self.events[-2:]
        if kind in _ON_THE_WAY and len(last) == 2 and last[0][0] == last[1][0] == kind:
            self.events[-1] = (kind, event)
        elif len(self.events) < _MOST_EVENTS:
            self.events.append((kind, event))

    def _add_step(self, step: StepLine) -> None:
        last = self._step
        if last is not None and last.step > _WARM_STEPS and step.step <= 1:
            self._begin(step.line)
        self._step, self._preamble, self._scored = step, False, False
        self._add("stop" if step.stops else "step", step)

    def runs(self) -> list[Log]:
        """Return a log for every run in the file."""
        cuts = self._cuts()
        lines = [1, *(self._line(cut) for cut in cuts[1:-1]), 1 << 62]
        found = []
        for part in range(len(cuts) - 1):
            first, end = lines[part], lines[part + 1]
            log = Log(self.name, part + 1, first)
            for kind, event in self.events[cuts[part] : cuts[part + 1]]:
                _take(log, kind, event)
            for line, counted in self.coverage:
                if first <= line < end:
                    log.coverage.add(counted)
            log.source = next((h for line, h in self.sources if first <= line < end), None)
            found.append(log)
        return found

    def _cuts(self) -> list[int]:
        """Return the indices of events where runs begin, and the end."""
        cuts, ran = [0], -1
        for i, (kind, event) in enumerate(self.events):
            if kind == "stage" or (isinstance(event, StepLine) and event.step > 1):
                ran = i
            elif isinstance(event, _Begin) and event.strong and ran >= 0 and len(cuts) < _MOST_RUNS:
                # A run begins with its own seed and settings, before its first step.
                begins = (j for j in range(ran + 1, i + 1) if self.events[j][0] == "begin")
                cuts.append(next(begins))
                ran = -1
        return [*cuts, len(self.events)]

    def _line(self, at: int) -> int:
        event = self.events[at][1]
        assert isinstance(event, _Begin)
        return event.line


_ON_THE_WAY = ("running", "step")
# Warm-up steps, and processes that print out of order, do not begin a new run.
_WARM_STEPS = 10


def _take(log: Log, kind: str, event: _Event) -> None:
    """Put an event of a line into a log."""
    if isinstance(event, Setting):
        if event.loose:
            log.mentioned[event.name] = event.value
            return
        log.settings[event.name] = event.value
        log.setting_lines[event.name] = event.line
        log.listed |= {event.name} if event.listed else set()
        if event.name == "seed" and event.value.isdecimal() and len(event.value) < 12:
            text = f"seed: {event.value}"
            log.numbers["seed"] = Number(value_of(event.value), log.name, event.line, text)
    elif isinstance(event, Stage):
        log.stages.append(event)
    elif isinstance(event, StepLine):
        if event.stops and event.seconds is not None:
            for what, number in (("seconds", event.seconds), ("steps", event.step)):
                log.numbers[f"stop {what}"] = Number(number, log.name, event.line, event.text)
        log.last_step = event
    elif isinstance(event, Epoch):
        log.epochs.append(event)
    elif isinstance(event, Pass):
        log.passes.append(event)
    elif isinstance(event, Number):
        if kind == "warm-up":
            log.warm_up = log.warm_up or event
            return
        # The last number counts: sizes are printed again after another attempt.
        log.numbers[kind] = event
        if kind == "total bytes":
            log.totals.append(event)
