"""Token shards in the challenge's exact binary format.

256 little-endian int32 words (magic, version, token count, zeros), then uint16 token ids.
"""

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fairway.base.errors import UserError
from fairway.base.files import atomic_file, opened

MAGIC, VERSION = 20240520, 1
HEADER_WORDS, HEADER_BYTES, TOKEN_BYTES = 256, 1024, 2
PREFIXES = ("fairway", "fineweb")

Tokens = npt.NDArray[np.uint16]


def write_shard(path: Path, tokens: Tokens) -> None:
    """Write token ids (N,) as one shard, completely or not at all."""
    if tokens.dtype != np.uint16 or tokens.ndim != 1 or not 0 < len(tokens) < 2**31:
        raise UserError(f"{path.name}: a shard holds a row of uint16 ids, at least one")
    header = np.zeros(HEADER_WORDS, "<i4")
    header[:3] = MAGIC, VERSION, len(tokens)
    with atomic_file(path) as stream:
        stream.write(header.tobytes())
        stream.write(np.ascontiguousarray(tokens, "<u2").data)


def open_shard(path: Path) -> Tokens:
    """Return the token ids (N,) of a shard, mapped read-only.

    Raises UserError for a missing file, another magic number or version, and a size that does not
    match the stated count.
    """
    with opened(path, "the shard") as stream:
        header = stream.read(HEADER_BYTES)
        size = os.fstat(stream.fileno()).st_size
    if len(header) < HEADER_BYTES:
        raise UserError(f"{path} has {size} bytes; a token shard has at least {HEADER_BYTES}")
    magic, version, count = (int(word) for word in np.frombuffer(header, "<i4", 3))
    if magic != MAGIC:
        raise UserError(f"{path} is not a token shard: its first word is {magic}, not {MAGIC}")
    if version != VERSION:
        raise UserError(f"{path} is a token shard of version {version}; expected {VERSION}")
    expected = HEADER_BYTES + TOKEN_BYTES * count
    if count < 1 or size != expected:
        raise UserError(
            f"{path} announces {count} tokens, so {expected} bytes, but has {size}; "
            "it is damaged or cut short: build or fetch it again"
        )
    return np.memmap(path, "<u2", "r", HEADER_BYTES, (count,))


def find_shards(folder: Path, split: str) -> list[Path]:
    """Return the shards of `split` ('train' or 'val') in a folder, by name; UserError for none.

    The challenge's names (`fineweb_*`) are accepted, too; its `_bytes_` files contain byte counts
    and no tokens, and are skipped.
    """
    found = [
        path
        for prefix in PREFIXES
        for path in folder.glob(f"{prefix}_{split}_*.bin")
        if "_bytes_" not in path.name
    ]
    if not found:
        raise UserError(f"no {split} shards (*_{split}_*.bin) in {folder}; build or fetch the data")
    return sorted(found, key=lambda path: path.name)


def check_vocabulary(tokens: Tokens, vocab_size: int, name: str) -> None:
    """Raise UserError if an id of a shard or stream is not below `vocab_size`."""
    if len(tokens) and (largest := int(tokens.max())) >= vocab_size:
        raise UserError(
            f"{name} has token id {largest}, outside the vocabulary of {vocab_size}; "
            "it was made with another tokenizer"
        )
