"""The records of a data folder: the manifest of `fairway data build`, and that of a fetch.

A manifest comes from others at times. Its facts are checked before any of them is shown or used.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fairway.base.errors import UserError, shown
from fairway.base.files import read_json
from fairway.data.tokens import Tokenizer

MANIFEST, FETCHED, TOKENIZER, VAL_TEXT = (
    "manifest.json",
    "fetch.json",
    "tokenizer.model",
    "val.jsonl",
)
FORMAT, FORMAT_VERSION = "fairway-data", 1
UNFINISHED = "unfinished"
_DIGEST = re.compile(r"[0-9a-f]{64}")
_MISSING = object()

_Rule = tuple[Callable[[Any], bool], str]


def recorded(path: Path) -> tuple[dict[str, str], dict[str, Any]]:
    """Return the SHA-256 by file name of a manifest or fetch record, and the manifest if any."""
    for name in (MANIFEST, FETCHED):
        if not (path / name).exists():
            continue
        record = read_json(path / name)
        if is_unfinished(record):
            raise UserError(f"{path} is not complete; build or fetch the data again")
        if name == MANIFEST:
            with blamed(path / name):
                _require_possible(record)
            return _manifest_digests(record), record
        try:
            return {str(file): str(digest) for file, digest in record["files"].items()}, {}
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path / name} is damaged ({error!r}); make the data again") from None
    return {}, {}


@contextmanager
def blamed(path: Path) -> Iterator[None]:
    """Name the record that the block found to be wrong."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{path} is damaged: {error}; make the data again") from None


def _manifest_digests(manifest: dict[str, Any]) -> dict[str, str]:
    shards = [*manifest["train"]["shards"], *manifest["val"]["shards"]]
    return {
        **{shard["name"]: shard["sha256"] for shard in shards},
        TOKENIZER: manifest["tokenizer"]["sha256"],
        VAL_TEXT: manifest["val"]["text_sha256"],
    }


def unfinished_record() -> dict[str, Any]:
    """Return the content of a manifest while the folder is being filled; `open` refuses it."""
    return {"format": FORMAT, "version": FORMAT_VERSION, UNFINISHED: True}


def is_unfinished(record: Any) -> bool:
    """Return whether a record is of a folder that was never completed."""
    return isinstance(record, dict) and bool(record.get(UNFINISHED))


def tokenizer_record(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the facts of a tokenizer for a manifest."""
    return {
        "sha256": tokenizer.digest,
        "vocab_size": tokenizer.vocab_size,
        "lossless": tokenizer.lossless,
        **({"case_ops": True} if tokenizer.case_ops else {}),
    }


def _require_possible(manifest: Any) -> None:
    """Raise UserError for the first fact of a manifest that is missing or impossible."""
    if not isinstance(manifest, dict):
        raise _damaged("the manifest", manifest, "an object")
    for name, rule in _FIELDS.items():
        _require(manifest, name, rule)
    for side in ("train", "val"):
        _require_side(manifest[side], side)


def require_tokenizer(manifest: Mapping[str, Any], tokenizer: Tokenizer) -> None:
    """Raise UserError if a manifest says something else about its tokenizer."""
    facts = {"case_ops": False, **tokenizer_record(tokenizer)}
    recorded = {"case_ops": False, **manifest["tokenizer"]}
    for key, fact in facts.items():
        value = recorded.get(key, _MISSING)
        # True is 1 in Python, but not in a record.
        if type(value) is not type(fact) or value != fact:
            raise _damaged(f"tokenizer.{key}", value, f"{fact}, as its tokenizer has it")


def require_counts(manifest: Mapping[str, Any], side: str, counts: Mapping[str, int]) -> None:
    """Raise UserError if a manifest states other counts of a side than its shards have."""
    for key, count in counts.items():
        if manifest[side][key] != count:
            raise _damaged(f"{side}.{key}", manifest[side][key], f"{count}, as its shards have it")


def _damaged(name: str, value: Any, expected: str) -> UserError:
    is_ = "is missing" if value is _MISSING else f"is {shown(value)}"
    return UserError(f"{name} {is_}; expected {expected}")


def _require(record: Any, name: str, rule: _Rule, prefix: str = "") -> None:
    value = record
    for key in name.split("."):
        value = value.get(key, _MISSING) if isinstance(value, dict) else _MISSING
    holds, expected = rule
    if value is _MISSING or not holds(value):
        raise _damaged(prefix + name, value, expected)


def _require_side(record: dict[str, Any], side: str) -> None:
    for number, shard in enumerate(record["shards"]):
        for name, rule in _SHARD_FIELDS.items():
            _require(shard, name, rule, f"{side}.shards[{number}].")
    total = sum(shard["tokens"] for shard in record["shards"])
    # A document is one token for its start and at least one for its text.
    for name, rule in (
        ("tokens", (lambda value: value == total, f"{total}, the sum of its shards")),
        ("documents", (lambda value: 2 * value <= total, f"at most half of its {total} tokens")),
    ):
        _require(record, name, rule, f"{side}.")


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and _DIGEST.fullmatch(value) is not None


def _is_counts(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_count, value.values()))


_OBJECT: _Rule = (lambda value: isinstance(value, dict), "an object")
_TEXT: _Rule = (lambda value: isinstance(value, str), "a string")
_SHA: _Rule = (_is_digest, "a SHA-256 (64 digits 0-9a-f)")
_SOME: _Rule = (lambda value: _is_count(value) and value > 0, "a whole number of at least 1")
_SIDE = {
    "documents": _SOME,
    "bytes": _SOME,
    "tokens": _SOME,
    "shards": (lambda value: isinstance(value, list) and len(value) > 0, "a list of shards"),
}
_SHARD_FIELDS = {"name": _TEXT, "tokens": _SOME, "sha256": _SHA}
_FIELDS: dict[str, _Rule] = {
    "format": (lambda value: value == FORMAT, f"'{FORMAT}'"),
    "version": (
        lambda value: type(value) is int and value == FORMAT_VERSION,
        str(FORMAT_VERSION),
    ),
    "corpus_sha256": _SHA,
    "tokenizer": _OBJECT,
    "tokenizer.sha256": _SHA,
    "split": _OBJECT,
    "split.rule": _TEXT,
    "dropped": (_is_counts, "an object of counts, 0 or more each"),
    "provenance": _OBJECT,
    "train": _OBJECT,
    "val": _OBJECT,
    **{f"{side}.{name}": rule for side in ("train", "val") for name, rule in _SIDE.items()},
    "val.text_sha256": _SHA,
}
