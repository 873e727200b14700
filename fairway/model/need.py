"""Memory that a model needs for computing: bytes as a function of its settings and shapes.

Every term names the tensors that it counts, by the steps of `operations` and `gpu.operations`;
tests compare the sums with what PyTorch holds. Bytes per token do not depend on how many tokens go
together, so a stage needs `fixed` bytes and `each` for every sequence, window or document.

Shapes: D width, C = (H + 2 G) K columns of a projection, W = G K, F hidden width of the MLP,
H query heads, G key/value heads, V vocabulary, T positions of a sequence.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from fairway.base import units
from fairway.config.checks import lora_chunks
from fairway.config.settings import ModelConfig, TttConfig
from fairway.model import attention
from fairway.model.block import Block
from fairway.model.gpt import GPT, num_skips, shapes_of, visits
from fairway.model.kinds import kind_in
from fairway.model.paths import plain_steps

# A stage plans with this share of what is free: memory falls into pieces, and libraries take some.
_SHARE = 0.92
# Positions whose logits are formed at a time where a frozen model scores, and the float32 tables
# that stand side by side then: logits, their cap, and what the sum of exponentials needs.
_LOGIT_ROWS, _LOGIT_TABLES = 1024, 4
# Tokens that a cache reads at once on a GPU.
AT_ONCE = 1 << 16
# Matrices A that wait for their lane's next batch stay on a device that has room for this many.
ROOMS_BESIDE = 8
# A number of a parameter's gradient, of its average, of its momentum: float32.
_WIDE = 4


@dataclass(frozen=True, slots=True)
class Way:
    """How a model computes: by kernels or plainly, in numbers of this many bytes; whether attention
    holds all scores."""

    fused: bool
    itemsize: int
    scores: bool = False


def way_of(model: GPT) -> Way:
    """Return how a prepared model computes."""
    attend = cast(Block, model.blocks[0]).attn.attend
    return Way(
        model.operations.fused, model.compute_dtype.itemsize, attend is attention.BACKENDS["plain"]
    )


@dataclass(frozen=True, slots=True)
class Need:
    """The bytes of a stage: `fixed`, and `each` for every one of `most` that go together if they
    can."""

    what: str
    units: str
    fixed: float
    each: float
    most: int

    def at(self, count: int) -> int:
        """Return the bytes that this many take together."""
        return int(self.fixed + count * self.each)

    def fitting(self, free_bytes: float, counts: Sequence[int] = ()) -> int:
        """Return the largest of some counts (all up to `most`) that fits, or the smallest."""
        within = (free_bytes * _SHARE - self.fixed) / max(self.each, 1.0)
        if not counts:
            return max(1, int(min(within, self.most)))
        return max((n for n in counts if n <= within), default=min(counts))

    def line(self, free_bytes: float, count: int) -> str:
        """Return the plan for people: bytes of those that are free, and how many go together."""
        need = units.gigabytes(self.at(count))
        of = "" if free_bytes == float("inf") else f" of {units.gigabytes(free_bytes)}"
        fewer = "" if count == self.most else f" instead of {self.most:,}"
        return f"{self.what} needs about {need}{of}: {count:,} {self.units} at a time{fewer}"


def together(each_bytes: float, free_bytes: float, most: int = 1 << 30) -> int:
    """Return how many of something fit what is free, one at least."""
    return Need("", "", 0.0, each_bytes, most).fitting(free_bytes)


# ---------------------------------------------------------------------------------------------
# The model's own bytes


def _parameters(config: ModelConfig) -> dict[str, Tensor]:
    model = shapes_of(config)
    if config.embed_bf16:
        model.tok_emb.to(torch.bfloat16)
    return dict(model.named_parameters())


def _is_matrix(name: str) -> bool:
    return kind_in(GPT.declares, name).group == "matrix"


def weight_bytes(config: ModelConfig) -> int:
    """Return the bytes of a model's parameters."""
    return sum(weight.nbytes for weight in _parameters(config).values())


