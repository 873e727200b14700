"""Adapters with GPU kernels: every document's matrices learn, and the model's are frozen.

The sums must equal those of `model.adapters`. The differences:
- all matrices A that read one input of a visit are multiplied by it in one product;
- an adapter's addition is made inside its matrix product, directly into its target;
- attn_scale, mlp_scale and alpha / rank are multiplied into the working copies of B, and into the
  gradients when these are used (`factors`);
- gradients are written directly into the tensors that the optimiser reads.

Shapes: those of `model.adapters`; C columns of the target of an addition.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fairway.model.adapters import Adapters, Group
from fairway.model.block import Block, Walk
from fairway.model.gpu.steps import Step
from fairway.model.operations import Extras, Rope


class Bank:
    """Working copies and gradients of the adapters of up to `rows` rows, in the compute dtype.

    Both have the shapes of `Adapters.zeros`. `rows` are the rows of the next computation.
    """

    def __init__(self, adapters: Adapters, rows: int) -> None:
        dtype = adapters.model.compute_dtype
        self.adapters, self.rows = adapters, range(rows)
        self.copies, self.grads = adapters.zeros(rows, dtype), adapters.zeros(rows, dtype)

    def factors(self) -> list[Tensor | None]:
        """Return the factor between every matrix and its working copy: [S, O] for B."""
        made: list[Tensor | None] = []
        for group in self.adapters.groups:
            made += [None, self._outer_factors(group)]
        return made

    def _outer_factors(self, group: Group) -> Tensor:
        adapters, model = self.adapters, self.adapters.model
        factors_SO = adapters.scales(group).repeat(group.slots, 1)
        if group.targets == ("head",):
            return factors_SO
        for slot, layer in enumerate((*model.encoder_visits, *model.decoder_visits)):
            block = cast(Block, model.blocks[layer])
            for target, scale in (("o", block.attn_scale), ("mlp", block.mlp_scale)):
                if target in group.targets:
                    factors_SO[slot, group.outer[target]] *= scale.detach().float()
        return factors_SO

    def pair(self, tensors: Sequence[Tensor], head: bool, slot: int) -> tuple[Tensor, Tensor]:
        """Return A [B, Q, I] and B [B, O, R] of a visit or of the head, from copies or grads."""
        place = 2 * (len(self.adapters.groups) - 1) if head else 0
        inner, outer = tensors[place : place + 2]
        rows = slice(self.rows.start, self.rows.stop)
        return inner[slot, rows], outer[slot, rows]

    def read(self, visit: int, x_BTD: Tensor, targets: str) -> tuple[Extras, Tensor]:
        """Return the additions of a visit's targets for an input, and the input."""
        group = self.adapters.groups[0]
        here = [target for target in group.targets if target in targets.split()]
        if not here:
            return {}, x_BTD
        inner = slice(group.inner[here[0]].start, group.inner[here[-1]].stop)
        tray = _Tray(self.adapters.rank, len(here))
        *parts_BTR, x_BTD = _Read.run(self, visit, inner, tray, x_BTD)
        return {
            target: _Extra(_Place(self, visit, group.outer[target], tray, number), part_BTR)
            for number, (target, part_BTR) in enumerate(zip(here, parts_BTR, strict=True))
        }, x_BTD

    def states(self, ids_BT: Tensor, rope: Rope) -> Tensor:
        """Return the final states of windows at the positions of a rotary table, [B, T, D].

        Their backward pass stores the adapters' gradients here.
        """
        model = self.adapters.model
        # An input must require a gradient, or there is no backward pass.
        x_BTD = model.embedded(ids_BT).detach().requires_grad_(torch.is_grad_enabled())
        inside = self.adapters.targets != ["head"]
        return model.states(x_BTD, Walk(rope, self if inside else None))

    def head(self, x_BCD: Tensor) -> Tensor | None:
        """Return the addition of the head's adapters to the raw logits of some states, or None."""
        if "head" not in self.adapters.targets:
            return None
        extra: Tensor = _Head.run(x_BCD.contiguous(), self)
        return extra


@dataclass(slots=True)
class _Tray:
    """One tensor for the gradients of z of several targets, joined without a copy."""

    rank: int
    count: int
    dz_BTQ: Tensor | None = None

    def place(self, number: int, like_BTR: Tensor) -> Tensor:
        """Return the slice for one target's gradient, [B, T, R]."""
        if self.dz_BTQ is None:
            self.dz_BTQ = like_BTR.new_empty(*like_BTR.shape[:2], self.rank * self.count)
        return self.dz_BTQ[:, :, number * self.rank : (number + 1) * self.rank]


@dataclass(frozen=True, slots=True)
class _Place:
    """An adapter's identity, and where its gradients are written."""

    bank: Bank
    visit: int
    outer: slice
    tray: _Tray
    number: int


