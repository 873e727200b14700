"""Test-time training of low-rank adapters, one set per document, scored before it is learned.

Documents are scored side by side, chunk by chunk. After each chunk every document's own adapters
take one step of AdamW on it, so that they know the document better as it goes on; the model itself
stays as it is, unless phases are asked for, in which all its weights learn from all that has been
scored. Pull request #1530 and its successors; algorithms.md 5.5 and 5.6.

One forward pass does both: its graph is kept until the chunk's cost is on record, and then tells
how to learn from it.

Shapes: B documents, T positions of a window, C positions of a chunk, D width, V vocabulary.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fairway.config import ScoreConfig, TttConfig
from fairway.errors import LedgerError
from fairway.model.adapters import Adapters
from fairway.model.gpt import GPT, rope_table
from fairway.progress import progress
from fairway.runtime import Ranks
from fairway.score.documents import Batch, Step, batches, documents, longest_first
from fairway.score.ledger import (
    Context,
    FloatArray,
    IntArray,
    Ledger,
    Score,
    Span,
    Text,
    Witness,
)
from fairway.score.repeat import repeatable
from fairway.score.sgd import Sgd, chunk_rate
from fairway.score.share import gathering
from fairway.score.sliding import ALONE, evaluating, whole_row
from fairway.score.windows import usable_targets

# How far a position's cost may move between a batch of documents and its document alone. Logits are
# bfloat16 numbers of up to 30 there, whose neighbours lie 0.125 apart, and a batch of another shape
# adds in another order (largest difference seen on GPUs: 0.13).
ROW_TOLERANCE_NATS = {torch.float32: 0.02, torch.bfloat16: 0.25}

# ---------------------------------------------------------------------------------------------
# Learning


class AdamW:
    """AdamW without first moments (beta1 = 0), over tensors that may lose rows (dimension 1)."""

    def __init__(self, config: TttConfig) -> None:
        self.config = config
        self.values: list[Tensor] = []
        self._squares: list[Tensor] = []
        self._steps = 0

    def start(self, values: Sequence[Tensor]) -> None:
        """Take over some tensors, with fresh moments."""
        self.values = [value.requires_grad_() for value in values]
        self._squares = [torch.zeros_like(value) for value in values]
        self._steps = 0

    @torch.no_grad()
    def keep(self, rows: Sequence[int]) -> None:
        """Drop all rows but some, with their moments."""
        index = torch.tensor(rows, device=self.values[0].device)
        self.values = [v.index_select(1, index).requires_grad_() for v in self.values]
        self._squares = [square.index_select(1, index) for square in self._squares]

    @torch.no_grad()
    def step(self) -> None:
        """Decay, then move against the gradients; clear them."""
        config = self.config
        self._steps += 1
        grads = [value.grad for value in self.values if value.grad is not None]
        assert len(grads) == len(self.values), "an adapter received no gradient"
        torch._foreach_mul_(self._squares, config.lora_beta2)
        torch._foreach_addcmul_(self._squares, grads, grads, 1.0 - config.lora_beta2)
        unbiased = 1.0 - config.lora_beta2**self._steps
        roots = torch._foreach_sqrt(self._squares)
        torch._foreach_mul_(roots, unbiased**-0.5)
        torch._foreach_add_(roots, config.lora_eps)
        torch._foreach_mul_(self.values, 1.0 - config.lora_lr * config.lora_wd)
        torch._foreach_addcdiv_(self.values, grads, roots, -config.lora_lr)
        for value in self.values:
            value.grad = None


# ---------------------------------------------------------------------------------------------
# One batch of documents


class Documents:
    """The documents of a batch as a predictor: every row of the model's batch has its adapters."""

    def __init__(self, model: GPT, adapters: Adapters, config: TttConfig, seq_len: int) -> None:
        self.model, self.adapters, self.seq_len = model, adapters, seq_len
        self.adam = AdamW(config)
        self.version = 0
        self._rows: tuple[int, ...] = ()
        table = rope_table(seq_len, model.config)
        self._cos_TR, self._sin_TR = (half.to(model.tok_emb.weight.device) for half in table)

    def start(self, rows: int) -> None:
        """Begin a batch: every B zero, fresh moments."""
        self._rows = tuple(range(rows))
        self.adam.start(self.adapters.fresh(rows))
        self.version += 1

    def keep(self, rows: tuple[int, ...]) -> None:
        """Go on with some of the rows; the adapters keep what the others have learned."""
        if rows == self._rows:
            return
        self.save()
        self.adam.keep([self._rows.index(row) for row in rows])
        self._rows = rows
        self.version += 1

    def save(self) -> None:
        """Let the adapters keep what the present rows have learned."""
        self.adapters.save(self._rows, self.adam.values)

    def predict(self, context: Context) -> "DocumentDistribution":
        """Return the distributions of a chunk of the present rows."""
        return DocumentDistribution(self, context)

    def states(self, ids_BT: Tensor, values: Sequence[Tensor]) -> Tensor:
        """Return the final states of windows from their first token on, [B, T, D]."""
        T = ids_BT.shape[1]
        self.adapters.use(values)
        with self.adapters.attached():
            embedded_BTD = self.model.embedded(ids_BT)
            return self.model.states(embedded_BTD, (self._cos_TR[:T], self._sin_TR[:T]))

    def logits(self, x_BCD: Tensor) -> Tensor:
        """Return logits of some states, [B, C, V]; the adapters in use add theirs."""
        return self.model.logits(x_BCD, self.adapters.added("head", 0, x_BCD))

    def learn(self, dist: "DocumentDistribution", targets_BC: Tensor, going_on: list[int]) -> None:
        """Take a step on the chunk of those rows (places in the batch) that go on."""
        nats_BC = -dist.log_probs_BCV.gather(2, targets_BC[:, :, None])[:, :, 0]
        nats_BC[going_on].mean(1).sum().backward()  # type: ignore[no-untyped-call]
        self.adam.step()
        self.version += 1


