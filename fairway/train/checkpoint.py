"""A run's state on disk: named tensors and a JSON text in one safetensors file, nothing executable.

The file is written under a temporary name and renamed, so a stop at any moment leaves the last good
checkpoint. It contains the digest of all its bytes, computed with zeros in place of the digest.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any, BinaryIO

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from fairway.base.errors import UserError
from fairway.base.files import atomic_file, opened, parse_json

_ZEROS = b"0" * 64
# No name and no fact can contain these bytes, since quotes inside JSON text are escaped.
_MARK = b'"digest":"'
# The beginning of metadata.
_FIRST = 8 + len('{"__metadata__":{')
_READ_BYTES = 1 << 20
# The largest header that safetensors itself accepts.
_MOST_HEADER_BYTES = 100_000_000


def save_checkpoint(path: Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> int:
    """Write tensors and JSON-able facts atomically; return the size of the file in bytes."""
    # safetensors cannot store views and shared storage, so every tensor is copied.
    plain = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    metadata = {"fairway": json.dumps(facts), "digest": _ZEROS.decode()}
    data = memoryview(save(plain, metadata=metadata))
    end = 8 + int.from_bytes(data[:8], "little")
    header = _digest_first(bytes(data[:end]))
    total = hashlib.sha256(header)
    total.update(data[end:])
    sealed = header.replace(_MARK + _ZEROS, _MARK + total.hexdigest().encode(), 1)
    with atomic_file(path) as stream:
        stream.write(sealed)
        stream.write(data[end:])
    return len(data)


def _digest_first(header: bytes) -> bytes:
    """Return a header with the digest first, since safetensors writes metadata in any order."""
    pair = _MARK + _ZEROS + b'"'
    at = header.index(pair)
    if at == _FIRST:
        return header
    return header[:_FIRST] + pair + b"," + header[_FIRST : at - 1] + header[at + len(pair) :]


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return (tensors on the CPU, facts); a missing or damaged file is a UserError."""
    if not path.is_file():
        raise UserError(f"{path} does not exist; there is nothing to resume from")
    try:
        with opened(path) as stream:
            check_digest(stream)
        with safe_open(path, framework="pt") as tables:
            facts = parse_json(tables.metadata()["fairway"])
            names = tables.keys()
            tensors = {name: tables.get_tensor(name) for name in names}
    except UserError:
        raise
    except (SafetensorError, KeyError, ValueError, TypeError, RuntimeError) as error:
        # PyTorch's messages about invalid shapes have many lines.
        raise damaged(path, str(error).partition("\n")[0]) from None
    return tensors, facts


def damaged(path: Path, why: object) -> UserError:
    """Return the error for a checkpoint whose bytes have changed."""
    return UserError(
        f"{path} is a damaged checkpoint ({why}); delete it, or begin again with --restart"
    )


def check_digest(stream: BinaryIO) -> None:
    """Raise ValueError unless the bytes of a file match its digest."""
    start = stream.read(8)
    size = int.from_bytes(start, "little")
    if not 0 < size <= _MOST_HEADER_BYTES:
        raise ValueError("its header is not one of safetensors")
    # The requested size is allocated, so it must be compared with the file's size first.
    header = stream.read(min(size, os.fstat(stream.fileno()).st_size))
    before, mark, rest = header.partition(_MARK)
    # Without a mark the stored digest is empty, and no digest equals that.
    told, rest = rest[: len(_ZEROS)], rest[len(_ZEROS) :]
    found = hashlib.sha256(start + before + mark + _ZEROS + rest)
    while piece := stream.read(_READ_BYTES):
        found.update(piece)
    if found.hexdigest().encode() != told:
        raise ValueError("its content does not match its digest")
