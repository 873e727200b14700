"""Adapters of a fine-tuned model in a separate file: tensors, and the artifact they belong to.

A file is a safetensors file that carries a digest of all its bytes. Its adapters fit only the
artifact that they were made with. Reading it executes nothing.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fairway.base.errors import UserError
from fairway.base.files import opened
from fairway.config.checks import LORA_TARGETS
from fairway.model.adapters import Adapters, attach
from fairway.model.gpt import GPT
from fairway.train.checkpoint import load_checkpoint, save_checkpoint

KIND, VERSION = "adapter", 1
# The most bytes of a file: several times the adapters of the largest rank on the seed model.
MOST_BYTES = 1 << 31
# Fields and their types.
_FIELDS: dict[str, type | tuple[type, ...]] = {
    "kind": str,
    "version": int,
    "base": str,
    "tokenizer": str,
    "targets": list,
    "rank": int,
    "alpha": (int, float),
    "settings": dict,
    "results": dict,
}


def save_adapter(path: Path, values: Sequence[Tensor], facts: dict[str, Any]) -> int:
    """Write the matrices A and B of one set of adapters; return the bytes of the file.

    `facts` are base and tokenizer (digests), targets, rank and alpha, settings and results.
    """
    tensors = dict(zip(_names(len(values)), values, strict=True))
    return save_checkpoint(path, tensors, {"kind": KIND, "version": VERSION, **facts})


def load_adapter(
    path: Path, model: GPT, base: str, tokenizer: str
) -> tuple[Adapters, list[Tensor], dict[str, Any]]:
    """Return the adapters of a file, their matrices on the model's device, and the file's facts.

    Raises UserError as `read_adapter` does, and if the tensors do not fit the model.
    """
    tensors, facts = read_adapter(path, base, tokenizer)
    try:
        adapters = Adapters(model, facts["targets"], facts["rank"], facts["alpha"])
        return adapters, _checked(tensors, adapters), facts
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def read_adapter(path: Path, base: str, tokenizer: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the facts of a file.

    `base` and `tokenizer` are the digests of the artifact and of the tokenizer that are loaded.
    Raises UserError, in one sentence that names the file, unless `save_adapter` wrote the file for
    these.
    """
    with opened(path, "the adapter") as stream:
        size = stream.seek(0, 2)
    if size > MOST_BYTES:
        raise UserError(f"the adapter {path} has {size:,} bytes; at most {MOST_BYTES:,} are read")
    try:
        tensors, facts = load_checkpoint(path)
    except UserError:
        raise UserError(
            f"{path} is not an adapter file of `fairway tune`, or it is damaged; make it again"
        ) from None
    try:
        _check_facts(facts, base, tokenizer)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return tensors, facts


def attach_adapter(path: Path, model: GPT, base: str, tokenizer: str) -> None:
    """Add the adapters of a file to every walk of a model; UserError as for `load_adapter`."""
    adapters, values, _ = load_adapter(path, model, base, tokenizer)
    attach(model, adapters, values)


def _names(count: int) -> list[str]:
    return [f"{group}.{side}" for group in range(count // 2) for side in ("inner", "outer")]


def _check_facts(facts: Any, base: str, tokenizer: str) -> None:
    if not isinstance(facts, dict) or facts.get("kind") != KIND:
        raise UserError("this file holds no adapter; name one that `fairway tune` wrote")
    if facts.get("version") != VERSION:
        raise UserError(
            f"the adapter has format version {facts.get('version')!r}, but this Fairway reads "
            f"only version {VERSION}; make it again"
        )
    for name, kind in _FIELDS.items():
        if name not in facts or isinstance(facts[name], bool) or not isinstance(facts[name], kind):
            raise UserError(f"the adapter's field '{name}' is missing or of a wrong type")
    if facts["base"] != base:
        raise UserError(
            f"the adapter belongs to the artifact {facts['base'][:12]}, but this artifact is "
            f"{base[:12]}; name the artifact of the adapter, or tune this artifact"
        )
    if facts["tokenizer"] != tokenizer:
        raise UserError(
            f"the adapter belongs to the tokenizer {facts['tokenizer'][:12]}, but this one is "
            f"{tokenizer[:12]}"
        )
    targets, rank, alpha = facts["targets"], facts["rank"], facts["alpha"]
    if not targets or any(target not in LORA_TARGETS for target in targets):
        raise UserError(f"the adapter's targets are not some of {', '.join(LORA_TARGETS)}")
    if not 1 <= rank <= 4096:
        raise UserError(f"the adapter's rank is {rank}; it must be from 1 to 4096")
    if not 0 <= alpha <= 1_000_000:
        raise UserError(f"the adapter's alpha is {alpha:g}; it must be from 0 to 1,000,000")


def _checked(tensors: dict[str, Tensor], adapters: Adapters) -> list[Tensor]:
    """Return the matrices of a file if they match its model."""
    model = adapters.model
    shapes = adapters.shapes(1)
    names = _names(len(shapes))
    if sorted(tensors) != sorted(names):
        raise UserError("the adapter's tensors do not match its targets")
    values = [tensors[name] for name in names]
    for name, value, shape in zip(names, values, shapes, strict=True):
        if tuple(value.shape) != shape or value.dtype != torch.float32:
            raise UserError(
                f"the adapter's tensor '{name}' is {value.dtype} {list(value.shape)}, and the "
                f"model needs torch.float32 {list(shape)}"
            )
        if not torch.isfinite(value).all():
            raise UserError(f"the adapter's tensor '{name}' holds a number that is not finite")
    return [value.to(model.tok_emb.weight.device) for value in values]
