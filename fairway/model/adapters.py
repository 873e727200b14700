"""Low-rank adapters on a frozen model, one set per row of the batch and per visit of a block.

There is no second transformer here: the model's walk asks for the additions to each of its matrices
(LoRA: Hu et al. 2021, arXiv 2106.09685; per document at test time: pull request #1530). With B = 0,
as at the start, the additions are zero and the model is unchanged. `gpu.adapters` does the same
with fewer and wider products.

All adapters of a visit share tensors: the matrices A of its targets are rows of one matrix, and so
are the matrices B. So a few wide tensors contain all learned values.

Shapes: B rows, T positions, I inputs, O outputs of all targets, R rank, Q rank of all targets,
S visits, D width.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fairway.config.checks import LORA_TARGETS
from fairway.model.block import Walk
from fairway.model.gpt import GPT
from fairway.model.operations import Extras, Rope


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
    """The adapters of a model: the shapes of their tensors, their initial values, their effect.

    The product B A is scaled by alpha / rank, and by the factor of its target if `factors` has one:
    AdamW moves a matrix by steps of one size, so a factor acts as a rate. Initially A is uniform
    within 1 / sqrt(I), and B is zero. `use` chooses the adapters of the next forward passes.
    `logit_factor` multiplies the model's capped logits: adapted models are too sure of themselves.
    """

    def __init__(
        self,
        model: GPT,
        targets: Sequence[str],
        rank: int,
        alpha: float,
        factors: Mapping[str, float] | None = None,
        logit_factor: float = 1.0,
    ) -> None:
        self.model, self.rank, self._logit_factor = model, rank, logit_factor
        self._scale, self._factors = alpha / rank, factors or {}
        self.targets = [target for target in LORA_TARGETS if target in targets]
        visits = len(model.encoder_visits) + len(model.decoder_visits)
        inside = [target for target in self.targets if target != "head"]
        parts = [(inside, visits), (["head"] if "head" in targets else [], 1)]
        self.groups = [_group(model, names, slots, rank) for names, slots in parts if names]
        self._used: list[tuple[tuple[Tensor, ...], tuple[Tensor, ...]]] = []

    def drawn(self, generator: torch.Generator) -> list[Tensor]:
        """Return fresh matrices A of every group, [S, 1, Q, I]: the same for all rows.

        They are drawn on the CPU, so that all devices get the same. Separate ones for each row
        would take 2 s for 64 rows of the seed system.
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

    def scales(self, group: Group) -> Tensor:
        """Return what each output of a group's products B A is multiplied by, [O]."""
        device, outputs = self.model.tok_emb.weight.device, group.sizes()[1]
        made_O = torch.full((outputs,), self._scale, dtype=torch.float32, device=device)
        for target in group.targets:
            made_O[group.outer[target]] *= self._factors.get(target, 1.0)
        return made_O

    def shapes(self, rows: int) -> list[tuple[int, ...]]:
        """Return the shapes of A and B of every group for a number of rows."""
        width = self.model.config.dim
        made: list[tuple[int, ...]] = []
        for group in self.groups:
            inputs, outputs = group.sizes()
            for rest in ((inputs, width), (outputs, self.rank)):
                made.append((group.slots, rows, *rest))
        return made

    def zeros(self, rows: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        """Return A and B of every group for a number of rows, all zero."""
        like = self.model.tok_emb.weight
        return [like.new_zeros(shape, dtype=dtype) for shape in self.shapes(rows)]

    def use(self, values: Sequence[Tensor]) -> None:
        """Use these matrices in the next forward passes; they have the shapes of `zeros`.

        Matrices of one row apply to any number of rows. They are cast and scaled here, once for all
        visits.
        """
        dtype = self.model.compute_dtype
        inner = [value.to(dtype).unbind(0) for value in values[::2]]
        outer = [
            (value * self.scales(group)[:, None]).to(dtype).unbind(0)
            for value, group in zip(values[1::2], self.groups, strict=True)
        ]
        self._used = list(zip(inner, outer, strict=True))

    def added(self, target: str, slot: int, x_BTI: Tensor) -> Tensor | None:
        """Return the addition of a target's adapters for an input, [B, T, O], or None."""
        for group, (inner, outer) in zip(self.groups, self._used, strict=True):
            if target in group.targets:
                inner_BRI = inner[slot][:, group.inner[target]]
                outer_BOR = outer[slot][:, group.outer[target]]
                if len(inner_BRI) == 1 and x_BTI.shape[:-2] != (1,):
                    return F.linear(F.linear(x_BTI, inner_BRI[0]), outer_BOR[0])
                return torch.bmm(torch.bmm(x_BTI, inner_BRI.mT), outer_BOR.mT)
        return None

    def head(self, x: Tensor) -> Tensor | None:
        """Return the addition to the raw logits of final states, or None without head adapters."""
        return self.added("head", 0, x)

    def logits(self, x: Tensor, extra: Tensor | None) -> Tensor:
        """Return the capped logits of final states and an addition to raw logits, [..., V]."""
        return self.model.logits(x, extra, self._logit_factor)

    def read(self, visit: int, x_BTD: Tensor, targets: str) -> tuple[Extras, Tensor]:
        """Return the additions of a visit's targets for an input, and the input."""
        found = {}
        for target in targets.split():
            if target in self.targets:
                found[target] = _Extra(self, target, visit, x_BTD)
        return found, x_BTD

    def states(self, values: Sequence[Tensor], ids_BT: Tensor, rope: Rope) -> Tensor:
        """Return the model's final states with some adapters, [B, T, D]."""
        self.use(values)
        return self.model.states(self.model.embedded(ids_BT), Walk(rope, self))


def attach(model: GPT, adapters: Adapters, values: Sequence[Tensor]) -> None:
    """Use one set of adapters in every walk of a model from now on."""
    adapters.use(values)
    model.attached = adapters


@dataclass(frozen=True, slots=True)
class _Extra:
    adapters: Adapters
    target: str
    slot: int
    x_BTD: Tensor

    def value(self) -> Tensor:
        """Return the addition, [B, T, O]."""
        extra_BTO = self.adapters.added(self.target, self.slot, self.x_BTD)
        assert extra_BTO is not None
        return extra_BTO

    def add_(self, whole_BTC: Tensor, first: int, scale_O: Tensor | None) -> Tensor:
        """Add it, scaled, to the columns of `whole` from `first` on, in place; return `whole`."""
        extra_BTO = self.value()
        if scale_O is not None:
            extra_BTO = extra_BTO * scale_O.to(extra_BTO.dtype)
        whole_BTC[:, :, first : first + extra_BTO.shape[2]] += extra_BTO
        return whole_BTC
