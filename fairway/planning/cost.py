"""The cost of a training step by its shapes: products of layers and head, attention, Muon."""

import dataclasses
import functools
from dataclasses import dataclass

import torch

from fairway.config.settings import Config, ModelConfig
from fairway.model import kinds
from fairway.model.gpt import GPT, visits

# Products of a step of Newton-Schulz, and how many steps (`train/muon.py`).
_NEWTON_STEPS = 5


@dataclass(frozen=True, slots=True)
class Size:
    """The parameters of a model by purpose, and the FLOPs of a token and of a step."""

    matrices: int
    embedding: int
    token_flops: float
    update_flops: float

    @property
    def parameters(self) -> int:
        """Return the matrix products that are counted."""
        return self.matrices + self.embedding


def size_of(model: ModelConfig, seq_len: int) -> Size:
    """Return the size of a model that trains on sequences of this many tokens.

    A weight is used in one product forward and in two backward. A block of the recurrence counts
    once per visit in the late part of a run.
    """
    matrices = _matrices(dataclasses.replace(model, vocab_size=260, rope_train_len=1))
    order = [layer for half in visits(model, bool(model.loop_extra)) for layer in half]
    products = sum(shape.numel() * order.count(layer) for layer, shape in matrices)
    table = model.vocab_size * model.dim
    attention = 2 * seq_len * model.dim * len(order)
    return Size(
        matrices=sum(shape.numel() for _, shape in matrices),
        embedding=table,
        token_flops=6.0 * (products + table + attention),
        update_flops=float(sum(_update_flops(shape) for _, shape in matrices)),
    )


@functools.lru_cache(maxsize=1024)
def _matrices(model: ModelConfig) -> list[tuple[int, torch.Size]]:
    """Return the block and the shape of every matrix."""
    with torch.device("meta"):
        net = GPT(model)
    named = dict(net.named_parameters())
    names = kinds.by_group(net.declares, named)["matrix"]
    return [(int(name.split(".")[1]), named[name].shape) for name in names]


def _update_flops(shape: torch.Size) -> float:
    """Return the FLOPs of orthogonalising a matrix: two wide products and a square one per step."""
    few, many = sorted(shape)
    return _NEWTON_STEPS * (4.0 * few * few * many + 2.0 * few**3)


def step_flops(config: Config) -> float:
    """Return the FLOPs of an optimiser step of a run."""
    size = size_of(config.model, config.train.seq_len)
    return size.token_flops * config.train.batch_tokens + size.update_flops
