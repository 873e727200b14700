"""A training log of the challenge, read for its numbers: one pass, bounded in time and memory.

Logs follow no schema. A number is taken for what the words before it say; what no rule knows is
left alone. Every number keeps the line it stands in.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

from fairway.audit.records.folder import File
from fairway.files import opened

# A line is read up to here; what a program prints for people is shorter.
_LINE_BYTES = 4_096
# Of every kind of line so many are read, and the last of every block.
_MOST_OF_A_KIND = 2_000
_MOST_SETTINGS = 1_000
_SETTINGS_BYTES = 200_000
# Numbers beyond this mean nothing, and their products would be none.
_LARGEST = 1e18
# Patterns try every part of a run of blanks; what people write has few.
_BLANKS = re.compile(r"\s{10,}")
_BLOCK_BYTES = 1 << 22


@dataclass(frozen=True, slots=True)
class Number:
    """A number with its evidence."""

    value: float
    file: str
    line: int
    text: str


@dataclass(frozen=True, slots=True)
class Stage:
    """One evaluation in a log: its name, bits per byte, loss in nats per token, seconds."""

    name: str
    bpb: Number
    loss: float | None
    seconds: float | None


@dataclass(frozen=True, slots=True)
class StepLine:
    """One line of training: steps done, seconds of training so far, milliseconds per step."""

    step: int
    seconds: float | None
    ms_per_step: float | None
    line: int
    text: str


@dataclass(eq=False)
class Log:
    """What a log says. `numbers` are by meaning: 'seed', 'code bytes', 'total bytes', ..."""

    name: str
    numbers: dict[str, Number] = field(default_factory=dict)
    settings: dict[str, Number | str] = field(default_factory=dict)
    setting_lines: dict[str, int] = field(default_factory=dict)
    stages: list[Stage] = field(default_factory=list)
    first_step: StepLine | None = None
    last_step: StepLine | None = None

    @property
    def seed(self) -> int | None:
        """Return the seed that the log states, else that of its file name."""
        if "seed" in self.numbers:
            return int(self.numbers["seed"].value)
        found = re.search(r"seed[_-]?(\d{1,9})", self.name, re.IGNORECASE)
        return int(found[1]) if found else None

    @property
    def ran(self) -> bool:
        """Return whether this is the log of a run at all."""
        return bool(self.stages or self.last_step)

    def get(self, name: str) -> float | None:
        """Return a number by its meaning, or None."""
        return self.numbers[name].value if name in self.numbers else None

    @property
    def train_s(self) -> Number | None:
        """Return the seconds of training: where it says that it stops, else the last step's."""
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


_INT = r"(\d{1,3}(?:,\d{3})+|\d+)"
_FLOAT = r"([0-9]+(?:\.[0-9]+)?(?:[eE][-+]?\d+)?)"
_NUMBERS: tuple[tuple[str, str, re.Pattern[str]], ...] = tuple(
    (name, kind, re.compile(pattern, re.IGNORECASE))
    for name, kind, pattern in (
        ("seed", "seed", rf"^\s*(?:random_)?seed\s*[:=]\s*{_INT}\s*$"),
        ("code bytes", "code size", rf"code size[^:=]{{0,80}}[:=]\s*{_INT}"),
        (
            "total bytes",
            "total submission size",
            rf"total submission size[^:=]{{0,80}}[:=]\s*{_INT}",
        ),
        (
            "model bytes",
            "serialized model",
            rf"serialized model[^:=]{{0,80}}(?:quant|int\d|zlib|brotli|lzma|zstd)[^:=]{{0,80}}[:=]"
            rf"\s*{_INT}",
        ),
        ("parameters", "model_params", rf"model_params\s*[:=]\s*{_INT}"),
        ("train shards", "train_shards", rf"train_shards\s*[:=]\s*{_INT}"),
        ("val tokens", "val_tokens", rf"val_tokens\s*[:=]\s*{_INT}"),
        ("val tokens", "val_loader", rf"val_loader\b.{{0,200}}?\btokens\s*[:=]\s*{_INT}"),
        ("hessian seconds", "hessian", rf"collected\s+\d+\s+hessians\s+in\s+{_FLOAT}\s*s"),
        ("eval seconds", "total_eval_time", rf"total_eval_time\s*[:=]\s*{_FLOAT}\s*s"),
        ("within gate", "within_gate", rf"within_gate\s*[:=]\s*{_INT}"),
        ("word gate", "word_gate", rf"word_gate\s*[:=]\s*{_INT}"),
    )
)
_STAGE = re.compile(r"^(.{0,120}?)[\s|,]*(?:val_loss\s*[:=]|val_bpb\s*[:=])", re.IGNORECASE)
_BPB = re.compile(rf"val_bpb\s*[:=]\s*{_FLOAT}", re.IGNORECASE)
_LOSS = re.compile(rf"val_loss\s*[:=]\s*{_FLOAT}", re.IGNORECASE)
_EVAL_TIME = re.compile(rf"eval_time\s*[:=]\s*{_FLOAT}\s*(ms|s|m)\b", re.IGNORECASE)
_STEP = re.compile(r"\bstep\s*[:=]?\s*(\d+)\s*/\s*\d+|^\s*(\d+)\s*/\s*\d+\b", re.IGNORECASE)
_TRAIN_TIME = re.compile(rf"train_time\s*[:=]\s*{_FLOAT}\s*(ms|s|m)\b", re.IGNORECASE)
_STEP_AVG = re.compile(rf"step_avg\s*[:=]\s*{_FLOAT}\s*ms", re.IGNORECASE)
_SETTING = re.compile(r"^\s{1,8}([a-z][a-z0-9_]{1,60})\s*:\s(.{0,300})$")
_SECONDS = {"ms": 1e-3, "s": 1.0, "m": 60.0}
_LIST = b"hyperparameters"
_WORDS = (b"val_bpb", b"train_time", _LIST, *(word.encode() for _, word, _ in _NUMBERS))


