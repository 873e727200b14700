"""The transformer of pull requests #1493 and #1858, read from top to bottom.

The unusual parts, in the order in which a token passes through them:
- the embedding is normalised, and the result x0 is mixed back into every block's input;
- q and k are normalised per head, rotated on a few dimensions only, and q has a gain per head;
- attention drops the part of its output that lies along the position's own value (XSA);
- the MLP squares a leaky ReLU;
- late blocks run attention and MLP in parallel on one input;
- a few middle blocks are visited several times (depth recurrence), switched on during training;
- the visits form a U-Net: outputs of the first half are blended into the second half;
- the head is the embedding again, its logits capped by a tanh.

Shapes: B batch, T time, D width, H query heads, G key/value heads, K head width, V vocabulary,
N rows of a flattened batch, S features of SmearGate.
"""

import functools
from dataclasses import replace
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from fairway.config.settings import BOS_ID, ModelConfig
from fairway.model import attention, kinds
from fairway.model.block import Attached, Block, Visit, Walk
from fairway.model.kinds import Kind, kind_in, scalar
from fairway.model.operations import PLAIN, Join, Rope
from fairway.model.ops import softcapped, wide_logits
from fairway.model.seen import documents_of

# The base of rotary frequencies, as in #1493.
ROPE_BASE = 10_000.0
# Logits become SOFTCAP tanh(logits / SOFTCAP), as in #1493.
SOFTCAP = 30.0
# The deviation of initial embeddings, as in #1493.
EMBED_STD = 0.005
# Features of a token's embedding that SmearGate reads.
SMEAR_FEATURES = 12


# ---------------------------------------------------------------------------------------------
# Positions


def rope_table(length: int, config: ModelConfig) -> Rope:
    """Return (cos_TR, sin_TR) for R = rope_dims / 2 frequencies, float32, on the CPU.

    The frequencies are base^(-2j / rope_dims) rounded to bfloat16, as the records' compiled tables
    were; the positions stay exact. (Positions in bfloat16 would collapse 2,048 of them to 641.)
    Beyond the training length the base grows by the NTK rule. The frequencies of a
    grown base are not rounded, as in the records.
    """
    dims = config.rope_dims
    base = ROPE_BASE
    if length > config.rope_train_len and dims > 2:
        base *= (length / config.rope_train_len) ** (dims / (dims - 2))
    exponents_R = torch.arange(0, dims, 2, dtype=torch.float32) / max(dims, 1)
    frequencies_R = 1.0 / base**exponents_R
    if base == ROPE_BASE:
        frequencies_R = frequencies_R.bfloat16().float()
    angles_TR = torch.arange(length, dtype=torch.float32)[:, None] * frequencies_R
    return angles_TR.cos(), angles_TR.sin()


def smeared(e_BTD: Tensor, ids_BT: Tensor, gate_S: Tensor, strength: Tensor) -> Tensor:
    """Return each embedding plus a gated share of the previous token's: SmearGate, [B, T, D].

    The gate reads the first S features of the receiving token. The first token of a document and
    the first token of a row receive nothing. In packed streams the token before BOS belongs to
    another document (pull requests #1851 and #1855; without the mask, #1667 leaked that token).
    """
    now_BTD, before_BTD = e_BTD[:, 1:], e_BTD[:, :-1]
    gate_BT = torch.sigmoid(now_BTD[..., : len(gate_S)] @ gate_S.to(e_BTD.dtype))
    share_BT = strength.to(e_BTD.dtype) * gate_BT * (ids_BT[:, 1:] != BOS_ID)
    return torch.cat([e_BTD[:, :1], now_BTD + share_BT[..., None] * before_BTD], 1)


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
    """Return the number of rows of skip weights for the longest order of visits."""
    return len(visits(config, True)[0])


# ---------------------------------------------------------------------------------------------
# The model


class Embedding(nn.Embedding):
    """A table of vectors that `GPT.init_weights` sets."""

    def reset_parameters(self) -> None:
        """Leave the numbers unset."""


