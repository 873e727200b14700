"""Checkpoints: safetensors with facts, and a digest of all of it."""

import hashlib
import json
import random
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fairway.train.checkpoint import load_checkpoint, save_checkpoint

from . import Case, Files
from .damage import damaged, spoil_value

NAME = "checkpoint.safetensors"
_MARK = b'"digest":"'
_DTYPES = {"F32": "<f4", "F16": "<f2", "I64": "<i8", "U8": "u1"}


class Checkpoints:
    """Tensors of some types and shapes, none, and facts with and without nesting."""

    name = "checkpoint"

    def specimens(self) -> list[Files]:
        """Return three checkpoints."""
        draw = torch.Generator().manual_seed(1)
        tensors = {
            "a.weight": torch.randn(5, 3, generator=draw),
            "b": torch.arange(7),
            "half": torch.randn(4, generator=draw).half(),
            "empty": torch.zeros(0, 3),
            "one": torch.tensor(2.5),
            "state": torch.arange(64, dtype=torch.uint8),
        }
        facts = {"step": 3, "seconds": 1.5, "loader": {"at": [1, 2, 3]}, "text": '\u2581\\"digest'}
        return [_file(tensors, facts), _file({"w": torch.ones(40, 40)}, {}), _file({}, facts)]

    def spoil(self, files: Files, rng: random.Random) -> Case:
        """Spoil bytes, or the header and data with length and digest made right again."""
        data = files[NAME]
        if rng.random() < 0.4:
            return Case({NAME: damaged(data, rng)}, False, "bytes")
        size = int.from_bytes(data[:8], "little")
        header, body = json.loads(data[8 : 8 + size]), data[8 + size :]
        note = "data"
        if rng.random() < 0.7:
            note = "header" + spoil_value(header, rng, ("F32", "F64", "BF16", "I64", "X", "[]"))
        else:
            body = damaged(body, rng)
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        if rng.random() < 0.1:
            length = rng.choice((0, 7, 2**31, 2**63, len(text) + 1))
            return Case({NAME: length.to_bytes(8, "little") + text + body}, False, "length")
        return Case({NAME: _sealed(len(text).to_bytes(8, "little") + text + body)}, True, note)

    def read(self, folder: Path) -> Any:
        """Return (tensors, facts)."""
        return load_checkpoint(folder / NAME)

    def wrong(self, files: Files, case: Case, found: Any) -> str:
        """Compare with the bytes that the header points to."""
        data = case.changes.get(NAME, files[NAME])
        assert isinstance(data, bytes)
        if not case.repaired and data != files[NAME]:
            return "a damaged file was loaded"
        size = int.from_bytes(data[:8], "little")
        header, body = json.loads(data[8 : 8 + size]), data[8 + size :]
        tensors, facts = found
        if json.loads(header.pop("__metadata__")["fairway"]) != facts:
            return "the facts are others"
        if header.keys() != tensors.keys():
            return "the names are others"
        for name, entry in header.items():
            first, end = entry["data_offsets"]
            tensor = tensors[name]
            if list(tensor.shape) != entry["shape"]:
                return f"{name} has another shape"
            if entry["dtype"] in _DTYPES:
                values = np.frombuffer(body[first:end], _DTYPES[entry["dtype"]])
                if values.tobytes() != tensor.reshape(-1).numpy().tobytes():
                    return f"{name} has other values"
        return ""


def _file(tensors: dict[str, torch.Tensor], facts: dict[str, Any]) -> Files:
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(Path(folder) / NAME, tensors, facts)
        return {NAME: (Path(folder) / NAME).read_bytes()}


def _sealed(data: bytes) -> bytes:
    """Return a file with the digest that belongs to it, where it has a place for one."""
    before, mark, rest = data.partition(_MARK)
    if not mark:
        return data
    digest = hashlib.sha256(before + mark + b"0" * 64 + rest[64:]).hexdigest().encode()
    return before + mark + digest + rest[64:]
