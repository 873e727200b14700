"""The steps of which the model's one walk is made, each as its plain formula.

`gpt` says which step follows which; this page says what each computes. A CPU runs them as they
stand here. `gpu.operations` has the same steps as kernels, and uses these for shapes that a kernel
does not take.

Some steps hand on what they were given: a tensor with several readers travels through them, so that
a kernel can add the readers' gradients in passing. Here it comes back as it is.

Shapes: B batch, T time, D width, E embedding width, C outputs of several projections,
H query heads, G key/value heads, K head width, V vocabulary, N rows of a flattened batch,
S shares of a token.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairway.model.attention import Attention
from fairway.model.ops import (
    added,
    entered,
    leaky_square,
    mean_loss,
    norm,
    position,
    softcapped_apart,
    without_self,
)

Rope = tuple[Tensor, Tensor]
# Queries, keys and values of positions, [B, T, heads K] each; kernels keep them side by side.
Projected = tuple[Tensor, ...] | Tensor


class Join(NamedTuple):
    """A skip to blend into the stream: its state, its weights, and its gates if it has any."""

    skip_BTD: Tensor
    weight_D: Tensor
    gate_D: Tensor | None


class Extra(Protocol):
    """What an adapter adds to the output of a matrix, before that is scaled."""

    def value(self) -> Tensor:
        """Return it, [B, T, O]."""

    def add_(self, whole_BTC: Tensor, first: int, scale_O: Tensor | None) -> Tensor:
        """Return `whole` with it, scaled, added to its columns from `first` on, in place."""


Extras = Mapping[str, Extra]


@dataclass(frozen=True, slots=True)
class Heads:
    """How attention reads projections: heads of queries, heads of keys and values, XSA or not."""

    queries: int
    keys: int
    exclude_self: bool


# Is called with a matrix's layer, and its input or the gradient of its output.
Tell = Callable[[nn.Linear, Tensor], None]


class Operations:
    """Plain formulas. Kernels say so by `fused`."""

    fused = False

    def watched(self, tell: Tell) -> "Operations":
        """Return the same steps, which tell the inputs of layers that they do not call."""
        return self

    def watched_back(self, tell: Tell) -> "Operations":
        """Return the same steps, which tell the gradients of outputs of layers that they do not
        call."""
        return self

    def embed(self, table: nn.Embedding, ids_BT: Tensor, dtype: torch.dtype) -> Tensor:
        """Return normalised embeddings, [B, T, E]."""
        return self.norm(table(ids_BT).to(dtype))

    def norm(self, x: Tensor) -> Tensor:
        """Return x / rms(x)."""
        return norm(x)

    def joined(self, x_BTD: Tensor, join: Join) -> Tensor:
        """Return the stream with a skip blended in.

        The rows of a join belong to decoder steps, not to layers: switching the recurrence on pairs
        them anew, and the first skip is the state itself.
        """
        s_BTD = join.weight_D.to(x_BTD.dtype) * join.skip_BTD
        if join.gate_D is None:
            return x_BTD + s_BTD
        return torch.lerp(s_BTD, x_BTD, torch.sigmoid(join.gate_D).to(x_BTD.dtype))

    def enter(
        self, x_BTD: Tensor, x0_BTD: Tensor, join: Join | None, mix_2D: Tensor, scale: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return (u, h, x0, x): u = mix[0] x + mix[1] x0 after a skip, h = scale u / rms(u)."""
        joined_BTD = x_BTD if join is None else self.joined(x_BTD, join)
        return *entered(joined_BTD, x0_BTD, mix_2D, scale), x0_BTD, x_BTD

    def branch(self, u_BTD: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """Return (u, scale u / rms(u)): the stream goes on, a branch begins."""
        return u_BTD, norm(u_BTD, scale)

    def project(
        self, h_BTD: Tensor, layers: Sequence[nn.Linear], extras: Extras
    ) -> tuple[Projected, Tensor]:
        """Return (queries, keys and values; h). `extras` are by "q", "k" and "v"."""
        found = []
        for name, layer in zip("qkv", layers, strict=True):
            out_BTC = layer(h_BTD)
            found.append(out_BTC + extras[name].value() if name in extras else out_BTC)
        return tuple(found), h_BTD

    def add_values(self, projected: Projected, more_BTC: Tensor) -> Projected:
        """Return projections with something added to their values."""
        q_BTC, k_BTC, v_BTC = projected
        return q_BTC, k_BTC, v_BTC + more_BTC

    def attend(
        self, projected: Projected, gain_H: Tensor, rope: Rope, attend: Attention, heads: Heads
    ) -> Tensor:
        """Return attention over projections, [B, T, H K].

        q and k are normalised per head, rotated on a few dimensions, q multiplied by its gain; the
        output loses what lies along the position's own value (XSA).
        """
        q_BTHK, k_BTGK, v_BTGK = (
            z.view(*z.shape[:2], count, -1)
            for z, count in zip(projected, (heads.queries, heads.keys, heads.keys), strict=True)
        )
        q_BTHK = position(q_BTHK, gain_H, *rope)
        k_BTGK = position(k_BTGK, gain_H.new_ones(heads.keys), *rope)
        y_BHTK = attend(*(z.transpose(1, 2) for z in (q_BTHK, k_BTGK, v_BTGK)))
        y_BTHK = y_BHTK.transpose(1, 2)
        if heads.exclude_self:
            y_BTHK = without_self(y_BTHK, v_BTGK)
        return y_BTHK.reshape(*y_BTHK.shape[:2], -1)

    def gated(self, y_BTC: Tensor, h_BTD: Tensor, gate_HS: Tensor, most: float) -> Tensor:
        """Return y with every head times most * sigmoid(gate h), by the first S features of h."""
        H, S = gate_HS.shape
        open_BTH = torch.sigmoid(h_BTD[..., :S] @ gate_HS.to(h_BTD.dtype).T) * most
        y_BTHK = y_BTC.view(*y_BTC.shape[:2], H, -1)
        return (y_BTHK * open_BTH[..., None]).view_as(y_BTC)

    def add(
        self, u_BTD: Tensor, y_BTC: Tensor, layer: nn.Linear, scale_D: Tensor, extra: Extra | None
    ) -> Tensor:
        """Return u + scale * (W y + extra): a branch comes back. u must not be used again."""
        out_BTD = layer(y_BTC)
        if extra is not None:
            out_BTD = out_BTD + extra.value()
        return added(u_BTD, scale_D, out_BTD)

    def mlp(
        self,
        u_BTD: Tensor,
        g_BTD: Tensor,
        layers: tuple[nn.Linear, nn.Linear],
        leak: float,
        scale_D: Tensor,
        extra: Extra | None,
    ) -> Tensor:
        """Return u + scale * (down(leaky(up g)^2) + extra). u must not be used again."""
        up, down = layers
        return self.add(u_BTD, leaky_square(up(g_BTD), leak), down, scale_D, extra)

    def loss(
        self, h_ND: Tensor, head: Tensor, targets_N: Tensor, cap: float, skew_2: Tensor | None
    ) -> Tensor:
        """Return the mean cross-entropy in nats of final states, a float32 scalar."""
        logits_NV = F.linear(h_ND, head.to(h_ND.dtype))
        if skew_2 is None:
            return mean_loss(logits_NV, targets_N, cap)
        return F.cross_entropy(softcapped_apart(logits_NV, cap, skew_2), targets_N)


PLAIN = Operations()
