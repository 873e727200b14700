"""The claims of a record: numbers of submission.json and README, sorted by their meaning."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from fairway.audit.records.said import UNITS, Number, written

_MOST_VALUES = 5_000
_MOST_DEPTH = 4
_MOST_SEEDS = 50
_MEAN = (
    "val_bpb", "val_bpb_mean", "mean_val_bpb", "mean_bpb", "bpb", "final_val_bpb", "val_bpb_exact",
    "three_seed_mean_bpb", "bpb_mean", "score",
)  # fmt: skip
_SD = ("val_bpb_std", "std_val_bpb", "val_bpb_sd", "std", "bpb_std", "std_bpb")
_TOTAL = (
    "bytes_total", "total_bytes", "artifact_bytes", "submission_bytes", "artifact_size_bytes",
    "total_submission_bytes", "submission_size_bytes", "bytes_total_max", "artifact_bytes_max",
)  # fmt: skip
# The same in other units, and parts of a name that say that there is a value for every seed.
_TOTAL_IN = re.compile(
    r"(?:(?:total|artifact|submission|total_submission)_(?:size_)?|size_)(kb|mb|kib|mib)(?:_max)?"
)
_EVERY_SEED = re.compile(r"^per_seed_|_(?:per|by)_seed$|_seeds$|_seed_?\d{1,10}$")
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
_BARE_SEED = re.compile(r"(?:seed|s)?[_ -]?\d{1,10}", re.IGNORECASE)
_TEXTS = re.compile(r"(?:^|_)(?:logs?|files?|paths?|notes?)(?:_|$)", re.IGNORECASE)
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
    # All statements of the bytes of the record, the challenge's own name first; those of its runs.
    totals: list[Number] = field(default_factory=list)
    run_totals: list[Number] = field(default_factory=list)
    # The file that they are from, '' if it could not be read.
    file: str = ""
    # Values that are no number though their names are known, by name.
    unread: dict[str, str] = field(default_factory=dict)
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


_MEANINGS = (
    (_MEAN, "bpb", "bpb"), (_SD, "sd", "bpb"), (_CODE, "code bytes", "bytes"),
    (_STEPS, "steps", ""), (_TOKENS, "val tokens", ""), (("val_loss",), "loss", ""),
    (_EVAL_ALL_S, "eval seconds", "seconds"),
)  # fmt: skip


def read_claims(value: dict[str, Any], file: str) -> Claims:
    """Return the claims of a parsed submission.json."""
    claims = Claims(file=file)
    for names, meaning, kind in _MEANINGS:
        found = _first(value, names, kind, file)
        if found is not None:
            claims.numbers[meaning] = found
    _read_totals(value, file, claims)
    _read_seeds(value, file, claims, 0, "")
    claims.seed = _seed(value.get("seed"))
    claims.others = set(_logs_of_others(value))
    _choose(claims)
    claims.seeds |= claims.by_seed.keys()
    claims.unread |= _unread(value)
    track = str(value.get("track", "")).lower()
    named = " ".join(str(value.get(key, ""))[:200] for key in _KINDS)
    claims.accelerators = _accelerators(str(value.get("hardware", ""))[:200])
    claims.unlimited = "non" in track or "unlimited" in track or bool(NON_RECORD.search(named))
    return claims


def excuses(text: str) -> Claims:
    """Return what a submission.json that is no JSON says of its track and its machine."""
    hardware = re.search(r'"hardware"\s{0,9}:\s{0,9}"([^"]{0,200})', text)
    return Claims(
        accelerators=_accelerators(hardware[1] if hardware else ""),
        unlimited=bool(NON_RECORD.search(text)),
    )


def _accelerators(hardware: str) -> int | None:
    found = re.search(r"\b(\d{1,3})\s?[x×]\s?[A-Z]", hardware)
    return int(found[1]) if found else None


def _places(value: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the object and the objects inside it, with their names in lower case."""
    inner = [
        v for k, v in list(value.items())[:_MOST_VALUES]
        if isinstance(v, dict) and not _OTHERS.search(str(k)) and not _SEED_KEY.search(str(k))
    ]  # fmt: skip
    for place in (value, *inner):
        yield {str(key).lower(): v for key, v in list(place.items())[:_MOST_VALUES]}


def _first(value: dict[str, Any], names: tuple[str, ...], kind: str, file: str) -> Number | None:
    """Return the first number under one of the names, in the object or in an object inside it."""
    for place in _places(value):
        for name in names:
            number = _number(place.get(name), kind)
            if number is not None:
                return _at(number, file, f"{name}: {place[name]}")
    return None


def _at(number: tuple[float, float], file: str, text: str) -> Number:
    return Number(number[0], file, 0, text[:300], number[1])


