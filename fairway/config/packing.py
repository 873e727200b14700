"""The settings of an artifact: how weights become codes, and codes a file."""

from dataclasses import dataclass

from fairway.config.options import AUTO, LIMIT_BYTES, opt


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantConfig:
    """GPTQ with SDClip (#1394), or dependent quantisation: a trellis, steps by sensitivity."""

    matrix_bits: int = opt(6, "Bits per weight of matrices (gptq, round).", lo=2, hi=8)
    matrix_sigmas: float = opt(
        12.85, "Clipping range of matrices, in standard deviations of a row.", lo=0.5, hi=100.0
    )
    mlp_sigmas: float | None = opt(
        None,
        "Clipping range of the MLP's matrices; with 'none' it is matrix_sigmas. quant.fit raises"
        " both in proportion.",
        lo=0.5,
        hi=100.0,
    )
    embed_bits: int = opt(8, "Bits per weight of the embedding (gptq, round).", lo=2, hi=8)
    embed_sigmas: float = opt(
        20.0, "Clipping range of the embedding, in standard deviations of a row.", lo=0.5, hi=100.0
    )
    method: str = opt(
        "gptq",
        "Quantiser: error feedback (gptq), rounding (round), dependent quantisation (trellis).",
        choices=("gptq", "round", "trellis"),
    )
    calibration_tokens: int = opt(
        6_291_456, "Training tokens from which the Hessians are estimated.", lo=1
    )
    min_numel: int = opt(
        65_536,
        "Matrices with at most this many weights are stored in float16, not quantised.",
        lo=0,
    )
    fit: bool = opt(
        False,
        "Make artifact and code fit into pack.limit_bytes: gptq and round raise matrix_sigmas,"
        " trellis chooses the finest steps that fit.",
    )
    rate_bits: float = opt(3.4, "Target of bits per weight (trellis, without fit).", lo=0.5, hi=7.0)
    rate_price: float = opt(
        0.0, "Squared error that the trellis accepts in exchange for one bit (trellis).", lo=0.0
    )
    gradient_tokens: int = opt(
        1_048_576, "Training tokens from which sensitivities are estimated (trellis).", lo=1
    )
    lqer_rank: int = opt(
        0,
        "Rank of the low-rank correction (LQER) that is stored with the three matrices whose"
        " quantisation errors are the largest; 0 is off.",
        lo=0, hi=64,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class PackConfig:
    """The artifact: how its sections are coded and how large it may be."""

    codec: str = opt(
        "brotli",
        "Entropy coder of the artifact; cabac is part of Fairway.",
        choices=("cabac", "brotli", "lzma", "raw"),
    )
    with_tokenizer: bool = opt(False, "Store the tokenizer inside the artifact.")
    limit_bytes: int = opt(
        LIMIT_BYTES, "Largest size of artifact and code together, in bytes.", lo=1
    )
    code_bytes: int | str = opt(
        AUTO,
        "Bytes of code in the byte account: auto measures the bundle of this recipe. A number is a"
        " declared value for comparisons; such a run cannot be submitted.",
        lo=0,
        choices=(AUTO,),
    )
