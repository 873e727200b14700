"""Memory that a model needs for its computations, as a function of its settings and shapes.

Every term names the tensors that it counts, by the steps of `operations` and `gpu.operations`.
Tests compare the sums with the memory that PyTorch uses. Bytes per token do not depend on how many
tokens are processed together, so a stage needs `fixed` bytes and `each` for every sequence, window
or document.

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

# A stage plans with this share of the free memory, because of fragmentation and of libraries.
_SHARE = 0.92
# The positions whose logits a frozen model computes at once, and the number of float32 tables in
# memory then: logits, capped logits, and those for the sum of exponentials.
_LOGIT_ROWS, _LOGIT_TABLES = 1024, 4
# The tokens that a cache reads at once on a GPU.
AT_ONCE = 1 << 16
# Waiting matrices A stay on the device if it has room for this many.
ROOMS_BESIDE = 8
# Bytes of a float32 number: gradients, averages and momentum.
_WIDE = 4


@dataclass(frozen=True, slots=True)
class Way:
    """How a model computes: with kernels or plainly, the bytes of a number, and whether attention
    stores all scores."""

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
    """The memory of a stage: `fixed` bytes, and `each` for every item processed together, of which
    there are at most `most`."""

    what: str
    units: str
    fixed: float
    each: float
    most: int

    def at(self, count: int) -> int:
        """Return the bytes for this many items together."""
        return int(self.fixed + count * self.each)

    def fitting(self, free_bytes: float, counts: Sequence[int] = ()) -> int:
        """Return the largest of the counts (default: all up to `most`) that fits, or the least."""
        within = (free_bytes * _SHARE - self.fixed) / max(self.each, 1.0)
        if not counts:
            return max(1, int(min(within, self.most)))
        return max((n for n in counts if n <= within), default=min(counts))

    def line(self, free_bytes: float, count: int) -> str:
        """Return the plan as a line: bytes needed and free, and how many items run together."""
        need = units.gigabytes(self.at(count))
        of = "" if free_bytes == float("inf") else f" of {units.gigabytes(free_bytes)}"
        fewer = "" if count == self.most else f" instead of {self.most:,}"
        return f"{self.what} needs about {need}{of}: {count:,} {self.units} at a time{fewer}"


def together(each_bytes: float, free_bytes: float, most: int = 1 << 30) -> int:
    """Return how many items fit into the free memory, at least one."""
    return Need("", "", 0.0, each_bytes, most).fitting(free_bytes)


# ---------------------------------------------------------------------------------------------
# The memory of the model itself


def _parameters(config: ModelConfig) -> dict[str, Tensor]:
    named: dict[str, Tensor] = dict(shapes_of(config).named_parameters())
    if config.embed_bf16:
        named["tok_emb.weight"] = named["tok_emb.weight"].to(torch.bfloat16)
    return named


def _is_matrix(name: str) -> bool:
    return kind_in(GPT.declares, name).group == "matrix"


def weight_bytes(config: ModelConfig) -> int:
    """Return the bytes of a model's parameters."""
    return sum(weight.nbytes for weight in _parameters(config).values())


def copies_bytes(config: ModelConfig, way: Way) -> int:
    """Return the bytes of the kernels' working copies: every matrix of the blocks, the MLP's second
    matrix again, transposed, and the head."""
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
    """Return the bytes of training besides activations.

    For every parameter: the weight, its average, its copy during the warm-up, its gradient. For a
    matrix: the stacked gradient, running means for the momentum (divided by the ranks) and the
    update in bfloat16. For others: a gradient in a row, and AdamW's two moments.
    """
    total = 0.0
    for name, weight in _parameters(config).items():
        total += 3 * weight.nbytes + _WIDE * weight.numel()
        if _is_matrix(name):
            total += (_WIDE + means * _WIDE / world + 2) * weight.numel()
            if moments:
                # Second moments of inputs and their inverses: this rank's share, and the new ones.
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
    """Return the numbers per token that plain attention stores: its shares of all keys."""
    return config.num_heads * T if way.scores else 0


