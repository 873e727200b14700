"""The transformer of pull requests #1493 and #1858, read from top to bottom.

What is unusual here, in the order in which a token meets it:
- the embedding is normalised, and the result x0 is mixed back into every block's input;
- q and k are normalised per head, rotated on a few dimensions only, and q has a gain per head;
- attention drops the part of its output that lies along the position's own value (XSA);
- the MLP squares a leaky ReLU;
- late blocks run attention and MLP in parallel on one input;
- a few middle blocks are visited several times (depth recurrence), switched on during training;
- the visits form a U-Net: outputs of the first half are blended into the second half;
- the head is the embedding again, its logits capped by a tanh.

Shapes: B batch, T time, D width, E embedding width, H query heads, G key/value heads,
K head width, V vocabulary, N rows of a flattened batch, S features of SmearGate.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairway.config.checks import layer_windows
from fairway.config.settings import BOS_ID, ModelConfig
from fairway.model import attention, kinds
from fairway.model.kinds import Kind, kind_in, matrix, scalar
from fairway.model.operations import PLAIN, Extras, Heads, Join, Operations, Rope
from fairway.model.ops import softcapped
from fairway.model.seen import ALL, Documents, Seen, documents_of

# Features of a token that SmearGate reads, and most gates of heads.
GATE_FEATURES = 12
# As in #1493: the slope of the MLP's ReLU below zero, and the deviation of initial embeddings.
LEAK, EMBED_STD = 0.5, 0.005
# The initial share of its own lane that a block with two lanes keeps.
LANE_KEEP = 1.1
# The deviation of initial dense gates of heads.
GATE_STD = 0.01


class Linear(nn.Linear):
    """A bias-free projection that casts its float32 weight to the activations' dtype at use."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return x W^T in x's dtype."""
        return F.linear(x, self.weight.to(x.dtype))


# ---------------------------------------------------------------------------------------------
# Positions


def rope_table(length: int, config: ModelConfig) -> tuple[Tensor, Tensor]:
    """Return (cos_TR, sin_TR) for R = rope_dims / 2 frequencies, float32, on the CPU.

    The frequencies are base^(-2j / rope_dims) rounded to bfloat16, as the records' compiled
    tables were; the positions stay exact. (Positions in bfloat16 would collapse 2,048 of them to
    641.) Beyond the training length the base grows by the NTK rule, and what the records calculate
    there anew is not rounded.
    """
    dims = config.rope_dims
    base = config.rope_base
    if length > config.rope_train_len and dims > 2:
        base *= (length / config.rope_train_len) ** (dims / (dims - 2))
    exponents_R = torch.arange(0, dims, 2, dtype=torch.float32) / max(dims, 1)
    frequencies_R = 1.0 / base**exponents_R
    if base == config.rope_base:
        frequencies_R = frequencies_R.bfloat16().float()
    angles_TR = torch.arange(length, dtype=torch.float32)[:, None] * frequencies_R
    return angles_TR.cos(), angles_TR.sin()


# ---------------------------------------------------------------------------------------------
# Layers


def smeared(e_BTE: Tensor, ids_BT: Tensor, gate_S: Tensor, strength: Tensor) -> Tensor:
    """Return embeddings with a gated share of the one before added: SmearGate, [B, T, E].

    The gate reads the first S features of the receiving token. A token that begins a document
    receives nothing, nor does the first of a row: in packed streams what stands before BOS is
    another document (pull requests #1851 and #1855; without the mask #1667 leaked it).
    """
    now_BTE, before_BTE = e_BTE[:, 1:], e_BTE[:, :-1]
    gate_BT = torch.sigmoid(now_BTE[..., : len(gate_S)] @ gate_S.to(e_BTE.dtype))
    share_BT = strength.to(e_BTE.dtype) * gate_BT * (ids_BT[:, 1:] != BOS_ID)
    return torch.cat([e_BTE[:, :1], now_BTE + share_BT[..., None] * before_BTE], 1)


class Adapters(Protocol):
    """What is added to the matrices of every visit; `adapters` makes such."""

    def read(self, visit: int, x_BTD: Tensor, targets: str) -> tuple[Extras, Tensor]:
        """Return what the adapters of some targets of a visit make of their input, and the input.

        `targets` are those that read it: of "q k v o mlp".
        """


# Attention of a visit in place of the block's own, which comes second.
Attending = Callable[[int, attention.Attention], attention.Attention]


@dataclass(frozen=True, slots=True)
class Walk:
    """What a walk through the blocks is given beside the stream."""

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
    # What embeddings add to the values of attention, before every layer's own gate.
    x0_values_BTC: Tensor | None

    def attention(self, own: attention.Attention, window: int) -> attention.Attention:
        """Return what the visit attends by, to what is seen through a window."""
        attending = self.given.attending
        attend = own if attending is None else attending(self.number, own)
        seen = Seen(window, self.given.documents)
        return attend if seen == ALL else functools.partial(attend, seen=seen)

    def read(self, x_BTD: Tensor, targets: str) -> tuple[Extras, Tensor]:
        """Return what adapters make of an input, and the input."""
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
        "x0_gate": scalar(kinds.zeros),
        "head_gate": scalar(kinds.zeros),
        "sparse_gate": scalar(kinds.zeros),
        "dense_gate": scalar(kinds.normal(GATE_STD)),
    }

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        kv_dim = config.dim // config.num_heads * config.num_kv_heads
        exclude_self = layer >= config.num_layers - config.xsa_layers
        self.own_window = self.window = layer_windows(config)[layer]
        self.heads = Heads(config.num_heads, config.num_kv_heads, exclude_self)
        self.c_q = Linear(config.dim, config.dim)
        self.c_k = Linear(config.dim, kv_dim)
        self.c_v = Linear(config.dim, kv_dim)
        self.proj = Linear(config.dim, config.dim)
        self.q_gain = nn.Parameter(torch.empty(config.num_heads))
        if config.x0_values:
            self.x0_gate = nn.Parameter(torch.empty(1))
        self.gate = config.attn_gate
        if self.gate != "off":
            features = config.dim if self.gate == "dense" else min(GATE_FEATURES, config.dim)
            gate_HS = nn.Parameter(torch.empty(config.num_heads, features))
            self.register_parameter(f"{self.gate}_gate", gate_HS)
        self.attend: attention.Attention = attention.plain

    def forward(self, h_BTD: Tensor, extras: Extras, visit: Visit) -> tuple[Tensor, Tensor]:
        """Return (what the output projection reads, [B, T, D]; h)."""
        steps = visit.operations
        projected, h_BTD = steps.project(h_BTD, (self.c_q, self.c_k, self.c_v), extras)
        if visit.x0_values_BTC is not None:
            more_BTC = self.x0_gate.to(h_BTD.dtype) * visit.x0_values_BTC
            projected = steps.add_values(projected, more_BTC)
        attend = visit.attention(self.attend, self.window)
        y_BTC = steps.attend(projected, self.q_gain, visit.given.rope, attend, self.heads)
        if self.gate != "off":
            # Pull requests #1667 (head), #1736 (dense) and #1787 (sparse).
            gate_HS = self.get_parameter(f"{self.gate}_gate")
            y_BTC = steps.gated(y_BTC, h_BTD, gate_HS, 2.0 if self.gate == "head" else 1.0)
        return y_BTC, h_BTD


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
        """Return the residual stream after this block; x0; what the stream was before.

        The stream is one lane, [B, T, D], or two; a skip joins the first.
        """
        steps, x_BTD = visit.operations, lanes[0]
        if self.two_lanes and join is not None:
            x_BTD, join = steps.joined(x_BTD, join), None
        u_BTD, h_BTD, x0_BTD, x_BTD = steps.enter(x_BTD, x0_BTD, join, self.resid_mix, self.scale)
        shared = self.parallel and not self.two_lanes
        extras, h_BTD = visit.read(h_BTD, "q k v o mlp" if shared else "q k v o")
        y_BTC, g_BTD = self.attn(h_BTD, extras, visit)
        if self.two_lanes:
            a_BTD = self._after_attention(torch.zeros_like(u_BTD), y_BTC, extras, visit)
            return self._two_lanes((x_BTD, *lanes[1:]), a_BTD, visit), x0_BTD, x_BTD
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
        """Return both lanes after attention, whose output is given, and the MLP (#1530).

        Attention reads the first lane, the MLP the second; each lane keeps a share of itself and
        gets both outputs. They are one where the first such block begins.
        """
        g_BTD = visit.operations.norm(lanes[-1]) * self.scale
        extras, g_BTD = visit.read(g_BTD, "mlp")
        m_BTD = self._mlp(torch.zeros_like(a_BTD), g_BTD, extras, visit)
        keep_2, add_22 = self.lane_keep.to(a_BTD.dtype), self.lane_add.to(a_BTD.dtype)
        return tuple(
            keep_2[n] * lane_BTD + add_22[0, n] * a_BTD + add_22[1, n] * m_BTD
            for n, lane_BTD in enumerate((lanes[0], lanes[-1]))
        )


# ---------------------------------------------------------------------------------------------
# The order of visits


def visits(config: ModelConfig, looping: bool) -> tuple[list[int], list[int]]:
    """Return the physical blocks visited by the encoder and the decoder half.

    With recurrence on, blocks loop_first..loop_last are visited 1 + loop_extra times in a row.
    The first half (rounded down) of all visits is the encoder.
    """
    order = list(range(config.num_layers))
    if looping and config.loop_extra:
        a, b = config.loop_first, config.loop_last + 1
        order = order[:a] + order[a:b] * (1 + config.loop_extra) + order[b:]
    half = len(order) // 2
    return order[:half], order[half:]


def num_skips(config: ModelConfig) -> int:
    """Return the rows of skip weights: enough for the longest order of visits, 0 without skips."""
    return len(visits(config, True)[0]) if config.skips else 0


# ---------------------------------------------------------------------------------------------
# The model


class GPT(nn.Module):
    """The whole stack. `model(ids, targets)` is the mean loss; `hidden` and `logits` its halves.

    Its steps are `operations`: plain formulas, or kernels that equal them.
    """

    # An artifact's sections have this order.
    declares: ClassVar[dict[str, Kind]] = {
        "tok_emb.weight": Kind("embed", kinds.normal(EMBED_STD), "embedding"),
        "head.weight": Kind("head", kinds.zeros, "embedding"),
        "embed_proj.weight": matrix("projection"),
        "head_proj.weight": matrix("projection"),
        "x0_proj.weight": matrix("projection"),
        **Block.declares,
        "skip_weights": scalar(kinds.ones),
        "skip_gates": scalar(kinds.zeros),
        "smear_gate": scalar(kinds.zeros),
        "smear_lambda": scalar(kinds.zeros),
    }

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        embed_dim = config.embed_dim or config.dim
        self.tok_emb = nn.Embedding(config.vocab_size, embed_dim)
        if config.smear:
            self.smear_gate = nn.Parameter(torch.empty(min(GATE_FEATURES, embed_dim)))
            self.smear_lambda = nn.Parameter(torch.empty(1))
        if embed_dim != config.dim:
            self.embed_proj = Linear(embed_dim, config.dim)
            self.head_proj = Linear(config.dim, embed_dim)
        if config.x0_values:
            self.x0_proj = Linear(config.dim, config.dim // config.num_heads * config.num_kv_heads)
        self.blocks = nn.ModuleList(Block(config, i) for i in range(config.num_layers))
        self.num_skips = num_skips(config)
        if self.num_skips:
            self.skip_weights = nn.Parameter(torch.empty(self.num_skips, config.dim))
        if self.num_skips and config.skip_gates:
            self.skip_gates = nn.Parameter(torch.empty(self.num_skips, config.dim))
        if not config.tie_embeddings:
            self.head = Linear(embed_dim, config.vocab_size)
        self.compute_dtype = torch.float32
        self.operations = PLAIN
        # Whether documents of a sequence do not see one another while the model trains.
        self.separate = False
        self.set_looping(False)
        self._rope: Rope = (torch.empty(0), torch.empty(0))
        for name, _ in self.named_parameters():
            kind_in(self.declares, name)

    def set_looping(self, on: bool) -> None:
        """Switch the depth recurrence on or off; parameters are the same either way."""
        self.looping = on
        self.encoder_visits, self.decoder_visits = visits(self.config, on)

    def set_window(self, most: int) -> None:
        """Let no layer's attention see more positions than that; 0 leaves each its own window."""
        for block in self.blocks:
            attn = cast(Block, block).attn
            attn.window = min(attn.own_window or most, most) if most else attn.own_window

    def set_compute(self, dtype: torch.dtype, backend: str) -> None:
        """Choose the activations' dtype and the attention backend."""
        self.compute_dtype = dtype
        for block in self.blocks:
            cast(Block, block).attn.attend = attention.BACKENDS[backend]

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Set every parameter to what its kind begins with; queries' gains are a setting.

        Every block starts as the identity. Weights pass through one bfloat16 rounding, as they did
        in the records.
        """
        generator = torch.Generator().manual_seed(seed)
        for name, weight in self.named_parameters():
            value = kind_in(self.declares, name).start(weight.shape, generator)
            if name.endswith("q_gain"):
                value *= self.config.qk_gain
            weight.copy_(value.bfloat16())
        if self.config.embed_bf16:
            self.tok_emb.to(torch.bfloat16)

    def hidden(self, ids_BT: Tensor) -> Tensor:
        """Return the normalised final state of every position, [B, T, D] in the compute dtype."""
        documents = documents_of(ids_BT) if self.separate and self.training else None
        given = Walk(self.rope_for(ids_BT), documents=documents)
        return self.states(self.embedded(ids_BT), given)

    def states(self, x_BTD: Tensor, given: Walk) -> Tensor:
        """Return `hidden` of embedded tokens that stand where a rotary table says."""
        return self.operations.norm(self._walk(x_BTD, given))

    def embedded(self, ids_BT: Tensor) -> Tensor:
        """Return x0, the normalised embeddings, [B, T, D] in the compute dtype."""
        if self.config.smear:
            e_BTE = self.tok_emb(ids_BT).to(self.compute_dtype)
            e_BTE = smeared(e_BTE, ids_BT, self.smear_gate, self.smear_lambda)
            x_BTE = self.operations.norm(e_BTE)
        else:
            x_BTE = self.operations.embed(self.tok_emb, ids_BT, self.compute_dtype)
        if not hasattr(self, "embed_proj"):
            return x_BTE
        projected_BTD: Tensor = self.embed_proj(x_BTE)
        return projected_BTD

    def _walk(self, x_BTD: Tensor, given: Walk) -> Tensor:
        """Visit the blocks. The first half's outputs wait in a stack for the second half.

        A state enters the stack as the next block hands it on, and the last one, which is popped at
        once, does not enter it.
        """
        half, x0_BTD = len(self.encoder_visits), x_BTD
        more_BTC = self.x0_proj(x_BTD) if self.config.x0_values else None
        lanes: tuple[Tensor, ...] = (x_BTD,)
        stack: list[Tensor] = []
        for number, layer in enumerate((*self.encoder_visits, *self.decoder_visits)):
            visit = Visit(number, self.operations, given, more_BTC)
            step, join = number - half, None
            if 0 <= step < self.num_skips and (step == 0 < half or stack):
                join = self._join(lanes[0] if step == 0 else stack.pop(), step)
            lanes, x0_BTD, before_BTD = self.blocks[layer](lanes, x0_BTD, join, visit)
            if 0 < number < half:
                stack.append(before_BTD)
        return lanes[0] if len(lanes) == 1 else torch.stack(lanes).mean(0)

    def _join(self, skip_BTD: Tensor, step: int) -> Join:
        gate_D = self.skip_gates[step] if self.config.skip_gates else None
        return Join(skip_BTD, self.skip_weights[step], gate_D)

    def logits(self, x: Tensor, extra: Tensor | None = None) -> Tensor:
        """Return the capped logits of final states, [..., V] in float32.

        `extra` is added before the cap.
        """
        table_VE = self.head_table()
        raw = F.linear(self.to_head(x), table_VE.to(x.dtype))
        return softcapped(raw if extra is None else raw + extra, self.config.softcap)

    def to_head(self, x: Tensor) -> Tensor:
        """Return final states as the head reads them, [..., E]."""
        return self.head_proj(x) if hasattr(self, "head_proj") else x

    def head_table(self) -> Tensor:
        """Return the head's matrix, [V, E]: the embedding again, or one of its own."""
        weight: Tensor = (self.tok_emb if self.config.tie_embeddings else self.head).weight
        return weight

    def forward(self, ids_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """Return the mean cross-entropy in nats per token, a float32 scalar."""
        h_NE = self.to_head(self.hidden(ids_BT)).flatten(0, 1)
        return self.operations.loss(
            h_NE, self.head_table(), targets_BT.flatten(), self.config.softcap
        )

    def rope_for(self, ids_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Return the rotary table (cos_TR, sin_TR) of a batch's length, kept between calls."""
        T = ids_BT.shape[1]
        cos_TR = self._rope[0]
        if len(cos_TR) != T or cos_TR.device != ids_BT.device:
            cos_TR, sin_TR = rope_table(T, self.config)
            self._rope = (cos_TR.to(ids_BT.device), sin_TR.to(ids_BT.device))
        return self._rope


def build(config: ModelConfig, seed: int = 0) -> GPT:
    """Return an initialised model on the CPU in float32 compute."""
    model = GPT(config)
    model.init_weights(seed)
    return model


def num_parameters(config: ModelConfig) -> int:
    """Return the parameter count without allocating one."""
    with torch.device("meta"):
        return sum(weight.numel() for weight in GPT(config).parameters())
