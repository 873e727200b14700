"""The steps of the model's forward walk, each as a plain formula.

`gpt` and `block` give the order of the steps; this module gives the formula of each. A CPU runs
these formulas. `gpu.operations` has the same steps as kernels, and uses the formulas for shapes
that a kernel does not support.

Some steps also return one of their inputs. Several later steps read that tensor, and passing it
through lets a kernel add the gradients of all its readers. Here the tensor is returned unchanged.

Shapes: B batch, T time, D width, C outputs of several projections, H query heads, G key/value
heads, K head width, V vocabulary, N rows of a flattened batch, S features of a gate.
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
    without_self,
)

Rope = tuple[Tensor, Tensor]
# Queries, keys and values of positions, [B, T, heads K] each; kernels keep them side by side.
Projected = tuple[Tensor, ...] | Tensor


class Join(NamedTuple):
    """A skip to blend into the stream: its state, its weights, and its gates."""

    skip_BTD: Tensor
    weight_D: Tensor
    gate_D: Tensor


class Extra(Protocol):
    """The addition of an adapter to the output of a matrix, before the output is scaled."""

    def value(self) -> Tensor:
        """Return the addition, [B, T, O]."""

    def add_(self, whole_BTC: Tensor, first: int, scale_O: Tensor | None) -> Tensor:
        """Add the scaled addition in place to the columns of `whole` from `first` on; return
        `whole`."""


Extras = Mapping[str, Extra]


@dataclass(frozen=True, slots=True)
class Heads:
    """The heads of attention: number for queries, number for keys and values."""

    queries: int
    keys: int


# A function of the layer of a matrix, and of its input or the gradient of its output.
Tell = Callable[[nn.Linear, Tensor], None]


class Operations:
    """Plain formulas. A subclass with kernels sets `fused`."""

    fused = False

    def renew(self) -> None:
        """Compute copies of changed parameters again; there are none here."""

    def watched(self, tell: Tell) -> "Operations":
        """Return the same steps, which report the inputs of layers to `tell` where they bypass
        `forward`."""
        return self

    def watched_back(self, tell: Tell) -> "Operations":
        """Return the same steps, which report the gradients of layers' outputs to `tell` where they
        bypass `forward`."""
        return self

    def embed(self, table: nn.Embedding, ids_BT: Tensor, dtype: torch.dtype) -> Tensor:
        """Return normalised embeddings, [B, T, D]."""
        return self.norm(table(ids_BT).to(dtype))

    def norm(self, x: Tensor) -> Tensor:
        """Return x / rms(x)."""
        return norm(x)

    def final(self, x_BTD: Tensor) -> Tensor:
        """Return x / rms(x), which the head multiplies."""
        return self.norm(x_BTD)

    def joined(self, x_BTD: Tensor, join: Join) -> Tensor:
        """Return the stream with a skip blended in.

        The weights of a join belong to decoder steps, not to layers. So they meet other layers when
        recurrence is switched on. The first skip is the state itself.
        """
        s_BTD = join.weight_D.to(x_BTD.dtype) * join.skip_BTD
        return torch.lerp(s_BTD, x_BTD, torch.sigmoid(join.gate_D).to(x_BTD.dtype))

    def enter(
        self, x_BTD: Tensor, x0_BTD: Tensor, join: Join | None, mix_2D: Tensor, scale: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return (u, h, x0, x): u = mix[0] x + mix[1] x0 after a skip, h = scale u / rms(u)."""
        joined_BTD = x_BTD if join is None else self.joined(x_BTD, join)
        return *entered(joined_BTD, x0_BTD, mix_2D, scale), x0_BTD, x_BTD

    def branch(self, u_BTD: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """Return (u, scale u / rms(u)): the stream, and the input of a branch."""
        return u_BTD, norm(u_BTD, scale)

    def project(
        self, h_BTD: Tensor, layers: Sequence[nn.Linear], extras: Extras
    ) -> tuple[Projected, Tensor]:
        """Return (queries, keys and values; h). The keys of `extras` are "q", "k" and "v"."""
        found = []
        for name, layer in zip("qkv", layers, strict=True):
            out_BTC = layer(h_BTD)
            found.append(out_BTC + extras[name].value() if name in extras else out_BTC)
        return tuple(found), h_BTD

    def attend(
        self, projected: Projected, gain_H: Tensor, rope: Rope, attend: Attention, heads: Heads
    ) -> Tensor:
        """Return attention over projections, [B, T, H K].

        q and k are normalised per head and rotated on a few dimensions, and q is multiplied by its
        gain. XSA removes the part of the output that lies along the position's own value.
        """
        q_BTHK, k_BTGK, v_BTGK = (
            z.view(*z.shape[:2], count, -1)
            for z, count in zip(projected, (heads.queries, heads.keys, heads.keys), strict=True)
        )
        q_BTHK = position(q_BTHK, gain_H, *rope)
        k_BTGK = position(k_BTGK, gain_H.new_ones(heads.keys), *rope)
        y_BHTK = attend(*(z.transpose(1, 2) for z in (q_BTHK, k_BTGK, v_BTGK)))
        y_BTHK = without_self(y_BHTK.transpose(1, 2), v_BTGK)
        return y_BTHK.reshape(*y_BTHK.shape[:2], -1)

    def gated(self, y_BTC: Tensor, h_BTD: Tensor, gate_HS: Tensor) -> Tensor:
        """Return y with every head times 2 sigmoid(gate h), by S features of h (#1667)."""
        H, S = gate_HS.shape
        open_BTH = torch.sigmoid(h_BTD[..., :S] @ gate_HS.to(h_BTD.dtype).T) * 2.0
        y_BTHK = y_BTC.view(*y_BTC.shape[:2], H, -1)
        return (y_BTHK * open_BTH[..., None]).view_as(y_BTC)

    def add(
        self, u_BTD: Tensor, y_BTC: Tensor, layer: nn.Linear, scale_D: Tensor, extra: Extra | None
    ) -> Tensor:
        """Return u + scale * (W y + extra): a branch joins the stream. u must not be used again."""
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

    def loss(self, h_ND: Tensor, head: Tensor, targets_N: Tensor, cap: float) -> Tensor:
        """Return the mean cross-entropy in nats of final states, a float32 scalar."""
        return mean_loss(F.linear(h_ND, head.to(h_ND.dtype)), targets_N, cap)


PLAIN = Operations()
