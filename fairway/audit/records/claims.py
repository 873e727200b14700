"""The claims of a record: numbers of submission.json and README, sorted by their meaning."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from fairway.audit.records.said import Number

_MOST_VALUES = 5_000
_MOST_DEPTH = 4
_MEAN = (
    "val_bpb", "val_bpb_mean", "mean_val_bpb", "mean_bpb", "bpb", "final_val_bpb", "val_bpb_exact",
    "three_seed_mean_bpb", "bpb_mean", "score",
)  # fmt: skip
_SD = ("val_bpb_std", "std_val_bpb", "val_bpb_sd", "std", "bpb_std", "std_bpb")
_TOTAL = (
    "bytes_total", "total_bytes", "artifact_bytes", "submission_bytes", "artifact_size_bytes",
    "total_submission_bytes", "submission_size_bytes", "bytes_total_max", "artifact_bytes_max",
)  # fmt: skip
_CODE = ("bytes_code", "code_bytes", "code_size_bytes", "bytes_train_gpt_self_extracting")
_STEPS = (
    "steps", "step_stop", "train_steps", "steps_completed", "num_steps", "training_steps", "step",
)  # fmt: skip
_TOKENS = ("val_tokens", "tokens_scored", "scored_tokens", "target_tokens")
# Of one seed: seconds of training and of evaluation, by name and unit.
_TRAIN_S = ("train_time_s", "train_time_seconds", "train_wallclock_s", "train_s", "training_time_s")
_TRAIN_MS = ("train_time_ms", "train_wallclock_ms", "train_ms")
_EVAL_S = (
    "eval_time_s", "total_eval_time_s", "ttt_eval_time_s", "eval_time_seconds",
    "total_eval_seconds",
)  # fmt: skip
_EVAL_ALL_S = (
    "eval_ops_seconds", "eval_seconds", "eval_time_s_max", "max_eval_time_s", *_EVAL_S,
    "eval_time_s_mean",
)  # fmt: skip
# The mark of a record outside the budgets.
NON_RECORD = re.compile(r"non[-_ ]?record", re.IGNORECASE)
_KINDS = ("name", "submission_type", "category", "type")
# Names of values that are about other records, or that are not claimed.
_OTHERS = re.compile(
    r"baseline|compar|ablation|reference|previous|prior|rerun|re_run|experimental|legacy|original|"
    r"control|disclosure|pending|parent|delta|cross_|verification|slurm|unclaimed|excluded|not_included",
    re.IGNORECASE,
)
_SEED_KEY = re.compile(
    r"^(?:(?:val_)?bpb_)?(?:seed|s)?[_ -]?(\d{1,10})(?:_seed)?$|(?:^|_)seed_?(\d{1,10})$", re.I
)
_NO_BPB = re.compile(r"gain|delta|std|_sd$|improve|diff|degrad|gap|train_bpb", re.IGNORECASE)


@dataclass(eq=False)
class SeedClaim:
    """The claims for one seed: scores by name, numbers by meaning, and the name of its log."""

    scores: dict[str, Number] = field(default_factory=dict)
    numbers: dict[str, Number] = field(default_factory=dict)
    log: str | None = None


@dataclass(eq=False)
class Claims:
    """The numbers of a submission.json by meaning, and its claims for every seed.

    `of_seed` has all claims for a seed; `by_seed` has the one score that is claimed for it.
    `others` are log files that the claim names but does not count as its own.
    """

    numbers: dict[str, Number] = field(default_factory=dict)
    of_seed: dict[int, SeedClaim] = field(default_factory=dict)
    by_seed: dict[int, Number] = field(default_factory=dict)
    seeds: set[int] = field(default_factory=set)
    others: set[str] = field(default_factory=set)
    # The seed that is named for the claim as a whole.
    seed: int | None = None
    # The number of accelerators that it names, or None.
    accelerators: int | None = None
    # Whether the record declares that it is outside the budgets.
    unlimited: bool = False


def read_claims(value: dict[str, Any], file: str) -> Claims:
    """Return the claims of a parsed submission.json."""
    claims = Claims()
    for names, meaning in (
        (_MEAN, "bpb"), (_SD, "sd"), (_TOTAL, "total bytes"), (_CODE, "code bytes"),
        (_STEPS, "steps"), (_TOKENS, "val tokens"), (("val_loss",), "loss"),
        (_EVAL_ALL_S, "eval seconds"),
    ):  # fmt: skip
        found = _first(value, names, file)
        if found is not None:
            claims.numbers[meaning] = found
    _read_seeds(value, file, claims, 0, "")
    seed = _number(value.get("seed"))
    claims.seed = int(seed) if seed is not None and 0 <= seed < 1e10 else None
    claims.others = set(_logs_of_others(value))
    _choose(claims)
    claims.seeds |= claims.by_seed.keys()
    hardware = re.search(r"\b(\d{1,3})\s?[x×]\s?[A-Z]", str(value.get("hardware", ""))[:200])
    claims.accelerators = int(hardware[1]) if hardware else None
    track = str(value.get("track", "")).lower()
    named = " ".join(str(value.get(key, ""))[:200] for key in _KINDS)
    claims.unlimited = "non" in track or "unlimited" in track or bool(NON_RECORD.search(named))
    return claims


def _first(value: dict[str, Any], names: tuple[str, ...], file: str) -> Number | None:
    """Return the first number under one of the names, in the object or in an object inside it."""
    places = [value]
    places += [
        v for k, v in list(value.items())[:_MOST_VALUES]
        if isinstance(v, dict) and not _OTHERS.search(str(k)) and not _SEED_KEY.search(str(k))
    ]  # fmt: skip
    for place in places:
        lower = {str(key).lower(): v for key, v in list(place.items())[:_MOST_VALUES]}
        for name in names:
            number = _number(lower.get(name))
            if number is not None:
                return Number(number, file, 0, f"{name}: {lower[name]}")
    return None


def _number(value: object) -> float | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return float(value) if abs(value) < 1e15 else None
    if isinstance(value, str) and re.fullmatch(r"\s{0,9}\d[\d,]{0,30}(\.\d{1,30})?\s{0,9}", value):
        number = float(value.replace(",", ""))
        return number if number < 1e15 else None
    return None


# ---------------------------------------------------------------------------------------------
# Seeds


def _read_seeds(value: dict[str, Any], file: str, claims: Claims, depth: int, above: str) -> None:
    """Read claims for seeds in all forms: by key, in lists, in parallel lists, and nested."""
    items = [(str(k), v) for k, v in list(value.items())[:_MOST_VALUES]]
    for name, part in items:
        if _OTHERS.search(name):
            continue
        digits = _SEED_KEY.search(name)
        seed = int(digits[1] or digits[2]) if digits else None
        if seed is not None and (not name.isdecimal() or _of_seeds(above)):
            _take(claims, seed, part, file, above if name.isdecimal() else name)
        elif isinstance(part, dict) and depth < _MOST_DEPTH:
            _read_seeds(part, file, claims, depth + 1, name)
        elif isinstance(part, list):
            _read_list(part[:_MOST_VALUES], name, file, claims)
    _parallel(dict(items), file, claims)


def _of_seeds(name: str) -> bool:
    """Return whether keys of digits in an object of this name are seeds."""
    return bool(
        re.search(r"seed|result|run|per_|bpb|bytes|time|steps|scores|loss|metrics", name, re.I)
    )


def _read_list(part: list[Any], name: str, file: str, claims: Claims) -> None:
    for item in part:
        seed = _number(item.get("seed")) if isinstance(item, dict) else None
        if seed is not None and 0 <= seed < 1e10:
            _take(claims, int(seed), item, file, name)
        elif type(item) is int and name.lower() in ("seeds", "seed_list") and 0 <= item < 1e10:
            claims.seeds.add(item)


def _parallel(value: dict[str, Any], file: str, claims: Claims) -> None:
    """Read lists of scores beside a list of seeds of the same length."""
    seeds = value.get("seeds")
    if (
        not isinstance(seeds, list)
        or not 0 < len(seeds) <= 50
        or not all(type(s) is int for s in seeds)
    ):
        return
    for name, part in value.items():
        scores = isinstance(part, list) and all(type(n) is float and 0 < n < 10 for n in part)
        named = re.search(r"bpb|seed_results|scores", name, re.IGNORECASE)
        if scores and named and len(part) == len(seeds):
            for seed, score in zip(seeds, part, strict=True):
                _take(claims, seed, score, file, name)


def _take(claims: Claims, seed: int, part: object, file: str, above: str) -> None:
    """Record a claim for one seed: an object of numbers, or a score."""
    if isinstance(part, dict):
        of = claims.of_seed.setdefault(seed, SeedClaim())
        _take_object(of, {str(k): v for k, v in list(part.items())[:200]}, seed, file)
        return
    number = _number(part)
    if number is None:
        return
    name = above.lower()
    of = claims.of_seed.setdefault(seed, SeedClaim())
    place = Number(number, file, 0, f"seed {seed}: {part}")
    if (
        _like_bpb(number)
        and not re.search(r"byte|time|step|loss|_s$|_ms$", name)
        and not _NO_BPB.search(name)
    ):
        of.scores.setdefault("val_bpb", place)
    elif "byte" in name:
        of.numbers.setdefault("total bytes", place)


def _take_object(of: SeedClaim, part: dict[str, Any], seed: int, file: str) -> None:
    for name, value in part.items():
        low, number = name.lower(), _number(value)
        if low in ("log", "log_file", "logfile", "train_log") and isinstance(value, str):
            of.log = value[:300]
        if isinstance(value, dict) and not _OTHERS.search(low):
            _take_object(of, {str(k): v for k, v in list(value.items())[:200]}, seed, file)
        if number is None:
            continue
        place = Number(number, file, 0, f"seed {seed}, {name}: {value}")
        if "bpb" in low and not _NO_BPB.search(low) and _like_bpb(number):
            of.scores.setdefault(low, place)
        for names, meaning, unit in _OF_SEED:
            if low in names:
                scaled = Number(number * unit, file, 0, place.text)
                of.numbers.setdefault(meaning, scaled)


_OF_SEED = (
    (_TOTAL, "total bytes", 1.0), (_STEPS, "steps", 1.0), (_TRAIN_S, "train seconds", 1.0),
    (_TRAIN_MS, "train seconds", 1e-3), (_EVAL_S, "eval seconds", 1.0),
    (("val_loss",), "loss", 1.0),
)  # fmt: skip


def _like_bpb(number: float) -> bool:
    return 0 < number < 10


def _choose(claims: Claims) -> None:
    """Choose the claimed score of every seed: the one whose mean is claimed, else by its name."""
    seeds = {seed: of.scores for seed, of in claims.of_seed.items() if of.scores}
    if not seeds:
        return
    names = [n for n in dict.fromkeys(n for s in seeds.values() for n in s)
             if all(n in s for s in seeds.values())]  # fmt: skip
    claimed = claims.numbers.get("bpb")
    best = None
    if claimed is not None and names:
        means = {n: sum(s[n].value for s in seeds.values()) / len(seeds) for n in names}
        near = min(names, key=lambda n: abs(means[n] - claimed.value))
        best = near if abs(means[near] - claimed.value) < 2e-4 else None
    for seed, of in seeds.items():
        plain = next((n for n in _MEAN if n in of), None)
        lowest = min(of, key=lambda n: of[n].value)
        claims.by_seed[seed] = of[best or plain or lowest]


def _logs_of_others(value: dict[str, Any], depth: int = 0, other: bool = False) -> Iterator[str]:
    """Yield the names of log files under a key of values that are not claimed."""
    for key, part in list(value.items())[:_MOST_VALUES]:
        aside = other or bool(_OTHERS.search(str(key)))
        parts = part[:200] if isinstance(part, list) else [part]
        for one in parts:
            if isinstance(one, dict) and depth < _MOST_DEPTH:
                yield from _logs_of_others(one, depth + 1, aside)
            elif aside and isinstance(one, str) and re.search(r"\.(log|txt|out)$", one[-8:]):
                yield one[:300].rpartition("/")[2]


# ---------------------------------------------------------------------------------------------
# README

_BPB_LIKE = re.compile(r"(?<![\d.])([0-3]\.\d{4,8})(?![\d.])")
_ASSIGNED = re.compile(r"(?<![\w$./-])([A-Z][A-Z0-9_]{2,60})=(?=[^=\s]|$)")
_FENCE = re.compile(r"^\s*(```|~~~)")
# Variables that other programs read, not the script.
_OF_OTHERS = re.compile(
    r"^(CUDA|NCCL|OMP|MKL|PYTHON|PYTORCH|TORCH|TRITON|HF|HUGGINGFACE|LD|PATH|PIP|HOME|CC|CXX|TMP|"
    r"XDG|WANDB|UV|VIRTUAL|DEBIAN|GLOO|CUBLAS|TOKENIZERS|NPROC|MASTER|WORLD|RANK|LOCAL|NVTE|XLA)"
)


def bpb_like(text: str) -> list[tuple[str, int]]:
    """Return numbers in a README that look like scores, as written, with their lines."""
    found = []
    for number, line in enumerate(text.splitlines(), start=1):
        found += [(match[1], number) for match in _BPB_LIKE.finditer(line[:4_096])]
    return found[:_MOST_VALUES]


def variables(text: str) -> dict[str, int]:
    """Return the variables that a README's commands set for the script, with their lines.

    Only fenced code counts, and in it commands that start Python and exports for them.
    """
    found: dict[str, int] = {}
    for first, block in _blocks(text):
        joined = "\n".join(block)
        if not re.search(r"\b(python3?|torchrun)\b", joined):
            continue
        local = set(re.findall(r"\$\{?([A-Z][A-Z0-9_]+)", joined))
        for number, line in enumerate(block, start=first):
            for match in _ASSIGNED.finditer(line[:4_096].partition("#")[0]):
                name = match[1]
                if not _OF_OTHERS.match(name) and name not in local:
                    found.setdefault(name, number)
    return found


def _blocks(text: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the fenced blocks of a text with the number of their first line."""
    block: list[str] | None = None
    for number, line in enumerate(text.splitlines(), start=1):
        if _FENCE.match(line):
            if block is not None:
                yield number - len(block), block
            block = None if block is not None else []
        elif block is not None:
            block.append(line)


def seed_rows(text: str, seeds: set[int]) -> dict[int, list[tuple[float, int]]]:
    """Return the scores, with lines, in rows of a README's tables that name one of the seeds."""
    found: dict[int, list[tuple[float, int]]] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if "|" not in line:
            continue
        cells = [cell.strip(" *`_") for cell in line[:4_096].split("|")][:40]
        digits = [re.fullmatch(r"(?:[Ss]eed[ =_-]?)?(\d{1,10})", cell) for cell in cells[:4]]
        named = [int(match[1]) for match in digits if match]
        for seed in [n for n in named if n in seeds][:1]:
            scores = [float(s) for cell in cells for s in _BPB_LIKE.findall(cell)]
            found.setdefault(seed, []).extend((score, number) for score in scores)
    return found