def _number(value: object, kind: str = "", unit: str = "") -> tuple[float, float] | None:
    """Return the number that a value states and its last unit; of several, mean or largest."""
    if isinstance(value, dict) and "mean" in value and kind == "bpb":
        value = value["mean"]
    if isinstance(value, list | dict) and kind == "seconds":
        each = list(value.values() if isinstance(value, dict) else value)[:_MOST_SEEDS]
        return max(filter(None, (_plain(one, kind, unit) for one in each)), default=None)
    return _plain(value, kind, unit)


def _plain(value: object, kind: str, unit: str) -> tuple[float, float] | None:
    """Return the number that a JSON number or a text states, and one unit of its last digit."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        if not unit or UNITS[kind][unit] == 1.0:
            return (float(value), 0.0) if abs(value) < 1e15 else None
        value = str(value)
    found = written(value, kind, unit) if isinstance(value, str) else None
    return found if found is not None and found[0] < 1e15 else None


def _seed(value: object) -> int | None:
    number = _plain(value, "", "")
    return int(number[0]) if number is not None and 0 <= number[0] < 1e10 else None


def _unread(value: dict[str, Any]) -> dict[str, str]:
    """Return values under known names that are no number, by name; null claims nothing."""
    kinds = {name: kind for names, _, kind in _MEANINGS for name in names}
    seeds = value.get("seeds")
    found = {}
    for name, part in next(_places(value)).items():
        unit = _unit_of_total(name)
        kind = kinds.get(name) if unit is None else "bytes"
        # Values of seeds are read with the seeds.
        of_seeds = isinstance(part, dict) and any(_SEED_KEY.search(str(key)) for key in part)
        beside = isinstance(part, list) and isinstance(seeds, list) and len(part) == len(seeds)
        if kind is None or part in (None, "") or of_seeds or beside:
            continue
        stated, of_runs = _statements(part, kind, unit or "")
        if len(stated) < (max(1, len(part[:_MOST_SEEDS])) if of_runs else 1):
            found[name] = str(part)[:300]
    return found


# ---------------------------------------------------------------------------------------------
# Bytes


def _unit_of_total(name: str) -> str | None:
    """Return the unit of a name of total bytes, in lower case; None for other names."""
    plain = _EVERY_SEED.sub("", name)
    found = _TOTAL_IN.fullmatch(plain)
    return "b" if plain in _TOTAL else found[1] if found else None


def _statements(value: object, kind: str, unit: str) -> tuple[list[tuple[float, float]], bool]:
    """Return the numbers that a value states, and whether each is of one run."""
    if kind == "bytes" and isinstance(value, dict):
        whole = [value[key] for key in ("total", "max", "bytes_total") if key in value][:1]
        return [n for one in whole if (n := _plain(one, kind, unit)) is not None], False
    if kind == "bytes" and isinstance(value, list):
        each = value[:_MOST_SEEDS]
        return [n for one in each if (n := _plain(one, kind, unit)) is not None], True
    number = _number(value, kind, unit)
    return ([] if number is None else [number]), False


def _read_totals(value: dict[str, Any], file: str, claims: Claims) -> None:
    """Read all statements of total bytes; the largest is the one that counts."""
    for place in _places(value):
        known = [(name, unit) for name in place if (unit := _unit_of_total(name)) is not None]
        known.sort(key=lambda one: _TOTAL.index(one[0]) if one[0] in _TOTAL else len(_TOTAL))
        for name, unit in known:
            stated, of_runs = _statements(place[name], "bytes", unit)
            found = [_at(number, file, f"{name}: {place[name]}") for number in stated]
            (claims.run_totals if of_runs else claims.totals).extend(found)
    largest = max([*claims.totals, *claims.run_totals], key=lambda n: n.value, default=None)
    if largest is not None:
        claims.numbers["total bytes"] = largest


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
            _take(claims, seed, part, file, above if _BARE_SEED.fullmatch(name) else name)
        elif isinstance(part, dict) and depth < _MOST_DEPTH:
            _read_seeds(part, file, claims, depth + 1, name)
        elif isinstance(part, list):
            _read_list(part[:_MOST_VALUES], name, file, claims)
    _parallel(dict(items), file, claims)


def _of_seeds(name: str) -> bool:
    """Return whether keys of digits in an object of this name are seeds."""
    known = re.search(r"seed|result|run|per_|bpb|bytes|time|steps|scores|loss|metrics", name, re.I)
    return bool(known) or _unit_of_total(name.lower()) is not None


def _read_list(part: list[Any], name: str, file: str, claims: Claims) -> None:
    for item in part:
        seed = _seed(item.get("seed") if isinstance(item, dict) else item)
        if seed is not None and isinstance(item, dict):
            _take(claims, seed, item, file, name)
        elif seed is not None and name.lower() in ("seeds", "seed_list"):
            claims.seeds.add(seed)


def _parallel(value: dict[str, Any], file: str, claims: Claims) -> None:
    """Read lists of scores or bytes beside a list of seeds of the same length."""
    listed = value.get("seeds")
    if not isinstance(listed, list) or not 0 < len(listed) <= _MOST_SEEDS:
        return
    seeds = [seed for one in listed if (seed := _seed(one)) is not None]
    for name, part in value.items():
        if isinstance(part, list) and len(part) == len(seeds) == len(listed) and _scores(name):
            counts = _unit_of_total(name.lower()) is not None
            for seed, one in zip(seeds, part, strict=True):
                if isinstance(one, float | str) or (counts and type(one) is int):
                    _take(claims, seed, one, file, name)


def _scores(name: str) -> bool:
    """Return whether a name says that its values are scores or total bytes."""
    score = re.search(r"bpb|seed_results|scores", name, re.IGNORECASE)
    other = _TEXTS.search(name) or _NO_BPB.search(name)
    return bool(score and not other) or _unit_of_total(name.lower()) is not None


def _take(claims: Claims, seed: int, part: object, file: str, above: str) -> None:
    """Record a claim for one seed: an object of numbers, or a score."""
    name, text = above.lower(), f"seed {seed}: {part}"
    unit = _unit_of_total(name)
    if isinstance(part, dict):
        of = claims.of_seed.setdefault(seed, SeedClaim())
        inner = {str(k): v for k, v in list(part.items())[:200]}
        _take_object(of, inner, seed, file, claims.unread)
        return
    number = _plain(part, "bytes" if "byte" in name or unit else "bpb", unit or "")
    if number is None:
        if isinstance(part, str) and _scores(above):
            claims.unread[f"{above}, seed {seed}"] = part
        return
    of = claims.of_seed.setdefault(seed, SeedClaim())
    place = _at(number, file, text)
    if (
        _like_bpb(number[0])
        and not re.search(r"byte|time|step|loss|_s$|_ms$", name)
        and not _NO_BPB.search(name)
    ):
        of.scores.setdefault("val_bpb", place)
    elif unit is not None:
        of.numbers.setdefault("total bytes", place)
    elif "byte" in name:
        of.numbers.setdefault("bytes", place)


def _take_object(
    of: SeedClaim, part: dict[str, Any], seed: int, file: str, unread: dict[str, str]
) -> None:
    for name, value in part.items():
        low = name.lower()
        if low in ("log", "log_file", "logfile", "train_log") and isinstance(value, str):
            of.log = value[:300]
        if isinstance(value, dict) and not _OTHERS.search(low):
            inner = {str(k): v for k, v in list(value.items())[:200]}
            _take_object(of, inner, seed, file, unread)
        meaning, kind, unit = _of_seed(low)
        number = _plain(value, kind, unit) if meaning else None
        if number is None:
            if meaning and isinstance(value, str) and (meaning != "bpb" or low in _MEAN):
                unread[f"seed {seed}, {name}"] = value
            continue
        place = _at(number, file, f"seed {seed}, {name}: {value}")
        if meaning != "bpb":
            of.numbers.setdefault(meaning, place)
        elif _like_bpb(number[0]):
            of.scores.setdefault(low, place)


def _of_seed(name: str) -> tuple[str, str, str]:
    """Return meaning, kind and unit of a number of a seed by its name; '' if it has no meaning."""
    unit = _unit_of_total(name)
    if unit is not None:
        return "total bytes", "bytes", unit
    if "bpb" in name and not _NO_BPB.search(name):
        return "bpb", "bpb", ""
    return next((known for names, known in _OF_SEED if name in names), ("", "", ""))


_OF_SEED = (
    (_STEPS, ("steps", "", "")), (_TRAIN_S, ("train seconds", "seconds", "s")),
    (_TRAIN_MS, ("train seconds", "seconds", "ms")), (_EVAL_S, ("eval seconds", "seconds", "s")),
    (("val_loss",), ("loss", "", "")),
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

_BPB_LIKE = re.compile(r"(?<![\d.])([0-3]\.\d{4,8})(?!\d|\.\d)")
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


# Lines about other records, and headings of records outside the budgets.
_NOT_OWN = re.compile(
    rf"{_OTHERS.pattern}|\b(?:vs|than|from|over|sota|improve\w*)\b", re.IGNORECASE
)
_TITLE = re.compile(rf"^#.{{0,200}}{NON_RECORD.pattern}", re.IGNORECASE | re.MULTILINE)


def told_scores(text: str, file: str) -> list[Number]:
    """Return the scores that a README states as its own, in their order."""
    found = []
    for number, line in enumerate(text.splitlines()[:20_000], start=1):
        shown = line[:4_096]
        if re.search(r"bpb|bits per byte", shown, re.IGNORECASE) and not _NOT_OWN.search(shown):
            found += [Number(float(s), file, number, s) for s in _BPB_LIKE.findall(shown)]
    return found[:20]


def outside_budgets(text: str) -> bool:
    """Return whether a heading of a README says that the record is outside the budgets."""
    return bool(_TITLE.search(text))


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