def _attention_kept(config: ModelConfig, way: Way, T: int) -> float:
    """Return the bytes that attention of a visit keeps: its inputs, its result, and that of XSA.

    Kernels rotate queries and keys in place, in one tensor with the values. Inverse norms, sums of
    exponentials and squares of the values are float32, a few of them per head.
    """
    D, W, _, H = _widths(config)
    G = config.num_kv_heads
    numbers, wide = 3 * D + 2 * W, 2 * H + G
    if way.scores:
        # The order of the factors requires copies.
        numbers += D + 2 * W + _scores(config, way, T)
    if not way.fused or "attend" in plain_steps(config):
        # Queries and keys before the rotation.
        numbers += D + W
    if config.gate_features:
        # The gated values, and the gates.
        numbers += D + 3 * H
    return way.itemsize * numbers + 4 * wide


def _visit_kept(config: ModelConfig, way: Way, layer: int, T: int) -> float:
    """Return the bytes per token that a visit keeps for the backward pass, without skips.

    These are the incoming stream, the normalised inputs of attention and the MLP, and the MLP's
    square. Plain formulas also keep the inputs of the norms, the input of the square, and both
    branches' outputs before scaling.
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
    """Return the bytes per token kept for the backward pass, for all visits and both norms."""
    D = config.dim
    total = sum(_visit_kept(config, way, layer, T) for layer in _looped(config, looping))
    if not way.fused:
        # A skip is scaled, then blended in.
        total += way.itemsize * 2 * D * _joins(config, looping)
    numbers = 5 * D if config.smear else D
    numbers += 0 if way.fused else 2 * D
    return total + way.itemsize * numbers + 8


def learning_bytes(config: ModelConfig, way: Way, looping: bool, T: int) -> float:
    """Return the largest bytes per token in a forward and backward pass, with the loss.

    The maximum is either at the head, with its logits (and their gradient, by plain formulas)
    beside everything kept; or in the last visit, with the gradients of the stream and of the MLP or
    attention.
    """
    D, W, F, _ = _widths(config)
    V = config.vocab_size
    loss = V + D if way.fused else 2 * V
    mlp = F + 2 * D
    attend = 6 * D + 4 * W + _scores(config, way, T)
    back = (0 if way.fused else V) + D + max(mlp, attend)
    return kept_bytes(config, way, looping, T) + way.itemsize * max(loss, back)


def passing_bytes(config: ModelConfig, way: Way, looping: bool, T: int) -> float:
    """Return the largest bytes per token in a forward pass without a backward pass.

    These are x0, the states that wait for the second half, the stream before and in a visit, the
    inputs of its branches and the result of attention; and the MLP's values, or the inputs and
    results inside attention.
    """
    D, W, F, _ = _widths(config)
    stack = max(0, len(visits(config, looping)[0]) - 1)
    mlp = D + (F if way.fused else 2 * F)
    attend = 3 * D + 2 * W + (0 if way.fused else D + W) + 2 * _scores(config, way, T)
    numbers = (6 + stack) * D + max(mlp, attend)
    numbers += 4 * D if config.lanes == 2 else 0
    return way.itemsize * numbers


def sensitivity_bytes(config: ModelConfig, way: Way, looping: bool, T: int) -> float:
    """Return the bytes per token for sensitivities, whose labels are drawn. Besides a forward and
    backward pass these are the float32 tables of logits, capped logits and the distribution.

    Kernels then run the MLP's layers one by one, and so keep the activation's input as well.
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
    """Return the memory for training with `most` sequences of T tokens in a micro-batch."""
    fixed = training_state_bytes(config, world, means, moments) + copies_bytes(config, way)
    # The head's gradient, computed with the loss.
    fixed += _WIDE * config.vocab_size * config.dim
    each = T * max(learning_bytes(config, way, looping, T) for looping in (False, True))
    return Need("training", "sequences", fixed, each, most)


def packing(config: ModelConfig, way: Way, looping: bool, T: int, rows: int, read: int) -> Need:
    """Return the memory for calibration with `rows` sequences of T tokens together, or for
    sensitivities with a forward and backward pass over `read` tokens.

    Sums of outer products are float32: of inputs and, for sensitivities, of outputs. Their means
    are in memory at the same time once.
    """
    matrices = [w for w in _parameters(config).values() if w.dim() == 2]
    sums = sum(_WIDE * (w.shape[1] ** 2 + (min(w.shape) ** 2 if read else 0)) for w in matrices)
    back = read * sensitivity_bytes(config, way, looping, T)
    fixed = weight_bytes(config) + sums + back
    return Need("packing", "sequences", fixed, T * passing_bytes(config, way, looping, T), rows)