def copies_bytes(config: ModelConfig, way: Way) -> int:
    """Return those of the kernels' working copies: every matrix of the
    blocks, the MLP's second once more, turned, and the head."""
    if not way.fused:
        return 0
    sizes = {n: w.numel() for n, w in _parameters(config).items() if _is_matrix(n)}
    numbers = sum(sizes.values())
    numbers += sum(size for name, size in sizes.items() if name.endswith("mlp.proj.weight"))
    numbers += config.vocab_size * config.dim
    return numbers * way.itemsize


def training_state_bytes(
    config: ModelConfig, world: int = 1, means: int = 1, moments: bool = False
) -> int:
    """Return what training holds beside activations.

    Of every parameter the weight, its average, its copy for the time of the warm-up, its gradient;
    of a matrix the stacked gradient, running means for the momentum (divided by the ranks) and the
    update in bfloat16; of others a gradient in a row and AdamW's two moments.
    """
    total = 0.0
    for name, weight in _parameters(config).items():
        total += 3 * weight.nbytes + _WIDE * weight.numel()
        if _is_matrix(name):
            total += (_WIDE + means * _WIDE / world + 2) * weight.numel()
            if moments:
                # Second moments of inputs, and their inverses: our share; new ones while we look.
                total += (2 / world + 1) * _WIDE * weight.shape[1] ** 2
        else:
            total += 3 * weight.nbytes
    return int(total)


# ---------------------------------------------------------------------------------------------
# Activations, in bytes per token


def _widths(config: ModelConfig) -> tuple[int, int, int, int]:
    """Return (D, W, F, H)."""
    D, H = config.dim, config.num_heads
    return D, D // H * config.num_kv_heads, config.mlp_dim, H


def _looped(config: ModelConfig, looping: bool) -> list[int]:
    encoder, decoder = visits(config, looping)
    return [*encoder, *decoder]


def _scores(config: ModelConfig, way: Way, T: int) -> int:
    """Return the numbers of a token that attention written out holds: its shares of all keys."""
    return config.num_heads * T if way.scores else 0


def _attention_kept(config: ModelConfig, way: Way, T: int) -> float:
    """Return the bytes that attention of a visit leaves: what it reads, makes, and XSA makes of it.

    Kernels turn queries and keys where they lie, in one tensor with the values. Inverse norms, sums
    of exponentials and the values' squares are float32, a few of them per head.
    """
    D, W, _, H = _widths(config)
    G = config.num_kv_heads
    numbers, wide = 3 * D + 2 * W, 2 * H + G
    if way.scores:
        # What it multiplies lies in another order, hence copies.
        numbers += D + 2 * W + _scores(config, way, T)
    if not way.fused or "attend" in plain_steps(config):
        # Queries and keys before they are turned.
        numbers += D + W
    if config.gate_features:
        # What is gated, and the gates.
        numbers += D + 3 * H
    return way.itemsize * numbers + 4 * wide


def _visit_kept(config: ModelConfig, way: Way, layer: int, T: int) -> float:
    """Return the bytes that a token leaves for the way back through a visit, without a skip's.

    The stream as it comes in, what attention and the MLP read after a norm, the MLP's square; by
    plain formulas also what is normalised, what is squared, and both branches' outputs before they
    are scaled.
    """
    D, _, F, _ = _widths(config)
    numbers = 2 * D + F
    parallel = layer >= config.parallel_from
    if not way.fused:
        numbers += 3 * D + F
    elif "mlp" in plain_steps(config):
        numbers += D + F
    if not parallel:
        numbers += D if way.fused else 2 * D
    elif config.lanes == 2:
        # The second lane, both outputs, its norm before and after the scale.
        numbers += 5 * D
    return way.itemsize * numbers + 8 + _attention_kept(config, way, T)


def _joins(config: ModelConfig, looping: bool) -> int:
    encoder, decoder = visits(config, looping)
    return min(len(encoder), len(decoder), num_skips(config))


def kept_bytes(config: ModelConfig, way: Way, looping: bool, T: int) -> float:
    """Return the bytes that a token leaves for the way back through all visits and both norms."""
    D = config.dim
    total = sum(_visit_kept(config, way, layer, T) for layer in _looped(config, looping))
    if not way.fused:
        # A skip is scaled, then blended in.
        total += way.itemsize * 2 * D * _joins(config, looping)
    numbers = 5 * D if config.smear else D
    numbers += 0 if way.fused else 2 * D
    return total + way.itemsize * numbers + 8