def read_log(file: File, most_bytes: int = 1 << 26) -> Log:
    """Return what the first `most_bytes` of a log say.

    Words are looked for in whole blocks and only lines that have one are taken apart, so that a
    hundred megabytes of anything take seconds.
    """
    log, seen = Log(file.name), Counter[bytes]()
    number, offset = 1, 0
    with opened(file.path) as stream:
        for block in _blocks(stream):
            if offset >= most_bytes:
                break
            low, at = block.lower(), 0
            for start in _hits(low, seen):
                number += low.count(b"\n", at, start)
                at = start
                _read(log, number, _text(block[start : start + _LINE_BYTES].partition(b"\n")[0]))
                if low.startswith(_LIST, start) and not log.settings:
                    _read_settings(log, file, number, offset + start)
            number += low.count(b"\n", at)
            offset += len(block)
    return log


def _blocks(stream: BinaryIO) -> Iterator[bytes]:
    """Yield a file in blocks that end with a line, if one ends in them."""
    rest = b""
    while data := stream.read(_BLOCK_BYTES):
        block = rest + data
        end = block.rfind(b"\n") + 1 or len(block)
        rest = block[end:]
        yield block[:end]
    if rest:
        yield rest


def _hits(low: bytes, seen: Counter[bytes]) -> list[int]:
    """Return where the lines begin that hold a word; of a frequent word, the block's last too."""
    found: set[int] = set()
    for word in _WORDS:
        at = low.find(word)
        while at >= 0 and seen[word] < _MOST_OF_A_KIND:
            seen[word] += 1
            found.add(low.rfind(b"\n", 0, at) + 1)
            end = low.find(b"\n", at)
            at = low.find(word, end) if end >= 0 else -1
        if at >= 0:
            found.add(low.rfind(b"\n", 0, low.rfind(word)) + 1)
    return sorted(found)


def _read_settings(log: Log, file: File, number: int, offset: int) -> None:
    """Read the list of settings that begins after a line at an offset."""
    with opened(file.path) as stream:
        stream.seek(offset)
        lines = stream.read(_SETTINGS_BYTES).split(b"\n")[1 : _MOST_SETTINGS + 1]
    for place, raw in enumerate(lines, start=number + 1):
        if not _read_setting(log, place, _text(raw[:_LINE_BYTES])):
            return


def _text(raw: bytes) -> str:
    return _BLANKS.sub(" " * 9, raw.decode("utf-8", "replace").rstrip())


def _read(log: Log, number: int, text: str) -> None:
    low = text.lower()
    if "val_bpb" in low:
        _read_stage(log, number, text)
    elif "train_time" in low:
        _read_step(log, number, text)
    for name, word, pattern in _NUMBERS:
        found = pattern.search(text) if word in low else None
        if found:
            # The last word counts: sizes are printed again after another attempt.
            log.numbers[name] = Number(_value(found[1]), log.name, number, text.strip()[:200])


def _value(digits: str) -> float:
    return min(float(digits.replace(",", "")), _LARGEST)


def _read_stage(log: Log, number: int, text: str) -> None:
    found = _BPB.search(text)
    if not found:
        return
    name = _STAGE.match(text)
    label = re.sub(r"\s+", " ", name[1]).strip(" :|,-") if name else ""
    # Validation during training is told by its step, which is no name.
    label = "validation in training" if re.search(r"\d+\s*/\s*\d+", label) else label
    loss, taken = _LOSS.search(text), _EVAL_TIME.search(text)
    log.stages.append(
        Stage(
            label or "unnamed",
            Number(_value(found[1]), log.name, number, text.strip()[:200]),
            _value(loss[1]) if loss else None,
            _value(taken[1]) * _SECONDS[taken[2].lower()] if taken else None,
        )
    )


def _read_step(log: Log, number: int, text: str) -> None:
    step, taken, average = _STEP.search(text), _TRAIN_TIME.search(text), _STEP_AVG.search(text)
    if not step:
        return
    seconds = _value(taken[1]) * _SECONDS[taken[2].lower()] if taken else None
    line = StepLine(
        int(_value(step[1] or step[2])),
        seconds,
        _value(average[1]) if average else None,
        number,
        text.strip()[:200],
    )
    if "stopping" in text.lower() and seconds is not None:
        log.numbers["stop seconds"] = Number(seconds, log.name, number, line.text)
        log.numbers["stop steps"] = Number(line.step, log.name, number, line.text)
    log.first_step = log.first_step or line
    log.last_step = line


def _read_setting(log: Log, number: int, text: str) -> bool:
    """Read one line of a list of settings; return whether the list goes on."""
    found = _SETTING.match(text)
    if not found:
        return False
    log.settings[found[1]] = found[2].strip()
    log.setting_lines[found[1]] = number
    if found[1] == "seed" and found[2].strip().isdecimal():
        log.numbers["seed"] = Number(_value(found[2].strip()), log.name, number, text.strip())
    return True
