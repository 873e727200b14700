"""Spoiled artifacts without end: what a loader must refuse in one sentence, or read."""

import hashlib
import json
import random
import resource
import struct
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from specimens import PROVENANCE, PUNY, WORDS, fancy, quantised, striped

from fairway.config import PackConfig
from fairway.errors import UserError
from fairway.files import digest_bytes
from fairway.pack.artifact import load_artifact, save_artifact

# The bound of docs/format.md for files of a few kilobytes.
MOST_BYTES = 64_000_000 + 20 * (1 << 22)
MOST_S = 20.0
_ODD = (None, True, False, 0, -1, 1, 2, 3, 8, 9, 16, 17, 255, 2**31, 2**40, 2**63, 10**17, 0.5)
_WORDS = (
    "",
    "raw",
    "brotli",
    "lzma",
    "cabac",
    "codes",
    "steps",
    "orders",
    "columns",
    "scales",
    "vectors",
)


def mutants(data: bytes, count: int, seed: int) -> Iterator[tuple[bytes, bool]]:
    """Yield spoiled copies, and whether their digests were made right again: every other one."""
    rng = random.Random(seed)
    for number in range(count):
        if number % 2 == 0:
            spoiled = _spoiled(data, rng)
            yield (spoiled if spoiled != data else data + b"\0"), False
        else:
            yield _forged(data, rng), True


def _spoiled(data: bytes, rng: random.Random) -> bytes:
    """Change, drop, double or swap some bytes, up to a few times."""
    out = bytearray(data)
    for _ in range(1 + rng.randrange(3)):
        at, length = rng.randrange(len(out) + 1), 1 << rng.randrange(8)
        piece = out[at : at + length]
        match rng.randrange(5):
            case 0:
                out[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                out[at : at + length] = b""
            case 2:
                out[at:at] = piece
            case 3:
                out[at : at + length] = rng.randbytes(len(piece))
            case 4:
                out[at : at + length] = bytes(len(piece))
        if not out:
            return b""
    return bytes(out)


def _forged(data: bytes, rng: random.Random) -> bytes:
    """Spoil a section or a field of the header, and make lengths and digests right again."""
    version, length = struct.unpack_from("<II", data, 8)
    header = json.loads(data[48 : 48 + length])
    sections, first = [], 48 + length
    for entry in header["sections"]:
        sections.append(data[first : first + entry["bytes"]])
        first += entry["bytes"]
    kind = rng.random()
    if kind < 0.7:
        at = rng.randrange(len(sections))
        sections[at] = _spoiled(sections[at] or b"\0", rng)
        entry = header["sections"][at]
        entry["bytes"], entry["sha256"] = len(sections[at]), digest_bytes(sections[at])
    if kind > 0.6:
        _spoil_field(header, rng)
    if rng.random() < 0.1:
        version = rng.choice((1, 2, 3))
    text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    prefix = struct.pack("<8sII", b"FAIRWAY\0", version, len(text)) + hashlib.sha256(text).digest()
    return prefix + text + b"".join(sections)


def _spoil_field(header: dict[str, Any], rng: random.Random) -> None:
    node: Any = header
    while True:
        key = rng.choice(list(node) if isinstance(node, dict) else list(range(len(node))))
        inner = node[key]
        if isinstance(inner, dict | list) and inner and rng.random() < 0.95:
            node = inner
            continue
        break
    if key in ("bytes", "sha256") and rng.random() < 0.9:
        return
    if isinstance(inner, int) and rng.random() < 0.6:
        node[key] = inner + rng.choice((-1, 1, inner, 7))
    else:
        node[key] = rng.choice(_WORDS) if isinstance(inner, str) else rng.choice(_ODD)


def artifacts(folder: Path) -> list[bytes]:
    """Versions 1 to 3; with and without steps, trellis, orders and tokenizer."""
    brotli, cabac = PackConfig(with_tokenizer=True), PackConfig(codec="cabac")
    found = []
    for tensors, pack in (
        (quantised(PUNY), brotli),
        (quantised(PUNY), replace(cabac, with_tokenizer=True)),
        (fancy(PUNY), cabac),
        (fancy(PUNY), replace(cabac, codec="raw")),
        (striped(PUNY), cabac),
    ):
        save_artifact(folder / "a.fwy", tensors, PUNY, pack, WORDS, PROVENANCE)
        found.append((folder / "a.fwy").read_bytes())
    return found


def spoil(folder: Path, count: int, seed: int) -> tuple[int, int]:
    """Load so many spoiled copies of every artifact; return how many loaded, and the slowest s."""
    loaded, slowest_s = 0, 0.0
    path = folder / "spoiled.fwy"
    good = artifacts(folder)
    for data in good:
        # Once before measuring: libraries, and what numba compiles.
        path.write_bytes(data)
        load_artifact(path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number, data in enumerate(good):
        for spoiled, repaired in mutants(data, count, seed + number):
            path.write_bytes(spoiled)
            start_s = time.perf_counter()
            try:
                load_artifact(path)
                assert repaired, "a file with a wrong digest was loaded"
                loaded += 1
            except UserError as error:
                assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
            slowest_s = max(slowest_s, time.perf_counter() - start_s)
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    assert grown < MOST_BYTES, f"loading took {grown:,} bytes"
    assert slowest_s < MOST_S
    return loaded, slowest_s