def learning_bytes(config: ModelConfig, way: Way, looping: bool, T: int) -> float:
    """Return the bytes that a token takes at most on its way forth and back, loss included.

    Either the head's logits stand beside all that is kept, by plain formulas with their gradient;
    or the last visit's gradients do: those of the stream and of the MLP, or of attention.
    """
    D, W, F, _ = _widths(config)
    V = config.vocab_size
    loss = V + D if way.fused else 2 * V
    mlp = F + 2 * D
    attend = 6 * D + 4 * W + _scores(config, way, T)
    back = (0 if way.fused else V) + D + max(mlp, attend)
    return kept_bytes(config, way, looping, T) + way.itemsize * max(loss, back)


def passing_bytes(config: ModelConfig, way: Way, looping: bool, T: int) -> float:
    """Return the bytes that a token takes at most as it passes without a way back.

    x0, the states that wait for the second half, the stream before and in a visit, what its
    branches read, what attention gave; and what the MLP makes, or attention reads and makes.
    """
    D, W, F, _ = _widths(config)
    stack = max(0, len(visits(config, looping)[0]) - 1)
    mlp = D + (F if way.fused else 2 * F)
    attend = 3 * D + 2 * W + (0 if way.fused else D + W) + 2 * _scores(config, way, T)
    numbers = (6 + stack) * D + max(mlp, attend)
    numbers += 4 * D if config.lanes == 2 else 0
    return way.itemsize * numbers


def sensitivity_bytes(config: ModelConfig, way: Way, looping: bool, T: int) -> float:
    """Return what a token takes whose label is drawn: beside its way forth and back the logits,
    their capped and their distribution's tables, in float32.

    Kernels call the MLP's layers one by one then, and so keep the activation's input as well.
    """
    apart = _widths(config)[2] * len(_looped(config, looping)) if way.fused else 0
    kept = kept_bytes(config, way, looping, T) + way.itemsize * apart
    return kept + 6 * _WIDE * config.vocab_size


def _table_bytes(config: ModelConfig) -> float:
    return _LOGIT_ROWS * config.vocab_size * 4 * _LOGIT_TABLES


# ---------------------------------------------------------------------------------------------
# Stages


def training(
    config: ModelConfig,
    way: Way,
    T: int,
    most: int,
    world: int = 1,
    means: int = 1,
    moments: bool = False,
) -> Need:
    """Return what training needs, `most` sequences of T tokens in a micro-batch."""
    fixed = training_state_bytes(config, world, means, moments) + copies_bytes(config, way)
    # The head's gradient, formed with the loss.
    fixed += _WIDE * config.vocab_size * config.dim
    each = T * max(learning_bytes(config, way, looping, T) for looping in (False, True))
    return Need("training", "sequences", fixed, each, most)


def packing(config: ModelConfig, way: Way, looping: bool, T: int, rows: int, read: int) -> Need:
    """Return what calibration needs, `rows` sequences of T tokens passing together, or
    sensitivities, for which `read` tokens go forth and back.

    Sums of outer products are float32: of inputs, and for sensitivities of outputs; their means
    stand beside them once.
    """
    matrices = [w for w in _parameters(config).values() if w.dim() == 2]
    sums = sum(_WIDE * (w.shape[1] ** 2 + (min(w.shape) ** 2 if read else 0)) for w in matrices)
    back = read * sensitivity_bytes(config, way, looping, T)
    fixed = weight_bytes(config) + sums + back
    return Need("packing", "sequences", fixed, T * passing_bytes(config, way, looping, T), rows)


def scoring(config: ModelConfig, way: Way, looping: bool, T: int, most: int) -> Need:
    """Return what a frozen model needs that scores `most` windows of T tokens together.

    The final states of all of them are kept while logits are formed, a slice at a time.
    """
    fixed = weight_bytes(config) + copies_bytes(config, way) + _table_bytes(config)
    each = T * passing_bytes(config, way, looping, T)
    states = most * T * config.dim * way.itemsize
    return Need("scoring", "windows", fixed + states, each, most)