@dataclass(frozen=True, slots=True)
class _Extra:
    place: _Place
    z_BTR: Tensor

    def value(self) -> Tensor:
        """Raise: in a bank, adapters are only added."""
        raise AssertionError("adapters in a bank are added in place")

    def add_(self, whole_BTC: Tensor, first: int, scale_O: Tensor | None) -> Tensor:
        """Add it to the columns of `whole` from `first` on; the copies are already scaled."""
        added: Tensor = _Add.run(self.place, first, whole_BTC, self.z_BTR)
        return added


class _Read(Step):
    """x -> (x A^T of every target, x). No other code uses the gradient of x."""

    @staticmethod
    def forward(ctx: Any, bank: Bank, visit: int, inner: slice, tray: _Tray,
                x_BTD: Tensor) -> tuple[Tensor, ...]:  # fmt: skip
        inner_BQD, _ = bank.pair(bank.copies, False, visit)
        z_BTQ = torch.bmm(x_BTD, inner_BQD[:, inner].mT)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x_BTD)
        ctx.at = bank, visit, inner, tray
        return *torch.split(z_BTQ, tray.rank, 2), x_BTD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        (x_BTD,), (bank, visit, inner, tray) = ctx.saved_tensors, ctx.at
        dz_BTQ, dx_BTD = tray.dz_BTQ, grads[-1]
        # Otherwise it would stay with the graph: 4 GB for 128 documents at once.
        tray.dz_BTQ = None
        # Every part has one reader, whose gradient is already in the tray.
        assert dz_BTQ is not None and all(grad is not None for grad in grads[:-1])
        inner_BQD, _ = bank.pair(bank.copies, False, visit)
        d_inner_BQD, _ = bank.pair(bank.grads, False, visit)
        torch.bmm(dz_BTQ.mT, x_BTD, out=d_inner_BQD[:, inner])
        if dx_BTD is None:
            dx_BTD = torch.bmm(dz_BTQ, inner_BQD[:, inner])
        else:
            dx_BTD.baddbmm_(dz_BTQ, inner_BQD[:, inner])
        return None, None, None, None, dx_BTD


class _Add(Step):
    """Adds z B^T to columns of a product, in place."""

    @staticmethod
    def forward(ctx: Any, place: _Place, first: int, whole_BTC: Tensor,
                z_BTR: Tensor) -> Tensor:  # fmt: skip
        bank, outer = place.bank, place.outer
        _, outer_BOR = bank.pair(bank.copies, False, place.visit)
        columns = slice(first, first + outer.stop - outer.start)
        whole_BTC[:, :, columns].baddbmm_(z_BTR, outer_BOR[:, outer].mT)
        ctx.mark_dirty(whole_BTC)
        ctx.save_for_backward(z_BTR)
        ctx.place, ctx.columns = place, columns
        return whole_BTC

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_BTC: Tensor) -> tuple[Any, ...]:
        (z_BTR,), place = ctx.saved_tensors, ctx.place
        bank, outer = place.bank, place.outer
        _, outer_BOR = bank.pair(bank.copies, False, place.visit)
        _, d_outer_BOR = bank.pair(bank.grads, False, place.visit)
        d_BTO = d_BTC[:, :, ctx.columns]
        torch.bmm(d_BTO.mT, z_BTR, out=d_outer_BOR[:, outer])
        dz_BTR = place.tray.place(place.number, z_BTR)
        torch.bmm(d_BTO, outer_BOR[:, outer], out=dz_BTR)
        return None, None, d_BTC, dz_BTR


class _Head(Step):
    """The addition of the head's adapters to raw logits, [B, C, V]."""

    @staticmethod
    def forward(ctx: Any, x_BCD: Tensor, bank: Bank) -> Tensor:
        inner_BRD, outer_BVR = bank.pair(bank.copies, True, 0)
        z_BCR = torch.bmm(x_BCD, inner_BRD.mT)
        ctx.save_for_backward(x_BCD, z_BCR)
        ctx.bank = bank
        return torch.bmm(z_BCR, outer_BVR.mT)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_BCV: Tensor) -> tuple[Tensor, None]:
        x_BCD, z_BCR = ctx.saved_tensors
        inner_BRD, outer_BVR = ctx.bank.pair(ctx.bank.copies, True, 0)
        d_inner_BRD, d_outer_BVR = ctx.bank.pair(ctx.bank.grads, True, 0)
        torch.bmm(d_BCV.mT, z_BCR, out=d_outer_BVR)
        dz_BCR = torch.bmm(d_BCV, outer_BVR)
        torch.bmm(dz_BCR.mT, x_BCD, out=d_inner_BRD)
        return torch.bmm(dz_BCR, inner_BRD), None
