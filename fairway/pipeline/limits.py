"""Refuses a run early if it would fail after its training, and reports exceeded budgets."""

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
from fairway.train.preflight import visit_numbers
from fairway.train.steps import Say


def check_later_stages(config: Config, tokens: int, code_bytes: int, plan: Plan, say: Say) -> None:
    """Raise UserError for a setting that would stop a run after its training; warn of others that
    would spoil its result.

    `tokens` is the number of tokens of the validation text, including the first one.
    """
    check_text_length(config, tokens)
    _check_scoring_memory(config, tokens, plan)
    _check_bytes(config, code_bytes, say)


def check_learning_time(config: Config, ids: Tokens, plan: Plan, ranks: Ranks) -> None:
    """Refuse a time budget for test-time training that is far too short on this machine.

    `ids` are the tokens of the text. It times a few batches of an untrained model. On a GPU this
    would compile the model and record launches, in memory that training needs. So on a GPU the time
    is estimated after training.
    """
    if config.ttt.method == "off" or plan.device != "cpu":
        return
    text = Text(ids, np.zeros(len(ids) - 1, np.int64), 0, config.model.vocab_size)
    model = build(config.model)
    prepare(model, DTYPES[plan.dtype], plan.attention, plan.kernels)
    # Recurrence is on in most of the training and in scoring.
    model.set_looping(True)
    require_time(model.eval(), Evaluation(text, config.score, config.ttt, ranks=ranks))


def tell_of_shards(config: Config, source: DataFolder, say: Say) -> None:
    """Warn if there are fewer training shards than the original run of the recipe reads."""
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


def check_text_length(config: Config, tokens: int) -> None:
    """Raise UserError for a validation text too short to be scored or audited."""
    usable_targets(tokens, config.score.seq_len, config.score.truncate)
    if config.audit.budget_s and tokens < MIN_TOKENS:
        raise UserError(
            f"the validation text has {tokens} tokens and an audit needs {MIN_TOKENS}; use more "
            "validation text (data.val_bytes or data.val_tokens), or set audit.budget_s=0"
        )


def _check_scoring_memory(config: Config, tokens: int, plan: Plan) -> None:
    """Refuse a number of windows in one pass that does not fit main memory; windows are padded to
    full length."""
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
    """Return the bytes of memory for one pass of scoring on a CPU."""
    score, model, windows = config.score, config.model, _windows(config, tokens)
    numbers = windows * score.seq_len * visit_numbers(model)
    if plan.attention == "plain":
        # Attention scores and their softmax for all heads, and the mask as numbers.
        heads = (2 * windows + 1) * model.num_heads
        numbers += heads * score.seq_len * score.seq_len
    return numbers * DTYPES[plan.dtype].itemsize


def _check_bytes(config: Config, code_bytes: int, say: Say) -> None:
    """Refuse a limit that is too small for any artifact; warn if nothing would be fitted to it."""
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
    """Return a lower bound of the artifact bytes of a recipe's model, independent of what it
    learns.

    The bound is half of the float16 tensors, which no entropy coder halves. With a clip multiplier
    it adds half of the bytes of Gaussian rows' codes at the largest multiplier.
    """
    model = shapes_of(config.model)
    if config.quant.method != "trellis":
        quant = with_sigmas(config.quant, LARGEST)
        return expected_bytes(dataclasses.replace(config, quant=quant), 0) // 2
    # Two bytes each, halved.
    return sum(w.numel() for n, w in model.named_parameters() if not grid_of(n, w, config.quant))


def tell_of_size(config: Config, total_bytes: int, say: Say) -> None:
    """Warn if artifact and code exceed their limit, and name the remedy."""
    limit_bytes = config.pack.limit_bytes
    if total_bytes > limit_bytes:
        say(
            f"over the limit: artifact and code exceed {limit_bytes:,} bytes by "
            f"{total_bytes - limit_bytes:,}; pack again with "
            "--set quant.fit=true, or make the model smaller"
        )


def time_budget(config: Config, train_s: float, calibrate_s: float, say: Say) -> dict[str, float]:
    """Return the seconds of training and calibration, and the budget; warn if they exceed it."""
    train, used_s = config.train, train_s + calibrate_s
    if train.clock == "wall" and used_s > train.budget_s:
        say(
            f"over budget: training and calibration took {used_s:.1f} s of "
            f"{train.budget_s:.0f} s; raise train.reserve_s or lower quant.calibration_tokens"
        )
    return {"used_s": used_s, "limit_s": train.budget_s if train.clock == "wall" else 0.0}
