"""Coded files: proofs by every method, and compressed files."""

import dataclasses
import json
import random
import struct
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import brotli
import numpy as np
from everywhere import documents
from specimens import PROVENANCE, PUNY, quantised

from fairway.base.files import digest_bytes
from fairway.config.settings import MixtureConfig, PackConfig, RuntimeConfig, ScoreConfig, TttConfig
from fairway.config.written import to_dict
from fairway.data.build import build_data
from fairway.data.documents import Document
from fairway.data.folder import DataFolder
from fairway.data.pieces import Packer
from fairway.pack.artifact import save_artifact
from fairway.prove.archive import compress, decompress, header_of
from fairway.prove.coding import Session, Sliding, method_named, open_session
from fairway.prove.container import ARCHIVE, coded_file, open_coded, open_file, stored_file
from fairway.prove.machine import coding_plan
from fairway.prove.proof import prove, restore

from . import Case, Files, most_bytes
from .damage import damaged, spoil_value

NAME, ARTIFACT = "file", "artifact.fwy"
_RUNTIME = RuntimeConfig(threads=1, dtype="float32", matmul="highest")
_TTT = TttConfig(chunk_tokens=48, epochs=1, lora_rank=1, lora_documents=2, lora_chunks="8")
_PREFIX = struct.Struct("<8sBB32s")
_LENGTHS = struct.Struct("<II")
_BYTES = ('"bytes"', '"b\\u0079tes"')
_WORDS = ("sliding", "sgd", "lora", "experts", "ppm", "match tilt", "auto", "cuda", "bfloat16")


@cache
def _good() -> tuple[bytes, DataFolder, tempfile.TemporaryDirectory[str]]:
    """Return an artifact of a tiny model with a tokenizer, its data, and where both lie."""
    place = tempfile.TemporaryDirectory()
    data = Path(place.name) / "data"
    build_data(documents(30), data, vocab_size=300, val_share=0.2, shard_tokens=20_000)
    source = DataFolder.open(data)
    model = dataclasses.replace(PUNY, vocab_size=300)
    score = ScoreConfig(seq_len=48, stride=16, check_positions=2)
    path = Path(place.name) / ARTIFACT
    save_artifact(
        path,
        quantised(model),
        model,
        PackConfig(with_tokenizer=True),
        source.tokenizer,
        PROVENANCE | {"score": to_dict(score)},
    )
    return path.read_bytes(), source, place


def _session() -> Session:
    return open_session(Path(_good()[2].name) / ARTIFACT, None, coding_plan(_RUNTIME))


class _Coded:
    """What proofs and compressed files have in common."""

    name = ""

    def spoil(self, files: Files, rng: random.Random) -> Case:
        """Spoil the file's bytes, or header, payload or kind with digests made right again; or
        write the same otherwise, which must come back, or be refused."""
        data = files[NAME]
        if rng.random() < 0.6:
            return Case({NAME: damaged(data, rng)}, False, "bytes")
        _, version, kind, _ = _PREFIX.unpack(data[: _PREFIX.size])
        body, note = data[_PREFIX.size :], "body"
        choice = rng.random()
        if kind == 0 or choice < 0.15:
            body = damaged(body, rng)
        else:
            packed, _ = _LENGTHS.unpack(body[: _LENGTHS.size])
            end = _LENGTHS.size + packed
            header, payload = json.loads(brotli.decompress(body[_LENGTHS.size : end])), body[end:]
            text, note = "", "payload"
            if choice < 0.3:
                payload = damaged(payload, rng) if payload else b"\1"
            elif choice < 0.45:
                note = _claims(header, rng)
            elif choice < 0.7:
                note = "header" + spoil_value(header, rng, _WORDS)
            else:
                text, note = _otherwise(header, rng), "the same otherwise"
            body = _body(header, payload, text, rng.randrange(12))
        if rng.random() < 0.03:
            version, kind = rng.choice(((1, 0), (1, 1), (1, 2), (1, 3), (2, 1)))
        digest = bytes.fromhex(digest_bytes(body))
        return Case({NAME: _PREFIX.pack(b"FWYCODE\0", version, kind, digest) + body}, True, note)

    def most_bytes(self, size_bytes: int) -> int:
        """Return the bound: 1,024 rows of the tiny model take 70 MB, whatever the file."""
        return most_bytes(size_bytes) + 64_000_000

    def wrong(self, files: Files, case: Case, found: Any) -> str:
        """Compare with the digest in the header; a stored file is its own body."""
        data = case.changes.get(NAME, files[NAME])
        assert isinstance(data, bytes)
        if not case.repaired and data != files[NAME]:
            return "a damaged file was restored"
        kind, body = open_file(data)
        if kind == 0:
            return "" if found == body else "a stored file came back otherwise"
        return "" if digest_bytes(found) == open_coded(body)[0].digest else "the digest differs"


