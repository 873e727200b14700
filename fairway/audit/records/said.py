"""The content of one log line: scores, steps, sizes, seconds and counts, with their places.

Logs have no schema. The words beside a number give its meaning; a number that no rule covers is
left out. All patterns are bounded, so any line costs only microseconds.
"""

import re
from dataclasses import dataclass

# Larger numbers have no meaning here, and their products would overflow.
_LARGEST = 1e18
_SECONDS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
# The text between a name and its value: name: 1, name=1, "name": 1, name (words): 1.
_IS = r"[\"']?(?:\s{0,3}\([^()]{0,40}\))?\s{0,3}[:=]\s{0,20}[\"']?"
_INT = r"(\d{1,3}(?:[,_]\d{3}){1,6}|\d{1,18})(?![\d.]*[eE]?\d)"
_FLOAT = r"(\d{1,15}(?:\.\d{1,17})?(?:[eE][-+]?\d{1,3})?)"
_TIME = rf"{_FLOAT}\s?(ms|s|sec|secs|seconds|m|min|minutes)\b"


@dataclass(frozen=True, slots=True)
class Number:
    """A number with its evidence, and the most that rounding may have changed it."""

    value: float
    file: str
    line: int
    text: str
    off: float = 0.0


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a log: its text, the same in lower case, its file and number."""

    text: str
    low: str
    file: str
    number: int

    @property
    def shown(self) -> str:
        """Return the shortened line, as evidence."""
        return self.text.strip()[:200]

    def holds(self, value: float) -> Number:
        """Return a number found in this line."""
        return Number(value, self.file, self.number, self.shown)


@dataclass(frozen=True, slots=True)
class Stage:
    """One evaluation in a log: its name, bits per byte, loss in nats per token, seconds.

    `text_bytes` is the number of scored bytes that the line states, or None. `running` means an
    intermediate result: validation in training, or one chunk of many.
    """

    name: str
    bpb: Number
    loss: float | None
    seconds: float | None
    text_bytes: int | None = None
    running: bool = False


@dataclass(frozen=True, slots=True)
class StepLine:
    """One line of training: steps done, seconds of training so far, milliseconds per step."""

    step: int
    seconds: float | None
    ms_per_step: float | None
    line: int
    text: str
    stops: bool = False


def value_of(digits: str) -> float:
    """Return the value of a written number, with or without separators of thousands."""
    return min(float(digits.replace(",", "").replace("_", "")), _LARGEST)


def _seconds(found: re.Match[str]) -> float:
    unit = found[2].lower()
    return value_of(found[1]) * _SECONDS["ms" if unit == "ms" else unit[0]]


# ---------------------------------------------------------------------------------------------
# Values as people write them: with separators, a unit, a spread or a remark in brackets

_VALUE = re.compile(
    r"\s{0,9}(\d{1,3}(?:,\d{3}){1,9}|\d{1,30})(?:\.(\d{1,30}))?\s{0,9}([a-z]{1,10})?\s{0,9}"
    r"(?:(?:±|\+/-|\+-)[\s\d.]{1,40})?(?:\([^()]{0,200}\))?\s{0,9}",
    re.IGNORECASE,
)
_BYTES_OF = {
    "b": 1.0, "byte": 1.0, "bytes": 1.0, "kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 2.0**10,
    "mib": 2.0**20, "gib": 2.0**30,
}  # fmt: skip
_SECONDS_OF = {
    "ms": 1e-3, "s": 1.0, "sec": 1.0, "secs": 1.0, "seconds": 1.0, "m": 60.0, "min": 60.0,
    "minutes": 60.0, "h": 3600.0,
}  # fmt: skip
# By kind of quantity: its units, in bytes, seconds, or bits per byte.
UNITS: dict[str, dict[str, float]] = {
    "bytes": _BYTES_OF, "seconds": _SECONDS_OF, "bpb": {"bpb": 1.0}, "": {},
}  # fmt: skip


def written(text: str, kind: str = "", unit: str = "") -> tuple[float, float] | None:
    """Return the value that a text states, and one unit of its last digit; None if it is unclear.

    `unit` is that of the name, for values without one. Whole numbers without a unit are exact.
    """
    found = _VALUE.fullmatch(text[:400])
    scale = (
        UNITS[kind].get((found[3] or unit).lower(), None if found[3] else 1.0) if found else None
    )
    if found is None or scale is None:
        return None
    digits = found[2] or ""
    value = float(f"{found[1].replace(',', '')}.{digits or 0}") * scale
    exact = scale == 1.0 and not digits
    return value, 0.0 if exact else scale * 10.0 ** -len(digits)


# ---------------------------------------------------------------------------------------------
# Scores

# The most scores that are read from one line.
_MOST_SCORES = 6
_SCORE = re.compile(
    rf"(?<![\w.])([a-z][\w+./-]{{0,40}})?(?:bpb|bits[ _]per[ _]byte)(\w{{0,20}}){_IS}{_FLOAT}",
    re.IGNORECASE,
)
_SPACED = re.compile(
    rf"(?<![\w.])((?:[A-Za-z][\w+-]{{0,20}} ){{0,3}})(?:BPB|bpb){_IS}{_FLOAT}(?![%\w])"
)
# These words mark other scores: of a batch, of training, of a difference, of a limit.
_NO_SCORE = re.compile(
    r"(train|batch|delta|gain|improve|diff|gap|std|_sd$|target|threshold|limit|baseline|best|"
    r"reference|champion|prev|static|clean|ours|record|penalty|degrad)",
    re.IGNORECASE,
)
_OF_MANY = re.compile(r"\b(mean|average|avg|std|overall)\b|\b(mean|avg|std)_", re.IGNORECASE)
_RUNNING = re.compile(r"^(running|run|cum|cumulative|avg|rolling|bb|rb)[_.]?", re.IGNORECASE)
_PROGRESS = re.compile(r"\d\s?/\s?\d|\d%|\b(chunk|batch|epoch|window|step|iter)s?\b\W{0,3}\d", re.I)
_LOSS = re.compile(rf"(?:val_loss|\bloss)\b{_IS}{_FLOAT}", re.IGNORECASE)
_TOOK = re.compile(rf"\b(?:eval_time|elapsed|time|took|t){_IS}{_TIME}", re.IGNORECASE)
_BYTES = re.compile(rf"\b(?:bytes|text_bytes|byte_count){_IS}{_INT}", re.IGNORECASE)
_PLAIN = ("val_bpb", "bpb")
IN_TRAINING = "validation in training"


def scores(line: Line) -> list[Stage]:
    """Return the scores in a line that mentions bits per byte."""
    found = list(_SCORE.finditer(line.text))[:_MOST_SCORES]
    stages = [_score(line, match, f"{match[1] or ''}bpb{match[2]}", match[3]) for match in found]
    if not any(stages):
        found = list(_SPACED.finditer(line.text))[:_MOST_SCORES]
        stages = [_score(line, match, f"{match[1]}bpb", match[2]) for match in found]
    return [stage for stage in stages if stage is not None]


def _score(line: Line, match: re.Match[str], key: str, digits: str) -> Stage | None:
    """Return the score of a match, or None if it is not of the text; `key` is its name."""
    text, value = line.text, value_of(digits)
    if _NO_SCORE.search(key) or not 0 < value < 100 or "." not in digits:
        return None
    loss, took = _LOSS.search(text), _TOOK.search(text)
    plain = key.lower() in _PLAIN
    label = _label(text[: min(match.start(), loss.start() if loss else match.start())])
    if _OF_MANY.search(f"{label} {key}"):
        return None
    running = bool(_RUNNING.match(key) or _PROGRESS.search(text[: match.start()]))
    if not plain:
        label = f"{label} {key}".strip()
    of_text = _BYTES.search(text)
    return Stage(
        IN_TRAINING if running else label or "unnamed",
        line.holds(value),
        # A mixture's score beside the model's loss: the two do not belong together.
        value_of(loss[1]) if loss and plain else None,
        _seconds(took) if took else None,
        int(value_of(of_text[1])) if of_text else None,
        running,
    )


def _label(before: str) -> str:
    """Return the name of a stage: the words before it, up to the first named number."""
    words = re.sub(r"\s+", " ", before[-120:])
    named = re.search(r"\b[\w.]{1,30}\s?[=:]\s?-?\d", words)
    if named and words[: named.start()].strip(" :|,-=("):
        words = words[: named.start()]
    return re.sub(r"\b[\w.]{1,30}\s?[=:]\s?-?\d\S{0,40}", "", words).strip(" :|,-=(")


# ---------------------------------------------------------------------------------------------
# Steps

_STEP = re.compile(
    r"\b(?:step|iter|iteration)s?\b[\"']?\s{0,10}[:=]?\s{0,10}(\d{1,12})(?:\s{0,3}/\s{0,3}\d{1,12})?|"
    r"^\s{0,10}(\d{1,12})\s{0,3}/\s{0,3}\d{1,12}\b",
    re.IGNORECASE,
)
_TRAIN_TIME = re.compile(rf"\btrain(?:ing)?_time{_IS}{_TIME}", re.IGNORECASE)
_TRAIN_TIME_OF_NAME = re.compile(
    rf"\btrain(?:ing)?_time_(ms|s|seconds){_IS}{_FLOAT}", re.IGNORECASE
)
_STEP_AVG = re.compile(rf"(?:step_avg|ms_per_step){_IS}{_FLOAT}\s?(?:ms)?", re.IGNORECASE)
_STOPS = re.compile(r"stopping|stopped early|early stop|wallclock_cap", re.IGNORECASE)
_TRAINS = re.compile(
    r"train_loss|train_time|step_avg|\bloss\b|lr_mul|tok/s|steps/s|stopping", re.IGNORECASE
)
_WARM = re.compile(r"warm-?up|\bttt|adapt|slot|calib|epoch|ngram|pass", re.IGNORECASE)


def step_of(line: Line) -> StepLine | None:
    """Return a line of training, with a step and a loss or a time of training, or None."""
    text = line.text
    found = _STEP.search(text)
    if not found or not _TRAINS.search(text) or _WARM.search(text[: found.start() + 1]):
        return None
    taken, named = _TRAIN_TIME.search(text), _TRAIN_TIME_OF_NAME.search(text)
    seconds = _seconds(taken) if taken else None
    if named:
        seconds = value_of(named[2]) * _SECONDS["ms" if named[1].lower() == "ms" else "s"]
    average = _STEP_AVG.search(text)
    return StepLine(
        int(value_of(found[1] or found[2])),
        seconds,
        value_of(average[1]) if average else None,
        line.number,
        line.shown,
        bool(_STOPS.search(text)) and seconds is not None,
    )


# ---------------------------------------------------------------------------------------------
# Other numbers: a meaning, a word that the line must contain, and the pattern

_PACKED = r"(?:quant|int\d|zlib|brotli|lzma|zst|xz|pergroup|compress|export|packed|bz2|arith|rans)"
_TAKEN = rf"(?:elapsed|took|done|in|time)[:= ]{_FLOAT}\s?s"
_OF_PACKED = rf"[^:=]{{0,60}}{_PACKED}[^:=]{{0,60}}"
_OF_BYTES = r"(?:[ _]size|[ _]bytes|_size_bytes)?"
_NUMBERS: tuple[tuple[str, str, re.Pattern[str]], ...] = tuple(
    (name, word, re.compile(pattern, re.IGNORECASE))
    for name, word, pattern in (
        ("seed", "seed", rf"^\s*[\"']?(?:random_?|global_?)?seed{_IS}{_INT}(?=[\s,;\"'}}|]|$)"),
        ("seed", "seed", rf"\bseed[:=]{_INT}\s*$"),
        ("code bytes", "code", rf"code(?:[ _]size|_bytes|[ _]bytes){_IS}{_INT}\s?(?:bytes)?(?!\.)"),
        ("total bytes", "submission", rf"submission size[^:=]{{0,60}}[:=]\s{{0,5}}{_INT}"),
        ("total bytes", "submission", rf"submission{_IS}{_INT}\s?bytes"),
        ("total bytes", "submission_", rf"\b(?:total_)?submission_bytes(?:_total)?{_IS}{_INT}"),
        ("total bytes", "artifact", rf"\bartifact{_OF_BYTES}{_IS}{_INT}\s?(?:bytes|B\b|$)"),
        ("total bytes", "size", rf"\bsize check\D{{0,20}}{_INT}\s?/\s?[\d,_]{{4,15}}"),
        ("total bytes", "total:", rf"\bcode:\s?[\d,_]{{1,15}},?\s{{1,3}}total:\s?{_INT}"),
        ("total bytes", "total:", rf"\d bytes,?\s{{1,4}}total:\s?{_INT}\s?bytes"),
        ("total bytes", "artifact", rf"\btotal_artifact_bytes{_IS}{_INT}"),
        ("total bytes", "code", rf"\btotal (?:size|bytes) \(model ?\+ ?code\)[:=]\s?{_INT}"),
        ("total bytes", "code", rf"\bmodel ?\+ ?code\s?[:=]\s?{_INT}\s?bytes"),
        ("raw bytes", "serialized", rf"serialized model(?: \(raw\))?:\s{{0,5}}{_INT}"),
        ("model bytes", "serialized", rf"serialized model{_OF_PACKED}[:=]\s?{_INT}"),
        ("model bytes", "model_bytes", rf"\b(?:quant\w{{0,20}}|compressed)_model_bytes{_IS}{_INT}"),
        ("parameters", "param", rf"\b(?:(?:model|num|n)_params|total params){_IS}{_INT}"),
        ("train shards", "shards", rf"\btrain_shards{_IS}{_INT}"),
        ("val tokens", "val", rf"\bval(?:idation)?[ _]tokens{_IS}{_INT}"),
        ("val tokens", "val_loader", rf"val_loader\b.{{0,200}}?\btokens{_IS}{_INT}"),
        ("hessian seconds", "hessian", rf"collected\s+\d{{1,6}}\s+hessians\s+in\s+{_FLOAT}\s*s"),
        ("hessian seconds", "calibrated", rf"calibrated\s+\d{{1,6}}\s+layers\s+in\s+{_FLOAT}\s*s"),
        ("eval seconds", "eval", rf"\btotal[_ ]eval(?:uation)?[_ ]time{_IS}{_FLOAT}\s*s"),
        ("outside seconds", "outside", rf"outside.{{0,30}}(?:timer|clock).{{0,40}}?{_TAKEN}"),
        ("score first", "first", r"score[-_ ]first\b(?![\"']?\s?[:=]\s?(?:0|False))(\b)"),
        ("within gate", "within_gate", rf"within_gate{_IS}{_INT}"),
        ("word gate", "word_gate", rf"word_gate{_IS}{_INT}"),
        ("processes", "world", rf"\bworld[ _]size{_IS}{_INT}"),
        ("subset tokens", "subset", rf"\bsubset{_IS}{_INT}\s{{0,3}}tokens"),
    )
)  # fmt: skip


def numbers(line: Line) -> list[tuple[str, Number]]:
    """Return the other numbers of a line, by meaning."""
    found = []
    for name, word, pattern in _NUMBERS:
        match = pattern.search(line.text) if word in line.low else None
        if match:
            found.append((name, line.holds(value_of(match[1] or "1"))))
    return found


# ---------------------------------------------------------------------------------------------
# Adaptation: epochs over the text, further passes, warm-up

_EPOCH = re.compile(
    r"(?=.{0,60}(?:ttt|adapt|test.time|\bval_?(?:fine|tun)|"
    r"(?:train|sgd|adam|tun)\w{0,4}[_ ]on[_ ]val))"
    r"([\[\]\w:+. -]{0,60}?)\bepochs?\b"
    r"[\"']?\s?[:= ]\s?(\d{1,4})\s?(?:/|of)\s?(\d{1,4})\b|"
    r"^\s*(\w{0,20}ttt\w{0,20})_epoch[:= ]\s?(\d{1,4})\s?/\s?(\d{1,4})\b",
    re.IGNORECASE,
)
_PASS = re.compile(
    r"\b(?:\w{0,30}[_ ])?(?:pass[_ ]?([12])(?=[_ :\])]|$)|(?:(second) pass)|(rescor(?:e|ing)))",
    re.IGNORECASE,
)
_WARM_ON_TEXT = re.compile(
    r"warm(?:ing)?[-_ ]?up\b.{0,40}\b(?:on|with|using|from)\s.{0,20}"
    r"\b(?:val|validation)[-_ ](?:tokens?|data|text|set|batch|batches|docs?|documents?)\b",
    re.IGNORECASE,
)


# Such names mean that the epoch learns training text.
_ON_OTHER_TEXT = re.compile(r"burst|replay|buffer|distil|meta|(?<!time )(?<!time-)train")


@dataclass(frozen=True, slots=True)
class Epoch:
    """One epoch of adaptation to the text: its number, the total, and its place in the log."""

    name: str
    epoch: int
    epochs: int
    place: Number


@dataclass(frozen=True, slots=True)
class Pass:
    """A pass over the text, by the number that a log gives it."""

    number: int
    place: Number


def epoch_of(line: Line) -> Epoch | None:
    """Return the epoch of adaptation that a line reports, or None."""
    found = _EPOCH.search(line.text)
    if not found:
        return None
    name, epoch, of = (found[i] or found[i + 3] for i in (1, 2, 3))
    low = (name or "").strip(" :").lower()
    known = Epoch(low, int(epoch), int(of), line.holds(float(epoch)))
    return None if _ON_OTHER_TEXT.search(low) else known


def pass_of(line: Line) -> Pass | None:
    """Return the pass over the text that a line reports, or None; a setting is not a report."""
    found = _PASS.search(line.text)
    if not found or re.match(r"^\s*[\w.]{1,60}\s?[:=]\s?\S{1,20}$", line.text):
        return None
    number = int(found[1]) if found[1] else 2
    return Pass(number, line.holds(float(number)))


def warms_on_text(text: str) -> bool:
    """Return whether a line says that a warm-up runs on validation text."""
    return bool(_WARM_ON_TEXT.search(text)) and not re.search(
        r"\b(?:no|not|never|without|random)\b", text, re.IGNORECASE
    )