def scoring(config: ModelConfig, way: Way, looping: bool, T: int, most: int) -> Need:
    """Return the memory for a frozen model that scores `most` windows of T tokens together.

    The final states of all windows are kept while logits are computed, a slice at a time.
    """
    fixed = weight_bytes(config) + copies_bytes(config, way) + _table_bytes(config)
    each = T * passing_bytes(config, way, looping, T)
    states = most * T * config.dim * way.itemsize
    return Need("scoring", "windows", fixed + states, each, most)


def learning_all(config: ModelConfig, way: Way, looping: bool, T: int, most: int) -> Need:
    """Return the memory for test-time training of all weights (SGD) on `most` sequences at a time,
    with gradients and momentum."""
    weights = weight_bytes(config)
    fixed = 3 * weights + copies_bytes(config, way)
    fixed += _WIDE * config.vocab_size * config.dim
    each = T * learning_bytes(config, way, looping, T)
    return Need("test-time training", "sequences", fixed, each, most)


def adapter_numbers(config: ModelConfig, looping: bool, targets: str, rank: int) -> tuple[int, int]:
    """Return the numbers in the matrices A and in the matrices B of one document's adapters."""
    D, W, _, _ = _widths(config)
    inside = [target for target in targets.split() if target != "head"]
    count = len(_looped(config, looping))
    inner = count * len(inside) * rank * D
    outer = count * rank * sum(W if target in "kv" else D for target in inside)
    if "head" in targets.split():
        inner, outer = inner + rank * D, outer + rank * config.vocab_size
    return inner, outer


def adapters_bytes(config: ModelConfig, way: Way, looping: bool, targets: str, rank: int) -> int:
    """Return the bytes of one document's adapters: values and second moments; with kernels, copies
    and gradients in the compute dtype; by plain formulas, gradients and roots in float32."""
    numbers = sum(adapter_numbers(config, looping, targets, rank))
    beside = 2 * way.itemsize if way.fused else 2 * _WIDE + 2 * way.itemsize
    return numbers * (2 * _WIDE + beside)


def document_bytes(
    config: ModelConfig, way: Way, looping: bool, targets: str, rank: int, length: int, chunk: int
) -> float:
    """Return the bytes for a forward and backward pass of a document, without its adapters.

    These are all values kept per token, the values between A and B of every adapter, and for the
    positions of a chunk the logits: raw, the adapters' additions, capped, their logarithms, and
    their gradients.
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
    """Return the memory for adapters of several documents at once, each in a window of T tokens.

    All adapters stay in memory, whatever number runs together. So do waiting matrices A, of as many
    lanes, if the device has room for ROOMS_BESIDE more. The part that runs together counts `held`
    times: once for the first computation, and once for the recorded one.
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
    """Return the bytes of the keys and values in a cache for a row of `room` positions."""
    _, W, _, _ = _widths(config)
    return 2 * len(_looped(config, looping)) * W * room * way.itemsize


def unadapted_bytes(
    config: ModelConfig, way: Way, looping: bool, lora: TttConfig, room: int
) -> int:
    """Return the bytes that the model itself keeps beside a document's adapters, 0 without a
    share."""
    return cached_bytes(config, way, looping, room) if lora.lora_frozen_share else 0


def coding(config: ModelConfig, way: Way, looping: bool, room: int, most: int) -> Need:
    """Return the memory for parallel streams of up to `room` positions each.

    These are keys and values of every visit, and for a row's next token the logits, their
    logarithms, the coder's shares and their starts, in numbers of eight bytes.
    """
    kept = cached_bytes(config, way, looping, room)
    fixed = weight_bytes(config) + copies_bytes(config, way)
    read = AT_ONCE * passing_bytes(config, way, looping, room)
    return Need("coding", "streams", fixed + read, kept + 6 * 8 * config.vocab_size, most)
