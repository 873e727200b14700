"""Adapters inside the fused path: the blocks frozen, every document's matrices learning.

Beside `adapters`, whose sums it must equal:
- the inputs of a visit meet all matrices A that read them in one product;
- what an adapter adds is added inside its matrix product, into the place it belongs to;
- attn_scale, mlp_scale and alpha / rank are multiplied into the working copies of B, and into
  their gradients when they are used (`factors`);
- gradients of the frozen matrices are never formed, and those of adapters are written straight
  into the tensors from which the optimiser reads.

Shapes: those of `fused` and `adapters`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from fairway.model.adapters import Adapters, Group
from fairway.model.gpt import Block
from fairway.model.gpu import kernels, products
from fairway.model.gpu.fused import Attended, FusedBlock, FusedPath, Grads, Norm, Rope, Visited
from fairway.model.gpu.kernels import Join


class Bank:
    """Working copies and gradients of the adapters of up to so many rows, in the compute dtype.

    Both are like `Adapters.zeros`. What is computed next belongs to `rows` of them.
    """

    def __init__(self, adapters: Adapters, rows: int) -> None:
        dtype = adapters.model.compute_dtype
        self.adapters, self.rows = adapters, range(rows)
        self.copies, self.grads = adapters.zeros(rows, dtype), adapters.zeros(rows, dtype)

    def factors(self) -> list[Tensor | None]:
        """Return what stands between every matrix and its working copy: [S, O] for B."""
        made: list[Tensor | None] = []
        for group in self.adapters.groups:
            made += [None, self._outer_factors(group)]
        return made

    def _outer_factors(self, group: Group) -> Tensor:
        adapters, model = self.adapters, self.adapters.model
        like = model.tok_emb.weight
        factors_SO = like.new_full((group.slots, group.sizes()[1]), adapters.scale).float()
        if group.targets == ("head",):
            return factors_SO
        for slot, layer in enumerate((*model.encoder_visits, *model.decoder_visits)):
            block = cast(Block, model.blocks[layer])
            for target, scale in (("o", block.attn_scale), ("mlp", block.mlp_scale)):
                if target in group.targets:
                    factors_SO[slot, group.outer[target]] *= scale.detach().float()
        return factors_SO

    def pair(self, tensors: Sequence[Tensor], head: bool, slot: int) -> tuple[Tensor, Tensor]:
        """Return A [B, Q, I] and B [B, O, R] of a visit, or of the head, out of copies or grads."""
        place = 2 * (len(self.adapters.groups) - 1) if head else 0
        inner, outer = tensors[place : place + 2]
        rows = slice(self.rows.start, self.rows.stop)
        return inner[slot, rows], outer[slot, rows]


# ---------------------------------------------------------------------------------------------
# One visit


@dataclass(slots=True)
class _Tape:
    x_ND: Tensor
    x0_ND: Tensor | None
    join: Join | None
    h_BTD: Tensor
    z_BTQ: Tensor
    attended: Attended
    g_ND: Tensor
    inverse_N: Tensor | None
    own_BTQ: Tensor
    square_NF: Tensor


class AdaptedVisit:
    """A visit of a frozen block with the adapters of its slot."""

    # What `fused` would have gradients for.
    parameters: tuple[Tensor, ...] = ()

    def __init__(self, fused: FusedBlock, bank: Bank, slot: int) -> None:
        self.fused, self.bank, self.slot = fused, bank, slot
        self.group = bank.adapters.groups[0]
        alone = not fused.block.parallel and "mlp" in self.group.targets
        # Targets by the input they read: that of attention, and, in blocks in sequence, the MLP's.
        Q = self.group.sizes()[0]
        split = self.group.inner["mlp"].start if alone else Q
        self.shared, self.mlp = slice(0, split), slice(split, Q)

    def forward(
        self, x_ND: Tensor, x0_ND: Tensor | None, join: Join | None, rope: Rope, T: int, learn: bool
    ) -> tuple[Tensor, _Tape]:
        """Return the stream after the block and the tape of the visit."""
        fused, block = self.fused, self.fused.block
        u_ND, h_ND = kernels.enter(x_ND, x0_ND, block.resid_mix, join, block.scale)
        h_BTD = h_ND.view(-1, T, h_ND.shape[1])
        z_BTQ = self._down(h_BTD, self.shared)
        qkv_NC = F.linear(h_ND, fused.qkv_CD.get())
        for target in ("q", "k", "v"):
            self._add(target, z_BTQ, qkv_NC)
        attended = fused.attend(qkv_NC, rope, T, learn)
        stream_ND = u_ND.addmm_(attended.out_ND, fused.out_DD.get().T)
        self._add("o", z_BTQ, stream_ND)
        g_ND, inverse_N, own_BTQ = h_ND, None, z_BTQ
        if not block.parallel:
            g_ND, inverse_N = kernels.norm(stream_ND, block.scale)
            own_BTQ = self._down(g_ND.view_as(h_BTD), self.mlp)
        square_NF = products.up_square(g_ND, fused.up_FD.get(), block.mlp.leak)
        stream_ND.addmm_(square_NF, fused.down_DF.get().T)
        self._add("mlp", own_BTQ, stream_ND)
        return stream_ND, _Tape(
            x_ND, x0_ND, join, h_BTD, z_BTQ, attended, g_ND, inverse_N, own_BTQ, square_NF
        )

    def backward(self, tape: _Tape, rope: Rope, grads: Grads) -> tuple[Grads, Tensor, list[Tensor]]:
        """Return (gradients of x, x0, skip; sums for the join; nothing); keep the adapters'."""
        fused, block, (dout_ND, dx0_ND, dpass_ND) = self.fused, self.fused.block, grads
        dz_BTQ = torch.empty_like(tape.z_BTQ)
        dv_ND, dh_ND = self._mlp_backward(tape, dout_ND, dz_BTQ)
        self._learn("o", dv_ND, tape.z_BTQ, dz_BTQ)
        dy_ND = dv_ND @ fused.out_DD.get()
        dqkv_NC, _ = fused.attend_backward(tape.attended, rope, dy_ND)
        for target in ("q", "k", "v"):
            self._learn(target, dqkv_NC, tape.z_BTQ, dz_BTQ)
        qkv_CD = fused.qkv_CD.get()
        dh_ND = dqkv_NC @ qkv_CD if dh_ND is None else dh_ND.addmm_(dqkv_NC, qkv_CD)
        self._down_backward(self.shared, dz_BTQ, tape.h_BTD, dh_ND)
        dx_ND, dx0_ND, dskip_ND, sums_4D = kernels.enter_backward(
            tape.x_ND, tape.x0_ND, block.resid_mix, tape.join, block.scale,
            (dv_ND, dh_ND, dx0_ND, dpass_ND),
        )  # fmt: skip
        return (dx_ND, dx0_ND, dskip_ND), sums_4D, []

    def _mlp_backward(
        self, tape: _Tape, dout_ND: Tensor, dz_BTQ: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Return (gradient of the stream before the MLP, of a shared input)."""
        fused, block = self.fused, self.fused.block
        down_FD = fused.down_FD.get()
        dh_NF = products.slope_product(dout_ND, down_FD, tape.square_NF, block.mlp.leak)
        dg_ND = dh_NF @ fused.up_FD.get()
        if tape.inverse_N is None:
            self._learn("mlp", dout_ND, tape.z_BTQ, dz_BTQ)
            return dout_ND, dg_ND
        down_BTQ = torch.empty_like(tape.own_BTQ)
        self._learn("mlp", dout_ND, tape.own_BTQ, down_BTQ)
        self._down_backward(self.mlp, down_BTQ, tape.g_ND.view_as(tape.h_BTD), dg_ND)
        return kernels.norm_backward(tape.g_ND, tape.inverse_N, dg_ND, dout_ND, block.scale), None

    # -----------------------------------------------------------------------------------------
    # The adapters' own products

    def _down(self, x_BTD: Tensor, rows: slice) -> Tensor:
        inner_BQD, _ = self.bank.pair(self.bank.copies, False, self.slot)
        return torch.bmm(x_BTD, inner_BQD[:, rows].mT)

    def _down_backward(self, rows: slice, dz_BTQ: Tensor, x_BTD: Tensor, dx_ND: Tensor) -> None:
        """Keep the gradient of A; add that of its input to `dx_ND`."""
        if rows.start == rows.stop:
            return
        inner_BQD, _ = self.bank.pair(self.bank.copies, False, self.slot)
        d_inner_BQD, _ = self.bank.pair(self.bank.grads, False, self.slot)
        torch.bmm(dz_BTQ.mT, x_BTD, out=d_inner_BQD[:, rows])
        dx_ND.view_as(x_BTD).baddbmm_(dz_BTQ, inner_BQD[:, rows])

    def _columns(self, target: str, z_BTQ: Tensor) -> slice:
        """Return where a target stands in what some rows of A made: the MLP's alone begin at 0."""
        rank = self.bank.adapters.rank
        return slice(0, rank) if z_BTQ.shape[2] == rank else self.group.inner[target]

    def _place(self, target: str, whole_NC: Tensor, like_BTQ: Tensor) -> Tensor:
        """Return the part of projections or stream that a target adds to, [B, T, O]."""
        rows = self.group.outer[target]
        first = self._first_column(target)
        part = whole_NC[:, first : first + rows.stop - rows.start]
        return part.view(*like_BTQ.shape[:2], -1)

    def _first_column(self, target: str) -> int:
        attn = self.fused.block.attn
        heads = {"k": attn.num_heads, "v": attn.num_heads + attn.num_kv_heads}
        return heads.get(target, 0) * attn.head_dim

    def _add(self, target: str, z_BTQ: Tensor, whole_NC: Tensor) -> None:
        if target not in self.group.targets:
            return
        _, outer_BOR = self.bank.pair(self.bank.copies, False, self.slot)
        outer_BOR = outer_BOR[:, self.group.outer[target]]
        z_BTR = z_BTQ[:, :, self._columns(target, z_BTQ)]
        self._place(target, whole_NC, z_BTQ).baddbmm_(z_BTR, outer_BOR.mT)

    def _learn(self, target: str, d_NC: Tensor, z_BTQ: Tensor, dz_BTQ: Tensor) -> None:
        """Keep the gradient of B; write that of what it read into its columns of `dz_BTQ`."""
        if target not in self.group.targets:
            return
        rows, columns = self.group.outer[target], self._columns(target, z_BTQ)
        _, outer_BOR = self.bank.pair(self.bank.copies, False, self.slot)
        _, d_outer_BOR = self.bank.pair(self.bank.grads, False, self.slot)
        d_BTO = self._place(target, d_NC, z_BTQ)
        torch.bmm(d_BTO.mT, z_BTQ[:, :, columns], out=d_outer_BOR[:, rows])
        torch.bmm(d_BTO, outer_BOR[:, rows], out=dz_BTQ[:, :, columns])


# ---------------------------------------------------------------------------------------------
# The model


class _Head(torch.autograd.Function):
    """What the adapters of the head add to raw logits, [B, C, V]."""

    @staticmethod
    def forward(ctx: Any, x_BCD: Tensor, bank: Bank) -> Tensor:
        inner_BRD, outer_BVR = bank.pair(bank.copies, True, 0)
        z_BCR = torch.bmm(x_BCD, inner_BRD.mT)
        ctx.bank, ctx.kept = bank, (x_BCD, z_BCR)
        return torch.bmm(z_BCR, outer_BVR.mT)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_BCV: Tensor) -> tuple[Tensor, None]:
        x_BCD, z_BCR = ctx.kept
        inner_BRD, outer_BVR = ctx.bank.pair(ctx.bank.copies, True, 0)
        d_inner_BRD, d_outer_BVR = ctx.bank.pair(ctx.bank.grads, True, 0)
        torch.bmm(d_BCV.mT, z_BCR, out=d_outer_BVR)
        dz_BCR = torch.bmm(d_BCV, outer_BVR)
        torch.bmm(dz_BCR.mT, x_BCD, out=d_inner_BRD)
        return torch.bmm(dz_BCR, inner_BRD), None


