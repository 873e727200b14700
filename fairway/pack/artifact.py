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
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from torch import Tensor

from fairway.base.cores import usable_cores
from fairway.base.errors import UserError
from fairway.base.files import canonical_json, digest_bytes, opened, write_atomic
from fairway.base.progress import progress
from fairway.config.checks import check, check_model
from fairway.config.settings import AUTO, Config, ModelConfig, PackConfig, ScoreConfig
from fairway.config.written import from_dict, to_dict
from fairway.data.tokens import Tokenizer
from fairway.pack.codec import CODECS, MAX_STRIDE, compress, decompress
from fairway.pack.layout import (
    Form,
    Loaded,
    SectionSpec,
    bits_of,
    form_of,
    layout,
    section_bits,
    section_bytes,
    section_trellis,
    threshold,
)
from fairway.pack.streams import KINDS, decode_section, encode_section
from fairway.quantise.gptq import QuantisedModel
from fairway.quantise.trellis import TRELLIS

MAGIC = b"FAIRWAY\0"
# Versions 1 to 4 existed before the first release; nothing reads them any more.
VERSION = 5
_PREFIX = struct.Struct("<8sII32s")
MAX_HEADER_BYTES = 1 << 16
MAX_TOKENIZER_BYTES = 1 << 24

# Numbers of two bytes compress better with their lower bytes first; benchmarks/README.md.
_STRIDE = 2
# The most bytes that a file may unpack to: 4 MiB plus 16 times its own size. Trained codes shrink
# by a factor of 2.4, and a fresh model with zero output projections by 4. A model of zeros would
# shrink without limit; only small models of tests may do so.
FREE_RAW_BYTES = 1 << 22
MAX_EXPANSION = 16

_FORM_KEYS = ("log_steps", "columns")
_HEADER_KEYS = {"model", "min_numel", "provenance", "sections", "tokenizer_digest", *_FORM_KEYS}
# If matrices have corrections, a header has this field, whose value has these fields.
_CORRECTIONS, _CORRECTION_KEYS = "corrections", {"matrices", "rank"}
_MOST_RANK = 64
_SECTION_KEYS = {
    "name", "kind", "bits", "codec", "stride", "trellis", "bytes", "raw_bytes", "sha256"
}  # fmt: skip
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
    """A loaded file: the config, the weights in float32 by name, and the account of its bytes."""

    config: ModelConfig
    state: dict[str, Tensor]
    tokenizer: bytes | None
    header: dict[str, Any]
    account: Account


@dataclass(frozen=True, slots=True, eq=False)
class Label:
    """What a file says about its weights: the header, and the tokenizer if it is inside."""

    header: dict[str, Any]
    tokenizer: bytes | None


@dataclass(frozen=True, slots=True, eq=False)
class _Head:
    """A checked header, with the facts that follow from it."""

    header: dict[str, Any]
    bytes: int
    config: ModelConfig
    specs: dict[str, SectionSpec]

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
    """Write a model; return the bytes of every section, which sum to the size of the file.

    The same inputs give the same bytes: the file contains no time, host or path. Raises UserError
    if the tokenizer has another vocabulary, or if the file would be so small that loading refuses
    to unpack it.
    """
    if tokenizer.vocab_size != model.vocab_size:
        raise UserError(
            f"the tokenizer has {tokenizer.vocab_size} pieces but the model {model.vocab_size}; "
            "pack with the tokenizer of the training run"
        )
    form = form_of(quantised, model)
    min_numel = threshold(quantised)
    sections = [_encode(spec, quantised, pack) for spec in layout(model, min_numel, form)]
    if pack.with_tokenizer:
        sections.append(_encode_tokenizer(tokenizer.data, pack))
    stored = _all_at_once(sections)
    entries = [section.entry for section in sections]
    header = {
        "model": to_dict(model),
        "min_numel": min_numel,
        "provenance": dict(provenance),
        "sections": entries,
        "tokenizer_digest": tokenizer.digest,
    }
    header |= {key: getattr(form, key) for key in _FORM_KEYS}
    if form.corrected:
        header[_CORRECTIONS] = {"matrices": list(form.corrected), "rank": form.rank}
    text = canonical_json(header)
    size = _PREFIX.size + len(text) + sum(map(len, stored))
    head = _checked(header, len(text), size)
    prefix = _PREFIX.pack(MAGIC, VERSION, len(text), hashlib.sha256(text).digest())
    write_atomic(path, b"".join([prefix, text, *stored]))
    return head.account


@dataclass(frozen=True, slots=True, eq=False)
class _Section:
    """A section to store: its entry in the header, and the ways to encode its bytes.

    A way has a codec, a stride and an encoder; the shortest result is stored.
    """

    entry: dict[str, Any]
    ways: list[tuple[str, int, Callable[[], bytes]]]


