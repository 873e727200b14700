"""Test-time training inside a time budget: estimated before it starts, timed as it runs.

The timed region includes all measuring, scoring and learning of the estimate. An estimate above the
budget is refused with its numbers. With `ttt.over_budget=shrink` the evaluation does less instead,
and the changes are reported.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from fairway.base.errors import UserError
from fairway.base.timing import wall_seconds
from fairway.config.checks import lora_chunks
from fairway.config.settings import ScoreConfig, TttConfig
from fairway.model.gpt import GPT
from fairway.model.modes import mode
from fairway.score.adapting import adapting
from fairway.score.documents import batches, documents
from fairway.score.evaluation import Evaluation
from fairway.score.ledger import Score
from fairway.score.lora import Documents, phase_bounds
from fairway.score.predictor import Context, Lesson
from fairway.score.sgd import Sgd, chunks
from fairway.score.sliding import FrozenPredictor
from fairway.score.ways import evaluate
from fairway.score.windows import Event, Window


@dataclass(frozen=True, slots=True)
class Budgeted:
    """A score, its estimated and real seconds, and the changes made to stay within the budget."""

    score: Score
    estimate_s: float
    seconds: float
    changes: tuple[str, ...]


def evaluate_ttt(model: GPT, asked: Evaluation) -> Budgeted:
    """Return the score under `asked.ttt.method`, which must not be off.

    Raises UserError before scoring if the estimate exceeds the budget and the work may not or
    cannot shrink.
    """
    start_s = time.perf_counter()
    asked, estimate_s, changes = _within_budget(model, asked)
    found = evaluate(model, asked, asked.ttt.method)
    return Budgeted(found, estimate_s, time.perf_counter() - start_s, changes)


def require_time(model: GPT, asked: Evaluation) -> None:
    """Raise the UserError of `evaluate_ttt` early if even twice the budget does not suffice here.

    Any weights serve for this. Times of a shared machine vary, so only clear cases are refused
    early.
    """
    _within_budget(model, asked, most=2.0)


def _within_budget(
    model: GPT, asked: Evaluation, most: float = 1.0
) -> tuple[Evaluation, float, tuple[str, ...]]:
    """Return the settings that take at most this many budgets, their estimate, and the changes."""
    changes: list[str] = []
    while True:
        config = asked.ttt
        estimate_s = asked.ranks.broadcast(estimate(model, asked))
        if estimate_s <= most * config.budget_s:
            return asked, estimate_s, tuple(changes)
        less = shrunk(asked.score, config) if config.over_budget == "shrink" else None
        if less is None:
            how = " even at its smallest" if changes else ""
            raise UserError(
                f"test-time training would take about {estimate_s:.0f} s{how}, and ttt.budget_s is "
                f"{config.budget_s:.0f}; raise it, set ttt.over_budget=shrink, or ttt.method=off"
            )
        asked = replace(asked, score=less[0], ttt=less[1])
        changes.append(less[2])


def shrunk(score: ScoreConfig, config: TttConfig) -> tuple[ScoreConfig, TttConfig, str] | None:
    """Return settings that do less, and the changes; None if no reduction is left.

    For SGD the first reduction is one epoch, then a larger stride. For LoRA it is larger chunks.
    """
    if config.method == "lora":
        sizes = lora_chunks(config)
        if 2 * max(size for size, _ in sizes) > score.seq_len:
            return None
        words = [f"{2 * n}@{end}" if end is not None else f"{2 * n}" for n, end in sizes]
        text = " ".join(words)
        return score, replace(config, lora_chunks=text), f"ttt.lora_chunks={text}"
    if config.epochs > 1:
        return score, replace(config, epochs=1), "ttt.epochs=1"
    if 2 * score.stride > score.seq_len or score.seq_len % (2 * score.stride):
        return None
    stride = 2 * score.stride
    return replace(score, stride=stride), config, f"score.stride={stride}"


# ---------------------------------------------------------------------------------------------
# Estimates


def estimate(model: GPT, asked: Evaluation) -> float:
    """Return the estimated seconds of an evaluation here, from a few timed pieces of it."""
    with mode(model):
        work = _estimate_lora if asked.ttt.method == "lora" else _estimate_sgd
        return work(model, asked) / asked.ranks.world


def _estimate_sgd(model: GPT, asked: Evaluation) -> float:
    score, config = asked.score, asked.ttt
    plan = list(chunks(asked.targets, score, config.chunk_tokens))
    events = sum(len(chunk.events) for chunk in plan)
    predictor = FrozenPredictor(model, score.seq_len)
    event = _dummy(score.batch_windows, score.seq_len, min(score.stride, score.seq_len))
    zeros = np.zeros(len(event.event.positions), np.int64)
    event_s = _seconds(lambda: predictor.predict(event).log_prob(zeros))
    if len(plan) == 1:
        return events * event_s
    sequences = (len(plan) - 1) * config.epochs * (config.chunk_tokens // score.seq_len)
    return events * event_s + sequences * _sequence_s(model, score, config)


def _sequence_s(model: GPT, score: ScoreConfig, config: TttConfig) -> float:
    """Return the seconds that all weights take to learn one sequence of two."""
    ids = np.zeros(2 * score.seq_len, np.int64)
    learner, lesson = Sgd(model, config, score.seq_len), Lesson(ids, ids)
    taken_s = _seconds(lambda: learner.gradients(lesson, range(2))) / 2
    model.zero_grad(set_to_none=True)
    return taken_s


def _estimate_lora(model: GPT, asked: Evaluation) -> float:
    score, config = asked.score, asked.ttt
    context = score.seq_len
    plan = batches(documents(asked.text.ids, asked.targets), config, context)
    steps = [step for batch in plan for step in batch.steps]
    # The widest step of the evaluation; a wider one might not fit into memory although the
    # evaluation does.
    widest = max(steps, key=lambda step: len(step.rows) * min(step.end, context))
    size = steps[0].end
    sizes = ((1, size), (len(widest.rows), max(size, min(widest.end, context))))
    small_s, large_s = (_lora_step(model, context, config, rows, T, size) for rows, T in sizes)
    (small, large) = (rows * T for rows, T in sizes)
    per_token_s = max(0.0, large_s - small_s) / max(1, large - small)
    per_step_s = max(0.0, small_s - small * per_token_s)
    tokens = sum(len(step.rows) * min(step.end, context) for step in steps)
    seconds = len(steps) * per_step_s + tokens * per_token_s
    # Every phase learns all text scored before it.
    ends = [plan[n - 1].positions.stop for n in phase_bounds(len(plan), config.lora_phases)[1:-1]]
    if ends:
        seconds += sum(ends) / score.seq_len * _sequence_s(model, score, config)
    return seconds


def _lora_step(
    model: GPT, context: int, config: TttConfig, rows: int, length: int, size: int
) -> float:
    """Return the seconds of scoring and learning the last `size` positions of some windows."""
    lane = Documents(model, config, context, rows, model.operations.fused)
    inner = lane.adapters.zeros(rows)[::2]
    dummy = _dummy(rows, length, size)
    targets = np.zeros(rows * size, np.int64)

    def work() -> None:
        lane.start(rows, inner)
        lane.unadapted.skip(length - size)
        dist = lane.predict(dummy, length - size)
        dist.log_prob(targets)
        lane.learn(dist, dist.rectangle(targets), list(range(rows)))

    with adapting(model):
        # A size runs directly at first and is then recorded; the time of most steps appears only
        # after that.
        work()
        return _seconds(work)


def _dummy(rows: int, length: int, scored: int) -> Context:
    """Return windows of zeros that score their last `scored` positions."""
    windows = tuple(
        Window(row * length, (row + 1) * length, (row + 1) * length - scored) for row in range(rows)
    )
    return Context(Event(0, windows), {window: np.zeros(length, np.int64) for window in windows})


def _seconds(work: Callable[[], object]) -> float:
    """Return the seconds of some work, done once before it is timed."""
    work()
    return wall_seconds(work)
