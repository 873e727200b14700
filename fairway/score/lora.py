"""Test-time training of low-rank adapters, one set per document, scored before it is learned.

Documents are scored side by side, chunk by chunk. After each chunk every document's own adapters
take one step of AdamW on it, so that they know the document better as it goes on; the model itself
stays as it is, unless phases are asked for, in which all its weights learn from all that has been
scored. Pull request #1530 and its successors; algorithms.md 5.5 and 5.6.

One forward pass does both: its graph is kept until the chunk's cost is on record, and then tells
how to learn from it.

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
from fairway.config.checks import lora_context, lora_peers
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
from fairway.score.peers import Mean, Peers
from fairway.score.predictor import Context, Helped, Receipt
from fairway.score.sgd import Sgd, chunk_rate
from fairway.score.share import gathering
from fairway.score.sliding import FrozenPredictor, evaluate_windows, whole_row

# How far a position's cost may move between a batch of documents and its document alone. Logits are
# bfloat16 numbers of up to 30 there, whose neighbours lie 0.125 apart, and a batch of another shape
# adds in another order (largest difference seen on GPUs: 0.13).
ROW_TOLERANCE_NATS = {torch.float32: 0.02, torch.bfloat16: 0.25}

# SGD's rate of the first chunk of a phase, in which all weights learn from what is scored (#1530).
_PHASE_RATE = 0.001

# ---------------------------------------------------------------------------------------------
# One batch of documents


def _rope(model: GPT, config: TttConfig, seq_len: int) -> Rope:
    cos_TR, sin_TR = rope_table(seq_len, model.config, config.lora_rope == "ntk")
    device = model.tok_emb.weight.device
    return cos_TR.to(device), sin_TR.to(device)


class Documents:
    """The documents of a batch as a predictor: every row of the model's batch has its adapters.

    Rows that end leave their slot to the last one in use, so that those in use are the first.
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
            model, config.lora_targets.split(), config.lora_rank, config.lora_alpha
        )
        self.adam = AdamW(config, self.adapters.zeros(rows))
        self.way: Way = (Fused if fast else Plain)(self.adapters, self.adam)
        device = model.tok_emb.weight.device
        # Not a method: two that hold one another wait for the garbage collector, and gigabytes too.
        taken_bytes = functools.partial(row_bytes, self.adapters)
        self.halving = Halving(self.way, rows, device, fixed, taken_bytes)
        self.version = 0
        # The row in every slot that is in use, and the matrices A kept beyond this batch.
        self.rows: list[int] = []
        self._inner: list[Tensor] = []
        self._cos_TR, self._sin_TR = _rope(model, config, seq_len)

    @torch.no_grad()
    def start(self, rows: int, inner: list[Tensor]) -> None:
        """Begin a batch of some rows: A from `inner`, every B zero, fresh moments.

        Rows leave what they have learned of A in `inner`.
        """
        self.rows, self._inner = list(range(rows)), inner
        self.adam.start(rows)
        for value, kept in zip(self.adam.values[::2], inner, strict=True):
            value[:, :rows] = kept[:, :rows]
        for value in self.adam.values[1::2]:
            value[:, :rows].zero_()
        self.way.renew()
        self.halving.begin()
        self.version += 1

    @torch.no_grad()
    def keep(self, rows: tuple[int, ...]) -> None:
        """Go on with some of the rows; `inner` keeps what the others have learned."""
        for row in [row for row in self.rows if row not in rows]:
            slot, last = self.rows.index(row), len(self.rows) - 1
            self._save(slot)
            if slot < last:
                for tensor in (*self.adam.values, *self.adam.squares):
                    tensor[:, slot] = tensor[:, last]
                self.way.move(last, slot)
                self.rows[slot] = self.rows[last]
            self.rows.pop()
            self.version += 1
        self.adam.count = len(self.rows)

    def save(self) -> None:
        """Keep what the present rows have learned of A."""
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

    def predict(self, context: Context) -> "DocumentDistribution":
        """Return the distributions of a chunk of the present rows, a window each by rising row.

        Those of the chunk before answer no more: the next ones take their memory on a GPU.
        """
        self.version += 1
        return DocumentDistribution(self, context)

    def rope(self, length: int | None = None) -> Rope:
        """Return the rotary table of a window, or of its first positions."""
        return self._cos_TR[:length], self._sin_TR[:length]

    def learn(self, dist: "DocumentDistribution", targets_BC: Tensor, going_on: list[int]) -> None:
        """Take a step on the chunk of those windows (by place) that go on."""
        share_B = torch.tensor([float(place in going_on) for place in dist.places])
        self.adam.count_step()
        self.halving.learn(targets_BC, share_B.to(targets_BC.device))
        self.version += 1