class DocumentDistribution:
    """The predictions of one chunk of all rows, valid until the adapters learn."""

    def __init__(self, predictor: Documents, context: Context) -> None:
        self._predictor, self._version, self._context = predictor, predictor.version, context
        self._windows = context.event.windows
        lengths = [window.end - window.start for window in self._windows]
        scored = [window.score_from - window.start for window in self._windows]
        # All rows stand at the same place of their documents.
        (self._from,) = set(scored)
        ids_BT = np.zeros((len(lengths), max(lengths)), dtype=np.int64)
        for row, window in enumerate(self._windows):
            ids_BT[row, : lengths[row]] = context.inputs(window)
        self._counts = [length - self._from for length in lengths]
        device = predictor.model.tok_emb.weight.device
        states_BTD = predictor.states(torch.from_numpy(ids_BT).to(device), predictor.adam.values)
        logits_BCV = predictor.logits(states_BTD[:, self._from :])
        self.log_probs_BCV = logits_BCV.log_softmax(-1)

    def log_prob(self, targets: IntArray) -> FloatArray:
        """Return the natural log-probability of the target of every scored position."""
        self._require_unchanged()
        with torch.no_grad():
            targets_BC = self.rectangle(targets)
            found_BC = self.log_probs_BCV.gather(2, targets_BC[:, :, None])[:, :, 0].double().cpu()
        rows = [row[:count] for row, count in zip(found_BC.numpy(), self._counts, strict=True)]
        # In float32 the softmax can round to just over 1.
        capped: FloatArray = np.minimum(np.concatenate(rows), 0.0)
        return capped

    def rectangle(self, targets: IntArray) -> Tensor:
        """Return targets as [B, C] on the model's device, ended rows filled up with 0."""
        filled_BC = np.zeros((len(self._counts), max(self._counts)), dtype=np.int64)
        at = 0
        for row, count in enumerate(self._counts):
            filled_BC[row, :count] = targets[at : at + count]
            at += count
        return torch.from_numpy(filled_BC).to(self.log_probs_BCV.device)

    @torch.no_grad()
    def row(self, position: int) -> FloatArray:
        """Return log p of all V tokens at a position, by another path than `log_prob`.

        The document runs alone with its adapters, cut right after the position, and the softmax is
        taken by NumPy in float64.
        """
        self._require_unchanged()
        window = self._context.event.window_of(position)
        place = self._windows.index(window)
        ids = torch.from_numpy(self._context.inputs(window, position + 1)[None].copy())
        values = [value[:, place : place + 1] for value in self._predictor.adam.values]
        states_BTD = self._predictor.states(ids.to(self.log_probs_BCV.device), values)
        return whole_row(self._predictor.logits(states_BTD[:, -1:])[0, 0])

    def _require_unchanged(self) -> None:
        if self._predictor.version != self._version:
            raise LedgerError("the adapters have changed since this prediction was made")


# ---------------------------------------------------------------------------------------------
# The evaluation


class Lanes:
    """The predictors of batches: those of one lane follow one another and share matrices A."""

    def __init__(self, model: GPT, config: TttConfig, seq_len: int, seed: int) -> None:
        self.model, self.config, self.seq_len, self.seed = model, config, seq_len, seed
        self._lanes: dict[int, Documents] = {}

    def take(self, batch: int) -> Documents:
        """Return the predictor of a batch: that of its lane, or with fresh matrices A."""
        config, number = self.config, batch % self.config.lora_lanes
        if number not in self._lanes:
            adapters = Adapters(
                self.model, config.lora_targets.split(), config.lora_rank, config.lora_alpha,
                config.lora_documents,
            )  # fmt: skip
            self._lanes[number] = Documents(self.model, adapters, config, self.seq_len)
        elif config.lora_warm:
            return self._lanes[number]
        # Warm or not, a lane's first A depends on its number alone, not on the process.
        draw = number if config.lora_warm else batch
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + draw)
        self._lanes[number].adapters.draw(generator)
        return self._lanes[number]