class AdaptedPath(FusedPath):
    """The fused path of a model whose rows have the adapters of a bank."""

    def __init__(self, bank: Bank) -> None:
        model = bank.adapters.model
        super().__init__(model)
        self.bank = bank
        targets, layers = bank.adapters.targets, (*model.encoder_visits, *model.decoder_visits)
        self._visits: list[Visited] = [self.blocks[layer] for layer in layers]
        if targets != ["head"]:
            found = enumerate(layers)
            self._visits = [AdaptedVisit(self.blocks[layer], bank, slot) for slot, layer in found]
        self._slot = 0

    def states(self, ids_BT: Tensor, rope: Rope) -> Tensor:
        """Return the final states of windows that stand where a rotary table says, [B, T, D].

        The way back from them keeps the adapters' gradients in the bank.
        """
        self._slot = 0
        # Something must want a gradient for there to be a way back.
        x_ND = self._embed(ids_BT).detach().requires_grad_(torch.is_grad_enabled())
        h_ND: Tensor = Norm.apply(self._walk(x_ND, rope, ids_BT.shape[1]))  # type: ignore[no-untyped-call]
        return h_ND.view(*ids_BT.shape, -1)

    def head_adds(self, x_BCD: Tensor) -> Tensor | None:
        """Return what the head's adapters, if any, add to the raw logits of some states."""
        if "head" not in self.bank.adapters.targets:
            return None
        extra: Tensor = _Head.apply(x_BCD.contiguous(), self.bank)  # type: ignore[no-untyped-call]
        return extra

    def _block(self, layer: int) -> Visited:
        visit = self._visits[self._slot]
        self._slot += 1
        return visit