def learning_all(config: ModelConfig, way: Way, looping: bool, T: int, most: int) -> Need:
    """Return what all weights need that learn (SGD) from `most` sequences at a time: gradients and
    momentum beside them."""
    weights = weight_bytes(config)
    fixed = 3 * weights + copies_bytes(config, way)
    fixed += _WIDE * config.vocab_size * config.dim
    each = T * learning_bytes(config, way, looping, T)
    return Need("test-time training", "sequences", fixed, each, most)


def adapter_numbers(config: ModelConfig, looping: bool, targets: str, rank: int) -> tuple[int, int]:
    """Return (numbers of matrices A, of matrices B) of one document's adapters."""
    D, W, _, _ = _widths(config)
    inside = [target for target in targets.split() if target != "head"]
    count = len(_looped(config, looping))
    inner = count * len(inside) * rank * D
    outer = count * rank * sum(W if target in "kv" else D for target in inside)
    if "head" in targets.split():
        inner, outer = inner + rank * D, outer + rank * config.vocab_size
    return inner, outer


def adapters_bytes(config: ModelConfig, way: Way, looping: bool, targets: str, rank: int) -> int:
    """Return the bytes of one document's adapters: values, second moments, and beside kernels
    copies and gradients in the compute dtype; plainly gradients and roots in float32."""
    numbers = sum(adapter_numbers(config, looping, targets, rank))
    beside = 2 * way.itemsize if way.fused else 2 * _WIDE + 2 * way.itemsize
    return numbers * (2 * _WIDE + beside)


def document_bytes(
    config: ModelConfig, way: Way, looping: bool, targets: str, rank: int, length: int, chunk: int
) -> float:
    """Return what the way forth and back of a document takes, its adapters apart.

    Everything a token leaves, what goes between A and B of every adapter, and of a chunk's
    positions the logits: raw, what adapters add, capped, their logarithms, and gradients of them.
    """
    count = len(_looped(config, looping))
    between = count * rank * len([target for target in targets.split() if target != "head"])
    D, W, F, _ = _widths(config)
    back = D + max(2 * D + F, 6 * D + 4 * W)
    token = kept_bytes(config, way, looping, length) + way.itemsize * (between + back)
    return length * token + chunk * config.vocab_size * (2 * way.itemsize + 6 * 4)


def learning_documents(
    config: ModelConfig,
    way: Way,
    looping: bool,
    lora: TttConfig,
    T: int,
    lanes: int,
    held: float,
    free_bytes: float = float("inf"),
) -> Need:
    """Return what adapters of documents side by side need, each in a window of T tokens.

    Their matrices stand whatever goes together. So do matrices A that wait, of so many lanes, where
    the device has room for ROOMS_BESIDE more. What goes together is `held` times: as it is computed
    at first, and as it is recorded.
    """
    rows, own = lora.lora_documents, (lora.lora_targets, lora.lora_rank)
    fixed = weight_bytes(config) + copies_bytes(config, way)
    fixed += rows * adapters_bytes(config, way, looping, *own)
    waiting = rows * _WIDE * adapter_numbers(config, looping, *own)[0]
    rooms = (free_bytes - fixed) / waiting - ROOMS_BESIDE + 1
    fixed += int(min(lanes, max(rooms, 0.0))) * waiting
    chunk = min(T, max(size for size, _ in lora_chunks(lora)))
    each = held * document_bytes(config, way, looping, *own, T, chunk)
    return Need("test-time training", "documents", fixed, each, rows)


def cached_bytes(config: ModelConfig, way: Way, looping: bool, room: int) -> int:
    """Return the bytes of the keys and values that a cache keeps of a row of `room` positions."""
    _, W, _, _ = _widths(config)
    return 2 * len(_looped(config, looping)) * W * room * way.itemsize


def coding(config: ModelConfig, way: Way, looping: bool, room: int, most: int) -> Need:
    """Return what streams side by side need that see up to `room` positions each.

    Keys and values of every visit; and of a row's next token the logits, their logarithms, the
    shares of the coder and where they begin, in numbers of eight bytes.
    """
    kept = cached_bytes(config, way, looping, room)
    fixed = weight_bytes(config) + copies_bytes(config, way)
    read = AT_ONCE * passing_bytes(config, way, looping, room)
    return Need("coding", "streams", fixed + read, kept + 6 * 8 * config.vocab_size, most)
