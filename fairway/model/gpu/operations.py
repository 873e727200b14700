"""The steps of the model's walk as a few wide kernels, each with its own backward.

The differences from the plain formulas of `model.operations`, and why the function is the same:
- queries, keys and values come from one product with the three matrices joined;
- attn_scale and mlp_scale are multiplied into the rows of the output matrices, so that a branch is
  added to the stream inside its matrix product; their gradients are row sums of W * dW;
- the activation is part of the up-projection's product, and its slope part of the backward;
- a tensor that several steps read is passed through them, and each adds its gradient;
- matrices' gradients are float32; the plain formulas round them to bfloat16 first;
- the forward pass computes the loss's gradient in the memory of the logits;
- in training, operands of products may have fewer bits than bfloat16 has (`short`).
Working copies of the weights in bfloat16 are updated after an optimiser has changed the weights.

Some steps change the stream in place and declare that to autograd; no earlier step needs the old
values.

Shapes: B batch, T time, N = B T rows, D width, F hidden width of the MLP, H query heads,
G key/value heads, K head width, C = (H + 2 G) K, V vocabulary.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fairway.model.attention import Attention
from fairway.model.gpu import heads, kernels, losses, products
from fairway.model.gpu.short import FULL, unit_of
from fairway.model.gpu.steps import (
    Step,
    Working,
    rows_of,
    scaled,
    scaled_transposed,
    side_by_side,
)
from fairway.model.operations import Extra, Extras, Heads, Join, Operations, Projected, Rope, Tell
from fairway.model.ops import product_f32

# ---------------------------------------------------------------------------------------------
# The stream


class _Enter(Step):
    """(x, x0, skip, its weight and gate, mix) -> (u, h, x0, x). In the first visit x is x0."""

    @staticmethod
    def forward(ctx: Any, scale: float, unit: int, own: bool, x: Tensor, x0: Tensor | None,
                skip: Tensor | None, weight_D: Tensor | None, gate_D: Tensor | None,
                mix_2D: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:  # fmt: skip
        join = None
        if weight_D is not None and gate_D is not None:
            join = kernels.Join(skip, weight_D, gate_D, own)
        u, h = kernels.enter(x, x0, mix_2D, join, scale, unit)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, x0, skip, weight_D, gate_D, mix_2D)
        ctx.scale, ctx.own = scale, own
        return (u, h, x, None) if x0 is None else (u, h, x0, x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, du: Tensor | None, dh: Tensor, dx0: Tensor | None,
                 dpass: Tensor | None) -> tuple[Any, ...]:  # fmt: skip
        x, x0, skip, weight_D, gate_D, mix_2D = ctx.saved_tensors
        # With two lanes, u itself has no further use.
        du = torch.zeros_like(x) if du is None else du
        join = None if gate_D is None else kernels.Join(skip, weight_D, gate_D, ctx.own)
        dx, dx0, dskip, sums_4D = kernels.enter_backward(
            x, x0, mix_2D, join, ctx.scale, (du, dh, dx0, dpass)
        )
        d_weight, d_gate = (None, None) if join is None else sums_4D[2:]
        return None, None, None, dx, dx0, dskip, d_weight, d_gate, sums_4D[:2]


class _Norm(Step):
    @staticmethod
    def forward(ctx: Any, x: Tensor, unit: int) -> Tensor:
        y, inverse_N = kernels.norm(x, unit=unit)
        ctx.save_for_backward(y, inverse_N)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        y, inverse_N = ctx.saved_tensors
        return kernels.norm_backward(y, inverse_N, dy, None), None


class _Branch(Step):
    """u -> (u, scale u / rms(u)); backward adds the gradient of u from its other uses."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, scale: float, unit: int) -> tuple[Tensor, Tensor]:
        h, inverse_N = kernels.norm(u, scale, unit)
        ctx.mark_dirty(u)
        ctx.save_for_backward(h, inverse_N)
        ctx.scale = scale
        return u, h

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, du: Tensor, dh: Tensor) -> tuple[Tensor, None, None]:
        h, inverse_N = ctx.saved_tensors
        return kernels.norm_backward(h, inverse_N, dh, du, ctx.scale), None, None


