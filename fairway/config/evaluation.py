"""The settings of what comes after packing: scores, test-time training, mixture, proof, audit."""

from dataclasses import dataclass

from fairway.config.options import AUTO, opt


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreConfig:
    """Side-by-side and sliding evaluation, as in #1493."""

    seq_len: int = opt(2048, "Tokens in a scoring window.", lo=2, hi=1_048_576)
    stride: int = opt(
        64, "Tokens by which the sliding window moves; it scores the new ones.", lo=1, hi=1_048_576
    )
    batch_windows: int = opt(32, "Windows per forward pass.", lo=1, hi=65_536)
    truncate: bool = opt(
        True, "Leave out tokens after the last full window, as the challenge does."
    )
    check_positions: int = opt(64, "Positions at which all probabilities must sum to 1.", lo=0)
    headline: str = opt(
        AUTO,
        "Score that a run claims: sliding, ttt or mixture; auto is ttt if it is on, else sliding.",
        choices=(AUTO, "sliding", "ttt", "mixture"),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class TttConfig:
    """Score-first test-time training: all weights by chunks (#1413), or LoRA by documents (#1530).

    Both learn from a token only after its cost is on record, and must end within `budget_s`.
    """

    method: str = opt(
        "off",
        "What trains on scored text: all weights (sgd), or adapters per document (lora).",
        choices=("off", "sgd", "lora"),
    )
    budget_s: float = opt(600.0, "Seconds for scoring and test-time training together.", lo=1.0)
    over_budget: str = opt(
        "refuse",
        "If the estimate exceeds ttt.budget_s: refuse, or do less (shrink).",
        choices=("refuse", "shrink"),
    )
    chunk_tokens: int = opt(
        32_768, "Tokens that are scored before the model trains on them (sgd).", lo=2
    )
    epochs: int = opt(2, "Passes over each scored chunk (sgd).", lo=1, hi=100)
    lr: float = opt(
        0.005, "Learning rate at the start; it falls along a cosine (sgd).", lo=0.0, hi=10.0
    )
    confidence: bool = opt(False, "Weight tokens by their cost over the mean cost (sgd, ConfTTT).")
    lora_targets: str = opt(
        "q k v o mlp head", "Matrices that get adapters: some of q k v o mlp head."
    )
    lora_rank: int = opt(96, "Rank of the adapters (lora).", lo=1, hi=4096)
    lora_alpha: float = opt(
        144.0, "Adapters are multiplied by alpha / rank (lora).", lo=0.0, hi=1e6
    )
    lora_lr: float = opt(1e-4, "Learning rate of AdamW (lora).", lo=0.0, hi=1.0)
    lora_beta2: float = opt(0.999, "Decay of AdamW's second moment (lora).", lo=0.0, hi=1.0)
    lora_wd: float = opt(1.0, "Decoupled weight decay of AdamW (lora).", lo=0.0, hi=1000.0)
    lora_confidence: float = opt(
        0.0,
        "Power of its cost by which a token weighs in what is learned: above 0 hard tokens weigh "
        "more, below 0 easy ones (lora).",
        lo=-4.0,
        hi=4.0,
    )
    lora_peers: str = opt(
        "",
        "Further adapters, averaged with the first: 'same' (another start), or settings that "
        "differ, such as 'lora_lr=2e-4+lora_rank=48', for each (lora).",
    )
    lora_chunks: str = opt(
        "48",
        "Tokens between two training steps: '48', or '8@256 24@2000 48' for 8 up to token 256 "
        "of a document, 24 up to 2000, then 48 (lora).",
    )
    lora_context: int = opt(
        0,
        "Tokens of a document that are seen at once (lora); 0 takes score.seq_len.",
        lo=0,
        hi=1_048_576,
    )
    lora_rope: str = opt(
        "ntk",
        "Beyond model.rope_train_len: rotary frequencies of a larger base (ntk), or as trained "
        "(plain) (lora).",
        choices=("ntk", "plain"),
    )
    lora_documents: int = opt(64, "Documents scored side by side (lora).", lo=1, hi=65_536)
    lora_warm: bool = opt(True, "Keep the adapters' A matrices from one batch to the next (lora).")
    lora_lanes: int = opt(
        8, "Independent series of batches, divided among processes (lora).", lo=1, hi=1024
    )
    lora_sort: bool = opt(
        False, "Score the longest documents first; this reads lengths ahead (lora)."
    )
    lora_phases: int = opt(0, "How many times all weights train on the scored text (lora).", lo=0)


@dataclass(frozen=True, kw_only=True, slots=True)
class MixtureConfig:
    """Experts beside the model that learn with every token, as one distribution over tokens.

    The published mixture (#1858), which is none, is scored apart from that by `published`.
    """

    experts: str = opt("", "Experts to mix with the model: any of ppm match tilt; '' is none.")
    base: str = opt(
        "sliding",
        "Model to mix with: the frozen one (sliding), or one trained as ttt says (sgd, lora).",
        choices=("sliding", "sgd", "lora"),
    )
    variant: str = opt(
        "A",
        "Who predicts that a token ends: the model (A), or also counts (B).",
        choices=("A", "B"),
    )
    weights: str = opt(
        "share",
        "The model's weight is constant (fixed), follows ppm's confidence (gate), or is learned.",
        choices=("fixed", "gate", "share"),
    )
    weight: float = opt(0.9, "Weight of the model; its initial value if learned.", lo=0.0, hi=1.0)
    order: int = opt(5, "Longest context of ppm, in bytes.", lo=0, hi=8)
    per_document: bool = opt(False, "Start every document with an empty context (ppm).")
    memory_mb: int = opt(4000, "Most memory for the counts, in megabytes (ppm).", lo=8)
    published: bool = opt(False, "Also report the mixture of #1858, which is no distribution.")


# Streams that may be coded side by side.
MAX_STREAMS = 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class ProveConfig:
    """The proof of a run: validation text coded, and restored by a fresh process."""

    bytes: int = opt(0, "Bytes of validation text to code and decode; 0 makes no proof.", lo=0)
    method: str = opt(
        "sliding",
        "Predictor: the frozen model (sliding), or one trained as ttt says (sgd, lora).",
        choices=("sliding", "sgd", "lora"),
    )
    experts: bool = opt(False, "Use the experts of the mixture in the proof.")


@dataclass(frozen=True, kw_only=True, slots=True)
class AuditConfig:
    """The audit that ends a run: probes of its own scorers, its ledgers, its budgets."""

    budget_s: float = opt(
        60.0, "Seconds for the probes; 0 checks ledgers and budgets only.", lo=0.0
    )
    tokens: int = opt(384, "Tokens of validation text that the probes use.", lo=64, hi=1_000_000)
