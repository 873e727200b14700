"""Every setting of a run, as one tree of frozen dataclasses.

Settings of evaluation are in `evaluation`, those of artifacts in `packing`; `options` declares a
setting.

The defaults are those of pull request #1858's seed runs (and #1493's, its base); a
recipe (`fairway.recipes`) is a function that returns this tree with its own values. `--help`, the
README table and the recipe hash are generated from here; `fairway.config.checks` says what fits
together and `fairway.config.overrides` reads `--set a.b=v`.
"""

import dataclasses
import difflib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

# All settings can be imported from here, wherever they are defined.
from fairway.config.evaluation import MAX_STREAMS as MAX_STREAMS
from fairway.config.evaluation import AuditConfig as AuditConfig
from fairway.config.evaluation import MixtureConfig as MixtureConfig
from fairway.config.evaluation import ProveConfig as ProveConfig
from fairway.config.evaluation import ScoreConfig as ScoreConfig
from fairway.config.evaluation import TttConfig as TttConfig
from fairway.config.options import AUTO as AUTO
from fairway.config.options import BOS_ID as BOS_ID
from fairway.config.options import LIMIT_BYTES as LIMIT_BYTES
from fairway.config.options import MOST_SEED as MOST_SEED
from fairway.config.options import OWN_SEED as OWN_SEED
from fairway.config.options import opt as opt
from fairway.config.packing import PackConfig as PackConfig
from fairway.config.packing import QuantConfig as QuantConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Where the text comes from and which part of it is scored."""

    source: str = opt(
        "embedded",
        "Folder with training and validation tokens, made by `fairway data build` or `fetch`; "
        "'embedded' builds one from the documentation on this machine; '' means: not chosen yet.",
    )
    val_share: float = opt(
        0.05, "Share of the embedded documents kept for validation.", lo=0.001, hi=0.5
    )
    case_ops: bool = opt(
        False,
        "Give the embedded text a unigram tokenizer with marks for capital letters (CaseOps), not"
        " BPE; the score counts the bytes of the original text. A data folder has its own"
        " tokenizer.",
    )
    val_bytes: int = opt(
        0, "Bytes of validation text to score, in documents drawn at random; 0 scores all.", lo=0
    )
    val_tokens: int = opt(
        0, "Validation tokens to score, from the first one on; 0 scores all.", lo=0
    )
    order_seed: int | str = opt(
        0,
        "Seed of the order in which training text is read; 0 is the fixed order of #1394; 'seed'"
        " uses the value of `seed`.",
        lo=0,
        hi=MOST_SEED,
        choices=(OWN_SEED,),
    )
    shuffle_documents: bool = opt(
        False, "Shuffle the documents of every training shard at each pass."
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """The transformer of pull requests #1493 and #1858."""

    vocab_size: int = opt(8192, "Number of tokens in the vocabulary.", lo=260, hi=65_535)
    num_layers: int = opt(11, "Number of transformer blocks.", lo=1, hi=256)
    dim: int = opt(512, "Width of the residual stream.", lo=8, hi=16_384)
    num_heads: int = opt(8, "Number of query heads.", lo=1, hi=256)
    num_kv_heads: int = opt(4, "Number of key and value heads.", lo=1, hi=256)
    mlp_dim: int = opt(2048, "Hidden width of the MLP.", lo=8, hi=65_536)
    rope_dims: int = opt(
        16, "Dimensions of each head that RoPE (rotary positions) rotates.", lo=0, hi=1024
    )
    rope_train_len: int = opt(
        2048, "Longest sequence with the RoPE base 10,000; longer ones use a larger base.", lo=1
    )
    qk_gain: float = opt(
        5.25, "Initial scale of the queries; each head learns its own.", lo=0.01, hi=100.0
    )
    parallel_from: int = opt(7, "First block whose MLP runs in parallel with attention.", lo=0)
    lanes: int = opt(
        1,
        "Residual streams in parallel blocks; with 2, attention and MLP use one each.",
        lo=1,
        hi=2,
    )
    loop_first: int = opt(3, "First block of the loop (depth recurrence).", lo=0)
    loop_last: int = opt(5, "Last block of the loop.", lo=0)
    loop_extra: int = opt(
        2, "Number of extra runs of the looped blocks; 0 turns the loop off.", lo=0, hi=16
    )
    embed_bf16: bool = opt(True, "Store the embedding and its Adam moments in bfloat16.")
    smear: bool = opt(
        False, "Add part of the previous token's embedding to each token's embedding (SmearGate)."
    )
    window: str = opt(
        "",
        "Attention window of each layer, in tokens, such as '512 512 0'. 0 means no limit. The last"
        " number applies to all further layers. Empty means no limit.",
    )
    gate_features: int = opt(
        0,
        "Multiply the output of each attention head by a learned gate that reads this many features"
        " of its input; 0 turns the gates off.",
        lo=0,
        hi=16_384,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig:
    """MuonEq-R for the matrices, AdamW for the rest, as in #1493."""

    matrix_lr: float = opt(0.022, "Muon learning rate of the weight matrices.", lo=0.0, hi=10.0)
    matrix_wd: float = opt(0.095, "Muon weight decay (decoupled).", lo=0.0, hi=10.0)
    cautious: bool = opt(
        False, "Apply Muon's weight decay only to weights that the update also makes smaller."
    )
    row_beta: float = opt(
        0.0,
        "Decay of the second moment per neuron in NorMuon; 0 turns NorMuon off.",
        lo=0.0,
        hi=0.9999,
    )
    momentum: float = opt(0.99, "Momentum of Muon after its warm-up.", lo=0.0, hi=0.9999)
    momentum_start: float = opt(0.92, "Momentum of Muon at the first step.", lo=0.0, hi=0.9999)
    momentum_warmup_steps: int = opt(
        1500, "Steps of the rise from momentum_start to momentum.", lo=0
    )
    momentum_buffers: int = opt(
        1,
        "Number of running means of the gradient that Muon averages. Each one reaches back twice as"
        " far as the one before; together they have the mean age that `momentum` has.",
        lo=1,
        hi=16,
    )
    newton_schulz: str = opt(
        "fixed",
        "Coefficients of the Newton-Schulz iteration in Muon.",
        choices=("fixed", "polar_express"),
    )
    newton: float = opt(
        0.0,
        "Damping of Newton-Muon, which multiplies gradients by the inverse second moment of a"
        " matrix's inputs: a share of the moment's mean that is added to its diagonal. 0 is off.",
        lo=0.0,
        hi=1000.0,
    )
    embed_lr: float = opt(0.03, "AdamW learning rate of the embedding.", lo=0.0, hi=10.0)
    scalar_lr: float = opt(0.02, "AdamW learning rate of gains, scales and gates.", lo=0.0, hi=10.0)
    beta2: float = opt(0.95, "Decay of AdamW's second moment.", lo=0.0, hi=0.99999)
    grad_clip: float = opt(
        0.3, "Gradients with a larger norm are scaled down to this; 0 turns it off.", lo=0.0
    )
    warmdown_share: float = opt(
        0.72, "Share of the run, at its end, in which learning rates fall.", lo=0.0, hi=1.0
    )
    min_lr: float = opt(0.0, "Final learning rates as a share of the full ones.", lo=0.0, hi=1.0)
    ema_decay: float | None = opt(
        0.9965, "Decay per step of the moving average of the weights (EMA).", lo=0.0, hi=0.999999
    )
    ema_share: float | None = opt(
        None, "Length of the EMA as a share of the run; it needs ema_decay=none.", lo=1e-6, hi=1.0
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """The training loop: its clock, its batches, its checkpoints."""

    clock: str = opt(
        "wall",
        "Measure of progress: seconds (wall), steps, or the record of another run (replay).",
        choices=("wall", "steps", "replay"),
    )
    budget_s: float = opt(600.0, "Seconds for training and calibration (clock=wall).", lo=0.1)
    reserve_s: float = opt(12.0, "Seconds of train.budget_s reserved for calibration.", lo=0.0)
    steps: int = opt(4550, "Number of training steps (clock=steps).", lo=1)
    replay: str = opt("", "Run folder whose recorded progress this run follows (clock=replay).")
    init: str = opt("", "Run folder or artifact with the initial weights; '' draws them at random.")
    shards: int = opt(
        0, "Number of training shards to read, in the order of their names; 0 reads all.", lo=0
    )
    seq_len: int = opt(2048, "Tokens per training sequence.", lo=2, hi=1_048_576)
    batch_tokens: int = opt(786_432, "Tokens per optimiser step, summed over all processes.", lo=2)
    micro_tokens: int = opt(98_304, "Largest number of tokens in one forward pass.", lo=2)
    operand_bits: int = opt(
        7,
        "Bits of mantissa in operands of products that GPU kernels write during training; 7 is all"
        " of bfloat16. Fewer need less power, so a GPU at its power limit runs faster.",
        lo=2,
        hi=7,
    )
    loop_from: float = opt(0.35, "Share of the run after which blocks are looped.", lo=0.0, hi=1.0)
    documents: bool = opt(False, "Let a training token attend only to tokens of its own document.")
    windows: str = opt(
        "",
        "Attention window during parts of a run: '256@0.3 512@0.6' is 256 tokens until 30 % of it"
        " and 512 until 60 %. Afterwards, and if empty, model.window applies.",
    )
    warmup_steps: int = opt(
        20,
        "Training steps that run before the clock starts; their result is discarded.",
        lo=0,
        hi=1000,
    )
    checkpoint_every_s: float = opt(
        120.0, "Seconds between checkpoints; 0 writes one only when the run is stopped.", lo=0.0
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class RuntimeConfig:
    """The machine. A run prints and records what `auto` chose."""

    device: str = opt(
        "auto",
        "Device that computes; mps is an Apple GPU, and auto never chooses it.",
        choices=("auto", "cpu", "cuda", "mps"),
    )
    dtype: str = opt(
        "auto", "Number format of the activations.", choices=("auto", "bfloat16", "float32")
    )
    matmul: str = opt(
        "auto",
        "Precision of float32 matrix products, as PyTorch names it.",
        choices=("auto", "highest", "high", "medium"),
    )
    threads: int = opt(0, "CPU threads; 0 measures the fastest number.", lo=0, hi=1024)
    kernels: str = opt(
        "auto",
        "Kernels of the model: those of PyTorch (plain), or those of Fairway for GPUs (fused).",
        choices=("auto", "plain", "fused"),
    )
    attention: str = opt(
        "auto",
        "Attention backend; `fairway doctor` lists those that run on this machine.",
        choices=("auto", "plain", "sdpa", "cudnn", "flash", "efficient", "flex", "fa3", "fa4"),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """One run: a recipe's name, its seed and a section for every stage."""

    recipe: str = opt("custom", "Name of the recipe.")
    seed: int = opt(42, "Seed of the initial weights.", lo=0, hi=MOST_SEED)
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


def headline(config: Config) -> str:
    """Return the stage whose score a run claims."""
    chosen = config.score.headline
    if chosen != AUTO:
        return chosen
    return "sliding" if config.ttt.method == "off" else "ttt"


def order_seed(config: Config) -> int:
    """Return the seed of the order in which a run reads its training text; 0 is that of #1394."""
    chosen = config.data.order_seed
    return config.seed if isinstance(chosen, str) else chosen


def declares_code(pack: PackConfig) -> bool:
    """Return whether the recipe declares the bytes of code, instead of measuring its bundle."""
    return not isinstance(pack.code_bytes, str)


def unknown_name(what: str, name: str, known: Iterable[str]) -> str:
    """Return the error sentence for an unknown name, with the nearest known one."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    leaf = name.rpartition(".")[2]
    near = [key for key in names if key.rpartition(".")[2] == leaf] or near
    remedy = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(sorted(names))}"
    return f"unknown {what} '{name[:60]}'; {remedy}"