def _encode(spec: SectionSpec, quantised: QuantisedModel, pack: PackConfig) -> _Section:
    bits, trellis = section_bits(spec, quantised), section_trellis(spec, quantised)
    entry = {"name": spec.name, "kind": spec.kind, "bits": bits, "trellis": trellis}
    ways = []
    if pack.codec == "cabac" and spec.kind in KINDS:
        entry["raw_bytes"] = spec.raw_bytes(bits)
        ways.append(("cabac", 1, lambda: encode_section(spec, quantised)))
        if spec.kind == "codes":
            return _Section(entry, ways)
    # A fresh model has repeated scales, which Brotli compresses better.
    raw = section_bytes(spec, quantised)
    # Only two-byte numbers gain from the shuffle; for codes it would undo the gain of their column
    # order.
    stride = _STRIDE if spec.kind != "codes" and bits == 16 else 1
    return _Section(entry | {"raw_bytes": len(raw)}, [*ways, _way(raw, pack, stride)])


def _encode_tokenizer(data: bytes, pack: PackConfig) -> _Section:
    entry = {"name": "tokenizer", "kind": "tokenizer", "bits": 8, "trellis": 0}
    return _Section(entry | {"raw_bytes": len(data)}, [_way(data, pack, 1)])


def _way(raw: bytes, pack: PackConfig, stride: int) -> tuple[str, int, Callable[[], bytes]]:
    codec = "brotli" if pack.codec == "cabac" else pack.codec
    return codec, stride, lambda: compress(raw, codec, stride)


def _all_at_once(sections: list[_Section]) -> list[bytes]:
    """Return the stored bytes of all sections, and complete their header entries.

    The coders release the interpreter lock.
    """
    with progress("compress", sum(section.entry["raw_bytes"] for section in sections)) as advance:

        def work(section: _Section) -> bytes:
            found = [(encode(), codec, stride) for codec, stride, encode in section.ways]
            stored, codec, stride = min(found, key=lambda way: len(way[0]))
            section.entry.update(
                bytes=len(stored), sha256=digest_bytes(stored), codec=codec, stride=stride
            )
            advance(section.entry["raw_bytes"])
            return stored

        with ThreadPoolExecutor(usable_cores()) as pool:
            return list(pool.map(work, sections))


# ---------------------------------------------------------------------------------------------
# Reading


def load_artifact(path: Path) -> Artifact:
    """Return the model in a file, every digest and length checked.

    Raises UserError, in one sentence that names the file, unless the file is exactly in the form of
    `save_artifact`.
    """
    with opened(path, "the artifact") as stream:
        try:
            return _load(stream)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None


def read_label(path: Path) -> Label:
    """Return what a file says about its weights, which are not decoded.

    Decoding 36 million of them takes seconds. Raises UserError, in one sentence that names the
    file, if the header or the tokenizer is not as `save_artifact` writes it.
    """
    with opened(path, "the artifact") as stream:
        try:
            head = _read_head(stream)
            tokenizer = None
            if any(entry["kind"] == "tokenizer" for entry in head.header["sections"]):
                # It comes before all codes, so none is decoded.
                sections = _sections(stream, head, Loaded())
                raw = next(raw for entry, raw in sections if entry["kind"] == "tokenizer")
                tokenizer = _tokenizer(raw, head)
            return Label(head.header, tokenizer)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None


def account(path: Path) -> Account:
    """Return the bytes of every part of an artifact in file order; they sum to the file's size."""
    with opened(path, "the artifact") as stream:
        try:
            return _read_head(stream).account
        except UserError as error:
            raise UserError(f"{path}: {error}") from None


def read_sections(path: Path) -> Iterator[tuple[dict[str, Any], SectionSpec | None, bytes]]:
    """Yield entry, spec and raw bytes of every section, codes last; the tokenizer has no spec.

    Raises UserError as `load_artifact` does.
    """
    with opened(path, "the artifact") as stream:
        try:
            head = _read_head(stream)
            for entry, raw in _sections(stream, head, Loaded()):
                yield entry, head.specs.get(entry["name"]), raw
        except UserError as error:
            raise UserError(f"{path}: {error}") from None


def _load(stream: BinaryIO) -> Artifact:
    head = _read_head(stream)
    loaded, tokenizer = Loaded(), None
    for entry, raw in _sections(stream, head, loaded):
        if entry["kind"] == "tokenizer":
            tokenizer = _tokenizer(raw, head)
    return Artifact(head.config, loaded.state(), tokenizer, head.header, head.account)


