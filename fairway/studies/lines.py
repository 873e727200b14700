"""The table of a study: one JSON line for every finished run, in a file that only grows.

A line has the run's settings, machine and results. Its own digest, `id`, detects edits and damage.
The next line replaces an incomplete line at the end of the file.
"""

import json
import math
import os
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fairway.base.errors import UserError, shown
from fairway.base.files import canonical_json, digest_bytes, parse_json, read_bytes
from fairway.config.settings import MOST_SEED
from fairway.pipeline.facts import Maybe, Named, fault_of
from fairway.studies.arms import SCORES, is_name
from fairway.studies.intervals import MOST_PAIRS

LINES, SCHEMA = "study.jsonl", 1
# A line has about 2 kB, mostly settings; 64 arms in 1,000 pairs are 64,000 lines.
_MOST_BYTES, _MOST_LINE, _MOST_LINES = 1 << 28, 1 << 16, 100_000
# A run by the clock with fewer steps than this share of its arm's median ran on a busy machine.
STEADY = 0.85


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One run of a study. Unknown values of a failed run are None or empty.

    `base` and `config` are digests of the settings of the base and of this arm, `data` is that of
    the text, and `sources` that of Fairway's own code. `planned` is the number of pairs that the
    study planned at its start. The seconds are those of the training and of the whole process.
    `card` identifies one GPU of a host that has several; it is empty if it is not known.
    """

    schema: int = SCHEMA
    arm: str
    pair: int
    seed: int
    planned: int
    recipe: str
    common: list[str]
    settings: list[str]
    base: str
    config: str
    until: str
    clock: str
    data: str
    commit: str
    sources: str
    fairway: str
    torch: str
    device: str
    steps: int | None
    tokens: int | None
    train_s: float | None
    whole_s: float
    bpb: dict[str, float]
    text_bytes: int | None
    artifact_bytes: int | None
    code_bytes: int | None
    peak_bytes: int | None
    failed: str
    card: str = ""

    def where(self) -> tuple[str, str]:
        """Return what the two runs of a pair must share besides the seed: device and sources."""
        return self.device, self.sources

    def identity(self) -> tuple[Any, ...]:
        """Return what identifies a run, without its results."""
        what = (self.base, self.config, self.arm, self.seed, self.until, self.clock, self.data)
        return (*what, *self.where())


_TEXTS = (
    "arm", "recipe", "base", "config", "data", "commit", "sources", "fairway",
    "torch", "device", "failed", "card",
)  # fmt: skip
_KIND = {
    **dict.fromkeys(("schema", "pair", "planned", "seed"), int),
    "until": tuple(SCORES),
    "clock": ("steps", "wall"),
    **dict.fromkeys(_TEXTS, str),
    "common": [str],
    "settings": [str],
    **dict.fromkeys(
        ("steps", "tokens", "text_bytes", "artifact_bytes", "code_bytes", "peak_bytes"), Maybe(int)
    ),
    "train_s": Maybe(float),
    "whole_s": float,
    "bpb": Named(float),
    "id": str,
}
# The least and the most value of each number.
_BOUNDS: dict[str, tuple[float, float]] = {
    "pair": (0, MOST_PAIRS - 1),
    "planned": (1, MOST_PAIRS),
    "seed": (0, MOST_SEED),
    **dict.fromkeys(("text_bytes", "artifact_bytes"), (1, math.inf)),
    **dict.fromkeys(("steps", "tokens", "code_bytes", "peak_bytes"), (0, math.inf)),
    **dict.fromkeys(("train_s", "whole_s"), (0, math.inf)),
}
# What a repetition must repeat. No machine takes the same time and memory twice.
_RESULTS = ("bpb", "steps", "tokens", "text_bytes", "artifact_bytes", "code_bytes")


def written(line: Line) -> bytes:
    """Return the bytes of a line in the file."""
    facts = asdict(line)
    return json.dumps({**facts, "id": _id(facts)}, allow_nan=False).encode() + b"\n"


def _id(facts: dict[str, Any]) -> str:
    return digest_bytes(canonical_json(facts))[:16]


def append(path: Path, line: Line) -> None:
    """Append a line to a file whose lock is held, and flush it to the disk.

    An incomplete line at the end is overwritten.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    with os.fdopen(handle, "r+b") as stream:
        data = stream.read()
        whole = data.rfind(b"\n") + 1
        stream.truncate(whole)
        stream.seek(whole)
        stream.write(written(line))
        stream.flush()
        os.fsync(stream.fileno())


def read_lines(path: Path) -> list[Line]:
    """Return the lines of a file in order; none if there is no file.

    Raises UserError for a line that no study wrote, with its number, and for a file above 256 MB.
    """
    if not os.path.lexists(path):
        return []
    data = read_bytes(path, _MOST_BYTES)
    whole = data[: data.rfind(b"\n") + 1]
    if (count := whole.count(b"\n")) > _MOST_LINES:
        raise UserError(f"{path} has {count:,} lines; a table has at most {_MOST_LINES:,}")
    return [_read(text, f"{path}, line {n}") for n, text in enumerate(whole.splitlines(), 1)]