class DocumentDistribution:
    """The predictions of one chunk of all rows, valid until the next or until adapters learn."""

    def __init__(self, predictor: Documents, context: Context) -> None:
        self._predictor, self._version, self._context = predictor, predictor.version, context
        self._windows = context.event.windows
        # The place among the windows of every slot.
        rising = sorted(predictor.rows)
        self.places = [rising.index(row) for row in predictor.rows]
        lengths = [window.end - window.start for window in self._windows]
        scored = [window.score_from - window.start for window in self._windows]
        # All rows stand at the same place of their documents.
        (first,) = set(scored)
        filled_BT = np.zeros((len(lengths), max(lengths)), dtype=np.int64)
        for slot, place in enumerate(self.places):
            filled_BT[slot, : lengths[place]] = context.inputs(self._windows[place])
        self._counts = [length - first for length in lengths]
        ids_BT = torch.from_numpy(filled_BT).to(predictor.model.tok_emb.weight.device)
        self.log_probs_BCV = predictor.halving.log_probs(ids_BT, predictor.rope(), first)

    def log_prob(self, targets: IntArray) -> FloatArray:
        """Return the natural log-probability of the target of every scored position."""
        self._require_unchanged()
        with torch.no_grad():
            targets_BC = self.rectangle(targets)
            found_BC = -double(chunk_nats(self.log_probs_BCV, targets_BC)).cpu()
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
        places = torch.tensor(rows[first:end], device=self.log_probs_BCV.device)
        return double(self.log_probs_BCV[places[:, 0], places[:, 1]]).log_softmax(-1)

    def rectangle(self, targets: IntArray) -> Tensor:
        """Return targets, window after window, as [B, C] on the model's device, slot by slot.

        Windows that end sooner are filled up with 0.
        """
        filled_BC = np.zeros((len(self._counts), max(self._counts)), dtype=np.int64)
        parts = np.split(targets, np.cumsum(self._counts)[:-1])
        for slot, place in enumerate(self.places):
            filled_BC[slot, : self._counts[place]] = parts[place]
        return torch.from_numpy(filled_BC).to(self.log_probs_BCV.device)

    @torch.no_grad()
    def row(self, position: int) -> FloatArray:
        """Return log p of all V tokens at a position, by another path than `log_prob`.

        The document runs alone with its adapters through the plain path, cut right after the
        position, and the softmax is taken by NumPy in float64.
        """
        self._require_unchanged()
        predictor = self._predictor
        window = self._context.event.window_of(position)
        row = sorted(predictor.rows)[self._windows.index(window)]
        ids = torch.from_numpy(self._context.inputs(window, position + 1)[None].copy())
        ids_BT, adapters = ids.to(self.log_probs_BCV.device), predictor.adapters
        rope = predictor.rope(ids_BT.shape[1])
        last_BCD = adapters.states(predictor.values_of([row]), ids_BT, rope)[:, -1:]
        extra = adapters.head(last_BCD)
        return whole_row(predictor.model.logits(last_BCD, extra)[0, 0])

    def _require_unchanged(self) -> None:
        if self._predictor.version != self._version:
            raise LedgerError("the adapters have learned or predicted since this prediction")


# ---------------------------------------------------------------------------------------------
# The evaluation


class _Made:
    """A predictor of one event, whose prediction is made already."""

    def __init__(self, dist: Mean) -> None:
        self._dist = dist

    def predict(self, context: Context) -> Mean:
        """Return the prediction."""
        return self._dist

    def adapt(self, receipt: Receipt) -> None:
        """Learn nothing: documents learn chunk by chunk."""


