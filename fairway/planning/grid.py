"""The grid of a plan: all models that fit the bytes, the best by the law first."""

import dataclasses
import itertools
from collections.abc import Mapping
from dataclasses import dataclass

from fairway.base.errors import UserError
from fairway.base.units import megabytes
from fairway.config.settings import Config
from fairway.planning.law import Law, Prediction, Reading
from fairway.planning.speed import Speed
from fairway.quantise.estimate import expected_bytes

# Those of nearly all trainings behind the law.
VOCABULARIES = (512, 1024, 2048, 4096)
WIDTHS = (128, 192, 256, 320, 384)
DEPTHS = (2, 3, 4, 5, 6, 8)
BATCHES = (1024, 2048, 4096, 8192)
LENGTHS = (128, 256, 512)
LOOPS = (0, 1)
# Bits per weight: 0 is GPTQ with its usual range, all others are for a trellis.
BITS = (0.0, 3.4, 3.0, 2.6, 2.2)
# Bytes of a tokenizer in an artifact, per token of its vocabulary.
_TOKEN_BYTES = 8.0
# The law is not fitted to runs of fewer steps.
_FEWEST_STEPS = 60


@dataclass(frozen=True, slots=True)
class Budget:
    """The budget of a plan: seconds of training, bytes of artifact and code."""

    seconds: float
    limit_bytes: int
    code_bytes: int

    @property
    def reserve_s(self) -> float:
        """Return the seconds kept for calibration."""
        return max(0.05, min(8.0, 0.04 * self.seconds))


@dataclass(frozen=True, slots=True)
class Fit:
    """The sizes of a model that fits: bits per weight (0: GPTQ), bytes of artifact and code."""

    bits: float
    bytes: int


@dataclass(frozen=True, slots=True)
class Candidate:
    """One point of the grid: a config, its steps in the time, its sizes, its expected score."""

    config: Config
    step_s: float
    steps: int
    fit: Fit
    prediction: Prediction


def readings(vocabularies: Mapping[int, float], train_bytes: float) -> dict[int, Reading]:
    """Return the facts of the text by the size of the vocabulary: the bytes per token."""
    return {size: Reading(train_bytes, each) for size, each in vocabularies.items()}


def shaped(
    base: Config, vocab: int, dim: int, layers: int, batch: int, length: int, loops: int
) -> Config:
    """Return a config with a model and batches of these shapes."""
    head = 64 if dim % 64 == 0 else 32
    middle = layers // 2
    model = dataclasses.replace(
        base.model, vocab_size=vocab, dim=dim, num_layers=layers, num_heads=dim // head,
        num_kv_heads=1, mlp_dim=4 * dim, parallel_from=min(2, middle),
        loop_extra=loops, loop_first=middle, loop_last=middle, rope_train_len=length,
    )  # fmt: skip
    train = dataclasses.replace(
        base.train, seq_len=length, batch_tokens=batch, micro_tokens=min(batch, 4096)
    )
    score = dataclasses.replace(base.score, seq_len=length, stride=min(base.score.stride, length))
    return dataclasses.replace(base, model=model, train=train, score=score)


def candidates(
    base: Config, budget: Budget, texts: Mapping[int, Reading], law: Law, speed: Speed
) -> list[Candidate]:
    """Return every point of the grid that fits, the best first; UserError if nothing fits."""
    found = []
    for vocab, dim, layers in itertools.product(texts, WIDTHS, DEPTHS):
        fit = fitting(base, budget, vocab, dim, layers)
        if fit is None:
            continue
        for batch, length, loops in itertools.product(BATCHES, LENGTHS, LOOPS):
            config = shaped(base, vocab, dim, layers, batch, length, loops)
            point = judged(config, budget, texts[vocab], law, speed.step_s(config), fit)
            found += [point] if point else []
    if not found:
        raise UserError(
            f"no model of the grid fits {budget.seconds:g} s and "
            f"{megabytes(budget.limit_bytes)} with {megabytes(budget.code_bytes)} of code; raise "
            "--seconds or --bytes"
        )
    return sorted(found, key=lambda point: point.prediction.bpb)


def momentum_warmup(steps: int) -> int:
    """Return the steps of the rise of momentum in a planned run of this many steps."""
    return max(10, min(200, steps // 4))


def judged(
    config: Config, budget: Budget, text: Reading, law: Law, step_s: float, fit: Fit
) -> Candidate | None:
    """Return a point of the grid with the best rates by the law; None if it is too slow."""
    steps = int((budget.seconds - budget.reserve_s) / step_s)
    if steps < _FEWEST_STEPS:
        return None
    matrix_lr, embed_lr = law.rates(config, steps)
    optim = dataclasses.replace(
        config.optim, matrix_lr=round(matrix_lr, 4), embed_lr=round(embed_lr, 4),
        momentum_warmup_steps=momentum_warmup(steps),
    )  # fmt: skip
    config = dataclasses.replace(config, optim=optim)
    return Candidate(config, step_s, steps, fit, law.predict(config, steps, text, fit.bits))


def fitting(base: Config, budget: Budget, vocab: int, dim: int, layers: int) -> Fit | None:
    """Return the most bits per weight with which a model fits the bytes, or None."""
    config = shaped(base, vocab, dim, layers, BATCHES[0], LENGTHS[0], 0)
    for bits in BITS:
        size = artifact_bytes(config, bits) + budget.code_bytes
        if size <= budget.limit_bytes:
            return Fit(bits, size)
    return None


def artifact_bytes(config: Config, bits: float) -> int:
    """Return the bytes of an artifact at this many bits per weight, including its tokenizer."""
    tokenizer = _TOKEN_BYTES * config.model.vocab_size if config.pack.with_tokenizer else 0.0
    quant = rounded(config, bits, fit=False).quant
    return expected_bytes(dataclasses.replace(config, quant=quant), 0) + round(tokenizer)


def rounded(config: Config, bits: float, fit: bool) -> Config:
    """Return a config that rounds to this many bits per weight, or unchanged for 0 bits."""
    if not bits:
        return config
    quant = dataclasses.replace(config.quant, method="trellis", rate_bits=bits, fit=fit)
    return dataclasses.replace(config, quant=quant)
