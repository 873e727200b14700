"""The same transformer for GPUs: each block one autograd function made of few, wide kernels.

What is different from the plain path of `gpt`, and why it is the same function:
- queries, keys and values come from one product with the three matrices side by side;
- attn_scale and mlp_scale are multiplied into the rows of the output matrices, so that a branch is
  added to the stream inside its matrix product; their gradients are row sums of W * dW;
- the activation is part of the up-projection's product, its slope part of the way back;
- the gradients of x0 and of skips travel through the blocks, which add to them in passing;
- matrices' gradients are float32, where the plain path rounds them to bfloat16 first;
- the loss's gradient is formed in the logits' own memory on the way forward.
Working copies of the weights in bfloat16 are renewed when an optimiser has changed them.

Shapes: B batch, T time, N = B T rows, D width, F hidden width of the MLP, H query heads,
G key/value heads, K head width, C = (H + 2 G) K, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from fairway.config.settings import ModelConfig
from fairway.model.gpt import GPT, Block
from fairway.model.gpu import heads, kernels, products
from fairway.model.gpu.kernels import Join

Rope = tuple[Tensor, Tensor]
# Those of a state that must have one, and of two that may.
Grads = tuple[Tensor, Tensor | None, Tensor | None]


def product_f32(a_MN: Tensor, b_NL: Tensor) -> Tensor:
    """Return a b in float32 from bfloat16 factors: the gradient of a matrix."""
    if not a_MN.is_cuda:
        return a_MN.float() @ b_NL.float()
    result: Tensor = torch.mm(a_MN, b_NL, out_dtype=torch.float32)
    return result


# ---------------------------------------------------------------------------------------------
# Working copies


class Working:
    """A tensor made from parameters, made again in its place once one of them has changed.

    `make(out, *sources)` writes it: rounding on the way out saves a float32 tensor in between.
    """

    def __init__(
        self, make: Callable[..., None], shape: Sequence[int], dtype: torch.dtype, *sources: Tensor
    ) -> None:
        self._make, self._sources = make, sources
        self._versions: tuple[int, ...] = ()
        self._value = sources[0].new_empty(shape, dtype=dtype)

    def get(self) -> Tensor:
        """Return the up-to-date tensor."""
        versions = tuple(source._version for source in self._sources)
        if versions != self._versions:
            self._make(self._value, *(source.detach() for source in self._sources))
            self._versions = versions
        return self._value


def _side_by_side(out_RC: Tensor, *weights: Tensor) -> None:
    parts = torch.split(out_RC, [len(weight) for weight in weights])
    torch._foreach_copy_(list(parts), list(weights))


def _scaled(out_RC: Tensor, weight_RC: Tensor, scale_R: Tensor) -> None:
    torch.mul(weight_RC, scale_R[:, None], out=out_RC)


def _scaled_transposed(out_CR: Tensor, weight_RC: Tensor, scale_R: Tensor) -> None:
    _scaled(out_CR.T, weight_RC, scale_R)


# ---------------------------------------------------------------------------------------------
# One block


@dataclass(slots=True)
class _Tape:
    """What the way back through a visit needs."""

    x_ND: Tensor
    x0_ND: Tensor | None
    join: Join | None
    h_ND: Tensor
    attended: "Attended"
    mlp: "_Hidden"


@dataclass(slots=True)
class Attended:
    """What attention's way back needs."""

    qkv_NC: Tensor
    inverse: Tensor
    inputs: tuple[Tensor, Tensor, Tensor]
    y_BHTK: Tensor
    out_ND: Tensor


@dataclass(slots=True)
class _Hidden:
    h_ND: Tensor
    inverse_N: Tensor | None
    square_NF: Tensor


