"""Low-rank adapters on a frozen model, a set per row of the batch and per visit of a block.

There is no second transformer here: hooks on the model's own projections add what an adapter makes
of the same input (LoRA: Hu et al. 2021, arXiv 2106.09685; per document at test time: pull request
#1530). With B = 0, as at the start, they add zeros, and the model is itself.

Shapes: B rows, T positions, I inputs, O outputs, R rank, S visits, D width.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from fairway.checks import LORA_TARGETS
from fairway.model.gpt import GPT, Block

# Where an adapter sits in a block: its output is added to that of this module, for its input.
_PLACES: dict[str, Callable[[Block], nn.Module]] = {
    "q": lambda block: block.attn.c_q,
    "k": lambda block: block.attn.c_k,
    "v": lambda block: block.attn.c_v,
    "o": lambda block: block.attn,
    "mlp": lambda block: block.mlp,
}


def _widths(model: GPT, target: str) -> tuple[int, int]:
    """Return (inputs, outputs) of an adapter."""
    config = model.config
    narrow = config.dim * config.num_kv_heads // config.num_heads
    outputs = {"k": narrow, "v": narrow, "head": config.vocab_size}
    return config.dim, outputs.get(target, config.dim)


class Adapters:
    """The adapters of some rows: matrices A [S, B, R, I] and B [S, B, O, R] of every target.

    Their product is scaled by alpha / rank. A is uniform within 1 / sqrt(I) at first and kept here
    from batch to batch, B starts from zero every time. `use` chooses what the next forward passes
    run with.
    """

    def __init__(
        self, model: GPT, targets: Sequence[str], rank: int, alpha: float, rows: int
    ) -> None:
        visits = len(model.encoder_visits) + len(model.decoder_visits)
        device = model.tok_emb.weight.device
        self.model, self.scale, self.rows = model, alpha / rank, rows
        self.targets = [target for target in LORA_TARGETS if target in targets]
        self.inner: dict[str, Tensor] = {}
        for target in self.targets:
            slots = 1 if target == "head" else visits
            inputs, _ = _widths(model, target)
            self.inner[target] = torch.empty(slots, rows, rank, inputs, device=device)
        self._pairs: dict[str, tuple[tuple[Tensor, ...], tuple[Tensor, ...]]] = {}
        self._slot = -1

    @torch.no_grad()
    def draw(self, generator: torch.Generator) -> None:
        """Draw every A anew, the same for all rows: on the CPU, so that all devices get the same.

        Drawing for each row took 2 s for 64 rows of the seed system.
        """
        for inner in self.inner.values():
            slots, _, rank, inputs = inner.shape
            bound = 1.0 / math.sqrt(inputs)
            drawn = torch.rand(slots, 1, rank, inputs, generator=generator)
            inner.copy_(drawn * (2.0 * bound) - bound)

    def fresh(self, rows: int) -> list[Tensor]:
        """Return what the first rows start with, target by target: copies of A, then B of zeros."""
        values = []
        for target, inner in self.inner.items():
            outputs, rank = _widths(self.model, target)[1], inner.shape[2]
            outer = inner.new_zeros(len(inner), rows, outputs, rank)
            values += [inner[:, :rows].clone(), outer]
        return values

    @torch.no_grad()
    def save(self, rows: Sequence[int], values: Sequence[Tensor]) -> None:
        """Keep A of some rows, out of what `fresh` returned and learning changed."""
        for inner, value in zip(self.inner.values(), values[::2], strict=True):
            inner[:, list(rows)] = value

    def use(self, values: Sequence[Tensor]) -> None:
        """Let the next forward pass run with these matrices, which are like those of `fresh`.

        Cast and scaled here, once for all visits.
        """
        dtype = self.model.compute_dtype
        inner = [value.to(dtype).unbind(0) for value in values[::2]]
        outer = [(value * self.scale).to(dtype).unbind(0) for value in values[1::2]]
        pairs = zip(inner, outer, strict=True)
        self._pairs = dict(zip(self.targets, pairs, strict=True))

    def added(self, target: str, slot: int, x_BTI: Tensor) -> Tensor | None:
        """Return what the adapters of a target add for an input, [B, T, O]; None without any."""
        if target not in self._pairs:
            return None
        inner_BRI, outer_BOR = (matrices[slot] for matrices in self._pairs[target])
        return torch.bmm(torch.bmm(x_BTI, inner_BRI.mT), outer_BOR.mT)

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
