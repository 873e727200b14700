"""What a record claims: the numbers of submission.json and README, taken by meaning."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from fairway.audit.records.logs import Number

_MOST_VALUES = 5_000
_MEAN = ("val_bpb", "val_bpb_mean", "mean_val_bpb", "bpb", "final_val_bpb", "score")
_SD = ("val_bpb_std", "std_val_bpb", "val_bpb_sd", "std", "bpb_std")
_TOTAL = ("bytes_total", "total_bytes", "artifact_bytes", "submission_bytes", "artifact_size_bytes")
_CODE = ("bytes_code", "code_bytes", "code_size_bytes")
_STEPS = ("steps", "step_stop", "train_steps", "steps_completed", "num_steps")
_TOKENS = ("val_tokens", "tokens_scored", "scored_tokens")


@dataclass(eq=False)
class Claims:
    """The numbers of a submission.json by meaning, and its scores by seed where it has them."""

    numbers: dict[str, Number] = field(default_factory=dict)
    by_seed: dict[int, Number] = field(default_factory=dict)
    seeds: set[int] = field(default_factory=set)
    # Whether the record says of itself that it competes for no budget.
    unlimited: bool = False


def read_claims(value: dict[str, Any], file: str) -> Claims:
    """Return what a parsed submission.json claims."""
    claims = Claims()
    for names, meaning in (
        (_MEAN, "bpb"), (_SD, "sd"), (_TOTAL, "total bytes"), (_CODE, "code bytes"),
        (_STEPS, "steps"), (_TOKENS, "val tokens"),
    ):  # fmt: skip
        found = _first(value, names, file)
        if found is not None:
            claims.numbers[meaning] = found
    for seed, score in _seeds(value):
        claims.seeds.add(seed)
        if score is not None:
            claims.by_seed[seed] = Number(score, file, 0, f"seed {seed}: {score}")
    track = str(value.get("track", "")).lower()
    claims.unlimited = "non" in track or "unlimited" in track
    return claims


def _first(value: dict[str, Any], names: tuple[str, ...], file: str) -> Number | None:
    """Return the first of some names, of the object itself or of one of its objects."""
    places = [value, *(v for v in value.values() if isinstance(v, dict))]
    for place in places:
        lower = {str(key).lower(): v for key, v in place.items()}
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
    if isinstance(value, str) and re.fullmatch(r"\s*\d[\d,]*(\.\d+)?\s*", value):
        return float(value.replace(",", ""))
    return None


def _seeds(value: dict[str, Any]) -> Iterator[tuple[int, float | None]]:
    """Yield seeds and their scores: {'42': {...}}, {'42': 1.08}, [{'seed': 42, ...}] or [42, 1]."""
    for name, part in list(value.items())[:_MOST_VALUES]:
        if "seed" not in str(name).lower():
            continue
        if isinstance(part, dict):
            for key, result in list(part.items())[:_MOST_VALUES]:
                digits = re.fullmatch(r"(?:seed[_-]?)?(\d{1,9})", str(key), re.IGNORECASE)
                if digits:
                    yield int(digits[1]), _score(result)
        elif isinstance(part, list):
            for item in part[:_MOST_VALUES]:
                seed = item.get("seed") if isinstance(item, dict) else item
                if type(seed) is int:
                    yield seed, _score(item) if isinstance(item, dict) else None


def _score(result: object) -> float | None:
    if isinstance(result, dict):
        found = _first(result, _MEAN, "")
        return found.value if found else None
    number = _number(result)
    return number if number is not None and 0 < number < 10 else None


# ---------------------------------------------------------------------------------------------
# README

_BPB_LIKE = re.compile(r"(?<![\d.])([0-3]\.\d{4,8})(?![\d.])")
_ASSIGNED = re.compile(r"(?<![\w$./-])([A-Z][A-Z0-9_]{2,60})=(?=[^=\s]|$)")
_FENCE = re.compile(r"^\s*(```|~~~)")
# Read by the machine below the script, not by the script.
_OF_OTHERS = re.compile(
    r"^(CUDA|NCCL|OMP|MKL|PYTHON|PYTORCH|TORCH|TRITON|HF|HUGGINGFACE|LD|PATH|PIP|HOME|CC|CXX|TMP|"
    r"XDG|WANDB|UV|VIRTUAL|DEBIAN|GLOO|CUBLAS|TOKENIZERS|NPROC|MASTER|WORLD|RANK|LOCAL|NVTE|XLA)"
)


def bpb_like(text: str) -> list[tuple[str, int]]:
    """Return what may be scores in a README, as written, with their lines."""
    found = []
    for number, line in enumerate(text.splitlines(), start=1):
        found += [(match[1], number) for match in _BPB_LIKE.finditer(line[:4_096])]
    return found[:_MOST_VALUES]


def variables(text: str) -> dict[str, int]:
    """Return the variables that a README's commands set for the script, with their lines.

    Only fenced code counts, and of it commands that start Python and what is exported for them.
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