class FusedBlock:
    """One physical block: its working copies, its forward and its backward pass."""

    def __init__(self, block: Block, dtype: torch.dtype) -> None:
        attn, mlp = block.attn, block.mlp
        self.block = block
        q, k, v, out = (m.weight for m in (attn.c_q, attn.c_k, attn.c_v, attn.proj))
        up, down = mlp.fc.weight, mlp.proj.weight
        rows = len(q) + len(k) + len(v)
        self.qkv_CD = Working(_side_by_side, (rows, q.shape[1]), dtype, q, k, v)
        self.out_DD = Working(_scaled, out.shape, dtype, out, block.attn_scale)
        self.up_FD = Working(_side_by_side, up.shape, dtype, up)
        self.down_DF = Working(_scaled, down.shape, dtype, down, block.mlp_scale)
        self.down_FD = Working(_scaled_transposed, up.shape, dtype, down, block.mlp_scale)
        self.parameters = (
            q, k, v, out, attn.q_gain, up, down,
            block.attn_scale, block.mlp_scale, block.resid_mix,
        )  # fmt: skip

    def forward(
        self,
        x_ND: Tensor,
        x0_ND: Tensor | None,
        join: Join | None,
        rope: Rope,
        T: int,
        learn: bool,
    ) -> tuple[Tensor, _Tape]:
        """Return the stream after the block and the tape of the visit."""
        block = self.block
        u_ND, h_ND = kernels.enter(x_ND, x0_ND, block.resid_mix, join, block.scale)
        attended = self.attend(F.linear(h_ND, self.qkv_CD.get()), rope, T, learn)
        # In place: the way back needs neither u nor what the stream was before the MLP.
        stream_ND = u_ND.addmm_(attended.out_ND, self.out_DD.get().T)
        g_ND, inverse_N = h_ND, None
        if not block.parallel:
            g_ND, inverse_N = kernels.norm(stream_ND, block.scale)
        square_NF = products.up_square(g_ND, self.up_FD.get(), block.mlp.leak)
        stream_ND.addmm_(square_NF, self.down_DF.get().T)
        hidden = _Hidden(g_ND, inverse_N, square_NF)
        return stream_ND, _Tape(x_ND, x0_ND, join, h_ND, attended, hidden)

    def attend(self, qkv_NC: Tensor, rope: Rope, T: int, learn: bool) -> Attended:
        """Return attention over projections, which it turns in place."""
        attn = self.block.attn
        H, G, K = attn.num_heads, attn.num_kv_heads, attn.head_dim
        inverse = heads.position_(qkv_NC, attn.q_gain, rope, T, H, G)
        split = torch.split(qkv_NC.view(-1, T, H + 2 * G, K).transpose(1, 2), [H, G, G], 1)
        q, k, v = (z.detach().requires_grad_(learn) for z in split)
        with torch.set_grad_enabled(learn):
            y_BHTK = attn.attend(q, k, v)
        if attn.exclude_self:
            out_ND = heads.without_self(y_BHTK.detach(), qkv_NC, G)
        else:
            out_ND = y_BHTK.detach().transpose(1, 2).reshape(len(qkv_NC), -1)
        return Attended(qkv_NC, inverse, (q, k, v), y_BHTK, out_ND)

    def backward(self, tape: _Tape, rope: Rope, grads: Grads) -> tuple[Grads, Tensor, list[Tensor]]:
        """Return (gradients of x, x0, skip; sums for the join; gradients of `parameters`)."""
        block, (dout_ND, dx0_ND, dpass_ND) = self.block, grads
        dv_ND, dh_ND, d_up, d_down = self._mlp_backward(tape, dout_ND)
        dy_ND = dv_ND @ self.out_DD.get()
        d_out = product_f32(dv_ND.T, tape.attended.out_ND)
        dqkv_NC, d_gain = self.attend_backward(tape.attended, rope, dy_ND)
        d_qkv = product_f32(dqkv_NC.T, tape.h_ND)
        qkv_CD = self.qkv_CD.get()
        dh_ND = dqkv_NC @ qkv_CD if dh_ND is None else dh_ND.addmm_(dqkv_NC, qkv_CD)
        dx_ND, dx0_ND, dskip_ND, sums_4D = kernels.enter_backward(
            tape.x_ND, tape.x0_ND, block.resid_mix, tape.join, block.scale,
            (dv_ND, dh_ND, dx0_ND, dpass_ND),
        )  # fmt: skip
        d_out, d_attn_scale = kernels.unscale_(d_out, block.attn.proj.weight, block.attn_scale)
        d_down, d_mlp_scale = kernels.unscale_(d_down, block.mlp.proj.weight, block.mlp_scale)
        rows = [len(w) for w in self.parameters[:3]]
        return (dx_ND, dx0_ND, dskip_ND), sums_4D, [
            *torch.split(d_qkv, rows), d_out, d_gain, d_up, d_down,
            d_attn_scale, d_mlp_scale, sums_4D[:2],
        ]  # fmt: skip

    def _mlp_backward(
        self, tape: _Tape, dout_ND: Tensor
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        """Return (gradient of the stream before the MLP, of a shared h, of fc, of mlp.proj)."""
        block, hidden = self.block, tape.mlp
        down_FD, up_FD = self.down_FD.get(), self.up_FD.get()
        dh_NF = products.slope_product(dout_ND, down_FD, hidden.square_NF, block.mlp.leak)
        d_down = product_f32(dout_ND.T, hidden.square_NF)
        d_up = product_f32(dh_NF.T, hidden.h_ND)
        dg_ND = dh_NF @ up_FD
        if hidden.inverse_N is None:
            return dout_ND, dg_ND, d_up, d_down
        dv_ND = kernels.norm_backward(hidden.h_ND, hidden.inverse_N, dg_ND, dout_ND, block.scale)
        return dv_ND, None, d_up, d_down

    def attend_backward(
        self, attended: Attended, rope: Rope, grad_ND: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the gradients of the projections, [N, C], and of the gains, [H]."""
        attn, qkv_NC = self.block.attn, attended.qkv_NC
        y_BHTK, extra = attended.y_BHTK, None
        if attn.exclude_self:
            dy, extra = heads.without_self_backward(
                y_BHTK.detach(), qkv_NC, grad_ND, attn.num_kv_heads
            )
        else:
            B, H, T, K = y_BHTK.shape
            dy = grad_ND.view(B, T, H, K).transpose(1, 2)
        dq, dk, dv = torch.autograd.grad(y_BHTK, attended.inputs, dy)
        return heads.position_backward(
            qkv_NC, attn.q_gain, rope, attended.inverse, (dq, dk, dv, extra)
        )


class Visited(Protocol):
    """What a visit runs: a block, or one with something added (`adapted`)."""

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        """What gradients are returned for."""

    def forward(
        self, x_ND: Tensor, x0_ND: Tensor | None, join: Join | None, rope: Rope, T: int, learn: bool
    ) -> tuple[Tensor, Any]:
        """Return the stream and the tape, which has the join."""

    def backward(self, tape: Any, rope: Rope, grads: Grads) -> tuple[Grads, Tensor, list[Tensor]]:
        """Return (gradients of x, x0, skip; sums for the join; gradients of `parameters`)."""


class _Visit(torch.autograd.Function):
    """A visit of a block: (x, x0, skip, join weights, parameters) -> (stream, x0, x).

    The first visit has no x0: its x is x0, and what it passes on as x0 carries both gradients.
    """

    @staticmethod
    def forward(ctx: Any, fused: Visited, rope: Rope, T: int, learn: bool, own: bool,
                x_ND: Tensor, x0_ND: Tensor | None, skip_ND: Tensor | None,
                weight_D: Tensor | None, gate_D: Tensor | None,
                *parameters: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:  # fmt: skip
        join = None if weight_D is None else Join(skip_ND, weight_D, gate_D, own)
        out_ND, tape = fused.forward(x_ND, x0_ND, join, rope, T, learn)
        ctx.set_materialize_grads(False)
        if learn:
            ctx.fused, ctx.tape, ctx.rope = fused, tape, rope
        return (out_ND, x_ND, None) if x0_ND is None else (out_ND, x0_ND, x_ND)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        tape, ctx.tape = ctx.tape, None
        assert tape is not None and grads[0] is not None
        dout, dx0, dpass = grads
        (dx, dx0, dskip), sums_4D, rest = ctx.fused.backward(tape, ctx.rope, (dout, dx0, dpass))
        join = tape.join
        d_weight = None if join is None else sums_4D[2]
        d_gate = None if join is None or join.gate_D is None else sums_4D[3]
        return None, None, None, None, None, dx, dx0, dskip, d_weight, d_gate, *rest


# ---------------------------------------------------------------------------------------------
# Both ends


class _Embed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table_VD: Tensor, ids_N: Tensor, dtype: torch.dtype) -> Tensor:
        y_ND, inverse_N = kernels.embed(table_VD, ids_N, dtype)
        ctx.save_for_backward(y_ND, inverse_N, ids_N)
        ctx.table = table_VD.shape[0], table_VD.dtype
        return y_ND

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_ND: Tensor) -> tuple[Tensor, None, None]:
        y_ND, inverse_N, ids_N = ctx.saved_tensors
        rows_ND = kernels.norm_backward(y_ND, inverse_N, dy_ND, None)
        V, dtype = ctx.table
        d_table = torch.ops.aten.embedding_dense_backward(rows_ND, ids_N, V, -1, False)
        return d_table.to(dtype), None, None


class Norm(torch.autograd.Function):
    """x / rms(x) of rows."""

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor) -> Tensor:
        """Return the normalised rows."""
        y_ND, inverse_N = kernels.norm(x_ND)
        ctx.save_for_backward(y_ND, inverse_N)
        return y_ND

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_ND: Tensor) -> Tensor:
        """Return the rows' gradient."""
        y_ND, inverse_N = ctx.saved_tensors
        return kernels.norm_backward(y_ND, inverse_N, dy_ND, None)


class _HeadLoss(torch.autograd.Function):
    """Mean loss of final states: norm, head, cap, cross-entropy.

    All gradients are formed on the way forward, and the logits freed.
    """

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, weight_VD: Tensor, copy_VD: Tensor, targets_N: Tensor,
                config: ModelConfig, learn: bool) -> Tensor:  # fmt: skip
        y_ND, inverse_N = kernels.norm(x_ND)
        logits_NV = y_ND @ copy_VD.T
        loss_N = kernels.loss_(logits_NV, targets_N, config.softcap, learn)
        if learn:
            d_weight = product_f32(logits_NV.T, y_ND).to(weight_VD.dtype)
            ctx.save_for_backward(y_ND, inverse_N, logits_NV @ copy_VD, d_weight)
        return loss_N.double().mean().float()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        y_ND, inverse_N, dy_ND, d_weight = ctx.saved_tensors
        # The norm's way back is linear in `inverse`: scaling N numbers scales N x D.
        dx_ND = kernels.norm_backward(y_ND, inverse_N * grad, dy_ND, None)
        return dx_ND, d_weight.mul_(grad), None, None, None, None


# ---------------------------------------------------------------------------------------------
# The model


class FusedPath:
    """Takes the place of a model's own hidden states and loss; see the module's text."""

    def __init__(self, model: GPT) -> None:
        self.model, dtype = model, model.compute_dtype
        self.blocks = [FusedBlock(cast(Block, block), dtype) for block in model.blocks]
        head = model.tok_emb if model.config.tie_embeddings else model.head
        self.head = head.weight
        self.head_VD = Working(_side_by_side, head.weight.shape, dtype, head.weight)

    def hidden(self, ids_BT: Tensor) -> Tensor:
        """Return the normalised final state of every position, [B, T, D] in the compute dtype."""
        h_ND: Tensor = Norm.apply(self._final(ids_BT))  # type: ignore[no-untyped-call]
        return h_ND.view(*ids_BT.shape, -1)

    def loss(self, ids_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """Return the mean cross-entropy in nats per token, a float32 scalar."""
        loss: Tensor = _HeadLoss.apply(  # type: ignore[no-untyped-call]
            self._final(ids_BT), self.head, self.head_VD.get(), targets_BT.flatten(),
            self.model.config, torch.is_grad_enabled(),
        )  # fmt: skip
        return loss

    def _final(self, ids_BT: Tensor) -> Tensor:
        return self._walk(self._embed(ids_BT), self.model.rope_for(ids_BT), ids_BT.shape[1])

    def _embed(self, ids_BT: Tensor) -> Tensor:
        model = self.model
        if model.config.smear:
            return model.embedded(ids_BT).flatten(0, 1)
        x_ND: Tensor = _Embed.apply(  # type: ignore[no-untyped-call]
            model.tok_emb.weight, ids_BT.flatten(), model.compute_dtype
        )
        return x_ND

    def _walk(self, x_ND: Tensor, rope: Rope, T: int) -> Tensor:
        model = self.model
        x0_ND: Tensor | None = None
        stack: list[Tensor] = []
        for place, layer in enumerate(model.encoder_visits):
            # A state enters the stack as the next block passes it on, so that the gradients of its
            # two uses meet inside that block's way back.
            x_ND, x0_ND, before_ND = self._visit(layer, x_ND, x0_ND, rope, T)
            if place:
                assert before_ND is not None
                stack.append(before_ND)
        own = bool(model.encoder_visits)
        for step, layer in enumerate(model.decoder_visits):
            joins = step < model.num_skips and (own or bool(stack))
            skip_ND = stack.pop() if joins and not own else None
            rows = self._join_rows(step) if joins else (None, None)
            x_ND, x0_ND, _ = self._visit(layer, x_ND, x0_ND, rope, T, skip_ND, rows, own and joins)
            own = False
        return x_ND

    def _block(self, layer: int) -> Visited:
        """Return what the next visit runs, which is to a layer."""
        return self.blocks[layer]

    def _join_rows(self, step: int) -> tuple[Tensor, Tensor | None]:
        model = self.model
        gates = model.skip_gates[step] if model.config.skip_gates else None
        return model.skip_weights[step], gates

    def _visit(
        self,
        layer: int,
        x_ND: Tensor,
        x0_ND: Tensor | None,
        rope: Rope,
        T: int,
        skip_ND: Tensor | None = None,
        rows: tuple[Tensor | None, Tensor | None] = (None, None),
        own: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        block = self._block(layer)
        outputs: tuple[Tensor, Tensor, Tensor | None] = _Visit.apply(  # type: ignore[no-untyped-call]
            block, rope, T, torch.is_grad_enabled(), own, x_ND, x0_ND, skip_ND, *rows,
            *block.parameters,
        )  # fmt: skip
        return outputs
