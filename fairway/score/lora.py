"""Test-time training of low-rank adapters: one set per document; each chunk is scored, then
learned.

Documents are scored side by side, chunk by chunk. After each chunk the adapters of each document
take one step of AdamW on it, so they fit the later chunks of the document better. The model's
weights do not change, except in phases (a setting): there all weights learn from all text scored so
far. Pull request #1530 and its successors; algorithms.md 5.5 and 5.6.

One forward pass serves both purposes: its graph is kept until the ledger has recorded the cost of
the chunk, and then gives the gradients.

Shapes: B documents, T positions of a window, C positions of a chunk, D width, V vocabulary.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fairway.base.arrays import FloatArray, IntArray
from fairway.base.errors import LedgerError
from fairway.base.floats import double
from fairway.base.memory import free_bytes
from fairway.base.progress import progress
from fairway.config.checks import lora_factors
from fairway.config.settings import ScoreConfig, TttConfig
from fairway.machine.ranks import Ranks
from fairway.model.adapters import Adapters
from fairway.model.gpt import GPT, rope_table
from fairway.model.need import ROOMS_BESIDE
from fairway.model.operations import Rope
from fairway.score.adam import AdamW
from fairway.score.adapting import (
    Fused,
    Plain,
    Way,
    adapting,
    chunk_nats,
    row_bytes,
)
from fairway.score.documents import (
    Batch,
    Step,
    batches,
    documents,
    longest_first,
    unlearned_windows,
)
from fairway.score.evaluation import Evaluation
from fairway.score.halving import Halving
from fairway.score.ledger import Ledger, Score, Span
from fairway.score.predictor import Context, Helped, Lesson, Receipt
from fairway.score.sgd import Sgd, chunk_rate
from fairway.score.share import gathering
from fairway.score.sliding import (
    ROW_TOLERANCE_NATS,
    FrozenPredictor,
    evaluate_windows,
    whole_row,
)
from fairway.score.unadapted import Unadapted

# ---------------------------------------------------------------------------------------------
# One batch of documents


def _rope(model: GPT, seq_len: int) -> Rope:
    cos_TR, sin_TR = rope_table(seq_len, model.config)
    device = model.tok_emb.weight.device
    return cos_TR.to(device), sin_TR.to(device)


class Documents:
    """A predictor of the documents of a batch: each row of the batch has its own adapters.

    When the document of a row ends, the last slot in use moves into its slot, so the slots in use
    are always the first ones.
    """

    def __init__(
        self,
        model: GPT,
        config: TttConfig,
        seq_len: int,
        rows: int,
        fast: bool,
        fixed: bool = False,
    ) -> None:
        self.model, self.config, self.seq_len = model, config, seq_len
        self.adapters = Adapters(
            model,
            config.lora_targets.split(),
            config.lora_rank,
            config.lora_alpha,
            lora_factors(config),
            config.lora_logit_factor,
        )
        self.adam = AdamW(config, self.adapters.zeros(rows))
        self.way: Way = (Fused if fast else Plain)(self.adapters, self.adam)
        device = model.tok_emb.weight.device
        self._cos_TR, self._sin_TR = _rope(model, seq_len)
        self.unadapted = Unadapted(model, seq_len, rows, self.rope(), config.lora_frozen_share)
        # Not a method: two objects that refer to each other stay in memory until the garbage
        # collector runs, and these hold gigabytes.
        taken_bytes = functools.partial(row_bytes, self.adapters)
        self.halving = Halving(self.way, rows, device, fixed, taken_bytes)
        self.version = 0
        # The row in each slot in use, and the matrices A that outlive this batch.
        self.rows: list[int] = []
        self._inner: list[Tensor] = []

    @torch.no_grad()
    def start(self, rows: int, inner: list[Tensor]) -> None:
        """Begin a batch of some rows: A from `inner`, each B zero, fresh moments.

        Finished rows store their learned A in `inner`.
        """
        self.rows, self._inner = list(range(rows)), inner
        self.adam.start(rows)
        for value, kept in zip(self.adam.values[::2], inner, strict=True):
            value[:, :rows] = kept[:, :rows]
        for value in self.adam.values[1::2]:
            value[:, :rows].zero_()
        self.way.renew()
        self.halving.begin()
        self.unadapted.start()
        self.version += 1

    @torch.no_grad()
    def keep(self, rows: tuple[int, ...]) -> None:
        """Continue with some of the rows; `inner` keeps the learned A of the others."""
        for row in [row for row in self.rows if row not in rows]:
            slot, last = self.rows.index(row), len(self.rows) - 1
            self._save(slot)
            if slot < last:
                for tensor in (*self.adam.values, *self.adam.squares):
                    tensor[:, slot] = tensor[:, last]
                self.way.move(last, slot)
                self.unadapted.move(last, slot)
                self.rows[slot] = self.rows[last]
            self.rows.pop()
            self.version += 1
        self.adam.count = len(self.rows)

    def save(self) -> None:
        """Store the learned A of the present rows."""
        for slot in range(len(self.rows)):
            self._save(slot)

    @torch.no_grad()
    def _save(self, slot: int) -> None:
        for kept, value in zip(self._inner, self.adam.values[::2], strict=True):
            kept[:, self.rows[slot]] = value[:, slot]

    def values_of(self, rows: Sequence[int]) -> list[Tensor]:
        """Return copies of the matrices of some rows, in their order."""
        slots = [self.rows.index(row) for row in rows]
        return [value[:, slots] for value in self.adam.values]

    def predict(self, context: Context, at: int) -> "DocumentDistribution":
        """Return the distributions of a chunk of the present rows: one window per row, in ascending
        order; the chunk begins at position `at` of every document.

        The distributions of the previous chunk become invalid: on a GPU the new ones reuse their
        memory.
        """
        self.version += 1
        return DocumentDistribution(self, context, at)

    def rope(self, length: int | None = None) -> Rope:
        """Return the rotary table of a window, or of its first positions."""
        return self._cos_TR[:length], self._sin_TR[:length]

    def learn(self, dist: "DocumentDistribution", targets_BC: Tensor, going_on: list[int]) -> None:
        """Take a step on the chunk, for the windows (by index) whose documents continue."""
        share_B = torch.tensor([float(place in going_on) for place in dist.places])
        self.adam.count_step()
        self.halving.learn(targets_BC, share_B.to(targets_BC.device))
        self.version += 1


class DocumentDistribution:
    """The predictions of one chunk of all rows; valid until the next chunk or the next adapter
    step.

    They are the adapted model's, or averages of its probabilities and the unadapted model's.
    """

    def __init__(self, predictor: Documents, context: Context, at: int) -> None:
        self._predictor, self._version, self._context = predictor, predictor.version, context
        self._windows = context.event.windows
        # The index of each slot's window.
        rising = sorted(predictor.rows)
        self.places = [rising.index(row) for row in predictor.rows]
        lengths = [window.end - window.start for window in self._windows]
        scored = [window.score_from - window.start for window in self._windows]
        # All rows are at the same position of their documents.
        (first,) = set(scored)
        filled_BT = np.zeros((len(lengths), max(lengths)), dtype=np.int64)
        for slot, place in enumerate(self.places):
            filled_BT[slot, : lengths[place]] = context.inputs(self._windows[place])
        self._counts = [length - first for length in lengths]
        ids_BT = torch.from_numpy(filled_BT).to(predictor.model.tok_emb.weight.device)
        self.log_probs_BCV = predictor.halving.log_probs(ids_BT, predictor.rope(), first)
        self._beside = predictor.unadapted.chunk(filled_BT, first, at)

    def log_prob(self, targets: IntArray) -> FloatArray:
        """Return the natural log-probability of the target of every scored position."""
        self._require_unchanged()
        with torch.no_grad():
            targets_BC = self.rectangle(targets)
            found_BC = -double(chunk_nats(self.log_probs_BCV, targets_BC))
            found_BC = self._beside.log_prob(found_BC, targets_BC).cpu()
        by_place = found_BC.numpy()[np.argsort(self.places)]
        rows = [row[:count] for row, count in zip(by_place, self._counts, strict=True)]
        # In float32 the softmax can round to just over 1.
        capped: FloatArray = np.minimum(np.concatenate(rows), 0.0)
        return capped

    @torch.no_grad()
    def tables(self, first: int, end: int) -> Tensor:
        """Return log p of all V tokens at the scored positions first..end-1, in float64."""
        self._require_unchanged()
        slots = np.argsort(self.places)
        rows = [(slots[n], at) for n, count in enumerate(self._counts) for at in range(count)]
        places = torch.tensor(rows[first:end], device=self.log_probs_BCV.device).unbind(1)
        table_NV = double(self.log_probs_BCV[places]).log_softmax(-1)
        return self._beside.tables(table_NV, places)

    def rectangle(self, targets: IntArray) -> Tensor:
        """Return targets, window after window, as [B, C] on the model's device, slot by slot.

        Shorter windows are padded with 0.
        """
        filled_BC = np.zeros((len(self._counts), max(self._counts)), dtype=np.int64)
        parts = np.split(targets, np.cumsum(self._counts)[:-1])
        for slot, place in enumerate(self.places):
            filled_BC[slot, : self._counts[place]] = parts[place]
        return torch.from_numpy(filled_BC).to(self.log_probs_BCV.device)

    @torch.no_grad()
    def row(self, position: int) -> FloatArray:
        """Return log p of all V tokens at a position, computed independently of `log_prob`.

        The document runs alone with its adapters through the plain path, cut right after the
        position, and the softmax is taken by NumPy in float64.
        """
        self._require_unchanged()
        predictor = self._predictor
        window = self._context.event.window_of(position)
        row = sorted(predictor.rows)[self._windows.index(window)]
        inputs = self._context.inputs(window, position + 1)
        ids = torch.from_numpy(inputs[None].copy())
        ids_BT, adapters = ids.to(self.log_probs_BCV.device), predictor.adapters
        rope = predictor.rope(ids_BT.shape[1])
        last_BCD = adapters.states(predictor.values_of([row]), ids_BT, rope)[:, -1:]
        extra = adapters.head(last_BCD)
        return self._beside.row(whole_row(adapters.logits(last_BCD, extra)[0, 0]), inputs)

    def _require_unchanged(self) -> None:
        if self._predictor.version != self._version:
            raise LedgerError("the adapters have learned or predicted since this prediction")


# ---------------------------------------------------------------------------------------------
# The evaluation


class _Made:
    """A predictor of one event with a prediction computed beforehand."""

    def __init__(self, dist: DocumentDistribution) -> None:
        self._dist = dist

    def predict(self, context: Context) -> DocumentDistribution:
        """Return the prediction."""
        return self._dist

    def adapt(self, receipt: Receipt) -> None:
        """Learn nothing: documents learn chunk by chunk."""


class Lanes:
    """A lane is a sequence of batches that share matrices A; one batch runs at a time.

    Create it after the model's kernels are chosen. With `fixed` a batch is never computed in parts.
    """

    def __init__(
        self, model: GPT, config: TttConfig, seq_len: int, seed: int, fixed: bool = False
    ) -> None:
        self.config, self.seed = config, seed
        fast = model.operations.fused
        rows = config.lora_documents
        self._documents = Documents(model, config, seq_len, rows, fast, fixed)
        self._inner: dict[int, list[Tensor]] = {}

    def start(self, batch: int, rows: int) -> Documents:
        """Return the predictor of a batch, with the matrices A of its lane, fresh ones at first."""
        number = batch % self.config.lora_lanes
        if number not in self._inner:
            # A lane's first A depends on its number alone, not on the process.
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
            self._inner[number] = self._for_all_rows(self._documents.adapters.drawn(generator))
        self._documents.start(rows, self._inner[number])
        return self._documents

    def _for_all_rows(self, drawn: list[Tensor]) -> list[Tensor]:
        """Return a copy of matrices A for each row; on the device if it has ample memory.

        In host memory they cost a batch two copies: 0.5 s for the seed system's 128 rows.
        """
        count, device = self.config.lora_documents, drawn[0].device
        taken_bytes = count * sum(inner.nbytes for inner in drawn)
        if free_bytes(device) < ROOMS_BESIDE * taken_bytes:
            device = torch.device("cpu")
        return [inner.to(device).expand(-1, count, -1, -1).clone() for inner in drawn]


@dataclass(eq=False)
class _Lora:
    """The objects that the evaluation of one process needs."""

    model: GPT
    ledger: Ledger
    score: ScoreConfig
    config: TttConfig
    lanes: Lanes
    helped: Helped

    def run(self, batch: Batch, advance: Callable[[int], None]) -> None:
        """Score a batch of documents; the adapters of each document learn from its chunks."""
        lane = self.lanes.start(batch.index, len(batch.documents))
        for step in batch.steps:
            lane.keep(step.rows)
            self._run_step(lane, step, batch)
            advance(len(step.event.positions))
        lane.save()

    def _run_step(self, lane: Documents, step: Step, batch: Batch) -> None:
        context = self.ledger.context(step.event)
        dist = lane.predict(context, step.first)
        self.ledger.commit(step.event, self.helped(_Made(dist)).predict(context))
        if not step.going_on:
            return
        spans = [
            (d.start + step.first, min(d.start + step.end, d.stop))
            for d in (batch.documents[row] for row in step.rows)
        ]
        lessons = [self.ledger.lesson(first, end) for first, end in spans]
        targets_BC = dist.rectangle(np.concatenate([lesson.targets for lesson in lessons]))
        lane.learn(dist, targets_BC, [step.rows.index(row) for row in step.going_on])


def evaluate_lora(model: GPT, asked: Evaluation) -> Score:
    """Return the score of a model whose adapters learn each document while it is scored.

    Without phases the model's weights do not change. Each batch belongs to a lane and each lane to
    a rank, so the score does not depend on the number of ranks. Raises LedgerError if the account
    is not consistent.
    """
    score, config, ranks, targets = asked.score, asked.ttt, asked.ranks, asked.targets
    if config.lora_sort:
        asked = replace(asked, text=longest_first(asked.text, targets))
    plan = batches(documents(asked.text.ids, targets), config, score.seq_len)
    own = [b for b in plan if b.index % config.lora_lanes % ranks.world == ranks.rank]
    spans = [Span(batch.steps[0].event.index, batch.positions) for batch in own]
    ledger = asked.ledger(ROW_TOLERANCE_NATS, model.compute_dtype, spans, side_by_side=True)
    lanes = Lanes(model, config, score.seq_len, asked.seed)
    state = _Lora(model, ledger, score, config, lanes, asked.helped)
    with progress(asked.description, ledger.remaining) as advance:
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


def evaluate_unlearned(model: GPT, asked: Evaluation) -> Score:
    """Return the score of the same documents in the same windows without learning.

    The difference from `evaluate_lora` is the gain by learning.
    """
    found, T = documents(asked.text.ids, asked.targets), asked.score.seq_len
    frozen = FrozenPredictor(model, T, _rope(model, T))
    return evaluate_windows(frozen, asked, lambda: unlearned_windows(found, asked.ttt, T))


def phase_bounds(count: int, phases: int) -> list[int]:
    """Return 0, the indices of the batches before which all weights learn, and `count`.

    The phases divide the batches evenly; there are at most as many phases as batches.
    """
    inner = {count * n // (phases + 1) for n in range(1, phases + 1)} - {0}
    return [0, *sorted(inner), count]


def _phase(state: _Lora, end: int, ranks: Ranks) -> None:
    """Train all weights on the text scored so far."""
    learner = Sgd(state.model, state.config, state.score.seq_len, ranks)
    learn_again(learner, end, lambda first, stop: state.ledger.lesson(first, stop, ranks.total))


def learn_again(learner: Sgd, end: int, lesson: Callable[[int, int], Lesson]) -> None:
    """Train all weights on the positions before `end`, chunk by chunk, once.

    The learner must be new, so that momentum starts at zero. The rate falls from `ttt.lr` to 0.
    `lesson` returns the tokens of the positions first..stop-1.
    """
    config = learner.config
    firsts = range(0, end, config.chunk_tokens)
    for index, first in enumerate(firsts):
        rate = chunk_rate(config.lr, index, len(firsts))
        learner.learn(lesson(first, min(first + config.chunk_tokens, end)), rate, 1)