class _AddProduct(Step):
    """Computes u + scale * (W y), in place."""

    @staticmethod
    def forward(ctx: Any, copy: Working, u: Tensor, y: Tensor, weight: Tensor,
                scale_D: Tensor) -> Tensor:  # fmt: skip
        rows_of(u).addmm_(rows_of(y), copy.get().T)
        ctx.mark_dirty(u)
        ctx.save_for_backward(y, weight, scale_D)
        ctx.copy = copy
        return u

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        y, weight, scale_D = ctx.saved_tensors
        dout = dout.contiguous()
        dy = dout @ ctx.copy.get()
        if not ctx.needs_input_grad[3]:
            return None, dout, dy, None, None
        d_weight = product_f32(rows_of(dout).T, rows_of(y))
        return None, dout, dy, *kernels.unscale_(d_weight, weight, scale_D)


# ---------------------------------------------------------------------------------------------
# The branches


class _Project(Step):
    """(h, matrices) -> (their joined products, h). No other code uses the gradient of h."""

    @staticmethod
    def forward(ctx: Any, copy: Working, h: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(h)
        ctx.set_materialize_grads(False)
        ctx.copy, ctx.rows = copy, [len(weight) for weight in weights]
        return F.linear(h, copy.get()), h

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor, dh: Tensor | None) -> tuple[Tensor | None, ...]:
        (h,) = ctx.saved_tensors
        dout, weight_CD = dout.contiguous(), ctx.copy.get()
        if dh is None:
            dh = dout @ weight_CD
        else:
            rows_of(dh).addmm_(rows_of(dout), weight_CD)
        if not ctx.needs_input_grad[2]:
            return None, dh, *(None for _ in ctx.rows)
        d_weights = product_f32(rows_of(dout).T, rows_of(h))
        return None, dh, *torch.split(d_weights, ctx.rows)


class _Attend(Step):
    """Head norms, rotation, gain, attention and XSA; the projections are rotated in place."""

    @staticmethod
    def forward(ctx: Any, sizes: Heads, rope: Rope, attend: Attention, unit: int, learn: bool,
                qkv_BTC: Tensor, gain_H: Tensor) -> Tensor:  # fmt: skip
        (B, T, _), (H, G) = qkv_BTC.shape, (sizes.queries, sizes.keys)
        # Detached, so that autograd ignores the rotation; no other code reads the projections.
        qkv_NC = rows_of(qkv_BTC.detach())
        inverse = heads.position_(qkv_NC, gain_H, rope, T, H, G, unit)
        split = torch.split(qkv_NC.view(B, T, H + 2 * G, -1).transpose(1, 2), [H, G, G], 1)
        q, k, v = (z.detach().requires_grad_(learn) for z in split)
        with torch.set_grad_enabled(learn):
            y_BHTK = attend(q, k, v)
        out_NC = heads.without_self(y_BHTK.detach(), qkv_NC, G, unit)
        if learn:
            ctx.tape = qkv_NC, inverse, (q, k, v), y_BHTK
            ctx.sizes, ctx.rope, ctx.gain_H, ctx.unit = sizes, rope, gain_H, unit
        return out_NC.view(B, T, -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BTC: Tensor) -> tuple[Tensor | None, ...]:
        qkv_NC, inverse, inputs, y_BHTK = ctx.tape
        # Attention's own saved tensors are not managed by autograd.
        ctx.tape = None
        dy, extra = heads.without_self_backward(
            y_BHTK.detach(), qkv_NC, rows_of(grad_BTC.contiguous()), ctx.sizes.keys, ctx.unit
        )
        dq, dk, dv = torch.autograd.grad(y_BHTK, inputs, dy)
        d_qkv, d_gain = heads.position_backward(
            qkv_NC, ctx.gain_H, ctx.rope, inverse, (dq, dk, dv, extra), ctx.unit
        )
        return None, None, None, None, None, d_qkv.view(*grad_BTC.shape[:2], -1), d_gain