class GPT(nn.Module):
    """The whole model. `model(ids, targets)` returns the mean loss; `hidden` and `logits` are its
    two halves.

    `operations` computes its steps: by plain formulas, or by kernels with equal results.
    """

    # The sections of an artifact follow this order.
    declares: ClassVar[dict[str, Kind]] = {
        "tok_emb.weight": Kind("embed", kinds.normal(EMBED_STD), "embedding"),
        **Block.declares,
        "skip_weights": scalar(kinds.ones),
        "skip_gates": scalar(kinds.zeros),
        "smear_gate": scalar(kinds.zeros),
        "smear_lambda": scalar(kinds.zeros),
    }

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.tok_emb = Embedding(config.vocab_size, config.dim)
        if config.smear:
            self.smear_gate = nn.Parameter(torch.empty(min(SMEAR_FEATURES, config.dim)))
            self.smear_lambda = nn.Parameter(torch.empty(1))
        self.blocks = nn.ModuleList(Block(config, i) for i in range(config.num_layers))
        self.num_skips = num_skips(config)
        if self.num_skips:
            self.skip_weights = nn.Parameter(torch.empty(self.num_skips, config.dim))
            self.skip_gates = nn.Parameter(torch.empty(self.num_skips, config.dim))
        self.compute_dtype = torch.float32
        self.operations = PLAIN
        # The adapters of a fine-tuned model; every walk uses them.
        self.attached: Attached | None = None
        # Whether attention stays within each document of a sequence during training.
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
        """Limit every layer's attention to `most` positions; 0 leaves each layer its own window."""
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
        """Set every parameter to the initial value of its kind; the gains of queries are a setting.

        Every block starts as the identity. Weights are rounded once to bfloat16, as in the records.
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
        """Return the same as `hidden` for embedded tokens, with the positions of a given rotary
        table."""
        if self.attached is not None:
            assert given.adapters is None, "a model with adapters of its own takes no others"
            given = replace(given, adapters=self.attached)
        # Kernels need contiguous rows, but a cache passes slices of longer rows.
        return self.operations.final(self._walk(x_BTD.contiguous(), given))

    def embedded(self, ids_BT: Tensor) -> Tensor:
        """Return x0, the normalised embeddings, [B, T, D] in the compute dtype."""
        if self.config.smear:
            e_BTD = self.tok_emb(ids_BT).to(self.compute_dtype)
            e_BTD = smeared(e_BTD, ids_BT, self.smear_gate, self.smear_lambda)
            return self.operations.norm(e_BTD)
        return self.operations.embed(self.tok_emb, ids_BT, self.compute_dtype)

    def _walk(self, x_BTD: Tensor, given: Walk) -> Tensor:
        """Visit the blocks. A stack keeps the outputs of the first half for the second half.

        The stack receives each state as the next block returns it. The last state of the first half
        is used at once, so it is not put on the stack.
        """
        half, x0_BTD = len(self.encoder_visits), x_BTD
        lanes: tuple[Tensor, ...] = (x_BTD,)
        stack: list[Tensor] = []
        for number, layer in enumerate((*self.encoder_visits, *self.decoder_visits)):
            visit = Visit(number, self.operations, given)
            step, join = number - half, None
            if 0 <= step < self.num_skips and (step == 0 < half or stack):
                join = self._join(lanes[0] if step == 0 else stack.pop(), step)
            lanes, x0_BTD, before_BTD = self.blocks[layer](lanes, x0_BTD, join, visit)
            if 0 < number < half:
                stack.append(before_BTD)
        return lanes[0] if len(lanes) == 1 else torch.stack(lanes).mean(0)

    def _join(self, skip_BTD: Tensor, step: int) -> Join:
        return Join(skip_BTD, self.skip_weights[step], self.skip_gates[step])

    def logits(self, x: Tensor, extra: Tensor | None = None, factor: float = 1.0) -> Tensor:
        """Return the capped logits of final states, [..., V] in float32.

        `extra` is added before the cap, and `factor` multiplies the capped logits.
        """
        raw = wide_logits(x, self.tok_emb.weight)
        if self.attached is not None:
            extra = self.attached.head(x)
        raw = raw if extra is None else raw + extra
        return softcapped(raw, SOFTCAP, factor)

    def cap_slope(self, logits: Tensor) -> Tensor:
        """Return the derivative of the cap at capped logits, 1 - (z / cap)^2."""
        return (logits / SOFTCAP).square_().neg_().add_(1)

    def forward(self, ids_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """Return the mean cross-entropy in nats per token, a float32 scalar."""
        assert self.attached is None, "a model with adapters of its own does not train"
        h_ND = self.hidden(ids_BT).flatten(0, 1)
        return self.operations.loss(h_ND, self.tok_emb.weight, targets_BT.flatten(), SOFTCAP)

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


# Each preparation of a run asks for the same shapes ten times.
@functools.lru_cache(maxsize=4)
def shapes_of(config: ModelConfig) -> GPT:
    """Return a model whose parameters have shapes but take no memory; nobody may change it."""
    with torch.device("meta"):
        return GPT(config)


def num_parameters(config: ModelConfig) -> int:
    """Return the parameter count without allocating one."""
    return sum(weight.numel() for weight in shapes_of(config).parameters())
