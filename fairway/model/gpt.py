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

import math
from typing import Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairway.config.settings import BOS_ID, ModelConfig
from fairway.model import attention
from fairway.model.ops import (
    leaky_square,
    mean_loss,
    norm,
    position,
    softcapped,
    without_self,
)

# Features of a token that SmearGate reads.
SMEAR_FEATURES = 12
# As in #1493: the slope of the MLP's ReLU below zero, and the deviation of initial embeddings.
LEAK, EMBED_STD = 0.5, 0.005


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


class Attention(nn.Module):
    """Grouped-query attention with normalised q and k, partial rotation, gain and XSA."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads = config.num_heads, config.num_kv_heads
        self.head_dim = config.dim // config.num_heads
        kv_dim = self.num_kv_heads * self.head_dim
        self.exclude_self = layer >= config.num_layers - config.xsa_layers
        self.c_q = Linear(config.dim, config.dim)
        self.c_k = Linear(config.dim, kv_dim)
        self.c_v = Linear(config.dim, kv_dim)
        self.proj = Linear(config.dim, config.dim)
        self.q_gain = nn.Parameter(torch.empty(config.num_heads))
        self.attend: attention.Attention = attention.plain

    def forward(self, x_BTD: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        """Return the attention output for every position, [B, T, D]."""
        B, T, _ = x_BTD.shape
        q_BTHK = self.c_q(x_BTD).view(B, T, self.num_heads, self.head_dim)
        k_BTGK = self.c_k(x_BTD).view(B, T, self.num_kv_heads, self.head_dim)
        v_BTGK = self.c_v(x_BTD).view(B, T, self.num_kv_heads, self.head_dim)
        q_BTHK = position(q_BTHK, self.q_gain, *rope)
        k_BTGK = position(k_BTGK, self.q_gain.new_ones(self.num_kv_heads), *rope)
        y_BHTK = self.attend(*(z.transpose(1, 2) for z in (q_BTHK, k_BTGK, v_BTGK)))
        y_BTHK = y_BHTK.transpose(1, 2)
        if self.exclude_self:
            y_BTHK = without_self(y_BTHK, v_BTGK)
        out: Tensor = self.proj(y_BTHK.reshape(B, T, -1))
        return out


class MLP(nn.Module):
    """Up-projection, squared leaky ReLU, down-projection."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.leak = LEAK
        self.fc = Linear(config.dim, config.mlp_dim)
        self.proj = Linear(config.mlp_dim, config.dim)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Return the MLP's output, [B, T, D]."""
        out: Tensor = self.proj(leaky_square(self.fc(x_BTD), self.leak))
        return out