@contextmanager
def adapting(model: GPT) -> Iterator[None]:
    """While this lasts, a model takes adapters: plain, frozen, its gradients repeatable."""
    fused, model.fused = model.fused, None
    grads = [weight.requires_grad for weight in model.parameters()]
    model.requires_grad_(False)
    try:
        with evaluating(model), repeatable(model):
            yield
    finally:
        model.fused = fused
        for weight, needed in zip(model.parameters(), grads, strict=True):
            weight.requires_grad_(needed)


@dataclass(eq=False)
class _Lora:
    """What the evaluation of one process holds."""

    model: GPT
    ledger: Ledger
    score: ScoreConfig
    config: TttConfig
    lanes: Lanes

    def run(self, batch: Batch, advance: Callable[[int], None]) -> None:
        """Score a batch of documents, learning each from its own chunks."""
        lane = self.lanes.take(batch.index)
        lane.start(len(batch.documents))
        for step in batch.steps:
            lane.keep(step.rows)
            self._run_step(lane, step, batch)
            advance(len(step.event.positions))
        lane.save()

    def _run_step(self, lane: Documents, step: Step, batch: Batch) -> None:
        dist = lane.predict(self.ledger.context(step.event))
        self.ledger.commit(step.event, dist)
        if not step.going_on:
            return
        spans = [
            (d.start + step.first, min(d.start + step.end, d.stop))
            for d in (batch.documents[row] for row in step.rows)
        ]
        lessons = [self.ledger.lesson(first, end) for first, end in spans]
        targets_BC = dist.rectangle(np.concatenate([lesson.targets for lesson in lessons]))
        lane.learn(dist, targets_BC, [step.rows.index(row) for row in step.going_on])


def evaluate_lora(
    model: GPT,
    text: Text,
    score: ScoreConfig,
    config: TttConfig,
    *,
    seed: int,
    description: str,
    ranks: Ranks = ALONE,
    witness: Witness | None = None,
) -> Score:
    """Return the score of a model whose adapters learn every document as it is scored.

    The plain path runs, whatever the model's kernels. Without phases the model's weights stay as
    they are. Batches belong to lanes and lanes to `ranks`, so that the score does not depend on
    their number. Raises LedgerError if the account does not add up.
    """
    targets = usable_targets(len(text.ids), score.seq_len, score.truncate)
    if config.lora_sort:
        text = longest_first(text, targets)
    plan = batches(documents(text.ids, targets), config, score.seq_len)
    own = [b for b in plan if b.index % config.lora_lanes % ranks.world == ranks.rank]
    ledger = Ledger(
        text,
        targets,
        score.check_positions,
        seed,
        ROW_TOLERANCE_NATS[model.compute_dtype],
        spans=[Span(batch.steps[0].event.index, batch.positions) for batch in own],
        side_by_side=True,
        witness=witness or Witness(),
    )
    lanes = Lanes(model, config, score.seq_len, seed)
    state = _Lora(model, ledger, score, config, lanes)
    with progress(description, ledger.remaining) as advance:
        for first, end in itertools.pairwise(phase_bounds(len(plan), config.lora_phases)):
            if first:
                _phase(state, plan[first - 1].positions.stop, ranks)
            with adapting(model):
                for batch in own:
                    if first <= batch.index < end:
                        state.run(batch, advance)
    events = plan[-1].steps[-1].event.index + 1
    numbers = [batch.index for batch in own]
    return ledger.finish(gathering(ranks, numbers, len(plan), events))


def phase_bounds(count: int, phases: int) -> list[int]:
    """Return 0, the numbers of the batches before which all weights learn, and `count`.

    They divide the batches evenly; where there are fewer batches than that, so are phases.
    """
    inner = {count * n // (phases + 1) for n in range(1, phases + 1)} - {0}
    return [0, *sorted(inner), count]


def _phase(state: _Lora, end: int, ranks: Ranks) -> None:
    """Let all weights learn from the text scored so far, by chunks, with fresh momentum."""
    config = state.config
    learner = Sgd(state.model, config, state.score.seq_len, ranks)
    firsts = range(0, end, config.chunk_tokens)
    for index, first in enumerate(firsts):
        lesson = state.ledger.lesson(first, min(first + config.chunk_tokens, end), ranks.total)
        learner.learn(lesson, chunk_rate(config.lora_phase_lr, index, len(firsts)), 1)
