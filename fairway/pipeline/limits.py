"""Refuses early a run that would fail after its training, and reports budgets that are exceeded."""

import dataclasses

import numpy as np

from fairway.audit.scorers.bench import MIN_TOKENS
from fairway.base import units
from fairway.base.errors import UserError
from fairway.base.room import host_room
from fairway.base.terminal import command
from fairway.config.settings import Config
from fairway.data.folder import DataFolder
from fairway.data.shards import Tokens
from fairway.machine.plan import DTYPES, Plan
from fairway.machine.ranks import Ranks
from fairway.model.gpt import build, shapes_of
from fairway.model.paths import prepare
from fairway.quantise.estimate import expected_bytes
from fairway.quantise.fit import LARGEST, with_sigmas
from fairway.quantise.gptq import grid_of
from fairway.score.evaluation import Evaluation
from fairway.score.ledger import Text
from fairway.score.ttt import require_time
from fairway.score.windows import usable_targets
from fairway.train.steps import Say


def check_later_stages(config: Config, tokens: int, code_bytes: int, plan: Plan, say: Say) -> None:
    """Raise UserError for what would stop a run after its training; say what would spoil it.

    `tokens` are those of the validation text, its first one included.
    """
    usable_targets(tokens, config.score.seq_len, config.score.truncate)
    _check_audit(config, tokens)
    _check_scoring_memory(config, tokens, plan)
    _check_bytes(config, code_bytes, say)


def check_learning_time(config: Config, ids: Tokens, plan: Plan, ranks: Ranks) -> None:
    """Refuse a time for learning from the validation text that is far too short on this machine.

    `ids` are the text's. Takes a few batches of an untrained model. On a GPU the model would be
    compiled and its launches recorded for that, in memory that training needs: there the time is
    estimated once the model is trained.
    """
    if config.ttt.method == "off" or plan.device != "cpu":
        return
    text = Text(ids, np.zeros(len(ids) - 1, np.int64), 0, config.model.vocab_size)
    model = build(config.model)
    prepare(model, DTYPES[plan.dtype], plan.attention, plan.kernels)
    # The recurrence is on in nearly all of training, and when it is scored.
    model.set_looping(True)
    require_time(model.eval(), Evaluation(text, config.score, config.ttt, ranks=ranks))


def tell_of_shards(config: Config, source: DataFolder, say: Say) -> None:
    """Say so if there are fewer training shards than the recipe's own run reads."""
    wanted, found = config.train.shards, len(source.train_shards())
    if found >= wanted:
        return
    remedy = "take data of more shards"
    if source.fetched:
        remedy = f"`{command('data', 'fetch', '--out', source.path, '--shards', wanted)}` adds them"
    say(
        f"the data folder has {found} training shards and train.shards is {wanted}: the run reads "
        f"less text than that of {config.recipe}; {remedy}, and train.shards=0 reads what there is"
    )


def _check_audit(config: Config, tokens: int) -> None:
    if config.audit.budget_s and tokens < MIN_TOKENS:
        raise UserError(
            f"the validation text has {tokens} tokens and an audit needs {MIN_TOKENS}; use more "
            "validation text (data.val_bytes or data.val_tokens), or set audit.budget_s=0"
        )


def _check_scoring_memory(config: Config, tokens: int, plan: Plan) -> None:
    """Refuse windows that do not fit main memory: all of a pass, padded to the whole length."""
    if plan.device != "cpu" or (room := host_room()) is None:
        return
    score, need_bytes = config.score, scoring_bytes(config, tokens, plan)
    if need_bytes > room.bytes:
        raise UserError(
            f"scoring {_windows(config, tokens)} windows of {score.seq_len} tokens at a time takes "
            f"about {units.megabytes(need_bytes)} of memory and {room.told()}; lower "
            "score.batch_windows or score.seq_len"
        )


def _windows(config: Config, tokens: int) -> int:
    score = config.score
    return min(score.batch_windows, -(-(tokens - 1) // score.stride))


def scoring_bytes(config: Config, tokens: int, plan: Plan) -> int:
    """Return the bytes that one pass of scoring takes on a CPU."""
    score, model, windows = config.score, config.model, _windows(config, tokens)
    numbers = windows * score.seq_len * (14 * model.dim + 2 * model.mlp_dim)
    if plan.attention == "plain":
        # Scores and their softmax for all heads, the mask as numbers.
        heads = (2 * windows + 1) * model.num_heads
        numbers += heads * score.seq_len * score.seq_len
    return numbers * DTYPES[plan.dtype].itemsize


def _check_bytes(config: Config, code_bytes: int, say: Say) -> None:
    """Refuse to fit a limit that leaves no room; say so where nothing would be fitted."""
    quant, limit_bytes = config.quant, config.pack.limit_bytes
    if quant.fit and (fewest := code_bytes + smallest_bytes(config)) > limit_bytes:
        raise UserError(
            f"quant.fit=true cannot keep pack.limit_bytes {limit_bytes:,}: {code_bytes:,} bytes of "
            f"code and at least {fewest - code_bytes:,} of artifact are {fewest:,}; raise the "
            "limit or make the model smaller"
        )
    total_bytes = code_bytes + expected_bytes(config, code_bytes)
    if not quant.fit and total_bytes > limit_bytes:
        say(
            f"over the limit: artifact and code will have about {total_bytes:,} bytes, but "
            f"pack.limit_bytes is {limit_bytes:,}; make the model smaller, or add "
            "--set quant.fit=true"
        )


def smallest_bytes(config: Config) -> int:
    """Return artifact bytes that no packing of a recipe's model falls below, whatever it learns.

    Half of the float16 tensors, which entropy coders do not halve; and with a clip multiplier half
    of what the codes of Gaussian rows take at the largest one.
    """
    model = shapes_of(config.model)
    if config.quant.method != "trellis":
        quant = with_sigmas(config.quant, LARGEST)
        return expected_bytes(dataclasses.replace(config, quant=quant), 0) // 2
    # Two bytes each, halved.
    return sum(w.numel() for n, w in model.named_parameters() if not grid_of(n, w, config.quant))


def tell_of_size(config: Config, total_bytes: int, say: Say) -> None:
    """Say so if artifact and code exceed their limit, and what to do."""
    limit_bytes = config.pack.limit_bytes
    if total_bytes > limit_bytes:
        say(
            f"over the limit: artifact and code exceed {limit_bytes:,} bytes by "
            f"{total_bytes - limit_bytes:,}; pack again with "
            "--set quant.fit=true, or make the model smaller"
        )


def time_budget(config: Config, train_s: float, calibrate_s: float, say: Say) -> dict[str, float]:
    """Return training and calibration against the budget; say so if they exceed it."""
    train, used_s = config.train, train_s + calibrate_s
    if train.clock == "wall" and used_s > train.budget_s:
        say(
            f"over budget: training and calibration took {used_s:.1f} s of "
            f"{train.budget_s:.0f} s; raise train.reserve_s or lower quant.calibration_tokens"
        )
    return {"used_s": used_s, "limit_s": train.budget_s if train.clock == "wall" else 0.0}