class Block(nn.Module):
    """One physical layer: mix in x0, then attention and MLP, in sequence or in parallel."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.scale = 1.0 / math.sqrt(layer + 1)
        self.parallel = layer >= config.parallel_from
        self.attn = Attention(config, layer)
        self.mlp = MLP(config)
        self.attn_scale = nn.Parameter(torch.empty(config.dim))
        self.mlp_scale = nn.Parameter(torch.empty(config.dim))
        self.resid_mix = nn.Parameter(torch.empty(2, config.dim))

    def forward(self, x_BTD: Tensor, x0_BTD: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        """Return the residual stream after this block, [B, T, D]."""
        mix_2D = self.resid_mix.to(x_BTD.dtype)
        attn_scale_D, mlp_scale_D = self.attn_scale.to(x_BTD.dtype), self.mlp_scale.to(x_BTD.dtype)
        u_BTD = torch.addcmul(mix_2D[0] * x_BTD, mix_2D[1], x0_BTD)
        h_BTD = norm(u_BTD, self.scale)
        v_BTD = torch.addcmul(u_BTD, attn_scale_D, self.attn(h_BTD, rope))
        if not self.parallel:
            h_BTD = norm(v_BTD, self.scale)
        return torch.addcmul(v_BTD, mlp_scale_D, self.mlp(h_BTD))


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


class FastPath(Protocol):
    """Another way to compute the same function of the same parameters; `fused` has one."""

    def hidden(self, ids_BT: Tensor) -> Tensor:
        """Return the normalised final states."""

    def loss(self, ids_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """Return the mean loss."""


class GPT(nn.Module):
    """The whole stack. `model(ids, targets)` is the mean loss; `hidden` and `logits` its halves."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        embed_dim = config.embed_dim or config.dim
        self.tok_emb = nn.Embedding(config.vocab_size, embed_dim)
        if config.smear:
            self.smear_gate = nn.Parameter(torch.empty(min(SMEAR_FEATURES, embed_dim)))
            self.smear_lambda = nn.Parameter(torch.empty(1))
        if embed_dim != config.dim:
            self.embed_proj = Linear(embed_dim, config.dim)
            self.head_proj = Linear(config.dim, embed_dim)
        self.blocks = nn.ModuleList(Block(config, i) for i in range(config.num_layers))
        self.num_skips = num_skips(config)
        if self.num_skips:
            self.skip_weights = nn.Parameter(torch.empty(self.num_skips, config.dim))
        if self.num_skips and config.skip_gates:
            self.skip_gates = nn.Parameter(torch.empty(self.num_skips, config.dim))
        if not config.tie_embeddings:
            self.head = Linear(embed_dim, config.vocab_size)
        self.compute_dtype = torch.float32
        self.fused: FastPath | None = None
        self.set_looping(False)
        self._rope: tuple[Tensor, Tensor] = (torch.empty(0), torch.empty(0))

    def set_looping(self, on: bool) -> None:
        """Switch the depth recurrence on or off; parameters are the same either way."""
        self.looping = on
        self.encoder_visits, self.decoder_visits = visits(self.config, on)

    def set_compute(self, dtype: torch.dtype, backend: str) -> None:
        """Choose the activations' dtype and the attention backend."""
        self.compute_dtype = dtype
        for block in self.blocks:
            cast(Block, block).attn.attend = attention.BACKENDS[backend]

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Set every parameter; the only place where initial values are decided.

        embedding N(0, EMBED_STD^2) | matrices orthogonal | output projections and gates 0 |
        scales 1 | resid_mix (1, 0) | q_gain from the config. Every block starts as the identity.
        Weights pass through one bfloat16 rounding, as they did in the records.
        """
        generator = torch.Generator().manual_seed(seed)
        for name, weight in self.named_parameters():
            kind = name.removesuffix(".weight").rpartition(".")[2]
            if kind == "tok_emb":
                value = torch.randn(weight.shape, generator=generator) * EMBED_STD
            elif kind in ("proj", "head", "skip_gates", "smear_gate", "smear_lambda"):
                value = torch.zeros(weight.shape)
            elif kind in ("attn_scale", "mlp_scale", "skip_weights"):
                value = torch.ones(weight.shape)
            elif kind == "resid_mix":
                value = torch.zeros(weight.shape)
                value[0] = 1.0
            elif kind == "q_gain":
                value = torch.full(weight.shape, self.config.qk_gain)
            elif weight.ndim == 2:
                value = _orthogonal(weight.shape, generator)
            else:
                raise AssertionError(f"no initial value for parameter {name}")
            weight.copy_(value.bfloat16())
        if self.config.embed_bf16:
            self.tok_emb.to(torch.bfloat16)

    def hidden(self, ids_BT: Tensor) -> Tensor:
        """Return the normalised final state of every position, [B, T, D] in the compute dtype."""
        if self.fused is not None:
            return self.fused.hidden(ids_BT)
        return self.states(self.embedded(ids_BT), self.rope_for(ids_BT))

    def states(self, x_BTD: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        """Return `hidden` of embedded tokens that stand where a rotary table says, plainly."""
        return norm(self._walk(x_BTD, rope))

    def embedded(self, ids_BT: Tensor) -> Tensor:
        """Return x0, the normalised embeddings, [B, T, D] in the compute dtype."""
        x_BTD = self.tok_emb(ids_BT).to(self.compute_dtype)
        if self.config.smear:
            x_BTD = smeared(x_BTD, ids_BT, self.smear_gate, self.smear_lambda)
        x_BTD = norm(x_BTD)
        if not hasattr(self, "embed_proj"):
            return x_BTD
        projected_BTD: Tensor = self.embed_proj(x_BTD)
        return projected_BTD

    def _walk(self, x_BTD: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        x0_BTD = x_BTD
        stack: list[Tensor] = []
        for layer in self.encoder_visits:
            x_BTD = self.blocks[layer](x_BTD, x0_BTD, rope)
            stack.append(x_BTD)
        for step, layer in enumerate(self.decoder_visits):
            if step < self.num_skips and stack:
                x_BTD = self._join(x_BTD, stack.pop(), step)
            x_BTD = self.blocks[layer](x_BTD, x0_BTD, rope)
        return x_BTD

    def _join(self, x_BTD: Tensor, skip_BTD: Tensor, step: int) -> Tensor:
        """Blend a skip into the stream. Rows belong to decoder steps, not to layers: switching
        the recurrence on pairs them anew, and the first pop is the state itself."""
        s_BTD = self.skip_weights[step].to(x_BTD.dtype) * skip_BTD
        if not self.config.skip_gates:
            return x_BTD + s_BTD
        gate_D = torch.sigmoid(self.skip_gates[step]).to(x_BTD.dtype)
        return torch.lerp(s_BTD, x_BTD, gate_D)

    def logits(self, x: Tensor, extra: Tensor | None = None) -> Tensor:
        """Return the capped logits of final states, [..., V] in float32.

        `extra` is added before the cap.
        """
        raw = self._raw_logits(x)
        return softcapped(raw if extra is None else raw + extra, self.config.softcap)

    def _raw_logits(self, x: Tensor) -> Tensor:
        if hasattr(self, "head_proj"):
            x = self.head_proj(x)
        if self.config.tie_embeddings:
            return F.linear(x, self.tok_emb.weight.to(x.dtype))
        raw: Tensor = self.head(x)
        return raw

    def forward(self, ids_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """Return the mean cross-entropy in nats per token, a float32 scalar."""
        if self.fused is not None:
            return self.fused.loss(ids_BT, targets_BT)
        raw_NV = self._raw_logits(self.hidden(ids_BT)).flatten(0, 1)
        return mean_loss(raw_NV, targets_BT.flatten(), self.config.softcap)

    def rope_for(self, ids_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Return the rotary table (cos_TR, sin_TR) of a batch's length, kept between calls."""
        T = ids_BT.shape[1]
        cos_TR = self._rope[0]
        if len(cos_TR) != T or cos_TR.device != ids_BT.device:
            cos_TR, sin_TR = rope_table(T, self.config)
            self._rope = (cos_TR.to(ids_BT.device), sin_TR.to(ids_BT.device))
        return self._rope


def _orthogonal(shape: torch.Size, generator: torch.Generator) -> Tensor:
    value = torch.empty(shape)
    nn.init.orthogonal_(value, generator=generator)
    return value


def build(config: ModelConfig, seed: int = 0) -> GPT:
    """Return an initialised model on the CPU in float32 compute."""
    model = GPT(config)
    model.init_weights(seed)
    return model


def num_parameters(config: ModelConfig) -> int:
    """Return the parameter count without allocating one."""
    with torch.device("meta"):
        return sum(weight.numel() for weight in GPT(config).parameters())