def _tokenizer(raw: bytes, head: _Head) -> bytes:
    if digest_bytes(raw) != head.header["tokenizer_digest"]:
        raise UserError("the tokenizer inside is not the one its header names")
    return raw


def _sections(
    stream: BinaryIO, head: _Head, loaded: Loaded
) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Yield the entry and the raw bytes of every section, taken in by `loaded`.

    Codes come last, since decoding them needs the scales of their rows. Their sections do not need
    one another and are decoded in parallel: 36 million weights take 6.0 s on one core, 3.4 on two.
    """
    stream.seek(_PREFIX.size + head.bytes)
    stored = [(entry, _stored(stream, entry)) for entry in head.header["sections"]]

    def work(pair: tuple[dict[str, Any], bytes]) -> tuple[dict[str, Any], bytes]:
        return pair[0], _raw(*pair, head.specs.get(pair[0]["name"]), loaded)

    def taken(
        found: Iterable[tuple[dict[str, Any], bytes]],
    ) -> Iterator[tuple[dict[str, Any], bytes]]:
        for entry, raw in found:
            spec = head.specs.get(entry["name"])
            if spec is not None:
                loaded.add(spec, raw, entry["bits"], entry["trellis"])
            yield entry, raw

    yield from taken(map(work, (pair for pair in stored if pair[0]["kind"] != "codes")))
    with ThreadPoolExecutor(usable_cores()) as pool:
        yield from taken(pool.map(work, [pair for pair in stored if pair[0]["kind"] == "codes"]))


def _stored(stream: BinaryIO, entry: dict[str, Any]) -> bytes:
    """Return the next section of a file as it is stored."""
    stored = stream.read(entry["bytes"])
    if digest_bytes(stored) != entry["sha256"]:
        raise UserError(f"section '{entry['name']}' is damaged; copy the file again")
    return stored


def _raw(entry: dict[str, Any], stored: bytes, spec: SectionSpec | None, loaded: Loaded) -> bytes:
    """Return the raw bytes of a section."""
    try:
        if entry["codec"] == "cabac" and spec is not None:
            return decode_section(spec, stored, entry["bits"], entry["trellis"], loaded)
        return decompress(stored, entry["codec"], entry["stride"], entry["raw_bytes"])
    except UserError as error:
        raise UserError(f"in section '{entry['name']}' {error}") from None


def _read_head(stream: BinaryIO) -> _Head:
    """Return the checked header."""
    prefix = stream.read(_PREFIX.size)
    if prefix[: len(MAGIC)] != MAGIC:
        raise UserError("this is not a Fairway artifact")
    if len(prefix) < _PREFIX.size:
        raise UserError(f"the file ends after {len(prefix)} bytes; copy it again")
    _, version, length, digest = _PREFIX.unpack(prefix)
    if version != VERSION:
        raise UserError(
            f"the file has format version {version}, but this Fairway reads only version "
            f"{VERSION}; pack the run again"
        )
    if length > MAX_HEADER_BYTES:
        raise UserError(f"the header claims {length} bytes; at most {MAX_HEADER_BYTES} are read")
    text = stream.read(length)
    if hashlib.sha256(text).digest() != digest:
        raise UserError("the header is damaged; copy the file again")
    header = _parse(text)
    return _checked(header, length, os.fstat(stream.fileno()).st_size)


def _parse(text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(text, parse_int=_small)
        same = canonical_json(header) == text
    except (ValueError, RecursionError):
        raise UserError("the header is not valid JSON") from None
    # A unique encoding of the header also excludes repeated keys, NaN and extra blanks.
    if not same:
        raise UserError("the header is not in its canonical form")
    more = {_CORRECTIONS} & set(header) if isinstance(header, dict) else set()
    return dict(_with_keys(header, _HEADER_KEYS | more, "the header"))


def _small(digits: str) -> int:
    # No field needs larger numbers; a number of a thousand digits would overflow in a float.
    if len(digits) > 16:
        raise ValueError("number too long")
    return int(digits)


# ---------------------------------------------------------------------------------------------
# Checking a header against the model it names and the file it came in


def _checked(header: dict[str, Any], header_bytes: int, file_bytes: int) -> _Head:
    """Return the header if every field has its type and agrees with the model's config."""
    config: ModelConfig = from_dict(header["model"], ModelConfig, "model.")
    check_model(config)
    _check_provenance(header["provenance"])
    _require_hex(header["tokenizer_digest"], "the tokenizer's digest")
    min_numel = _whole(header["min_numel"], 0, 2**40, "min_numel")
    flags: dict[str, Any] = {key: _flag(header[key], key) for key in _FORM_KEYS}
    form = Form(**flags, **_corrections(header))
    if form.columns and not form.log_steps:
        raise UserError("the header has steps for columns but none for rows")
    specs = layout(config, min_numel, form)
    head = _Head(header, header_bytes, config, {spec.name: spec for spec in specs})
    _check_sections(header["sections"], specs)
    _check_sizes(head, file_bytes)
    return head


