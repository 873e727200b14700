"""One block of the transformer: attention, MLP, and how their outputs join the residual stream.

A `Visit` holds the inputs of one visit of a block, apart from the stream; a `Walk` holds those of
all visits. The walk chooses whether plain formulas or kernels compute a step; the block does not.

Shapes: B batch, T time, D width, C outputs of several projections, H query heads, S features of a
gate.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairway.config.checks import layer_windows
from fairway.config.settings import ModelConfig
from fairway.model import attention, kinds
from fairway.model.kinds import Kind, matrix, scalar
from fairway.model.operations import Extras, Heads, Join, Operations, Rope
from fairway.model.seen import ALL, Documents, Seen

# The slope of the MLP's ReLU below zero, as in #1493.
LEAK = 0.5
# The initial share of its own lane that a block with two lanes keeps.
LANE_KEEP = 1.1


class Linear(nn.Linear):
    """A bias-free projection that casts its float32 weight to the activations' dtype at use."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)

    def reset_parameters(self) -> None:
        """Leave the numbers unset: `GPT.init_weights` sets them."""

    def forward(self, x: Tensor) -> Tensor:
        """Return x W^T in x's dtype."""
        return F.linear(x, self.weight.to(x.dtype))


class Adapters(Protocol):
    """Additions to the outputs of the matrices at every visit; the module `adapters` makes them."""

    def read(self, visit: int, x_BTD: Tensor, targets: str) -> tuple[Extras, Tensor]:
        """Return the outputs of the adapters of some targets at a visit, and their input.

        `targets` names the matrices that read the input, out of "q k v o mlp".
        """


class Attached(Adapters, Protocol):
    """Adapters that belong to a model. `head` gives their addition to its raw logits, if there is
    one."""

    def head(self, x: Tensor) -> Tensor | None:
        """Return the addition to the raw logits of final states, [..., V]."""


# Maps (number of the visit, the block's own attention) to the attention of that visit.
Attending = Callable[[int, attention.Attention], attention.Attention]


@dataclass(frozen=True, slots=True)
class Walk:
    """The inputs of a walk through the blocks, without the stream."""

    rope: Rope
    adapters: Adapters | None = None
    attending: Attending | None = None
    documents: Documents | None = None


@dataclass(frozen=True, slots=True)
class Visit:
    """One visit of a block on a walk."""

    number: int
    operations: Operations
    given: Walk

    def attention(self, own: attention.Attention, window: int) -> attention.Attention:
        """Return the attention function of the visit, limited to a window and to its documents."""
        attending = self.given.attending
        attend = own if attending is None else attending(self.number, own)
        seen = Seen(window, self.given.documents)
        return attend if seen == ALL else functools.partial(attend, seen=seen)

    def read(self, x_BTD: Tensor, targets: str) -> tuple[Extras, Tensor]:
        """Return the outputs of the adapters for an input, and the input."""
        adapters = self.given.adapters
        return ({}, x_BTD) if adapters is None else adapters.read(self.number, x_BTD, targets)


class Attention(nn.Module):
    """Grouped-query attention with normalised q and k, partial rotation, gain and XSA."""

    declares: ClassVar[dict[str, Kind]] = {
        "c_q.weight": matrix("query"),
        "c_k.weight": matrix("key"),
        "c_v.weight": matrix("value"),
        "proj.weight": matrix("attention output", kinds.zeros),
        "q_gain": scalar(kinds.ones),
        "head_gate": scalar(kinds.zeros),
    }

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        kv_dim = config.dim // config.num_heads * config.num_kv_heads
        self.own_window = self.window = layer_windows(config)[layer]
        self.heads = Heads(config.num_heads, config.num_kv_heads)
        self.c_q = Linear(config.dim, config.dim)
        self.c_k = Linear(config.dim, kv_dim)
        self.c_v = Linear(config.dim, kv_dim)
        self.proj = Linear(config.dim, config.dim)
        self.q_gain = nn.Parameter(torch.empty(config.num_heads))
        self.gated = config.gate_features > 0
        if self.gated:
            features = min(config.gate_features, config.dim)
            self.head_gate = nn.Parameter(torch.empty(config.num_heads, features))
        self.attend: attention.Attention = attention.plain

    def forward(self, h_BTD: Tensor, extras: Extras, visit: Visit) -> tuple[Tensor, Tensor]:
        """Return (the input of the output projection, [B, T, D]; h)."""
        steps = visit.operations
        projected, h_BTD = steps.project(h_BTD, (self.c_q, self.c_k, self.c_v), extras)
        attend = visit.attention(self.attend, self.window)
        y_BTC = steps.attend(projected, self.q_gain, visit.given.rope, attend, self.heads)
        return steps.gated(y_BTC, h_BTD, self.head_gate) if self.gated else y_BTC, h_BTD


