"""The facts that the memory of a run may hold: their kinds, checked before use.

A kind is a type (a `float` is any finite number), a range or a tuple of values to choose from, a
list of a kind, the names that a dictionary must hold, `Named` for any names of one kind, or
`Maybe` for what may be null.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fairway.base.errors import UserError
from fairway.config.settings import RuntimeConfig
from fairway.score.accounts import score_faults

# Fairway writes no larger whole numbers, and neither torch nor NumPy accepts them.
_LARGEST = 2**63 - 1
_THREADS = range(1, 1 << 16)
_WORDS = {bool: "true or false", str: "a text", dict: "an object", int: "a whole number"}


@dataclass(frozen=True, slots=True)
class Named:
    """Any number of names, each with a value of one kind."""

    kind: Any


@dataclass(frozen=True, slots=True)
class Maybe:
    """A value of a kind, or null."""

    kind: Any


_TRAIN = {
    "looping": bool,
    **dict.fromkeys(("steps", "tokens"), int),
    **dict.fromkeys(("seconds", "tokens_per_s", "final_loss"), float),
}
_PACK = {
    **dict.fromkeys(("bytes", "limit_bytes", "code_bytes"), int),
    **{name: Maybe(float) for name in ("matrix_sigmas", "level")},
    "digest": str,
    "sections": [{"name": str, "bytes": int}],
    "weights": {"void_fractions": {"average": Maybe(float), "artifact": Maybe(float)}},
    "matrices": [dict],
    "seconds": Named(float),
    "budget": {"used_s": float, "limit_s": float},
}
_SCORE = {
    **dict.fromkeys(("bpb", "nats", "nats_per_token", "seconds"), float),
    **dict.fromkeys(("tokens", "bytes"), int),
    "file_digest": str,
    "trail": [str],
}
_FINDING = dict.fromkeys(("severity", "code", "why", "file", "value"), str)
_PROBE = {
    **dict.fromkeys(("stage", "name", "did", "verdict", "why"), str),
    **{"rules": [str], "samples": int, "worst": Maybe(float), "position": Maybe(int)},
}
_PUBLISHED = {
    **dict.fromkeys(("bpb", "ppm_bpb", "model_bpb", "free_bpb", "gate_share", "coverage"), float),
    **dict.fromkeys(("label", "base"), str),
    "sums": {
        "positions": int,
        **dict.fromkeys(("mean", "geometric_mean", "least", "most"), float),
    },
}
_TOOL = {"bytes": int, "bpb": float, "primed_bpb": Maybe(float)}
# The required facts of each stage; a stage may have more.
_FACTS: dict[str, Any] = {
    "train": _TRAIN,
    "pack": _PACK,
    **{f"score.{name}": _SCORE for name in ("raw", "ema", "quantised", "sliding")},
    **{f"score.{name}": _SCORE for name in ("documents", "mixture")},
    "score.ttt": {**_SCORE, "method": str, "budget_s": float},
    "published": _PUBLISHED,
    "text": {"bytes": int, "tokens": int, "documents": int, "digest": str, "data_digest": str},
    "baselines": Named(_TOOL),
    "samples": {"samples": [{"prompt": str, "text": str}]},
    "costs": {"documents": int},
    "audit": {"passed": bool, "verdict": str, "findings": [_FINDING], "probes": [_PROBE]},
}
_RECORD = {"key": str, "reads": dict, "files": Named(Maybe(str)), "facts": dict, "seconds": float}
_TOOK = {"need_bytes": Maybe(int), "peak_bytes": int}
_PLAN = {
    "key": str,
    "threads": _THREADS,
    **{
        field.name: tuple(choice for choice in field.metadata["choices"] if choice != "auto")
        for field in dataclasses.fields(RuntimeConfig)
        if field.name != "threads"
    },
}
# The source of a recipe that is not Fairway's: see `fairway.recipes.find`.
_ORIGIN = {
    **dict.fromkeys(("argument", "function", "package"), str),
    "files": [dict.fromkeys(("name", "digest", "text"), str)],
    "config": dict,
}
_MEMORY = {
    "config": dict,
    "plan": _PLAN,
    "begun": {"config": dict, "plan": _PLAN},
    "origin": _ORIGIN,
    "code": {"bytes": int, "settings": str, "sources": str},
    "results": str,
    "device": str,
}


def check_memory(memory: Mapping[str, Any], file: str) -> None:
    """Raise UserError if values of a memory are not of the kinds that Fairway writes."""
    if fault := _first(_faults(memory)):
        raise UserError(f"{file} is damaged: {fault}; delete it and the stages run again")


def _faults(memory: Mapping[str, Any]) -> Iterable[str]:
    stages = memory.get("stages")
    yield (wrong := fault_of(stages, Named(_RECORD), "stages"))
    for name, record in ({} if wrong or stages is None else stages).items():
        yield (wrong := fault_of(record["facts"], _FACTS.get(name, dict), f"stages.{name}.facts"))
        if not wrong and name.startswith("score."):
            yield from score_faults(name.removeprefix("score."), record["facts"])
        if "memory" in record:
            yield fault_of(record["memory"], _TOOK, f"stages.{name}.memory")
    for name, kind in _MEMORY.items():
        if name in memory:
            yield fault_of(memory[name], kind, name)
    if begun := memory.get("begun"):
        yield fault_of(begun.get("origin"), Maybe(_ORIGIN), "begun.origin")


def _first(faults: Iterable[str]) -> str:
    return next(filter(None, faults), "")


def fault_of(value: Any, kind: Any, place: str) -> str:
    """Return the fault of a value in words, or an empty text."""
    if isinstance(kind, Maybe):
        return "" if value is None else fault_of(value, kind.kind, place)
    if isinstance(kind, list):
        wrong = "" if type(value) is list else f"{place} is {_shown(value)} and not a list"
        inside = enumerate([] if wrong else value)
        return wrong or _first(fault_of(item, kind[0], f"{place}[{n}]") for n, item in inside)
    if isinstance(kind, Named | dict):
        return _fault_of_names(value, kind, place)
    if isinstance(kind, tuple | range):
        known = type(value) is type(kind[0]) and value in kind
        return "" if known else f"{place} is {_shown(value)}, which is none of its values"
    return "" if _is(value, kind) else f"{place} is {_shown(value)} and not {_words(kind)}"


def _fault_of_names(value: Any, kind: Any, place: str) -> str:
    if type(value) is not dict:
        return f"{place} is {_shown(value)} and not an object"
    kinds = dict.fromkeys(value, kind.kind) if isinstance(kind, Named) else kind
    missing = (f"{place} has no '{name}'" for name in kinds if name not in value)
    inside = (fault_of(value[n], k, f"{place}.{n}") for n, k in kinds.items())
    return _first(missing) or _first(inside)


def _is(value: Any, kind: Any) -> bool:
    if kind is float:
        return type(value) in (int, float) and abs(value) < _LARGEST and math.isfinite(value)
    return type(value) is kind and (kind is not int or abs(value) <= _LARGEST)


def _words(kind: Any) -> str:
    return _WORDS.get(kind, "a number")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
