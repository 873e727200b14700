"""The settings of everything after packing: scores, test-time training, mixture, proof, audit."""

from dataclasses import dataclass

from fairway.config.options import AUTO, opt


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreConfig:
    """Side-by-side and sliding evaluation, as in #1493."""

    seq_len: int = opt(2048, "Tokens in a scoring window.", lo=2, hi=1_048_576)
    stride: int = opt(
        64,
        "Tokens by which the sliding window moves; each window scores its new tokens only.",
        lo=1,
        hi=1_048_576,
    )
    batch_windows: int = opt(32, "Scoring windows per forward pass.", lo=1, hi=65_536)
    truncate: bool = opt(
        True, "Do not score the tokens after the last full window; the challenge does the same."
    )
    check_positions: int = opt(
        64, "Random positions where Fairway checks that all probabilities sum to 1.", lo=0
    )
    headline: str = opt(
        AUTO,
        "Score that a run claims; auto means ttt if test-time training is on, else sliding.",
        choices=(AUTO, "sliding", "ttt", "mixture"),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class TttConfig:
    """Score-first test-time training: all weights by chunks (#1413), or LoRA by documents (#1530).

    Both learn from a token only after its cost is on record, and must end within `budget_s`.
    """

    method: str = opt(
        "off",
        "Test-time training of all weights (sgd), or of LoRA adapters for each document (lora).",
        choices=("off", "sgd", "lora"),
    )
    budget_s: float = opt(600.0, "Seconds for scoring and test-time training together.", lo=1.0)
    over_budget: str = opt(
        "refuse",
        "What to do if the estimated time exceeds ttt.budget_s: stop with an error (refuse), or"
        " reduce the work (shrink).",
        choices=("refuse", "shrink"),
    )
    chunk_tokens: int = opt(
        32_768,
        "Tokens of a chunk, on which all weights train together (sgd, and lora with phases).",
        lo=2,
    )
    epochs: int = opt(2, "Passes over each scored chunk (sgd).", lo=1, hi=100)
    lr: float = opt(
        0.005,
        "Initial learning rate of SGD on all weights; it follows a cosine down to 0 (sgd, and lora"
        " with phases).",
        lo=0.0,
        hi=10.0,
    )
    lora_targets: str = opt(
        "q k v o mlp head", "Matrices that get adapters, chosen from q k v o mlp head (lora)."
    )
    lora_rank: int = opt(96, "Rank of the adapters (lora).", lo=1, hi=4096)
    lora_alpha: float = opt(
        144.0, "Adapters are multiplied by alpha / rank (lora).", lo=0.0, hi=1e6
    )
    lora_factors: str = opt(
        "",
        "Factors of the adapters of some matrices, such as 'mlp 0.25 head 2'; the others have 1"
        " (lora).",
    )
    lora_logit_factor: float = opt(
        1.0,
        "Factor of the logits while adapters learn and predict; below 1 they are less sure (lora).",
        lo=0.1,
        hi=10.0,
    )
    lora_frozen_share: float = opt(
        0.0,
        "Weight of the model without adapters in the average of probabilities; 0 is off (lora).",
        lo=0.0,
        hi=0.99,
    )
    lora_lr: float = opt(1e-4, "Learning rate of AdamW (lora).", lo=0.0, hi=1.0)
    lora_wd: float = opt(1.0, "Decoupled weight decay of AdamW (lora).", lo=0.0, hi=1000.0)
    lora_chunks: str = opt(
        "48",
        "Tokens between two training steps. '8@256 24@2000 48' means every 8 tokens until token 256"
        " of a document, every 24 until token 2000, then every 48 (lora).",
    )
    lora_documents: int = opt(64, "Documents scored side by side (lora).", lo=1, hi=65_536)
    lora_lanes: int = opt(
        8,
        "Number of independent sequences of batches, divided among the processes (lora).",
        lo=1,
        hi=1024,
    )
    lora_sort: bool = opt(
        False,
        "Score the longest documents first; this looks at document lengths in advance (lora).",
    )
    lora_phases: int = opt(
        0, "Number of times that all weights train on the text scored so far (lora).", lo=0
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class MixtureConfig:
    """Experts that learn from every token and join the model in one distribution over tokens.

    `published` also reports the mixture of #1858, whose probabilities do not sum to 1.
    """

    experts: str = opt(
        "", "Experts to mix with the model, chosen from ppm match tilt; '' turns the mixture off."
    )
    base: str = opt(
        "sliding",
        "Model in the mixture: frozen (sliding), or with test-time training (sgd, lora).",
        choices=("sliding", "sgd", "lora"),
    )
    variant: str = opt(
        "A",
        "What predicts the end of a token: the model alone (A), or model and counts (B).",
        choices=("A", "B"),
    )
    memory_mb: int = opt(4000, "Largest memory for the counts, in megabytes (ppm).", lo=8)
    published: bool = opt(
        False, "Also report the mixture of #1858, whose probabilities do not sum to 1."
    )


# The most streams that are coded side by side.
MAX_STREAMS = 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class ProveConfig:
    """The proof of a run: validation text coded, and restored by a fresh process."""

    bytes: int = opt(0, "Bytes of validation text to encode and decode; 0 skips the proof.", lo=0)
    method: str = opt(
        "sliding",
        "Predictor: the frozen model (sliding), or a model with test-time training (sgd, lora).",
        choices=("sliding", "sgd", "lora"),
    )
    experts: bool = opt(False, "Use the experts of the mixture in the proof as well.")


@dataclass(frozen=True, kw_only=True, slots=True)
class AuditConfig:
    """The audit that ends a run: probes of its own scorers, its ledgers, its budgets."""

    budget_s: float = opt(
        60.0, "Seconds for the probes; 0 checks only ledgers and budgets.", lo=0.0
    )
    tokens: int = opt(384, "Tokens of validation text that the probes use.", lo=64, hi=1_000_000)