class _Mlp(Step):
    """Computes u + scale * down(leaky(up g)^2), in place."""

    @staticmethod
    def forward(ctx: Any, copies: tuple[Working, Working, Working], leak: float, unit: int,
                u: Tensor, g: Tensor, up: Tensor, down: Tensor,
                scale_D: Tensor) -> Tensor:  # fmt: skip
        square_NF = products.up_square(rows_of(g), copies[0].get(), leak, unit)
        rows_of(u).addmm_(square_NF, copies[1].get().T)
        ctx.mark_dirty(u)
        ctx.save_for_backward(g, square_NF, down, scale_D)
        ctx.copies, ctx.leak, ctx.unit = copies, leak, unit
        return u

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        g, square_NF, down, scale_D = ctx.saved_tensors
        up, _, down_turned = ctx.copies
        dout_ND = rows_of(dout.contiguous())
        dh_NF = products.slope_product(dout_ND, down_turned.get(), square_NF, ctx.leak, ctx.unit)
        d_up = d_down = d_scale = None
        if ctx.needs_input_grad[5]:
            d_down = product_f32(dout_ND.T, square_NF)
            d_up = product_f32(dh_NF.T, rows_of(g))
            d_down, d_scale = kernels.unscale_(d_down, down, scale_D)
        dg = (dh_NF @ up.get()).view_as(g)
        return None, None, None, dout, dg, d_up, d_down, d_scale


# ---------------------------------------------------------------------------------------------
# Embedding and loss


class _Embed(Step):
    @staticmethod
    def forward(ctx: Any, table_VD: Tensor, ids_BT: Tensor, dtype: torch.dtype) -> Tensor:
        y, inverse_N = kernels.embed(table_VD, ids_BT, dtype)
        ctx.save_for_backward(y, inverse_N, ids_BT)
        ctx.table = table_VD.shape[0], table_VD.dtype
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
        y, inverse_N, ids_BT = ctx.saved_tensors
        rows = kernels.norm_backward(y, inverse_N, dy, None)
        V, dtype = ctx.table
        d_table = torch.ops.aten.embedding_dense_backward(rows, ids_BT, V, -1, False)
        return d_table.to(dtype), None, None


class _Loss(Step):
    """Head, cap and cross-entropy; forward computes all gradients and frees the logits."""

    @staticmethod
    def forward(ctx: Any, copy_VD: Tensor, cap: float, unit: int, learn: bool, h_ND: Tensor,
                weight_VD: Tensor, targets_N: Tensor) -> Tensor:  # fmt: skip
        logits_NV = h_ND @ copy_VD.T
        loss_N = losses.loss_(logits_NV, targets_N, cap, learn, unit)
        if learn:
            d_weight = product_f32(logits_NV.T, h_ND).to(weight_VD.dtype)
            ctx.save_for_backward(logits_NV @ copy_VD, d_weight)
        return loss_N.double().mean().float()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        dh_ND, d_weight = ctx.saved_tensors
        return None, None, None, None, dh_ND.mul_(grad), d_weight.mul_(grad), None


# ---------------------------------------------------------------------------------------------
# The steps


