"""Artifacts: the container, every codec and kind of section (docs/format.md)."""

import hashlib
import json
import lzma
import random
import struct
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import brotli
import torch
from specimens import PROVENANCE, PUNY, WORDS, fancy, quantised, striped

from fairway.base.files import digest_bytes
from fairway.config.settings import PackConfig
from fairway.model.gpt import GPT
from fairway.pack.artifact import load_artifact, read_sections, save_artifact
from fairway.pack.codec import _LZMA_CHAIN, unshuffle

from . import Case, Files
from .damage import damaged, spoil_value

NAME = "a.fwy"
_WORDS = (
    *("", "raw", "brotli", "lzma", "cabac", "codes", "steps", "columns", "scales"),
    "vectors",
)
_SLOTS = struct.Struct("<8sII")


class Artifacts:
    """With and without steps, steps of columns, trellis and tokenizer."""

    name = "artifact"

    def specimens(self) -> list[Files]:
        """Return one artifact of each kind."""
        coded = PackConfig(codec="cabac")
        found: list[Files] = []
        for tensors, pack in (
            (quantised(PUNY), PackConfig(with_tokenizer=True)),
            (quantised(PUNY), replace(coded, with_tokenizer=True)),
            (fancy(PUNY), coded),
            (fancy(PUNY), replace(coded, codec="raw")),
            (fancy(PUNY), replace(coded, codec="lzma")),
            (striped(PUNY), coded),
        ):
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / NAME
                save_artifact(path, tensors, PUNY, pack, WORDS, PROVENANCE)
                found.append({NAME: path.read_bytes()})
        return found

    def spoil(self, files: Files, rng: random.Random) -> Case:
        """Spoil bytes, or sections and header with digests and lengths made right again."""
        if rng.random() < 0.4:
            return Case({NAME: damaged(files[NAME], rng)}, False, "bytes")
        data, note = forged(files[NAME], rng)
        return Case({NAME: data}, True, note)

    def read(self, folder: Path) -> Any:
        """Load the model, and unfold every section once more for `wrong`."""
        loaded = load_artifact(folder / NAME)
        return loaded, list(read_sections(folder / NAME))

    def wrong(self, files: Files, case: Case, found: Any) -> str:
        """Compare with the general decoders, and with the shapes of the model."""
        data = case.changes.get(NAME, files[NAME])
        if not case.repaired and data != files[NAME]:
            return "a file with a wrong digest was loaded"
        loaded, sections = found
        assert isinstance(data, bytes)
        stored = _split(data)[2]
        raws = {entry["name"]: raw for entry, _, raw in sections}
        for entry, bytes_ in zip(loaded.header["sections"], stored, strict=True):
            again, raw = _again(bytes_, entry["codec"], entry["stride"]), raws[entry["name"]]
            if again is not None and again != raw:
                return f"section {entry['name']} is another to the general decoder"
        with torch.device("meta"):
            expected = GPT(loaded.config).state_dict()
        if {n: t.shape for n, t in expected.items()} != {
            n: t.shape for n, t in loaded.state.items()
        }:
            return "the tensors are not those of the model"
        if not all(bool(tensor.isfinite().all()) for tensor in loaded.state.values()):
            return "a weight is not finite"
        if loaded.tokenizer and digest_bytes(loaded.tokenizer) != loaded.header["tokenizer_digest"]:
            return "the tokenizer is another"
        return ""


def _again(stored: bytes, codec: str, stride: int) -> bytes | None:
    """Return a section's bytes by the codec's own library; None for `cabac`, which has none."""
    if codec == "cabac":
        return None
    if codec == "brotli":
        stored = brotli.decompress(stored)
    elif codec == "lzma":
        stored = lzma.decompress(stored, lzma.FORMAT_RAW, None, _LZMA_CHAIN)
    return unshuffle(stored, stride)


def _split(data: bytes) -> tuple[int, dict[str, Any], list[bytes]]:
    """Return version, header and the stored sections of a whole artifact."""
    _, version, length = _SLOTS.unpack_from(data)
    header = json.loads(data[48 : 48 + length])
    sections, first = [], 48 + length
    for entry in header["sections"]:
        sections.append(data[first : first + entry["bytes"]])
        first += entry["bytes"]
    return version, header, sections


def forged(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    """Spoil a section or a field of the header, and make lengths and digests right again."""
    version, header, sections = _split(data)
    kind, note = rng.random(), ""
    if kind < 0.7:
        at = rng.randrange(len(sections))
        sections[at] = damaged(sections[at] or b"\0", rng)
        entry = header["sections"][at]
        entry["bytes"], entry["sha256"] = len(sections[at]), digest_bytes(sections[at])
        note = f"section {entry['name']}"
    if kind > 0.6:
        note += " header" + spoil_value(header, rng, _WORDS)
    if rng.random() < 0.1:
        version = rng.choice((1, 3, 4, 5))
        note += f" version {version}"
    text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    prefix = _SLOTS.pack(b"FAIRWAY\0", version, len(text)) + hashlib.sha256(text).digest()
    return prefix + text + b"".join(sections), note