def _body(header: Any, payload: bytes, text: str, quality: int) -> bytes:
    text = text or json.dumps(header, sort_keys=True, separators=(",", ":"))
    packed = brotli.compress(text.encode(), quality=quality)
    return _LENGTHS.pack(len(packed), len(text.encode())) + packed + payload


def _otherwise(header: dict[str, Any], rng: random.Random) -> str:
    """Return the header as JSON with blanks, escapes, its names in another order; or nothing, for
    the one way in which it is written, of which only the packing may differ."""
    if rng.random() < 0.8:
        return ""
    names = rng.sample(list(header), len(header))
    text = json.dumps({name: header[name] for name in names}, indent=rng.choice((None, 0, 2)))
    return rng.choice(("", "\n", " ")) + text.replace('"bytes"', rng.choice(_BYTES))


def _claims(header: dict[str, Any], rng: random.Random) -> str:
    """Let a header claim other streams, of which its own fingerprint may be right."""
    count = rng.choice((1, 2, 3, 64, 1024, 5_000, 100_000))
    longest = rng.choice((1, 2, 40, 5_000, 2**24, 2**47))
    header["targets"] = [longest] + [rng.choice((0, 1, 1, 1))] * (count - 1)
    header["joined"] = [True] * count
    header["bytes"] = rng.choice((1, 10**4, 2**47))
    header["rows"] = rng.choice((1, min(count, 8), min(count, 1024)))
    header["fingerprint"] = _fingerprint(min(header["rows"], 8))
    return f"{count} streams, the first of {longest}"


@cache
def _fingerprint(rows: int) -> str:
    return _session().fingerprint(rows)


class Proofs(_Coded):
    """Proofs by every method, in one stream and in several."""

    name = "proof"

    def specimens(self) -> list[Files]:
        """Return a proof by each method."""
        artifact, source, place = _good()
        # To read a letter costs some milliseconds: campaigns want many files, not long ones.
        lines = source.sample_validation().documents[0].split("\n")[:2]
        texts = [text[:16] for text in lines]
        parts = [Document(str(n), text) for n, text in enumerate(texts)]
        experts = MixtureConfig(experts="ppm match tilt", memory_mb=8)
        found: list[Files] = []
        for name, streams, beside in (
            ("sliding", 1, None), ("sliding", 3, None), ("sgd", None, None), ("lora", 2, None),
            ("sliding", 1, experts),
        ):  # fmt: skip
            method, count = method_named(name, _TTT, 0, streams, beside)
            file, _ = prove(
                Path(place.name) / ARTIFACT,
                parts,
                method,
                limit_bytes=0,
                streams=count,
                tokenizer=None,
                runtime=_RUNTIME,
            )
            found.append({NAME: file, ARTIFACT: artifact})
        return found

    def read(self, folder: Path) -> Any:
        """Return the restored text."""
        return restore(folder / NAME, folder / ARTIFACT, None)[0]


class Archives(_Coded):
    """Compressed files: text, bytes that are none, noise that is stored, nothing."""

    name = "compressed"

    def specimens(self) -> list[Files]:
        """Return a compressed file of each kind."""
        artifact, source, _ = _good()
        text, session = source.sample_validation().documents[0].encode()[:40], _session()
        found = [stored_file(random.Random(1).randbytes(60)), compress(b"", session, 1)]
        # So little text of so small a model would be stored.
        for data, count in ((text, 1), (text, 4), (text + b"\xff\0\r\n", 2)):
            parts = np.array_split(Packer(session.language.tokenizer).pack(data), count)
            payload, _ = session.encode(parts, count, Sliding())
            found.append(coded_file(ARCHIVE, header_of(session, data, parts), payload))
        return [{NAME: file, ARTIFACT: artifact} for file in found]

    def read(self, folder: Path) -> Any:
        """Return the restored bytes."""
        return decompress((folder / NAME).read_bytes(), folder / ARTIFACT, None)