class MLP(nn.Module):
    """Up-projection, squared leaky ReLU, down-projection."""

    declares: ClassVar[dict[str, Kind]] = {
        "fc.weight": matrix("MLP up"),
        "proj.weight": matrix("MLP down", kinds.zeros),
    }

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.fc = Linear(config.dim, config.mlp_dim)
        self.proj = Linear(config.mlp_dim, config.dim)


class Block(nn.Module):
    """One physical layer: mix in x0, then attention and MLP, in sequence or in parallel."""

    declares: ClassVar[dict[str, Kind]] = {
        **kinds.inside("attn", Attention.declares),
        **kinds.inside("mlp", MLP.declares),
        "attn_scale": scalar(kinds.ones),
        "mlp_scale": scalar(kinds.ones),
        "resid_mix": scalar(kinds.first_one),
        "lane_keep": scalar(kinds.constant(LANE_KEEP)),
        "lane_add": scalar(kinds.ones),
    }

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.scale = 1.0 / math.sqrt(layer + 1)
        self.parallel = layer >= config.parallel_from
        self.attn = Attention(config, layer)
        self.mlp = MLP(config)
        self.attn_scale = nn.Parameter(torch.empty(config.dim))
        self.mlp_scale = nn.Parameter(torch.empty(config.dim))
        self.resid_mix = nn.Parameter(torch.empty(2, config.dim))
        self.two_lanes = self.parallel and config.lanes == 2
        if self.two_lanes:
            self.lane_keep = nn.Parameter(torch.empty(2))
            self.lane_add = nn.Parameter(torch.empty(2, 2))

    def forward(
        self,
        lanes: tuple[Tensor, ...],
        x0_BTD: Tensor,
        join: Join | None,
        visit: Visit,
    ) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
        """Return the residual stream after this block, x0, and the stream before this block.

        The stream has one lane or two, [B, T, D] each; a skip joins the first lane.
        """
        steps, x_BTD = visit.operations, lanes[0]
        before_BTD = None
        if self.two_lanes and join is not None:
            before_BTD, x_BTD, join = x_BTD, steps.joined(x_BTD, join), None
        u_BTD, h_BTD, x0_BTD, x_BTD = steps.enter(x_BTD, x0_BTD, join, self.resid_mix, self.scale)
        shared = self.parallel and not self.two_lanes
        extras, h_BTD = visit.read(h_BTD, "q k v o mlp" if shared else "q k v o")
        y_BTC, g_BTD = self.attn(h_BTD, extras, visit)
        if self.two_lanes:
            a_BTD = self._after_attention(torch.zeros_like(u_BTD), y_BTC, extras, visit)
            before_BTD = x_BTD if before_BTD is None else before_BTD
            return self._two_lanes((x_BTD, *lanes[1:]), a_BTD, visit), x0_BTD, before_BTD
        u_BTD = self._after_attention(u_BTD, y_BTC, extras, visit)
        if not self.parallel:
            u_BTD, g_BTD = steps.branch(u_BTD, self.scale)
            extras, g_BTD = visit.read(g_BTD, "mlp")
        return (self._mlp(u_BTD, g_BTD, extras, visit),), x0_BTD, x_BTD

    def _after_attention(
        self, u_BTD: Tensor, y_BTC: Tensor, extras: Extras, visit: Visit
    ) -> Tensor:
        return visit.operations.add(u_BTD, y_BTC, self.attn.proj, self.attn_scale, extras.get("o"))

    def _mlp(self, u_BTD: Tensor, g_BTD: Tensor, extras: Extras, visit: Visit) -> Tensor:
        layers = self.mlp.fc, self.mlp.proj
        return visit.operations.mlp(u_BTD, g_BTD, layers, LEAK, self.mlp_scale, extras.get("mlp"))

    def _two_lanes(
        self, lanes: tuple[Tensor, ...], a_BTD: Tensor, visit: Visit
    ) -> tuple[Tensor, ...]:
        """Return both lanes after attention and the MLP (#1530); the output of attention is given.

        Attention reads the first lane, the MLP the second; each lane keeps a share of itself and
        receives both outputs. At the first block with two lanes, both lanes are the same stream.
        """
        g_BTD = visit.operations.norm(lanes[-1]) * self.scale
        extras, g_BTD = visit.read(g_BTD, "mlp")
        m_BTD = self._mlp(torch.zeros_like(a_BTD), g_BTD, extras, visit)
        keep_2, add_22 = self.lane_keep.to(a_BTD.dtype), self.lane_add.to(a_BTD.dtype)
        return tuple(
            keep_2[n] * lane_BTD + add_22[0, n] * a_BTD + add_22[1, n] * m_BTD
            for n, lane_BTD in enumerate((lanes[0], lanes[-1]))
        )