class Lanes:
    """Batches of one lane follow one another and share matrices A; one batch runs at a time.

    Created while the model still has the kernels that it shall use. `fixed` ones never compute a
    batch in parts.
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
        """Return the predictor of a batch: with A of its lane, or fresh ones."""
        config, number = self.config, batch % self.config.lora_lanes
        if number not in self._inner or not config.lora_warm:
            # Warm or not, a lane's first A depends on its number alone, not on the process.
            draw = number if config.lora_warm else batch
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + draw)
            drawn = self._documents.adapters.drawn(generator)
            self._inner.pop(number, None)
            self._inner[number] = self._for_all_rows(drawn)
        self._documents.start(rows, self._inner[number])
        return self._documents

    def _for_all_rows(self, drawn: list[Tensor]) -> list[Tensor]:
        """Return a copy of matrices A for every row, on the device where there is plenty of room.

        In host memory they cost a batch two copies: 0.5 s for the seed system's 128 rows.
        """
        count, device = self.config.lora_documents, drawn[0].device
        taken_bytes = count * sum(inner.nbytes for inner in drawn)
        if free_bytes(device) < ROOMS_BESIDE * taken_bytes:
            device = torch.device("cpu")
        return [inner.to(device).expand(-1, count, -1, -1).clone() for inner in drawn]


class PeerLanes:
    """Lanes of every set of adapters that predict together; their first A differ."""

    def __init__(
        self, model: GPT, config: TttConfig, seq_len: int, seed: int, fixed: bool = False
    ) -> None:
        self._lanes = [
            Lanes(model, peer, seq_len, seed + number, fixed)
            for number, peer in enumerate(lora_peers(config))
        ]

    def start(self, batch: int, rows: int) -> Peers[Documents]:
        """Return the predictor of a batch."""
        return Peers([lanes.start(batch, rows) for lanes in self._lanes])


@dataclass(eq=False)
class _Lora:
    """What the evaluation of one process holds."""

    model: GPT
    ledger: Ledger
    score: ScoreConfig
    config: TttConfig
    lanes: PeerLanes
    helped: Helped

    def run(self, batch: Batch, advance: Callable[[int], None]) -> None:
        """Score a batch of documents, learning each from its own chunks."""
        lane = self.lanes.start(batch.index, len(batch.documents))
        for step in batch.steps:
            lane.keep(step.rows)
            self._run_step(lane, step, batch)
            advance(len(step.event.positions))
        lane.save()

    def _run_step(self, lane: Peers[Documents], step: Step, batch: Batch) -> None:
        context = self.ledger.context(step.event)
        dist = lane.predict(context)
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
    """Return the score of a model whose adapters learn every document as it is scored.

    Without phases the model's weights stay as they are. Batches belong to lanes and lanes to ranks,
    so that the score does not depend on their number. Raises LedgerError if the account does not
    add up.
    """
    score, config, ranks, targets = asked.score, asked.ttt, asked.ranks, asked.targets
    if config.lora_sort:
        asked = replace(asked, text=longest_first(asked.text, targets))
    context = lora_context(config, score)
    plan = batches(documents(asked.text.ids, targets), config, context)
    own = [b for b in plan if b.index % config.lora_lanes % ranks.world == ranks.rank]
    spans = [Span(batch.steps[0].event.index, batch.positions) for batch in own]
    ledger = asked.ledger(ROW_TOLERANCE_NATS, model.compute_dtype, spans, side_by_side=True)
    lanes = PeerLanes(model, config, context, asked.seed)
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
    """Return the score of the same documents in the same windows by a model that learns nothing.

    What `evaluate_lora` gains over it is what it has learned.
    """
    found, context = documents(asked.text.ids, asked.targets), lora_context(asked.ttt, asked.score)
    frozen = FrozenPredictor(model, context, _rope(model, asked.ttt, context))
    return evaluate_windows(frozen, asked, lambda: unlearned_windows(found, asked.ttt, context))


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
        learner.learn(lesson, chunk_rate(_PHASE_RATE, index, len(firsts)), 1)
