"""What an artifact holds: which tensors lie in which section, in which order and how many bytes.

All of it follows from the model's config and one number, so a file cannot claim other shapes.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fairway.config import ModelConfig
from fairway.errors import UserError
from fairway.model.gpt import GPT
from fairway.quantise.gptq import QuantisedModel, is_coded
from fairway.quantise.grid import QuantisedTensor, largest_code, restore

# Section of a matrix by the end of its name; like weights compress best beside one another.
_ROLES = {
    "tok_emb.weight": "embedding",
    "head.weight": "embedding",
    "embed_proj.weight": "projection",
    "head_proj.weight": "projection",
    "attn.c_q.weight": "query",
    "attn.c_k.weight": "key",
    "attn.c_v.weight": "value",
    "attn.proj.weight": "attention output",
    "mlp.fc.weight": "MLP up",
    "mlp.proj.weight": "MLP down",
}


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor's name and shape."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SectionSpec:
    """A section before compression. kind: codes (int8), scales or vectors (float16)."""

    name: str
    kind: str
    tensors: tuple[TensorSpec, ...]

    @property
    def raw_bytes(self) -> int:
        """Return the bytes of the section before compression."""
        if self.kind == "codes":
            return sum(math.prod(spec.shape) for spec in self.tensors)
        if self.kind == "scales":
            return sum(2 * spec.shape[0] for spec in self.tensors)
        return sum(2 * math.prod(spec.shape) for spec in self.tensors)


def layout(config: ModelConfig, min_numel: int) -> list[SectionSpec]:
    """Return the sections of a model in file order, from shapes alone.

    Codes by role, then all scales, then everything kept as float16, each in the model's order.
    """
    with torch.device("meta"):
        state = GPT(config).state_dict()
    roles: dict[str, list[TensorSpec]] = {role: [] for role in _ROLES.values()}
    coded, kept = [], []
    for name, tensor in state.items():
        spec = TensorSpec(name, tuple(tensor.shape))
        if is_coded(name, tensor, min_numel):
            coded.append(spec)
            roles[role_of(name)].append(spec)
        else:
            kept.append(spec)
    codes = [SectionSpec(role, "codes", tuple(specs)) for role, specs in roles.items() if specs]
    scales = SectionSpec("scales", "scales", tuple(coded))
    return [*codes, scales, SectionSpec("vectors", "vectors", tuple(kept))]


def role_of(name: str) -> str:
    """Return the section of a matrix."""
    for ending, role in _ROLES.items():
        if name == ending or name.endswith(f".{ending}"):
            return role
    raise AssertionError(f"matrix {name} has no role")


def threshold(quantised: QuantisedModel) -> int:
    """Return a min_numel that sorts these tensors into coded and kept as they are sorted."""
    kept = [
        tensor.numel()
        for name, tensor in quantised.items()
        if isinstance(tensor, Tensor) and is_coded(name, tensor, 0)
    ]
    return max(kept, default=0)


# ---------------------------------------------------------------------------------------------
# Tensors to bytes


def section_bytes(spec: SectionSpec, quantised: QuantisedModel) -> bytes:
    """Return a section's bytes before compression.

    Codes lie column by column: on trained weights that saves Brotli 0.14 % against rows. Numbers
    of two bytes are little-endian.
    """
    parts = []
    for tensor in spec.tensors:
        value = quantised[tensor.name]
        if spec.kind == "vectors":
            assert isinstance(value, Tensor) and tuple(value.shape) == tensor.shape, tensor
            parts.append(value.numpy().astype("<f2").tobytes())
            continue
        assert isinstance(value, QuantisedTensor) and tuple(value.codes.shape) == tensor.shape
        if spec.kind == "codes":
            parts.append(value.codes.T.contiguous().numpy().tobytes())
        else:
            parts.append(value.scale.numpy().astype("<f2").tobytes())
    return b"".join(parts)


def section_bits(spec: SectionSpec, quantised: QuantisedModel) -> int:
    """Return the bits per number of a section, one for all of its tensors; 16 for float16."""
    bits = {16}
    if spec.kind == "codes":
        tensors = [quantised[tensor.name] for tensor in spec.tensors]
        bits = {tensor.bits for tensor in tensors if isinstance(tensor, QuantisedTensor)}
    assert len(bits) == 1, f"section {spec.name} mixes {bits} bits"
    return bits.pop()


# ---------------------------------------------------------------------------------------------
# Bytes to tensors


def state_of(
    specs: list[SectionSpec], raw: Mapping[str, bytes], bits: Mapping[str, int]
) -> dict[str, Tensor]:
    """Return the float32 state dict that the sections' bytes hold.

    Raises UserError for a code beyond its bits and a number that is not finite.
    """
    codes: dict[str, Tensor] = {}
    scales: dict[str, Tensor] = {}
    state: dict[str, Tensor] = {}
    for spec in specs:
        if spec.kind == "codes":
            for tensor, values in _split(spec, raw[spec.name], "i1"):
                columns, rows = tensor.shape[1], tensor.shape[0]
                codes[tensor.name] = torch.from_numpy(values.reshape(columns, rows).T.copy())
                _require_codes(codes[tensor.name], bits[spec.name], tensor.name)
        elif spec.kind == "scales":
            for tensor, values in _split(spec, raw[spec.name], "<f2"):
                scales[tensor.name] = _finite(values, tensor.name)
        else:
            for tensor, values in _split(spec, raw[spec.name], "<f2"):
                state[tensor.name] = _finite(values, tensor.name).float().reshape(tensor.shape)
    for name, values_RC in codes.items():
        state[name] = restore(QuantisedTensor(values_RC, scales[name], 8))
    return state


def _split(
    spec: SectionSpec, raw: bytes, dtype: str
) -> list[tuple[TensorSpec, "np.ndarray[tuple[int], np.dtype[np.generic]]"]]:
    values = np.frombuffer(raw, dtype)
    counts = [t.shape[0] if spec.kind == "scales" else math.prod(t.shape) for t in spec.tensors]
    ends = np.cumsum(counts)
    assert not counts or ends[-1] == len(values), (spec.name, len(values))
    return [
        (tensor, values[end - count : end])
        for tensor, count, end in zip(spec.tensors, counts, ends, strict=True)
    ]


def _require_codes(codes: Tensor, bits: int, name: str) -> None:
    largest = int(codes.int().abs().max())
    if largest > largest_code(bits):
        raise UserError(
            f"{name} holds a code of {largest}, but {bits} bits end at "
            f"{largest_code(bits)}; the file was not written by Fairway"
        )


def _finite(values: "np.ndarray[tuple[int], np.dtype[np.generic]]", name: str) -> Tensor:
    tensor = torch.from_numpy(values.astype(np.float16))
    if not torch.isfinite(tensor).all():
        raise UserError(f"{name} holds a number that is not finite; the file is not usable")
    return tensor
