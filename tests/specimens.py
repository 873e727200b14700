"""Small quantised models for tests of the artifact, the same on every machine."""

import hashlib
import json
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from fairway.base.files import digest_bytes
from fairway.config.settings import ModelConfig, QuantConfig, ScoreConfig
from fairway.config.written import to_dict
from fairway.model.gpt import GPT, build
from fairway.quantise.correction import Correction
from fairway.quantise.gptq import QuantisedModel, is_coded, quantise_model
from fairway.quantise.grid import QuantisedTensor, scale_of

TINY = ModelConfig(
    vocab_size=260, num_layers=2, dim=8, num_heads=2, num_kv_heads=1, mlp_dim=8, rope_dims=2,
    parallel_from=1, loop_first=0, loop_last=1, loop_extra=1,
)  # fmt: skip
PUNY = replace(TINY, num_layers=1, loop_extra=0)
# A stand-in for the tokenizer: the container knows its bytes, digest and size only.
WORDS: Any = SimpleNamespace(data=b"words" * 9, digest=digest_bytes(b"words" * 9), vocab_size=260)
PROVENANCE = {
    "recipe": "test",
    "recipe_hash": "0123456789abcdef",
    "seed": 42,
    "looping": True,
    "score": to_dict(ScoreConfig()),
    "fairway": "0.1.0",
}
ROUND = QuantConfig(method="round", min_numel=40)


def quantised(config: ModelConfig = TINY, quant: QuantConfig = ROUND) -> QuantisedModel:
    return quantise_model(alive(config).state_dict(), {}, quant)


def alive(config: ModelConfig) -> GPT:
    """A model whose output projections are not the zeros they start as."""
    model = build(config, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in model.parameters():
            # Sixteenths are the same on every machine.
            noise = torch.randint(-16, 17, weight.shape, generator=generator)
            weight += noise / 256
    return model


def fancy(config: ModelConfig = TINY, seed: int = 5) -> QuantisedModel:
    """Codes beyond int8 on a trellis, with steps on the logarithmic grid."""
    generator = torch.Generator().manual_seed(seed)
    tensors: QuantisedModel = {}
    for name, weight in GPT(config).state_dict().items():
        if not is_coded(name, weight, 40):
            tensors[name] = torch.ones(weight.shape).half()
            continue
        R, C = weight.shape
        codes = torch.randint(-300, 301, (R, C), generator=generator).short()
        steps = torch.randint(-90, 91, (R,), generator=generator).short()
        tensors[name] = QuantisedTensor(codes, scale_of(steps), 10, steps, 8)
    return tensors


def striped(config: ModelConfig = TINY) -> QuantisedModel:
    """`fancy` with steps for the columns of all matrices but one."""
    found = fancy(config)
    for name, tensor in found.items():
        if isinstance(tensor, QuantisedTensor) and name != "blocks.0.mlp.fc.weight":
            columns = (torch.arange(tensor.codes.shape[1]) * 11 % 49 - 32).to(torch.int8)
            found[name] = replace(tensor, columns=columns)
    return found


def amended(config: ModelConfig = TINY) -> QuantisedModel:
    """`quantised` with corrections of rank 12, or what their matrices have, of every fourth."""
    found, generator = quantised(config), torch.Generator().manual_seed(7)
    names = [name for name, tensor in found.items() if isinstance(tensor, QuantisedTensor)]
    for name in names[::4]:
        tensor = found[name]
        assert isinstance(tensor, QuantisedTensor)
        R, C = tensor.codes.shape
        rank = min(12, R, C)
        left = torch.randint(-2, 2, (R, rank), generator=generator).to(torch.int8)
        right = torch.randint(-8, 8, (rank, C), generator=generator).to(torch.int8)
        scales = torch.randint(1, 99, (1 + -(-rank * C // 64),), generator=generator) / 512
        found[name] = replace(tensor, correction=Correction(left, right, scales.half()))
    return found


# ---------------------------------------------------------------------------------------------
# Artifacts changed so that nothing but the change is wrong


def canonical(header: Any) -> bytes:
    """The one encoding of a header, as docs/format.md has it."""
    return json.dumps(header, sort_keys=True, separators=(",", ":")).encode()


def reheaded(
    path: Path, change: Callable[[dict[str, Any]], Any], tail: bytes | None = None
) -> Path:
    """Change the header of an artifact so that its digest is right again."""
    data = path.read_bytes()
    length = struct.unpack_from("<I", data, 12)[0]
    header = json.loads(data[48 : 48 + length])
    header = change(header) or header
    text = header if isinstance(header, bytes) else canonical(header)
    rest = data[48 + length :] if tail is None else tail
    prefix = data[:12] + struct.pack("<I", len(text)) + hashlib.sha256(text).digest()
    path.write_bytes(prefix + text + rest)
    return path


def change(*where: Any, to: Any) -> Callable[[dict[str, Any]], None]:
    def apply(header: dict[str, Any]) -> None:
        node: Any = header
        for key in where[:-1]:
            node = node[key]
        node[where[-1]] = to

    return apply


def header_of(data: bytes) -> dict[str, Any]:
    """The header of an artifact."""
    header: dict[str, Any] = json.loads(data[48 : 48 + struct.unpack_from("<I", data, 12)[0]])
    return header


def resealed(path: Path, data: bytes, name: str, raw: bytes) -> Path:
    """Write an artifact with other numbers in a section that is stored raw; digests are right."""
    header = header_of(data)
    first = 48 + struct.unpack_from("<I", data, 12)[0]
    for entry in header["sections"]:
        if entry["name"] == name:
            break
        first += entry["bytes"]
    assert entry["codec"] == "raw" and len(raw) == entry["bytes"]
    stride = entry["stride"]
    stored = b"".join(raw[plane::stride] for plane in range(stride))
    path.write_bytes(data[:first] + stored + data[first + len(stored) :])

    def seal(header: dict[str, Any]) -> None:
        for other in header["sections"]:
            if other["name"] == name:
                other["sha256"] = digest_bytes(stored)

    return reheaded(path, seal)