def existing(path: Path) -> list[Line]:
    """Return the lines of a study's file or folder; UserError if there is no file or no line."""
    file = path / LINES if path.is_dir() else path
    if not os.path.lexists(file):
        raise UserError(f"{file} does not exist; name the {LINES} of a study, or its folder")
    found = read_lines(file)
    if not found:
        raise UserError(f"{file} has no line of a study yet; run `fairway ablate` first")
    return found


def _read(text: bytes, where: str) -> Line:
    if len(text) > _MOST_LINE:
        raise UserError(f"{where}: it has {len(text):,} bytes; a line has at most {_MOST_LINE:,}")
    try:
        facts = parse_json(text)
    except (ValueError, UnicodeError) as error:
        raise UserError(
            f"{where}: it is not JSON ({error}); a study writes one object per line"
        ) from None
    if isinstance(facts, dict) and facts.get("schema", SCHEMA) != SCHEMA:
        raise UserError(
            f"{where}: it has schema {str(facts['schema'])[:20]}, this Fairway reads {SCHEMA}"
        )
    if fault := _fault(facts):
        raise UserError(f"{where}: {fault}; no study writes that, so delete the line")
    said = facts.pop("id")
    if said != _id(facts):
        raise UserError(
            f"{where}: it is damaged or was edited, since it does not match its own digest; "
            "delete the line, and the study runs it again"
        )
    return Line(**facts)


def _fault(facts: Any) -> str:
    """Return what is wrong with the facts of a line, or an empty text."""
    # Lines of before 2026-11-27 have no card.
    if fault := fault_of({"card": "", **facts} if isinstance(facts, dict) else facts, _KIND, "it"):
        return fault
    if unknown := facts.keys() - _KIND.keys():
        return f"it has '{min(unknown)[:40]}', which no study writes"
    if not is_name(facts["arm"]):
        return f"its arm is {shown(facts['arm'])}, which is no name"
    for name, (least, most) in _BOUNDS.items():
        value = facts[name]
        if value is not None and not least <= value <= most:
            bound = f"least is {least:,}" if value < least else f"most is {most:,}"
            return f"its '{name}' is {shown(value)}, but the {bound}"
    for name, bpb in facts["bpb"].items():
        if bpb <= 0:
            return f"its 'bpb' of {shown(name)} is {shown(bpb)}, but a score is above 0"
    return ""


def once_each(files: Mapping[Path, Iterable[Line]]) -> tuple[list[Line], int]:
    """Return every run of some tables once, the first of equal ones, and the number of the others.

    If a failed run was repeated with success, the failure is left out. Raises UserError for a run
    with two different results, since the order of the tables would choose one.
    """
    seen: dict[tuple[Any, ...], tuple[Path, Line]] = {}
    count = 0
    for path, line in ((path, line) for path, lines in files.items() for line in lines):
        count += not line.failed
        first, known = seen.setdefault((*line.identity(), line.failed), (path, line))
        _require_equal(known, line, first, path)
    lines = [line for _, line in seen.values()]
    made = {(line.arm, line.seed) for line in lines if not line.failed}
    kept = [line for line in lines if not line.failed or (line.arm, line.seed) not in made]
    return kept, count - sum(not line.failed for line in lines)


def _require_equal(a: Line, b: Line, in_a: Path, in_b: Path) -> None:
    for name in _RESULTS:
        values = getattr(a, name), getattr(b, name)
        if values[0] != values[1]:
            once = in_a == in_b
            where = f"{in_a} twice" if once else f"{in_a} and in {in_b}"
            remedy = "" if once else ", or leave one table out"
            raise UserError(
                f"the run of arm '{a.arm}' with seed {a.seed} is in {where}, with different "
                f"results ({name} {shown(values[0])} and {shown(values[1])}); delete the wrong "
                f"line{remedy}"
            )


def slowed(lines: Iterable[Line]) -> list[Line]:
    """Return the runs by the clock that took far fewer steps than their arm on that device does.

    Other work slowed the machine, so their scores are not those of the settings. The rule reads
    steps only, never scores. An arm needs three runs, since two have no usual number of steps.
    """
    alike: dict[tuple[Any, ...], list[Line]] = {}
    for line in lines:
        if line.clock == "wall" and line.steps is not None and not line.failed:
            alike.setdefault((line.arm, line.config, *line.where()), []).append(line)
    found = []
    for runs in alike.values():
        usual = statistics.median(line.steps or 0 for line in runs)
        found += [line for line in runs if len(runs) > 2 and (line.steps or 0) < STEADY * usual]
    return found


def paired(lines: Sequence[Line], arm: str, base: str, metric: str) -> list[float]:
    """Return arm minus base for every complete pair, in the order of the pairs."""
    scores: dict[tuple[Any, ...], dict[str, float]] = {}
    found = []
    for line in lines:
        if line.failed or line.arm not in (arm, base) or metric not in line.bpb:
            continue
        both = scores.setdefault((*line.where(), line.seed), {})
        both[line.arm] = line.bpb[metric]
        if len(both) == 2:
            found.append(both[arm] - both[base])
    return found
