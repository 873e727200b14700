"""The main memory of a run's stages: estimated and announced before the start, refused if too
small.

The figures are estimates from shapes. Mapped and reserved memory counts only under a limit of
address space.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from fairway.base import units
from fairway.base.errors import UserError
from fairway.base.room import Room, rooms
from fairway.config.settings import Config
from fairway.data.folder import Validation
from fairway.data.shards import Tokens
from fairway.machine.plan import DTYPES, Plan
from fairway.model.gpt import GPT, shapes_of
from fairway.pipeline.limits import scoring_bytes
from fairway.quantise.gptq import grid_of
from fairway.score.baselines import MOST_BYTES, PPMD_PRIME_BYTES, PRIME_BYTES, ppmd_memory
from fairway.score.experts.ppm import ORDER, table_bytes
from fairway.train.preflight import kept_numbers, training_bytes, visit_numbers
from fairway.train.steps import Say

# The remedy that lowers the need of a stage, by the first word of its name.
REMEDIES = {
    "data": "take less text",
    "train": "lower train.micro_tokens or take a smaller model",
    "pack": "lower train.micro_tokens, which calibration reads at a time, or take a smaller model",
    "score": "lower score.batch_windows or score.seq_len",
    "score.ttt": "lower score.seq_len or ttt.lora_documents, or set ttt.method=off",
    "score.mixture": "lower mixture.memory_mb",
    "published": "lower mixture.memory_mb",
    "text": "validate on less text (data.val_bytes)",
    "baselines": "validate on less text (data.val_bytes); `xz -9e` sets aside 0.70 GB for any",
    "proof": "lower prove.bytes",
    "audit": "lower audit.tokens",
}
# The encoder of `xz -9e` reserves 10.5 times its dictionary (64 MiB, more than it reads here). It
# uses a part in proportion to the text, plus 60 MB. brotli and zstd take a further 0.3 GB at the
# same time.
_XZ, _XZ_DICTIONARY, _XZ_LEAST, _OTHERS = 10.5, 1 << 26, 60_000_000, 300_000_000


def remedy_of(stage: str) -> str:
    """Return the remedy for a stage that needs too much memory."""
    first = stage.partition(".")[0]
    return REMEDIES.get(stage) or REMEDIES.get(first, "take a smaller model or less text")


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes of main memory that a stage takes in addition, and further address space that it
    reserves or maps."""

    stage: str
    what: str
    bytes: float
    reserved_bytes: float = 0.0

    def within(self, room: Room) -> bool:
        """Return whether the need fits a bound."""
        return self.of(room) <= room.bytes

    def of(self, room: Room) -> float:
        """Return the bytes of the need that a bound counts."""
        return self.bytes + (self.reserved_bytes if room.reserved else 0.0)


def host_needs(
    config: Config, shards: list[Tokens], validation: Validation, plan: Plan
) -> list[Need]:
    """Return the needs of the stages of a run, in order."""
    model = shapes_of(config.model)
    parameters = sum(weight.numel() for weight in model.parameters())
    mapped = float(sum(shard.nbytes for shard in shards))
    return [
        Need("train", "training", _training(config, parameters, plan), mapped),
        Need("pack", "packing", _packing(config, model, parameters, plan), mapped),
        *_scores(config, parameters, validation, plan),
        _baselines(validation.bytes),
    ]


def check_host_memory(
    config: Config, shards: list[Tokens], validation: Validation, plan: Plan, say: Say
) -> None:
    """Report the needed and the available memory; raise UserError for the first stage that does not
    fit."""
    bounds = sorted(rooms(), key=lambda room: room.bytes)
    needs = host_needs(config, shards, validation, plan)
    narrow = bounds[0] if bounds else Room(0)
    parts = ", ".join(f"{need.what} {need.of(narrow) / 1e9:.2f}" for need in needs)
    there = f"; {narrow.told()}" if bounds else ""
    say(f"main memory needed, in GB (estimates): {parts}{there}")
    for need in needs:
        for room in bounds:
            if not need.within(room):
                raise UserError(
                    f"{need.what} takes about {units.megabytes(round(need.of(room)))} of main "
                    f"memory and {room.told()}; {remedy_of(need.stage)}, or give more memory"
                )


def _training(config: Config, parameters: int, plan: Plan) -> float:
    if plan.device == "cpu":
        return float(training_bytes(config, parameters, plan))
    # Beside the new model: a checkpoint while it is written.
    return 6.0 * 4 * parameters


def _packing(config: Config, model: GPT, parameters: int, plan: Plan) -> float:
    """Raw weights, their average and a model of it, codes and what they restore, in float32; the
    second moments, their factors for one matrix, and a calibration batch going through."""
    quant, train = config.quant, config.train
    sides = [
        weight.shape[1]
        for name, weight in model.named_parameters()
        if quant.method != "round" and grid_of(name, weight, quant) is not None
    ]
    numbers = 5 * parameters + sum(side * side for side in sides)
    numbers += 4 * max(sides, default=0) ** 2
    if plan.device == "cpu" and sides:
        numbers += train.micro_tokens * visit_numbers(config.model)
    return 4.0 * numbers


def _scores(config: Config, parameters: int, validation: Validation, plan: Plan) -> Iterator[Need]:
    score, ttt, model, mixture = config.score, config.ttt, config.model, config.mixture
    if plan.device == "cpu":
        # The states of a pass, and a slice of logits with its softmax.
        size = scoring_bytes(config, len(validation.ids), plan) + 1024 * model.vocab_size * 12
        # The weights as read, and as used.
        yield Need("score", "scoring", size + 8.0 * parameters)
        if ttt.method == "sgd":
            rows = min(16, max(1, ttt.chunk_tokens // score.seq_len))
            kept = rows * score.seq_len * kept_numbers(config) * DTYPES[plan.dtype].itemsize
            yield Need("score.ttt", "test-time training", kept + 12.0 * parameters)
    if "ppm" in mixture.experts or mixture.published:
        size = table_bytes(validation.bytes, ORDER, mixture.memory_mb * 1_000_000)
        yield Need("score.mixture", "the tables of ppm", size)


def _baselines(val_bytes: int) -> Need:
    val_bytes = min(val_bytes, MOST_BYTES)
    text = val_bytes + PRIME_BYTES
    ppmd = 2 * PPMD_PRIME_BYTES + ppmd_memory(val_bytes + PPMD_PRIME_BYTES)
    used = _XZ_LEAST + _XZ * text + _OTHERS + ppmd
    aside = _XZ * (_XZ_DICTIONARY - text)
    return Need("baselines", "compressing the validation text for comparison", used, aside)