class Kernels(Operations):
    """Kernels for every step whose shapes they support, and working copies of the weights.

    Operands of products have so many bits of mantissa; 7 are those of bfloat16.
    """

    fused = True

    def __init__(self, dtype: torch.dtype, plain: Collection[str] = (), bits: int = 7) -> None:
        self._dtype, self._plain, self._unit = dtype, plain, unit_of(bits)
        self._copies: dict[tuple[object, ...], Working] = {}

    def copy(self, make: Callable[..., None], shape: Sequence[int], *sources: Tensor) -> Working:
        """Return the working copy of some parameters, the same at every call."""
        key = make, *map(id, sources)
        if key not in self._copies:
            self._copies[key] = Working(make, shape, self._dtype, self._unit, *sources)
        return self._copies[key]

    def renew(self) -> None:
        """Compute the copies of changed parameters again, in place: recorded launches only read
        them."""
        for copy in self._copies.values():
            copy.get()

    def watched(self, tell: Tell) -> Operations:
        """Return the same steps without gradients, which report the inputs of all matrices."""
        return Watched(self, tell)

    def watched_back(self, tell: Tell) -> Operations:
        """Return the same steps, which report the gradients of the outputs of matrices."""
        return WatchedBack(self, tell)

    def embed(self, table: nn.Embedding, ids_BT: Tensor, dtype: torch.dtype) -> Tensor:
        """Return normalised embeddings, [B, T, D]."""
        out: Tensor = _Embed.run(table.weight, ids_BT.contiguous(), dtype)
        return out

    def norm(self, x: Tensor) -> Tensor:
        """Return x / rms(x)."""
        out: Tensor = _Norm.run(x.contiguous(), FULL)
        return out

    def final(self, x_BTD: Tensor) -> Tensor:
        """Return x / rms(x), which the head multiplies."""
        out: Tensor = _Norm.run(x_BTD.contiguous(), self._unit)
        return out

    def enter(
        self, x_BTD: Tensor, x0_BTD: Tensor, join: Join | None, mix_2D: Tensor, scale: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return (u, h, x0, x)."""
        skip_BTD, weight_D, gate_D = join or (None, None, None)
        own = skip_BTD is x_BTD
        outputs: tuple[Tensor, Tensor, Tensor, Tensor] = _Enter.run(
            scale, self._unit, own, x_BTD, None if x0_BTD is x_BTD else x0_BTD,
            None if own else skip_BTD, weight_D, gate_D, mix_2D,
        )  # fmt: skip
        return outputs

    def branch(self, u_BTD: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """Return (u, scale u / rms(u))."""
        outputs: tuple[Tensor, Tensor] = _Branch.run(u_BTD, scale, self._unit)
        return outputs

    def project(
        self, h_BTD: Tensor, layers: Sequence[nn.Linear], extras: Extras
    ) -> tuple[Projected, Tensor]:
        """Return (joined queries, keys and values; h)."""
        weights = [layer.weight for layer in layers]
        rows = [len(weight) for weight in weights]
        copy = self.copy(side_by_side, (sum(rows), h_BTD.shape[2]), *weights)
        qkv_BTC, h_BTD = _Project.run(copy, h_BTD, *weights)
        for name, first in zip("qkv", (0, rows[0], rows[0] + rows[1]), strict=True):
            if name in extras:
                qkv_BTC = extras[name].add_(qkv_BTC, first, None)
        return qkv_BTC, h_BTD

    def attend(
        self, projected: Projected, gain_H: Tensor, rope: Rope, attend: Attention, heads: Heads
    ) -> Tensor:
        """Return attention over projections, [B, T, H K]."""
        assert isinstance(projected, Tensor)
        if "attend" in self._plain:
            K = projected.shape[2] // (heads.queries + 2 * heads.keys)
            widths = [K * count for count in (heads.queries, heads.keys, heads.keys)]
            return super().attend(torch.split(projected, widths, 2), gain_H, rope, attend, heads)
        learn = torch.is_grad_enabled()
        out: Tensor = _Attend.run(heads, rope, attend, self._unit, learn, projected, gain_H)
        return out

    def add(
        self, u_BTD: Tensor, y_BTC: Tensor, layer: nn.Linear, scale_D: Tensor, extra: Extra | None
    ) -> Tensor:
        """Return u + scale * (W y + extra), in place."""
        weight = layer.weight
        copy = self.copy(scaled, weight.shape, weight, scale_D)
        u_BTD = _AddProduct.run(copy, u_BTD, y_BTC, weight, scale_D)
        return u_BTD if extra is None else extra.add_(u_BTD, 0, scale_D)

    def mlp(self, u_BTD: Tensor, g_BTD: Tensor, layers: tuple[nn.Linear, nn.Linear], leak: float,
            scale_D: Tensor, extra: Extra | None) -> Tensor:  # fmt: skip
        """Return u + scale * (down(leaky(up g)^2) + extra), in place."""
        if "mlp" in self._plain:
            return super().mlp(u_BTD, g_BTD, layers, leak, scale_D, extra)
        up, down = (layer.weight for layer in layers)
        copies = (
            self.copy(side_by_side, up.shape, up),
            self.copy(scaled, down.shape, down, scale_D),
            self.copy(scaled_transposed, up.shape, down, scale_D),
        )
        u_BTD = _Mlp.run(copies, leak, self._unit, u_BTD, g_BTD, up, down, scale_D)
        return u_BTD if extra is None else extra.add_(u_BTD, 0, scale_D)

    def loss(self, h_ND: Tensor, head: Tensor, targets_N: Tensor, cap: float) -> Tensor:
        """Return the mean cross-entropy in nats of final states, a float32 scalar."""
        copy = self.copy(side_by_side, head.shape, head)
        learn = torch.is_grad_enabled()
        found: Tensor = _Loss.run(copy.get(), cap, self._unit, learn, h_ND, head, targets_N)
        return found


class Watched(Kernels):
    """Kernels that report the input of every matrix, for calibration; they have no backward."""

    def __init__(self, steps: Kernels, tell: Tell) -> None:
        super().__init__(steps._dtype, steps._plain)
        self._unit = steps._unit
        self._copies, self._tell = steps._copies, tell

    def project(
        self, h_BTD: Tensor, layers: Sequence[nn.Linear], extras: Extras
    ) -> tuple[Projected, Tensor]:
        """Return (joined queries, keys and values; h, the reported tensor)."""
        for layer in layers:
            self._tell(layer, h_BTD)
        return super().project(h_BTD, layers, extras)[0], h_BTD

    def add(
        self, u_BTD: Tensor, y_BTC: Tensor, layer: nn.Linear, scale_D: Tensor, extra: Extra | None
    ) -> Tensor:
        """Return u + scale * (W y + extra), in place."""
        self._tell(layer, y_BTC)
        return super().add(u_BTD, y_BTC, layer, scale_D, extra)

    def mlp(self, u_BTD: Tensor, g_BTD: Tensor, layers: tuple[nn.Linear, nn.Linear], leak: float,
            scale_D: Tensor, extra: Extra | None) -> Tensor:  # fmt: skip
        """Return u + scale * (down(leaky(up g)^2) + extra), in place; the activation is kept."""
        if "mlp" in self._plain:
            return super().mlp(u_BTD, g_BTD, layers, leak, scale_D, extra)
        up, down = layers
        self._tell(up, g_BTD)
        copy = self.copy(side_by_side, up.weight.shape, up.weight)
        square_NF = products.up_square(rows_of(g_BTD), copy.get(), leak, self._unit)
        return self.add(u_BTD, square_NF.view(*g_BTD.shape[:2], -1), down, scale_D, extra)


class WatchedBack(Kernels):
    """Kernels that report the gradient of every matrix's output, for sensitivities.

    The embedding and the MLP's first matrix call their layers, so that hooks work on them.
    """

    def __init__(self, steps: Kernels, tell: Tell) -> None:
        super().__init__(steps._dtype, {*steps._plain, "mlp"})
        self._unit = steps._unit
        self._copies, self._tell = steps._copies, tell

    def embed(self, table: nn.Embedding, ids_BT: Tensor, dtype: torch.dtype) -> Tensor:
        """Return normalised embeddings, [B, T, D]."""
        return Operations.embed(self, table, ids_BT, dtype)

    def project(
        self, h_BTD: Tensor, layers: Sequence[nn.Linear], extras: Extras
    ) -> tuple[Projected, Tensor]:
        """Return (joined queries, keys and values; h)."""
        qkv_BTC, h_BTD = super().project(h_BTD, layers, extras)
        assert isinstance(qkv_BTC, Tensor)

        def tell(grad_BTC: Tensor) -> None:
            parts = torch.split(grad_BTC, [len(layer.weight) for layer in layers], 2)
            for layer, part in zip(layers, parts, strict=True):
                self._tell(layer, part)

        qkv_BTC.register_hook(tell)  # type: ignore[no-untyped-call]
        return qkv_BTC, h_BTD

    def add(
        self, u_BTD: Tensor, y_BTC: Tensor, layer: nn.Linear, scale_D: Tensor, extra: Extra | None
    ) -> Tensor:
        """Return u + scale * (W y + extra), in place."""
        out_BTD = super().add(u_BTD, y_BTC, layer, scale_D, extra)

        def tell(grad_BTD: Tensor) -> None:
            self._tell(layer, grad_BTD * scale_D.to(grad_BTD.dtype))

        out_BTD.register_hook(tell)  # type: ignore[no-untyped-call]
        return out_BTD
