"""The artifact: one file with a model in it, every byte accounted for (docs/format.md).

    magic, version, header length, header digest | header JSON | sections, back to back

Loading executes nothing. Sizes follow from the model's config and are compared with what the file
claims before anything of that size is allocated; every byte is covered by a digest.
"""

import hashlib
import json
import os
import re
import struct
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from torch import Tensor

from fairway.checks import check, check_model
from fairway.config import Config, ModelConfig, PackConfig, ScoreConfig, from_dict, to_dict
from fairway.data.tokens import Tokenizer
from fairway.errors import UserError
from fairway.files import digest_bytes, write_atomic
from fairway.pack.codec import CODECS, MAX_STRIDE, compress, decompress
from fairway.pack.layout import (
    SectionSpec,
    layout,
    section_bits,
    section_bytes,
    state_of,
    threshold,
)
from fairway.progress import progress
from fairway.quantise.gptq import QuantisedModel

MAGIC = b"FAIRWAY\0"
FORMAT_VERSION = 1
_PREFIX = struct.Struct("<8sII32s")
MAX_HEADER_BYTES = 1 << 16
MAX_TOKENIZER_BYTES = 1 << 24

# What a file may unfold to: 4 MiB, and 16 times its own size. Trained codes shrink to about 0.42
# (2.4 times), a fresh model whose output projections are still zero by 4; a model of zeros alone
# would shrink without end, which only small ones, made by tests, may do.
FREE_RAW_BYTES = 1 << 22
MAX_EXPANSION = 16

_HEADER_KEYS = {"model", "min_numel", "provenance", "sections", "tokenizer_digest"}
_SECTION_KEYS = {"name", "kind", "bits", "codec", "stride", "bytes", "raw_bytes", "sha256"}
_PROVENANCE: dict[str, type] = {
    "recipe": str,
    "recipe_hash": str,
    "seed": int,
    "looping": bool,
    "score": dict,
    "fairway": str,
}
_HEX = re.compile("[0-9a-f]{64}")

Account = list[tuple[str, int]]


@dataclass(frozen=True, slots=True, eq=False)
class Artifact:
    """A loaded file: the config, the weights in float32 by name, and where its bytes go."""

    config: ModelConfig
    state: dict[str, Tensor]
    tokenizer: bytes | None
    header: dict[str, Any]
    account: Account


@dataclass(frozen=True, slots=True, eq=False)
class _Head:
    """A checked header, with what follows from it."""

    header: dict[str, Any]
    bytes: int
    config: ModelConfig
    specs: list[SectionSpec]

    @property
    def account(self) -> Account:
        """Return the bytes of every part of the file, in order."""
        sections = [(entry["name"], entry["bytes"]) for entry in self.header["sections"]]
        return [("magic, version, digest", _PREFIX.size), ("header", self.bytes), *sections]


# ---------------------------------------------------------------------------------------------
# Writing


def save_artifact(
    path: Path,
    quantised: QuantisedModel,
    model: ModelConfig,
    pack: PackConfig,
    tokenizer: Tokenizer,
    provenance: Mapping[str, Any],
) -> Account:
    """Write a model and return the bytes of every section, which sum to the file's size.

    The same inputs give the same bytes: no time, host or path goes in. Raises UserError if the
    tokenizer has another vocabulary, or if the weights hold so little that a file this small
    would not be allowed to unfold to them.
    """
    if tokenizer.vocab_size != model.vocab_size:
        raise UserError(
            f"the tokenizer has {tokenizer.vocab_size} pieces but the model {model.vocab_size}; "
            "pack with the tokenizer of the training run"
        )
    min_numel = threshold(quantised)
    specs = layout(model, min_numel)
    raw = [section_bytes(spec, quantised) for spec in specs]
    entries = [_entry(spec.name, spec.kind, section_bits(spec, quantised), pack) for spec in specs]
    if pack.with_tokenizer:
        raw.append(tokenizer.data)
        entries.append(_entry("tokenizer", "tokenizer", 8, pack))
    stored = _compress_all(raw, entries)
    for entry, before, after in zip(entries, raw, stored, strict=True):
        entry |= {"bytes": len(after), "raw_bytes": len(before), "sha256": digest_bytes(after)}
    header = {
        "model": to_dict(model),
        "min_numel": min_numel,
        "provenance": dict(provenance),
        "sections": entries,
        "tokenizer_digest": tokenizer.digest,
    }
    text = _canonical(header)
    head = _checked(header, len(text), _PREFIX.size + len(text) + sum(map(len, stored)))
    prefix = _PREFIX.pack(MAGIC, FORMAT_VERSION, len(text), hashlib.sha256(text).digest())
    write_atomic(path, b"".join([prefix, text, *stored]))
    return head.account


