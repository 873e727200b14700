"""Every setting of a run, as one tree of frozen dataclasses.

Those of evaluation stand in `evaluation`; what declares one, in `options`.

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

# Whoever asks for a setting finds it here, wherever it stands.
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


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Where the text comes from and which part of it is scored."""

    source: str = opt(
        "embedded",
        "Folder with training and validation tokens, made by `fairway data build` or `fetch`; "
        "'embedded' builds one from the documentation on this machine; '' names none yet.",
    )
    val_share: float = opt(
        0.05, "Share of the embedded documents kept for validation.", lo=0.001, hi=0.5
    )
    case_ops: bool = opt(
        False,
        "Write capital letters of the embedded text as marks before small ones (CaseOps); bytes and"
        " texts stay the original's.",
    )
    val_bytes: int = opt(
        0, "Bytes of validation text to score, sampled by document; 0 scores all.", lo=0
    )
    val_tokens: int = opt(0, "Validation tokens to score, from the beginning; 0 scores all.", lo=0)
    order_seed: int | str = opt(
        0,
        "Seed of the order in which training text is read; 0 is the order of #1394, the same for"
        " everybody; 'seed' takes that of the initial weights.",
        lo=0,
        hi=MOST_SEED,
        choices=(OWN_SEED,),
    )
    shuffle_documents: bool = opt(
        False, "Put the documents of every training shard in a new order at each pass."
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """The transformer of pull requests #1493 and #1858."""

    vocab_size: int = opt(8192, "Number of tokens in the vocabulary.", lo=260, hi=65_535)
    num_layers: int = opt(11, "Number of transformer blocks.", lo=1, hi=256)
    dim: int = opt(512, "Width of the residual stream.", lo=8, hi=16_384)
    embed_dim: int = opt(
        0, "Width of a factorised embedding; 0 is not factorised.", lo=0, hi=16_384
    )
    num_heads: int = opt(8, "Number of query heads.", lo=1, hi=256)
    num_kv_heads: int = opt(4, "Number of key and value heads.", lo=1, hi=256)
    mlp_dim: int = opt(2048, "Hidden width of the MLP.", lo=8, hi=65_536)
    rope_dims: int = opt(16, "Dimensions of each head that RoPE rotates.", lo=0, hi=1024)
    rope_base: float = opt(10_000.0, "Base of the RoPE frequencies.", lo=1.0)
    rope_train_len: int = opt(2048, "Length beyond which the RoPE base is rescaled (NTK).", lo=1)
    qk_gain: float = opt(5.25, "Initial gain of the queries, one per head.", lo=0.01, hi=100.0)
    xsa_layers: int = opt(
        11,
        "Number of last layers with exclusive self-attention: no output along a token's own value.",
        lo=0,
    )
    softcap: float = opt(30.0, "Logits become softcap * tanh(logits / softcap); 0 is off.", lo=0.0)
    softcap_skew: bool = opt(
        False, "Learn one cap for logits above 0 and one for those below (AsymLogit)."
    )
    parallel_from: int = opt(7, "First block whose MLP runs in parallel with attention.", lo=0)
    lanes: int = opt(
        1,
        "Residual streams of parallel blocks: with 2, attention and MLP read and write one each.",
        lo=1,
        hi=2,
    )
    skips: bool = opt(True, "Add U-Net skip connections from first to last layers.")
    skip_gates: bool = opt(True, "Blend skip connections in through learned gates.")
    loop_first: int = opt(3, "First block of the loop (depth recurrence).", lo=0)
    loop_last: int = opt(5, "Last block of the loop.", lo=0)
    loop_extra: int = opt(2, "Extra runs of the looped blocks per pass; 0 is no loop.", lo=0, hi=16)
    tie_embeddings: bool = opt(True, "Use the embedding matrix as the output head too.")
    embed_bf16: bool = opt(True, "Store the embedding and its Adam moments in bfloat16.")
    smear: bool = opt(False, "Mix the previous token's embedding into each token's (SmearGate).")
    window: str = opt(
        "",
        "Tokens that attention sees, by layer, as in '512 512 0': 0 is all of them, the last number"
        " holds for all further layers; empty is all.",
    )
    x0_values: bool = opt(
        False, "Add a projection of the embeddings to every layer's values, by a learned gate."
    )
    attn_gate: str = opt(
        "off",
        "Gate every head's output: by 12 features of its input, starting at 1 (head) or 1/2"
        " (sparse), or by all of them (dense).",
        choices=("off", "head", "dense", "sparse"),
    )
    reads: int = opt(
        0,
        "Number of last layers that add earlier outputs to theirs, in shares of every token's own.",
        lo=0,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig:
    """MuonEq-R for the matrices, AdamW for the rest, as in #1493."""

    matrix_lr: float = opt(0.022, "Muon learning rate of the weight matrices.", lo=0.0, hi=10.0)
    matrix_wd: float = opt(0.095, "Muon weight decay (decoupled).", lo=0.0, hi=10.0)
    cautious: bool = opt(
        False, "Let Muon's decay act only where the update makes a weight smaller, too."
    )
    row_beta: float = opt(
        0.0,
        "Decay of a second moment per neuron that evens Muon's updates out (NorMuon); 0 is off.",
        lo=0.0,
        hi=0.9999,
    )
    row_floor: float = opt(
        0.0,
        "Least norm of a row of Muon's update, as a share of the weights' in that row; 0 is off.",
        lo=0.0,
        hi=100.0,
    )
    radius: float = opt(
        0.0,
        "Largest norm of a matrix, over that of an orthogonal one of its shape; longer ones are"
        " scaled back after every step; 0 is off.",
        lo=0.0,
        hi=1000.0,
    )
    momentum: float = opt(0.99, "Momentum of Muon after its warm-up.", lo=0.0, hi=0.9999)
    momentum_start: float = opt(0.92, "Momentum of Muon at the first step.", lo=0.0, hi=0.9999)
    momentum_warmup_steps: int = opt(1500, "Steps from momentum_start to momentum.", lo=0)
    momentum_end: float | None = opt(
        None, "Momentum of Muon at the end of the run; none leaves it as it is.", lo=0.0, hi=0.9999
    )
    momentum_fall: float = opt(
        0.35, "Share of the run from which it moves to momentum_end.", lo=0.0, hi=0.999
    )
    momentum_buffers: int = opt(
        1,
        "Running means of gradients, whose mean is Muon's momentum: ages double from one to the"
        " next, their mean age is that of the momentum set.",
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
        "Newton-Muon: multiply gradients by the inverse second moment of a matrix's inputs, to"
        " which this share of its mean is added; 0 is off.",
        lo=0.0,
        hi=1000.0,
    )
    grad_power: float = opt(
        1.0, "Power of every gradient's size before Muon's momentum.", lo=0.01, hi=2.0
    )
    row_normalise: bool = opt(True, "Divide rows by their norms before Newton-Schulz (MuonEq-R).")
    embed_lr: float = opt(0.03, "AdamW learning rate of the embedding.", lo=0.0, hi=10.0)
    embed_wd: float = opt(0.085, "AdamW weight decay of the embedding.", lo=0.0, hi=10.0)
    head_lr: float = opt(0.008, "AdamW learning rate of an untied output head.", lo=0.0, hi=10.0)
    scalar_lr: float = opt(0.02, "AdamW learning rate of gains, scales and gates.", lo=0.0, hi=10.0)
    scalar_wd: float = opt(0.02, "AdamW weight decay of gains, scales and gates.", lo=0.0, hi=10.0)
    beta1: float = opt(0.9, "Decay of AdamW's first moment.", lo=0.0, hi=0.9999)
    beta2: float = opt(0.95, "Decay of AdamW's second moment.", lo=0.0, hi=0.99999)
    embed_beta2: float | None = opt(
        None, "The same of the embedding and of an untied head; none is beta2.", lo=0.0, hi=0.99999
    )
    grad_clip: float = opt(
        0.3, "Largest norm of the gradient; longer ones are scaled; 0 is off.", lo=0.0
    )
    warmdown_share: float = opt(
        0.72, "Last share of the run, in which learning rates fall.", lo=0.0, hi=1.0
    )
    cool_power: float = opt(
        1.0, "Power of the time that is left by which learning rates fall.", lo=0.01, hi=10.0
    )
    min_lr: float = opt(0.0, "Final learning rates as a share of the full ones.", lo=0.0, hi=1.0)
    ema_decay: float | None = opt(
        0.9965, "Decay per step of the average of weights (EMA).", lo=0.0, hi=0.999999
    )
    ema_share: float | None = opt(
        None, "EMA horizon as a share of the run (set ema_decay=none).", lo=1e-6, hi=1.0
    )
    ema_blend: float = opt(
        1.0, "Share of the EMA in the weights that are kept; the rest are the last.", lo=0.0, hi=1.0
    )
    ema_embed: bool = opt(True, "Average the embedding, too; if not, its last weights are kept.")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """The loop: what drives it, how much it reads at a time, what it writes on the way."""

    clock: str = opt(
        "wall",
        "What measures progress: seconds (wall), steps, or another run's record (replay).",
        choices=("wall", "steps", "replay"),
    )
    budget_s: float = opt(600.0, "Seconds for training and calibration (clock=wall).", lo=0.1)
    reserve_s: float = opt(12.0, "Seconds of train.budget_s that are kept for calibration.", lo=0.0)
    steps: int = opt(4550, "Number of training steps (clock=steps).", lo=1)
    replay: str = opt("", "Run folder whose recorded progress this run follows (clock=replay).")
    init: str = opt(
        "", "Run folder or artifact whose weights the training begins with; '' begins anew."
    )
    shards: int = opt(
        0, "Training shards to read, the first in the order of their names; 0 reads all.", lo=0
    )
    seq_len: int = opt(2048, "Tokens per training sequence.", lo=2, hi=1_048_576)
    batch_tokens: int = opt(786_432, "Tokens per optimiser step, summed over all processes.", lo=2)
    micro_tokens: int = opt(98_304, "Most tokens in one forward pass of a process.", lo=2)
    loop_from: float = opt(0.35, "Share of the run after which the loop is on.", lo=0.0, hi=1.0)
    documents: bool = opt(
        False, "Let tokens of a training sequence attend to their own document alone."
    )
    windows: str = opt(
        "",
        "Tokens that attention sees at most, up to shares of the run: '256@0.3 512@0.6'; empty"
        " leaves it to model.window.",
    )
    batches: str = opt(
        "",
        "Tokens per optimiser step up to shares of the run, as in '49152@0.3 98304@0.6', then"
        " batch_tokens; learning rates go with the root; empty is batch_tokens all along.",
    )
    lengths: str = opt(
        "",
        "Tokens to which training sequences are cut up to shares of the run, as in '1024@0.45';"
        " empty leaves them whole.",
    )
    prefix_weight: float = opt(
        0.0,
        "Weight of a second target, the longest token that the next one begins with, in the first"
        " third of a run; over the second third it falls to 0.",
        lo=0.0, hi=10.0,
    )  # fmt: skip
    rate_bits: float = opt(
        3.0, "Bits per weight that train.rate_errors and rate_weight expect.", lo=1.0, hi=8.0
    )
    rate_share: float = opt(0.25, "Last share of the run in which they work.", lo=0.0, hi=1.0)
    rate_errors: str = opt(
        "off",
        "Errors that matrices have while they learn: none (off), noise as large as codes leave"
        " (noise), or those of the nearest codes (round).",
        choices=("off", "noise", "round"),
    )
    rate_weight: float = opt(
        0.0,
        "Strength, times the learning rate, at which weights move to where codes take fewer bits.",
        lo=0.0, hi=10.0,
    )  # fmt: skip
    warmup_steps: int = opt(
        20, "Steps before the clock starts; their result is discarded.", lo=0, hi=1000
    )
    checkpoint_every_s: float = opt(
        120.0, "Seconds between checkpoints; 0 writes one when stopping.", lo=0.0
    )


# Positions of a step of quant.tune_steps: what a GPU holds easily, forth and back, beside both
# models' distributions.
TUNE_TOKENS = 16_384


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantConfig:
    """GPTQ with SDClip (#1394), or dependent quantisation: a trellis, steps by sensitivity."""

    matrix_bits: int = opt(6, "Bits per weight of matrices (gptq, round).", lo=2, hi=8)
    matrix_sigmas: float = opt(
        12.85, "Clipping range of matrices, in standard deviations of a row.", lo=0.5, hi=100.0
    )
    embed_bits: int = opt(8, "Bits per weight of the embedding (gptq, round).", lo=2, hi=8)
    embed_sigmas: float = opt(
        20.0, "Clipping range of the embedding, in standard deviations of a row.", lo=0.5, hi=100.0
    )
    method: str = opt(
        "gptq",
        "Error feedback (gptq), plain rounding (round), or dependent quantisation (trellis).",
        choices=("gptq", "round", "trellis"),
    )
    calibration_tokens: int = opt(6_291_456, "Training tokens that estimate the Hessians.", lo=1)
    min_numel: int = opt(65_536, "Largest matrix that stays in float16, in weights.", lo=0)
    fit: bool = opt(
        False,
        "Make artifact and code fit pack.limit_bytes: gptq and round raise matrix_sigmas as far"
        " as needed, trellis takes the finest steps that fit.",
    )
    rate_bits: float = opt(3.4, "Bits per weight to aim for (trellis without fit).", lo=0.5, hi=7.0)
    rate_price: float = opt(0.0, "Squared error that saving one bit may cost (trellis).", lo=0.0)
    gradient_tokens: int = opt(
        1_048_576, "Training tokens that estimate sensitivities (trellis).", lo=1
    )
    column_steps: bool = opt(False, "Give finer steps to columns whose errors cost more (trellis).")
    tune_steps: int = opt(0, "Steps that train float16 tensors around the quantised ones.", lo=0)


@dataclass(frozen=True, kw_only=True, slots=True)
class PackConfig:
    """The artifact: how its sections are coded and how large it may be."""

    codec: str = opt(
        "brotli",
        "Entropy coder of the artifact; cabac is Fairway's own.",
        choices=("cabac", "brotli", "lzma", "raw"),
    )
    with_tokenizer: bool = opt(False, "Store the tokenizer inside the artifact.")
    limit_bytes: int = opt(
        LIMIT_BYTES, "Most bytes that artifact and code may have together.", lo=1
    )
    code_bytes: int | str = opt(
        AUTO,
        "Bytes of code that count: auto measures this recipe's bundle; a number is declared, "
        "for comparisons, and cannot be submitted.",
        lo=0,
        choices=(AUTO,),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class RuntimeConfig:
    """The machine: what `auto` finds is printed and recorded."""

    device: str = opt(
        "auto",
        "Device that computes; mps is an Apple GPU, which auto never takes.",
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
    threads: int = opt(0, "CPU threads; 0 measures which number is fastest.", lo=0, hi=1024)
    kernels: str = opt(
        "auto",
        "Kernels of the model: PyTorch's (plain), or Fairway's for GPUs (fused).",
        choices=("auto", "plain", "fused"),
    )
    attention: str = opt(
        "auto",
        "Attention backend; `fairway doctor` lists those that run here.",
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
    """Return whether the bytes of code are a number of the recipe's, not those of its bundle."""
    return not isinstance(pack.code_bytes, str)


def unknown_name(what: str, name: str, known: Iterable[str]) -> str:
    """Return the sentence that refuses an unknown name and offers the nearest known one."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    leaf = name.rpartition(".")[2]
    near = [key for key in names if key.rpartition(".")[2] == leaf] or near
    remedy = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(sorted(names))}"
    return f"unknown {what} '{name[:60]}'; {remedy}"
