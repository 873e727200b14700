"""Checks that settings fit together; a config is refused before any time is spent on it."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from fairway.base.errors import UserError
from fairway.base.units import written
from fairway.config.settings import (
    Config,
    MixtureConfig,
    ModelConfig,
    ScoreConfig,
    TrainConfig,
    TttConfig,
    headline,
    settings,
    unknown_name,
)

# The bound of numbers without a bound of their own: the range of 64 bits.
LARGEST = 2**63 - 1


def check(config: Config) -> None:
    """Raise UserError unless every setting is inside its bounds and they fit together."""
    _check_bounds(config)
    check_model(config.model)
    if config.data.val_bytes and config.data.val_tokens:
        raise UserError(
            f"data.val_bytes is {config.data.val_bytes} and data.val_tokens is "
            f"{config.data.val_tokens}, but only one of them may choose the validation text; set "
            "the other to 0"
        )
    _check_training(config)
    _check_scoring(config)


def _check_bounds(node: Any, prefix: str = "") -> None:
    for name, item, value in settings(node, prefix):
        _check_bound(name, item, value)


def _check_bound(name: str, item: dataclasses.Field[Any], value: Any) -> None:
    lo, hi = item.metadata["lo"], item.metadata["hi"]
    choices = item.metadata["choices"]
    if choices and isinstance(value, str) and value not in choices:
        # Such a setting may be a number or one of its words.
        number = "" if lo is None else f", or a number that is at least {lo:g}"
        raise UserError(f"{name} is '{value}'; choose one of {', '.join(choices)}{number}")
    if value is None or isinstance(value, str):
        return
    if value != value:
        raise UserError(f"{name} is not a number")
    low = lo is not None and value < lo
    if low or value > (LARGEST if hi is None else hi):
        ends = f"between {written(lo)} and {written(LARGEST if hi is None else hi)}"
        bound = f"at least {written(lo)}" if low and hi is None else ends
        raise UserError(f"{name} is {written(value)}; it must be {bound}")


def check_model(model: ModelConfig) -> None:
    """Raise UserError unless a model can be built from these settings."""
    _check_bounds(model, "model.")
    if model.dim % model.num_heads:
        raise UserError(
            f"model.dim {model.dim} does not divide into model.num_heads {model.num_heads}; "
            f"take a multiple, such as {model.num_heads * max(1, model.dim // model.num_heads)}"
        )
    if model.num_heads % model.num_kv_heads:
        raise UserError(
            f"model.num_heads {model.num_heads} is not a multiple of model.num_kv_heads "
            f"{model.num_kv_heads}; each key head serves equally many query heads"
        )
    head_dim = model.dim // model.num_heads
    if model.rope_dims % 2 or model.rope_dims > head_dim:
        raise UserError(
            f"model.rope_dims {model.rope_dims} must be even and at most the head width {head_dim}"
        )
    if model.loop_extra and not model.loop_first <= model.loop_last < model.num_layers:
        raise UserError(
            f"the recurrence runs over blocks {model.loop_first} to {model.loop_last}, but the "
            f"model has {model.num_layers}; set model.loop_last below that, or model.loop_extra=0"
        )
    leaves = model.loop_first < model.parallel_from <= model.loop_last
    if model.lanes > 1 and model.loop_extra and leaves:
        raise UserError(
            f"model.lanes is {model.lanes}, but the loop up to block {model.loop_last} would leave "
            f"the parallel blocks from {model.parallel_from} on; raise model.parallel_from, or set "
            "model.lanes=1"
        )
    layer_windows(model)


def layer_windows(model: ModelConfig) -> list[int]:
    """Return how many positions attention sees in every layer; 0 means all earlier ones."""
    words = model.window.split() or ["0"]
    sizes = [size for word in words if (size := _whole(word)) is not None]
    if len(sizes) < len(words) or len(words) > model.num_layers:
        raise UserError(
            f"model.window is '{model.window}'; write up to model.num_layers {model.num_layers} "
            "numbers of tokens, 0 for all, such as '512 512 0'"
        )
    return sizes + sizes[-1:] * (model.num_layers - len(sizes))


def windows(train: TrainConfig) -> list[tuple[int, float]]:
    """Return (tokens, share of the run at which this ends) of `train.windows`, in order."""
    found: list[tuple[int, float]] = []
    words = train.windows.split()
    for word in words:
        size, _, end = word.partition("@")
        tokens, share = _whole(size), _number(end)
        if not tokens or not (found[-1][1] if found else 0) < share <= 1:
            break
        found.append((tokens, share))
    if len(found) < len(words):
        raise UserError(
            f"train.windows is '{train.windows}'; write numbers of tokens with the growing shares "
            "of the run at which they end, such as '256@0.3 512@0.6'"
        )
    return found


def _check_training(config: Config) -> None:
    train, optim = config.train, config.optim
    windows(train)
    if (optim.ema_decay is None) == (optim.ema_share is None):
        raise UserError(
            "set exactly one of optim.ema_decay and optim.ema_share; the other must be none"
        )
    if train.clock == "wall" and train.reserve_s >= train.budget_s:
        raise UserError(
            f"train.reserve_s {written(train.reserve_s)} is not below train.budget_s "
            f"{written(train.budget_s)}; lower the reserve or raise the budget"
        )
    if (train.clock == "replay") != bool(train.replay):
        raise UserError("train.clock=replay and train.replay=RUN_FOLDER go together; set both")
    for name, of in (
        ("batch_tokens", "seq_len"), ("micro_tokens", "seq_len"), ("batch_tokens", "micro_tokens"),
    ):  # fmt: skip
        number, unit = getattr(train, name), getattr(train, of)
        if number % unit:
            raise UserError(f"train.{name} {number} is not a multiple of train.{of} {unit}")


def _check_scoring(config: Config) -> None:
    score = config.score
    if score.stride > score.seq_len:
        raise UserError(
            f"score.stride {score.stride} is longer than score.seq_len {score.seq_len}; "
            "some positions would never be scored"
        )
    check_ttt(config.ttt, score)
    check_mixture(config.mixture, config.ttt, score)
    if config.prove.experts and (not config.mixture.experts or config.prove.method == "lora"):
        raise UserError(
            "prove.experts=true needs experts in mixture.experts and prove.method sliding or sgd; "
            "set them, or prove.experts=false"
        )
    claimed = {"ttt": config.ttt.method != "off", "mixture": bool(config.mixture.experts)}
    if not claimed.get(headline(config), True):
        needed = {"ttt": "ttt.method", "mixture": "mixture.experts"}[headline(config)]
        raise UserError(
            f"score.headline is {headline(config)}, which this run does not score; set {needed}, "
            "or score.headline=auto"
        )
    if config.prove.bytes and config.prove.method != "sliding":
        check_learning(config.prove.method, config.ttt, score)


# The matrices that can have adapters, in the order of the forward pass.
LORA_TARGETS = ("q", "k", "v", "o", "mlp", "head")


def check_ttt(ttt: TttConfig, score: ScoreConfig) -> None:
    """Raise UserError unless test-time training can follow these windows."""
    _check_bounds(ttt, "ttt.")
    if ttt.method == "sgd" and (ttt.chunk_tokens % score.seq_len or score.seq_len % score.stride):
        raise UserError(
            f"ttt.chunk_tokens {ttt.chunk_tokens} must be a multiple of score.seq_len "
            f"{score.seq_len}, and score.seq_len a multiple of score.stride {score.stride}; else a "
            "window would be scored partly before and partly after a chunk is learned"
        )
    targets = ttt.lora_targets.split()
    _check_names("adapter target in ttt.lora_targets", targets, LORA_TARGETS)
    if not targets or len(set(targets)) < len(targets):
        raise UserError(
            f"ttt.lora_targets '{ttt.lora_targets}' must name some of "
            f"{', '.join(LORA_TARGETS)}, each once"
        )
    for target in lora_factors(ttt):
        if target not in targets:
            raise UserError(
                f"ttt.lora_factors has a factor of '{target}', which is not in ttt.lora_targets "
                f"'{ttt.lora_targets}'; add it there or leave it out"
            )
    longest = max(size for size, _ in lora_chunks(ttt))
    if longest > score.seq_len:
        raise UserError(
            f"ttt.lora_chunks '{ttt.lora_chunks}' has a size of {longest}, but score.seq_len is "
            f"{score.seq_len}; lower the size or raise score.seq_len"
        )


def _check_names(what: str, names: Iterable[str], known: Sequence[str]) -> None:
    for name in names:
        if "," in name:
            raise UserError(f"'{name[:60]}' is no {what}; separate names by blanks, not commas")
        if name not in known:
            raise UserError(unknown_name(what, name, known))


# The experts, in the order in which they are applied.
EXPERTS = ("tilt", "ppm", "match")


def check_mixture(mixture: MixtureConfig, ttt: TttConfig, score: ScoreConfig) -> None:
    """Raise UserError unless experts can be combined with the model."""
    _check_bounds(mixture, "mixture.")
    chosen = mixture.experts.split()
    _check_names("expert in mixture.experts", chosen, EXPERTS)
    if len(set(chosen)) < len(chosen):
        raise UserError(
            f"mixture.experts '{mixture.experts}' names an expert twice; name each once"
        )
    if (chosen or mixture.published) and mixture.base != "sliding":
        check_ttt(dataclasses.replace(ttt, method=mixture.base), score)


def check_learning(method: str, ttt: TttConfig, score: ScoreConfig) -> None:
    """Raise UserError unless a proof can follow test-time training by a method."""
    check_ttt(dataclasses.replace(ttt, method=method), score)
    if method == "lora" and ttt.lora_sort:
        raise UserError("a proof reads documents in their order; set ttt.lora_sort=false")


# Larger factors than this one overflow bfloat16 sooner than they learn.
_MOST_FACTOR = 1000.0


def lora_factors(ttt: TttConfig) -> dict[str, float]:
    """Return the factor of each target that `ttt.lora_factors` names."""
    words = ttt.lora_factors.split()
    factors = {name: _number(word) for name, word in zip(words[::2], words[1::2], strict=False)}
    _check_names("adapter target in ttt.lora_factors", words[::2], LORA_TARGETS)
    if len(words) != 2 * len(factors) or not all(0 < f <= _MOST_FACTOR for f in factors.values()):
        raise UserError(
            f"ttt.lora_factors is '{ttt.lora_factors}'; write each matrix once with a number above "
            f"0 and at most {_MOST_FACTOR:g}, such as 'mlp 0.25 head 2'"
        )
    return factors


# More digits than any number of tokens needs; int() refuses thousands of digits by an error.
_MOST_DIGITS = 12


def _whole(word: str) -> int | None:
    """Return a word of ASCII digits as a number, else None. `isdigit` alone accepts '²' too."""
    fits = word.isascii() and word.isdigit() and len(word) <= _MOST_DIGITS
    return int(word) if fits else None


def _number(word: str) -> float:
    """Return a word as a number; 0, which is no factor and no share, if it is none."""
    try:
        return float(word)
    except ValueError:
        return 0.0


def lora_chunks(ttt: TttConfig) -> list[tuple[int, int | None]]:
    """Return (positions per chunk, position of a document up to which; None is its end)."""
    found: list[tuple[int, int | None]] = []
    words = ttt.lora_chunks.split()
    for word in words:
        size, at, end = word.partition("@")
        last = len(found) == len(words) - 1
        before = found[-1][1] if found else None
        positions, until = _whole(size), _whole(end)
        if not positions or bool(at) == last or (at and until is None):
            break
        if before is not None and until is not None and until <= before:
            break
        found.append((positions, until))
    if not words or len(found) < len(words):
        raise UserError(
            f"ttt.lora_chunks is '{ttt.lora_chunks}'; write one size, such as '48', or several "
            "with the growing positions at which they end, such as '8@256 24@2000 48'"
        )
    return found