def _entry(name: str, kind: str, bits: int, pack: PackConfig) -> dict[str, Any]:
    # Only numbers of two bytes gain from the shuffle; it costs codes what their columns give.
    stride = pack.shuffle if kind in ("scales", "vectors") else 1
    return {"name": name, "kind": kind, "bits": bits, "codec": pack.codec, "stride": stride}


def _compress_all(raw: list[bytes], entries: list[dict[str, Any]]) -> list[bytes]:
    """Return the stored bytes of all sections; the coders release the interpreter lock."""
    with progress("compress", sum(map(len, raw))) as advance:

        def work(job: tuple[bytes, dict[str, Any]]) -> bytes:
            data, entry = job
            stored = compress(data, entry["codec"], entry["stride"])
            advance(len(data))
            return stored

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return list(pool.map(work, zip(raw, entries, strict=True)))


def _canonical(header: Any) -> bytes:
    """Return the one encoding of a header: sorted keys, no blanks, ASCII, no NaN."""
    return json.dumps(header, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


# ---------------------------------------------------------------------------------------------
# Reading


def load_artifact(path: Path) -> Artifact:
    """Return the model in a file, every digest and length checked.

    Raises UserError, in one sentence that names the file, for anything that is not exactly what
    `save_artifact` writes.
    """
    with _opened(path) as stream:
        try:
            return _load(stream)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None


def account(path: Path) -> Account:
    """Return the bytes of every part of an artifact in file order; they sum to the file's size."""
    with _opened(path) as stream:
        try:
            return _read_head(stream).account
        except UserError as error:
            raise UserError(f"{path}: {error}") from None


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise UserError(f"cannot read the artifact {path}: {error.strerror}") from None


def _load(stream: BinaryIO) -> Artifact:
    head = _read_head(stream)
    raw, bits = {}, {}
    for entry in head.header["sections"]:
        raw[entry["name"]] = _section(stream.read(entry["bytes"]), entry)
        bits[entry["name"]] = entry["bits"]
    tokenizer = raw.get("tokenizer")
    if tokenizer is not None and digest_bytes(tokenizer) != head.header["tokenizer_digest"]:
        raise UserError("the tokenizer inside is not the one its header names")
    state = state_of(head.specs, raw, bits)
    return Artifact(head.config, state, tokenizer, head.header, head.account)


def _section(stored: bytes, entry: dict[str, Any]) -> bytes:
    if digest_bytes(stored) != entry["sha256"]:
        raise UserError(f"section '{entry['name']}' is damaged; copy the file again")
    try:
        return decompress(stored, entry["codec"], entry["stride"], entry["raw_bytes"])
    except UserError as error:
        raise UserError(f"in section '{entry['name']}' {error}") from None


def _read_head(stream: BinaryIO) -> _Head:
    """Return the checked header; the stream is left at the first section."""
    prefix = stream.read(_PREFIX.size)
    if prefix[: len(MAGIC)] != MAGIC:
        raise UserError("this is not a Fairway artifact")
    if len(prefix) < _PREFIX.size:
        raise UserError(f"the file ends after {len(prefix)} bytes; copy it again")
    _, version, length, digest = _PREFIX.unpack(prefix)
    if version != FORMAT_VERSION:
        raise UserError(f"the format has version {version}, this Fairway reads {FORMAT_VERSION}")
    if length > MAX_HEADER_BYTES:
        raise UserError(f"the header claims {length} bytes; at most {MAX_HEADER_BYTES} are read")
    text = stream.read(length)
    if hashlib.sha256(text).digest() != digest:
        raise UserError("the header is damaged; copy the file again")
    return _checked(_parse(text), length, os.fstat(stream.fileno()).st_size)


def _parse(text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(text, parse_int=_small)
        same = _canonical(header) == text
    except (ValueError, RecursionError):
        raise UserError("the header is not valid JSON") from None
    # One encoding per header also rules out doubled keys, NaN and stray blanks.
    if not same:
        raise UserError("the header is not in its canonical form")
    return dict(_with_keys(header, _HEADER_KEYS, "the header"))


def _small(digits: str) -> int:
    # No field needs more; a number of a thousand digits would overflow where a float is due.
    if len(digits) > 16:
        raise ValueError("number too long")
    return int(digits)


# ---------------------------------------------------------------------------------------------
# Checking a header against the model it names and the file it came in


def _checked(header: dict[str, Any], header_bytes: int, file_bytes: int) -> _Head:
    """Return the header if every field is of its type and follows from the model's config."""
    config: ModelConfig = from_dict(header["model"], ModelConfig, "model.")
    check_model(config)
    _check_provenance(header["provenance"])
    _require_hex(header["tokenizer_digest"], "the tokenizer's digest")
    min_numel = _whole(header["min_numel"], 0, 2**40, "min_numel")
    head = _Head(header, header_bytes, config, layout(config, min_numel))
    _check_sections(header["sections"], head.specs)
    _check_sizes(head, file_bytes)
    return head


def _check_sizes(head: _Head, file_bytes: int) -> None:
    expected = sum(count for _, count in head.account)
    if file_bytes != expected:
        raise UserError(f"the file has {file_bytes} bytes, its header speaks of {expected}")
    raw = sum(entry["raw_bytes"] for entry in head.header["sections"])
    if raw > FREE_RAW_BYTES + MAX_EXPANSION * file_bytes:
        raise UserError(
            f"{file_bytes} bytes unfold to {raw}, more than {MAX_EXPANSION} times as many; no "
            "trained model compresses like that"
        )


def _check_sections(entries: Any, specs: list[SectionSpec]) -> None:
    if not isinstance(entries, list):
        raise UserError("the section table is not a list")
    for entry in entries:
        _check_section(entry)
    expected = [(spec.name, spec.kind, spec.raw_bytes) for spec in specs]
    found = [(entry["name"], entry["kind"], entry["raw_bytes"]) for entry in entries]
    if len(found) > len(expected) and found[-1][:2] == ("tokenizer", "tokenizer"):
        _whole(found.pop()[2], 0, MAX_TOKENIZER_BYTES, "the length of the tokenizer")
    if found != expected:
        raise UserError("the sections are not those of the model that the header describes")


def _check_section(entry: Any) -> None:
    _with_keys(entry, _SECTION_KEYS, "a section")
    name = entry["name"]
    if not isinstance(name, str) or entry["codec"] not in CODECS:
        raise UserError(f"section '{name}' has the unknown codec '{entry['codec']}'")
    _require_hex(entry["sha256"], f"the digest of section '{name}'")
    _whole(entry["stride"], 1, MAX_STRIDE, f"the stride of section '{name}'")
    _whole(entry["bytes"], 0, 2**40, f"the length of section '{name}'")
    _whole(entry["raw_bytes"], 0, 2**40, f"the raw length of section '{name}'")
    low, high = {"codes": (2, 8), "tokenizer": (8, 8)}.get(str(entry["kind"]), (16, 16))
    _whole(entry["bits"], low, high, f"the bits of section '{name}'")


def _check_provenance(provenance: Any) -> None:
    _with_keys(provenance, set(_PROVENANCE), "the provenance")
    for key, kind in _PROVENANCE.items():
        if type(provenance[key]) is not kind:
            raise UserError(f"the provenance has {key} {provenance[key]!r}, not a {kind.__name__}")
    check(Config(score=from_dict(provenance["score"], ScoreConfig, "score.")))


def _with_keys(value: Any, keys: set[str], what: str) -> Any:
    if not isinstance(value, dict) or set(value) != keys:
        raise UserError(f"{what} must have exactly the fields {', '.join(sorted(keys))}")
    return value


def _whole(value: Any, low: int, high: int, what: str) -> int:
    if type(value) is not int or not low <= value <= high:
        raise UserError(f"{what} is {value!r}; it must be a whole number from {low} to {high}")
    return value


def _require_hex(value: Any, what: str) -> None:
    if not isinstance(value, str) or not _HEX.fullmatch(value):
        raise UserError(f"{what} is not a SHA-256 in hex")
