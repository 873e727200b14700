"""Low-rank adapters on a frozen model, a set per row of the batch and per visit of a block.

There is no second transformer here: hooks on the model's own projections add what an adapter makes
of the same input (LoRA: Hu et al. 2021, arXiv 2106.09685; per document at test time: pull request
#1530). With B = 0, as at the start, they add zeros, and the model is itself. `adapted` does the
same with GPU kernels.

Adapters of a visit lie side by side: the matrices A of its targets are rows of one matrix, and so
are the matrices B, so that a few wide tensors hold everything that learns.

Shapes: B rows, T positions, I inputs, O outputs of all targets, R rank, Q rank of all targets,
S visits, D width.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from fairway.config.checks import LORA_TARGETS
from fairway.model.gpt import GPT, Block

# Where an adapter sits in a block: its output is added to that of this module, for its input.
_PLACES: dict[str, Callable[[Block], nn.Module]] = {
    "q": lambda block: block.attn.c_q,
    "k": lambda block: block.attn.c_k,
    "v": lambda block: block.attn.c_v,
    "o": lambda block: block.attn,
    "mlp": lambda block: block.mlp,
}


def _outputs(model: GPT, target: str) -> int:
    config = model.config
    narrow = config.dim * config.num_kv_heads // config.num_heads
    return {"k": narrow, "v": narrow, "head": config.vocab_size}.get(target, config.dim)


@dataclass(frozen=True, slots=True)
class Group:
    """Adapters in one pair of tensors, A [S, B, Q, I] and B [S, B, O, R]: blocks, or the head.

    `inner` and `outer` are the rows of each target along Q and O.
    """

    targets: tuple[str, ...]
    slots: int
    inner: dict[str, slice]
    outer: dict[str, slice]

    def sizes(self) -> tuple[int, int]:
        """Return (Q, O)."""
        last = self.targets[-1]
        return self.inner[last].stop, self.outer[last].stop


def _group(model: GPT, targets: Sequence[str], slots: int, rank: int) -> Group:
    ends = list(itertools.accumulate(_outputs(model, target) for target in targets))
    outer = {t: slice(a, b) for t, a, b in zip(targets, [0, *ends], ends, strict=False)}
    inner = {target: slice(n * rank, (n + 1) * rank) for n, target in enumerate(targets)}
    return Group(tuple(targets), slots, inner, outer)


class Adapters:
    """The adapters of a model: what tensors they are, how they begin, what they add.

    The product B A is scaled by alpha / rank. A is uniform within 1 / sqrt(I) at first, B zero.
    `use` chooses what the next forward passes run with.
    """

    def __init__(self, model: GPT, targets: Sequence[str], rank: int, alpha: float) -> None:
        self.model, self.rank, self.scale = model, rank, alpha / rank
        self.targets = [target for target in LORA_TARGETS if target in targets]
        visits = len(model.encoder_visits) + len(model.decoder_visits)
        inside = [target for target in self.targets if target != "head"]
        parts = [(inside, visits), (["head"] if "head" in targets else [], 1)]
        self.groups = [_group(model, names, slots, rank) for names, slots in parts if names]
        self._used: list[tuple[tuple[Tensor, ...], tuple[Tensor, ...]]] = []
        self._slot = -1

    def drawn(self, generator: torch.Generator) -> list[Tensor]:
        """Return fresh matrices A of every group, [S, 1, Q, I]: the same for all rows.

        Drawn on the CPU, so that all devices get the same; for each row it would take 2 s for 64
        rows of the seed system.
        """
        width = self.model.config.dim
        bound = 1.0 / math.sqrt(width)
        made = []
        for group in self.groups:
            shape = group.slots, 1, self.rank, width
            parts = [torch.rand(shape, generator=generator) for _ in group.targets]
            inner = (torch.cat(parts, 2) * (2.0 * bound) - bound).to(
                self.model.tok_emb.weight.device
            )
            made.append(inner)
        return made

    def zeros(self, rows: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        """Return A and B of every group for some rows, all zero."""
        like, width = self.model.tok_emb.weight, self.model.config.dim
        made = []
        for group in self.groups:
            inputs, outputs = group.sizes()
            for rest in ((inputs, width), (outputs, self.rank)):
                made.append(like.new_zeros(group.slots, rows, *rest, dtype=dtype))
        return made

    def use(self, values: Sequence[Tensor]) -> None:
        """Let the next forward pass run with these matrices, which are like those of `zeros`.

        Cast and scaled here, once for all visits.
        """
        dtype = self.model.compute_dtype
        inner = [value.to(dtype).unbind(0) for value in values[::2]]
        outer = [(value * self.scale).to(dtype).unbind(0) for value in values[1::2]]
        self._used = list(zip(inner, outer, strict=True))

    def added(self, target: str, slot: int, x_BTI: Tensor) -> Tensor | None:
        """Return what the adapters of a target add for an input, [B, T, O]; None without any."""
        for group, (inner, outer) in zip(self.groups, self._used, strict=True):
            if target in group.targets:
                inner_BRI = inner[slot][:, group.inner[target]]
                outer_BOR = outer[slot][:, group.outer[target]]
                return torch.bmm(torch.bmm(x_BTI, inner_BRI.mT), outer_BOR.mT)
        return None

    @contextmanager
    def attached(self) -> Iterator[None]:
        """While this lasts, the model's blocks run with the adapters in `use`."""
        with ExitStack() as stack:
            visits = itertools.cycle((*self.model.encoder_visits, *self.model.decoder_visits))
            count = len(self.model.encoder_visits) + len(self.model.decoder_visits)
            slots = itertools.cycle(range(count))

            def enter(module: nn.Module, inputs: tuple[Any, ...]) -> None:
                self._slot = next(slots)
                assert module is self.model.blocks[next(visits)], "a visit was left out"

            for block in self.model.blocks:
                stack.callback(block.register_forward_pre_hook(enter).remove)
                for target in self.targets:
                    if target in _PLACES:
                        place = _PLACES[target](cast(Block, block))
                        stack.callback(place.register_forward_hook(self._adding(target)).remove)
            yield

    def _adding(self, target: str) -> Callable[..., Tensor]:
        def add(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
            extra = self.added(target, self._slot, inputs[0])
            assert extra is not None
            return output + extra

        return add