def _corrections(header: dict[str, Any]) -> dict[str, Any]:
    """Return the rank of the corrections and the matrices that have one, as a form has them."""
    if _CORRECTIONS not in header:
        return {}
    found = _with_keys(header[_CORRECTIONS], _CORRECTION_KEYS, "the header's corrections")
    rank, names = _whole(found["rank"], 1, _MOST_RANK, "the rank of corrections"), found["matrices"]
    if not isinstance(names, list) or not names or not all(type(name) is str for name in names):
        raise UserError("the header's corrections name no list of matrices")
    return {"rank": rank, "corrected": tuple(names)}


def _check_sizes(head: _Head, file_bytes: int) -> None:
    expected = sum(count for _, count in head.account)
    if file_bytes != expected:
        raise UserError(f"the file has {file_bytes} bytes, but its header describes {expected}")
    raw = sum(entry["raw_bytes"] for entry in head.header["sections"])
    if raw > FREE_RAW_BYTES + MAX_EXPANSION * file_bytes:
        raise UserError(
            f"{file_bytes} bytes decode to {raw}, more than {MAX_EXPANSION} times as many; no "
            "trained model compresses like that"
        )


def _check_sections(entries: Any, specs: list[SectionSpec]) -> None:
    if not isinstance(entries, list):
        raise UserError("the section table is not a list")
    for entry in entries:
        _check_section(entry)
    named = [(entry["name"], entry["kind"]) for entry in entries]
    if len(named) == len(specs) + 1 and named[-1] == ("tokenizer", "tokenizer"):
        size = entries[len(specs)]["raw_bytes"]
        _whole(size, 0, MAX_TOKENIZER_BYTES, "the length of the tokenizer")
        named.pop()
    if named != [(spec.name, spec.kind) for spec in specs] or not all(
        entry["raw_bytes"] == spec.raw_bytes(entry["bits"])
        for entry, spec in zip(entries, specs, strict=False)
    ):
        raise UserError("the sections do not match the model that the header describes")


def _check_section(entry: Any) -> None:
    _with_keys(entry, _SECTION_KEYS, "a section")
    name, kind = entry["name"], str(entry["kind"])
    own = entry["codec"] == "cabac" and kind in KINDS
    if not isinstance(name, str) or not (own or entry["codec"] in CODECS):
        raise UserError(f"section '{name}' has the unknown codec '{entry['codec']}'")
    _require_hex(entry["sha256"], f"the digest of section '{name}'")
    _whole(entry["stride"], 1, MAX_STRIDE, f"the stride of section '{name}'")
    _whole(entry["bytes"], 0, 2**40, f"the length of section '{name}'")
    _whole(entry["raw_bytes"], 0, 2**40, f"the raw length of section '{name}'")
    low, high = (2, 16) if kind == "codes" else (bits_of(kind), bits_of(kind))
    _whole(entry["bits"], low, high, f"the bits of section '{name}'")
    states = _whole(entry["trellis"], 0, 2**16, f"the trellis of section '{name}'")
    if states and (kind != "codes" or states not in TRELLIS):
        raise UserError(f"section '{name}' has a trellis of {states} states; 4, 8, 16 or 32 exist")


def _check_provenance(provenance: Any) -> None:
    _with_keys(provenance, set(_PROVENANCE), "the provenance")
    for key, kind in _PROVENANCE.items():
        if type(provenance[key]) is not kind:
            raise UserError(f"the provenance has {key} {provenance[key]!r}, not a {kind.__name__}")
    score: ScoreConfig = from_dict(provenance["score"], ScoreConfig, "score.")
    # The settings that decide whether the claimed score exists are not stored here.
    check(Config(score=replace(score, headline=AUTO)))


def _with_keys(value: Any, keys: set[str], what: str) -> Any:
    if not isinstance(value, dict) or set(value) != keys:
        raise UserError(f"{what} must have exactly the fields {', '.join(sorted(keys))}")
    return value


def _whole(value: Any, low: int, high: int, what: str) -> int:
    if type(value) is not int or not low <= value <= high:
        raise UserError(f"{what} is {value!r}; it must be a whole number from {low} to {high}")
    return value


def _flag(value: Any, what: str) -> bool:
    if type(value) is not bool:
        raise UserError(f"{what} is {value!r}; it must be true or false")
    return value


def _require_hex(value: Any, what: str) -> None:
    if not isinstance(value, str) or not _HEX.fullmatch(value):
        raise UserError(f"{what} is not a SHA-256 in hex")
