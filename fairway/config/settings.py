"""Every setting of a run, as one tree of frozen dataclasses; the only home of defaults.

The defaults are those of pull request #1858's seed runs (and #1493's, its base); a
recipe (`fairway.recipes`) is a function that returns this tree with its own values. `--help`, the
README table and the recipe hash are generated from here; `fairway.config.checks` says what fits
together and `fairway.config.overrides` reads `--set a.b=v`.
"""

import dataclasses
import difflib
import hashlib
import json
import types
import typing
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from fairway.base.errors import UserError, shown

# A setting that is found out: on the machine, or by measuring.
AUTO = "auto"
# The token that begins every document: in the challenge's tokenizers and in those trained here.
BOS_ID = 1


def opt(
    default: Any,
    text: str,
    *,
    lo: float | None = None,
    hi: float | None = None,
    choices: tuple[str, ...] = (),
) -> Any:
    """Declare a setting: its default, its help, and the bounds (inclusive) or choices it obeys."""
    return field(default=default, metadata={"help": text, "lo": lo, "hi": hi, "choices": choices})


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Where the text comes from and which part of it is scored."""

    source: str = opt(
        "embedded",
        "'embedded', or a folder made by `fairway data build` or `fetch`; '' is none yet",
    )
    val_share: float = opt(0.05, "share of the documents kept for validation", lo=0.001, hi=0.5)
    val_bytes: int = opt(0, "validation text to sample across documents; 0 takes all", lo=0)
    val_tokens: int = opt(0, "validation targets to score, from its beginning; 0 takes all", lo=0)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """The transformer of pull requests #1493 and #1858."""

    vocab_size: int = opt(8192, "tokens in the vocabulary", lo=260, hi=65_535)
    num_layers: int = opt(11, "physical blocks", lo=1, hi=256)
    dim: int = opt(512, "width of the residual stream", lo=8, hi=16_384)
    embed_dim: int = opt(0, "width of a factorised embedding; 0 means dim", lo=0, hi=16_384)
    num_heads: int = opt(8, "query heads", lo=1, hi=256)
    num_kv_heads: int = opt(4, "key and value heads", lo=1, hi=256)
    mlp_dim: int = opt(2048, "hidden width of the MLP", lo=8, hi=65_536)
    rope_dims: int = opt(16, "rotated dimensions of each head", lo=0, hi=1024)
    rope_base: float = opt(10_000.0, "base of the rotary frequencies", lo=1.0)
    rope_train_len: int = opt(2048, "length beyond which the rotary base is rescaled", lo=1)
    qk_gain: float = opt(5.25, "initial gain of the queries, per head", lo=0.01, hi=100.0)
    xsa_layers: int = opt(11, "last so many layers drop the part along their own value", lo=0)
    softcap: float = opt(30.0, "logits are softcap * tanh(logits / softcap); 0 is off", lo=0.0)
    parallel_from: int = opt(7, "first block whose MLP reads the attention's input", lo=0)
    skips: bool = opt(True, "U-Net skips from the first to the second half of the visits")
    skip_gates: bool = opt(True, "blend skips through learned gates instead of adding them")
    loop_first: int = opt(3, "first block of the recurrence", lo=0)
    loop_last: int = opt(5, "last block of the recurrence", lo=0)
    loop_extra: int = opt(2, "extra visits of the looped blocks; 0 is no recurrence", lo=0, hi=16)
    tie_embeddings: bool = opt(True, "use the embedding as output head")
    embed_bf16: bool = opt(True, "keep the embedding and its Adam moments in bfloat16")
    smear: bool = opt(False, "blend each embedding with the one before it in its document")


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig:
    """MuonEq-R for the matrices, AdamW for the rest, as in #1493."""

    matrix_lr: float = opt(0.022, "Muon learning rate", lo=0.0, hi=10.0)
    matrix_wd: float = opt(0.095, "Muon decoupled weight decay", lo=0.0, hi=10.0)
    momentum: float = opt(0.99, "Muon momentum after its warm-up", lo=0.0, hi=0.9999)
    momentum_start: float = opt(0.92, "Muon momentum at step 0", lo=0.0, hi=0.9999)
    momentum_warmup_steps: int = opt(1500, "steps from momentum_start to momentum", lo=0)
    newton_schulz: str = opt(
        "fixed", "coefficients of the orthogonalisation", choices=("fixed", "polar_express")
    )
    row_normalise: bool = opt(True, "divide rows by their norm before orthogonalising (MuonEq-R)")
    embed_lr: float = opt(0.03, "AdamW learning rate of the tied embedding", lo=0.0, hi=10.0)
    embed_wd: float = opt(0.085, "AdamW weight decay of the embedding", lo=0.0, hi=10.0)
    head_lr: float = opt(0.008, "AdamW learning rate of an untied head", lo=0.0, hi=10.0)
    scalar_lr: float = opt(0.02, "AdamW learning rate of gains, scales and gates", lo=0.0, hi=10.0)
    scalar_wd: float = opt(0.02, "AdamW weight decay of gains, scales and gates", lo=0.0, hi=10.0)
    beta1: float = opt(0.9, "AdamW first-moment decay", lo=0.0, hi=0.9999)
    beta2: float = opt(0.95, "AdamW second-moment decay", lo=0.0, hi=0.99999)
    grad_clip: float = opt(0.3, "bound on the global gradient norm; 0 is off", lo=0.0)
    warmdown_share: float = opt(0.72, "last share of the run with falling rates", lo=0.0, hi=1.0)
    min_lr: float = opt(0.0, "floor of the learning-rate multiplier", lo=0.0, hi=1.0)
    ema_decay: float | None = opt(0.9965, "weight average: decay per step", lo=0.0, hi=0.999999)
    ema_share: float | None = opt(
        None, "weight average: horizon as a share of the run (set ema_decay=none)", lo=1e-6, hi=1.0
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """The loop: what drives it, how much it reads at a time, what it writes on the way."""

    clock: str = opt("wall", "what drives schedule and stop", choices=("wall", "steps", "replay"))
    budget_s: float = opt(600.0, "seconds for training and calibration (clock = wall)", lo=0.1)
    reserve_s: float = opt(12.0, "part of the budget kept for calibration", lo=0.0)
    steps: int = opt(4550, "steps of the run (clock = steps)", lo=1)
    replay: str = opt("", "run folder whose recorded progress is followed (clock = replay)")
    seq_len: int = opt(2048, "tokens per training sequence", lo=2, hi=1_048_576)
    batch_tokens: int = opt(786_432, "tokens per optimiser step, over all ranks", lo=2)
    micro_tokens: int = opt(98_304, "most tokens per forward pass on one rank", lo=2)
    loop_from: float = opt(0.35, "progress at which the depth recurrence starts", lo=0.0, hi=1.0)
    warmup_steps: int = opt(20, "steps before the clock, undone afterwards", lo=0, hi=1000)
    checkpoint_every_s: float = opt(120.0, "seconds between checkpoints; 0 is only at stop", lo=0.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantConfig:
    """GPTQ with SDClip (#1394), or dependent quantisation: a trellis, steps by sensitivity."""

    matrix_bits: int = opt(6, "bits of the matrices' codes", lo=2, hi=8)
    matrix_sigmas: float = opt(12.85, "matrices: clip at so many row sigmas", lo=0.5, hi=100.0)
    embed_bits: int = opt(8, "bits of the embedding's codes", lo=2, hi=8)
    embed_sigmas: float = opt(20.0, "embedding: clip at so many row sigmas", lo=0.5, hi=100.0)
    method: str = opt(
        "gptq", "error feedback, plain rounding, or a trellis", choices=("gptq", "round", "trellis")
    )
    calibration_tokens: int = opt(6_291_456, "training tokens behind the Hessians", lo=1)
    min_numel: int = opt(65_536, "tensors up to this size are kept as fp16", lo=0)
    fit: bool = opt(
        False,
        "make artifact and code fit pack.limit_bytes: gptq raises matrix_sigmas where needed, the "
        "trellis takes the finest steps that fit",
    )
    rate_bits: float = opt(3.4, "trellis: bits per weight to aim for", lo=0.5, hi=7.0)
    rate_price: float = opt(0.0, "trellis: squared steps of error that a bit is worth", lo=0.0)
    gradient_tokens: int = opt(1_048_576, "trellis: calibration tokens behind sensitivities", lo=1)
    column_steps: bool = opt(False, "trellis: columns whose errors cost more have finer steps")
    tune_steps: int = opt(0, "steps in which float16 tensors learn around the codes", lo=0)


@dataclass(frozen=True, kw_only=True, slots=True)
class PackConfig:
    """The artifact: how its sections are coded and how large it may be."""

    codec: str = opt(
        "brotli",
        "entropy coder of the sections; cabac is Fairway's own, for codes and steps",
        choices=("cabac", "brotli", "lzma", "raw"),
    )
    with_tokenizer: bool = opt(False, "carry the tokenizer inside the artifact")
    limit_bytes: int = opt(16_000_000, "most bytes of artifact and code", lo=1)
    code_bytes: int | str = opt(
        AUTO,
        "code beside the artifact: auto counts this recipe's own bundle; a number is declared, for "
        "comparisons, and cannot be submitted",
        lo=0,
        choices=(AUTO,),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreConfig:
    """Side-by-side and sliding evaluation, as in #1493."""

    seq_len: int = opt(2048, "context of a scoring window", lo=2, hi=1_048_576)
    stride: int = opt(64, "positions scored by a sliding window", lo=1, hi=1_048_576)
    batch_windows: int = opt(32, "windows per forward pass", lo=1, hi=65_536)
    truncate: bool = opt(True, "drop targets beyond the last full window, as the challenge does")
    check_positions: int = opt(64, "positions whose full distribution is summed", lo=0)


@dataclass(frozen=True, kw_only=True, slots=True)
class TttConfig:
    """Score-first test-time training: all weights by chunks (#1413), or LoRA by documents (#1530).

    Both learn from a token only after its cost is on record, and must end within `budget_s`.
    """

    method: str = opt(
        "off",
        "what learns from scored text: all weights (sgd), or adapters per document (lora)",
        choices=("off", "sgd", "lora"),
    )
    budget_s: float = opt(600.0, "seconds for scoring and learning together", lo=1.0)
    over_budget: str = opt(
        "refuse",
        "an estimate above budget_s: refuse with the numbers, or do less",
        choices=("refuse", "shrink"),
    )
    chunk_tokens: int = opt(32_768, "sgd: positions scored before they are learned", lo=2)
    epochs: int = opt(2, "sgd: passes over a scored chunk", lo=1, hi=100)
    lr: float = opt(0.005, "sgd: rate of the first chunk, falling along a cosine", lo=0.0, hi=10.0)
    confidence: bool = opt(False, "sgd: weigh tokens by cost over mean, 1/3 to 3 (ConfTTT)")
    lora_targets: str = opt(
        "q k v o mlp head", "lora: what has adapters, out of q k v o mlp head; order is free"
    )
    lora_rank: int = opt(96, "lora: rank of every adapter", lo=1, hi=4096)
    lora_alpha: float = opt(144.0, "lora: adapters are scaled by alpha / rank", lo=0.0, hi=1e6)
    lora_lr: float = opt(1e-4, "lora: AdamW learning rate", lo=0.0, hi=1.0)
    lora_beta2: float = opt(
        0.999, "lora: AdamW second-moment decay; the first is 0", lo=0.0, hi=1.0
    )
    lora_wd: float = opt(1.0, "lora: AdamW decoupled weight decay", lo=0.0, hi=1000.0)
    lora_chunks: str = opt(
        "48",
        "lora: positions scored between two steps; '8@256 24@2000 48' takes 8 up to position 256 "
        "of a document, 24 up to 2000, then 48",
    )
    lora_documents: int = opt(64, "lora: documents scored side by side", lo=1, hi=65_536)
    lora_warm: bool = opt(True, "lora: keep the inner matrices A from one batch to the next")
    lora_lanes: int = opt(8, "lora: batches in flight, shared out over processes", lo=1, hi=1024)
    lora_sort: bool = opt(
        False, "lora: longest documents first, which reads lengths of text not yet scored"
    )
    lora_phases: int = opt(0, "lora: times that all weights learn from all scored so far", lo=0)


@dataclass(frozen=True, kw_only=True, slots=True)
class MixtureConfig:
    """Experts beside the model that learn with every token, as one distribution over tokens.

    The published mixture (#1858), which is none, is scored apart from that by `published`.
    """

    experts: str = opt("", "who helps the model, out of: ppm match tilt; '' is off")
    base: str = opt(
        "sliding", "who is helped: the frozen model, or one that learns by the settings of ttt",
        choices=("sliding", "sgd", "lora"),
    )  # fmt: skip
    variant: str = opt(
        "A", "whether a token ends: A as the model says, B as counted too", choices=("A", "B")
    )
    weights: str = opt(
        "share",
        "the model's weight: fixed, by the confidence of ppm, or learned (fixed share)",
        choices=("fixed", "gate", "share"),
    )
    weight: float = opt(0.9, "the model's weight, or what it begins with", lo=0.0, hi=1.0)
    order: int = opt(5, "ppm: bytes of the longest context", lo=0, hi=8)
    per_document: bool = opt(False, "ppm: histories begin anew with every document; counts stay")
    memory_mb: int = opt(4000, "ppm: most memory for counts, in MB; then nothing new", lo=8)
    published: bool = opt(False, "score the published mixture too, which is no distribution")


# Streams that may be coded side by side.
MAX_STREAMS = 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class ProveConfig:
    """The proof of a run: validation text coded, and restored by a fresh process."""

    bytes: int = opt(0, "validation text to prove, from its beginning; 0 is off", lo=0)
    method: str = opt(
        "sliding",
        "who predicts: the frozen model, or one that learns by the settings of ttt",
        choices=("sliding", "sgd", "lora"),
    )
    experts: bool = opt(False, "with the experts of mixture beside it")
    streams: int = opt(
        8, "parts side by side, with lora documents; sgd always has one", lo=1, hi=MAX_STREAMS
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class AuditConfig:
    """The audit that ends a run: probes of its own scorers, its ledgers, its budgets."""

    budget_s: float = opt(60.0, "seconds for the probes; 0 checks ledgers and budgets only", lo=0.0)
    tokens: int = opt(384, "tokens of validation text to probe on", lo=64, hi=1_000_000)


@dataclass(frozen=True, kw_only=True, slots=True)
class RuntimeConfig:
    """The machine: what `auto` finds is printed and recorded."""

    device: str = opt("auto", "where tensors live", choices=("auto", "cpu", "cuda"))
    dtype: str = opt("auto", "activations", choices=("auto", "bfloat16", "float32"))
    matmul: str = opt(
        "auto", "precision of float32 products", choices=("auto", "highest", "high", "medium")
    )
    threads: int = opt(0, "CPU threads; 0 is found by a probe", lo=0, hi=1024)
    kernels: str = opt(
        "auto",
        "the model's kernels: PyTorch's, or our own for GPUs",
        choices=("auto", "plain", "fused"),
    )
    attention: str = opt(
        "auto",
        "attention backend; `fairway doctor` lists those that run here",
        choices=("auto", "plain", "sdpa", "cudnn", "flash", "efficient", "flex", "fa3", "fa4"),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """One run: a recipe's name, its seed and a section for every stage."""

    recipe: str = opt("custom", "name of the recipe")
    seed: int = opt(42, "seed of the initial weights", lo=0, hi=2**32 - 1)
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    quant: QuantConfig = field(default_factory=QuantConfig)
    pack: PackConfig = field(default_factory=PackConfig)
    score: ScoreConfig = field(default_factory=ScoreConfig)
    ttt: TttConfig = field(default_factory=TttConfig)
    mixture: MixtureConfig = field(default_factory=MixtureConfig)
    prove: ProveConfig = field(default_factory=ProveConfig)
    audit: AuditConfig = field(default_factory=AuditConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)


# ---------------------------------------------------------------------------------------------
# Walking the tree


def settings(node: Any, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field[Any], Any]]:
    """Yield (dotted name, field, value) for every setting below a config node, in order."""
    for item in dataclasses.fields(node):
        value = getattr(node, item.name)
        if dataclasses.is_dataclass(value):
            yield from settings(value, f"{prefix}{item.name}.")
        else:
            yield f"{prefix}{item.name}", item, value


def to_dict(config: Any) -> dict[str, Any]:
    """Return a config node as nested plain dictionaries, ready for JSON."""
    return dataclasses.asdict(config)


def config_hash(config: Config) -> str:
    """Return the first 16 hex digits of a digest of every setting of a run.

    What a run's command line may still say, seed and text and what drives the clock, stands beside
    the digest of the rest.
    """
    data, train = config.data, config.train
    free = (config.seed, data.source, train.clock, train.replay)
    return _digest([fixed_digest(config), *free])[:16]


def fixed_digest(config: Config) -> str:
    """Return a digest of every setting but the seed, the text, and what drives the clock."""
    values = to_dict(config)
    del values["seed"], values["data"]["source"]
    del values["train"]["clock"], values["train"]["replay"]
    return _digest(values)


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def declares_code(pack: PackConfig) -> bool:
    """Return whether the bytes of code are a number of the recipe's, not those of its bundle."""
    return not isinstance(pack.code_bytes, str)


def from_dict(values: dict[str, Any], kind: type[Any] = Config, path: str = "") -> Any:
    """Rebuild a config node from `to_dict`; unknown or missing names and wrong types are errors."""
    if not isinstance(values, dict):
        raise UserError(f"config section '{path or 'root'}' must be an object, got {shown(values)}")
    fields = {item.name: item for item in dataclasses.fields(kind)}
    hints = typing.get_type_hints(kind)
    for name in values:
        if name not in fields:
            known = [path + field_name for field_name in fields]
            raise UserError(unknown_name("config field", f"{path}{name}", known))
    built: dict[str, Any] = {}
    for name in fields:
        if name not in values:
            raise UserError(f"config field '{path}{name}' is missing; was the file cut short?")
        hint, value = hints[name], values[name]
        if dataclasses.is_dataclass(hint):
            built[name] = from_dict(value, typing.cast(type[Any], hint), f"{path}{name}.")
        else:
            built[name] = _typed(hint, value, f"{path}{name}")
    return kind(**built)


def unknown_name(what: str, name: str, known: Iterable[str]) -> str:
    """Return the sentence that refuses an unknown name and offers the nearest known one."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    leaf = name.rpartition(".")[2]
    near = [key for key in names if key.rpartition(".")[2] == leaf] or near
    remedy = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(sorted(names))}"
    return f"unknown {what} '{name[:60]}'; {remedy}"


def _typed(hint: Any, value: Any, name: str) -> Any:
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if float in kinds and type(value) is int and abs(value) < 2**53:
        return float(value)
    if type(value) not in kinds:
        raise UserError(f"config field '{name}' has the wrong type: {shown(value)}")
    return value
