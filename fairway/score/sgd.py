"""Test-time training of all weights, chunk by chunk, each scored before it is learned (#1413).

The text is cut into chunks. The windows of a chunk are scored with the present weights. Then all
weights take a few steps of SGD on the chunk, which improves the score of the next one. The last
chunk is never learned, because no text follows it. Algorithms.md 5.3.

Shapes: B sequences, T = seq_len, N = B T positions, D width.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fairway.base.arrays import IntArray
from fairway.base.memory import free_bytes
from fairway.base.optimisers import without_compiler
from fairway.base.progress import progress
from fairway.config.settings import ScoreConfig, TttConfig
from fairway.machine.ranks import ALONE, Ranks
from fairway.model.gpt import GPT
from fairway.model.modes import mode
from fairway.model.need import learning_bytes, together, way_of
from fairway.score.evaluation import Evaluation
from fairway.score.ledger import Gather, Ledger, Score, Span
from fairway.score.predictor import Lesson
from fairway.score.share import gathering, share
from fairway.score.sliding import ROW_TOLERANCE_NATS, FrozenPredictor
from fairway.score.windows import Event, Window, events, sliding_windows

# Sequences per forward and backward pass: more need more memory and are not faster.
ROWS_AT_ONCE = 16
# SGD as in #1413: momentum (kept from chunk to chunk), the bound on the gradient's norm, and the
# most sequences of a step.
_MOMENTUM, _CLIP, _SEQUENCES = 0.9, 1.0, 32
_SGD = without_compiler(torch.optim.SGD)


# ---------------------------------------------------------------------------------------------
# Which windows belong to which chunk


@dataclass(frozen=True, slots=True)
class Chunk:
    """Positions first..end-1, scored by some events and then learned."""

    index: int
    first: int
    end: int
    events: tuple[Event, ...]


def chunks(targets: int, score: ScoreConfig, chunk_tokens: int) -> Iterator[Chunk]:
    """Yield the chunks of a text with the events that score them, in order.

    A window belongs to the chunk of its first scored position; the first window, which scores
    seq_len positions, must therefore fit the first chunk.
    """
    windows = sliding_windows(targets, score.seq_len, score.stride)
    index, count = 0, -(-targets // chunk_tokens)
    held: list[Window] = []
    for number in range(count):
        first, end = number * chunk_tokens, min((number + 1) * chunk_tokens, targets)
        while not held or held[-1].end < end:
            held.append(next(windows))
        grouped = tuple(events(held, score.batch_windows, index))
        yield Chunk(number, first, end, grouped)
        index += len(grouped)
        held = []


# ---------------------------------------------------------------------------------------------
# Learning


def chunk_rate(lr: float, index: int, count: int) -> float:
    """Return the rate of a chunk out of `count`: a cosine from `lr` to 0."""
    return lr * 0.5 * (1.0 + math.cos(math.pi * index / max(count - 1, 1)))


class Sgd:
    """SGD with momentum over all weights of a model, learning from lessons in whole sequences.

    With `fixed` the number of sequences per pass never depends on free memory, because decoding
    must repeat the sums of coding.
    """

    def __init__(
        self,
        model: GPT,
        config: TttConfig,
        seq_len: int,
        ranks: Ranks = ALONE,
        fixed: bool = False,
    ) -> None:
        self.model, self.config, self.seq_len, self.ranks = model, config, seq_len, ranks
        self.fixed = fixed
        self.weights = list(model.parameters())
        self.optimiser = _SGD(self.weights, momentum=_MOMENTUM)

    def learn(self, lesson: Lesson, lr: float, epochs: int) -> None:
        """Take one step per _SEQUENCES sequences and epoch; an incomplete sequence is left out.

        Each process computes the gradient of its share of a step's sequences, and all step by the
        sum, so that their weights stay equal.
        """
        count = len(lesson.targets) // self.seq_len
        for group in self.optimiser.param_groups:
            group["lr"] = lr
        for _ in range(epochs):
            for first in range(0, count, _SEQUENCES):
                self._step(lesson, range(first, min(first + _SEQUENCES, count)))

    def _step(self, lesson: Lesson, sequences: range) -> None:
        self.gradients(lesson, sequences)
        torch.nn.utils.clip_grad_norm_(self.weights, _CLIP)
        self.optimiser.step()
        # Owners of copied weights (the operations) check version counters.
        torch.autograd.graph.increment_version(self.weights)

    def gradients(self, lesson: Lesson, sequences: range) -> None:
        """Compute the gradients of the mean loss of some sequences, summed over the processes."""
        own = [sequences[n] for n in share(len(sequences), self.ranks)]
        for weight in self.weights:
            weight.grad = None
        count = self._at_once()
        for first in range(0, len(own), count):
            rows = own[first : first + count]
            with mode(self.model, in_order=True):
                loss = self._mean_loss(lesson, rows) * (len(rows) / len(sequences))
                loss.backward()  # type: ignore[no-untyped-call]
        self._add_gradients()

    def _at_once(self) -> int:
        """Return how many sequences run together; the free memory of a GPU may reduce them."""
        if self.fixed:
            return ROWS_AT_ONCE
        model, T = self.model, self.seq_len
        each = T * learning_bytes(model.config, way_of(model), model.looping, T)
        gradients = sum(weight.nbytes for weight in self.weights)
        return together(each, free_bytes(self.weights[0].device) - gradients, ROWS_AT_ONCE)

    def _mean_loss(self, lesson: Lesson, rows: list[int]) -> Tensor:
        loss: Tensor = self.model(
            *(self._rows(ids, rows) for ids in (lesson.inputs, lesson.targets))
        )
        return loss

    def _rows(self, values: IntArray, rows: list[int]) -> Tensor:
        whole = len(values) // self.seq_len * self.seq_len
        rows_BT = values[:whole].reshape(-1, self.seq_len)[rows]
        return torch.from_numpy(rows_BT).to(self.weights[0].device)

    def _add_gradients(self) -> None:
        """Sum the gradients over the processes; one without sequences adds zeros."""
        if self.ranks.world == 1:
            return
        for weight in self.weights:
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
            self.ranks.start_sum(weight.grad)()


# ---------------------------------------------------------------------------------------------
# The evaluation


def evaluate_sgd(model: GPT, asked: Evaluation) -> Score:
    """Return the score of a model that learns every chunk after its costs are recorded.

    The model's weights change; load it again for another evaluation. Each rank scores a share of a
    chunk's events, then all learn the whole chunk together. Experts stand beside the model, whose
    own loss alone it learns by. Raises LedgerError if the account is inconsistent.
    """
    score, config, ranks = asked.score, asked.ttt, asked.ranks
    plan = list(chunks(asked.targets, score, config.chunk_tokens))
    ledger, gather = _shared_ledger(model, asked, plan)
    predictor = asked.helped(FrozenPredictor(model, score.seq_len))
    learner = Sgd(model, config, score.seq_len, ranks)
    with mode(model), progress(asked.description, ledger.remaining) as advance:
        for chunk in plan:
            for number in share(len(chunk.events), ranks):
                event = chunk.events[number]
                ledger.commit(event, predictor.predict(ledger.context(event)))
                advance(len(event.positions))
            if chunk is not plan[-1]:
                lesson = ledger.lesson(chunk.first, chunk.end, ranks.total)
                rate = chunk_rate(config.lr, chunk.index, len(plan))
                learner.learn(lesson, rate, config.epochs)
        return ledger.finish(gather)


def _shared_ledger(model: GPT, asked: Evaluation, plan: list[Chunk]) -> tuple[Ledger, Gather]:
    """Return this process's ledger, with a span per chunk, and functions to join all ledgers."""
    ranks, spans, numbers = asked.ranks, [], []
    for chunk in plan:
        own = share(len(chunk.events), ranks)
        starts = [*(event.first for event in chunk.events), chunk.end]
        spans.append(
            Span(chunk.events[0].index + own.start, range(starts[own.start], starts[own.stop]))
        )
        numbers.append(chunk.index * ranks.world + ranks.rank)
    ledger = asked.ledger(ROW_TOLERANCE_NATS, model.compute_dtype, spans)
    count = sum(len(chunk.events) for chunk in plan)
    return ledger, gathering(ranks, numbers, len(plan) * ranks.world, count)
