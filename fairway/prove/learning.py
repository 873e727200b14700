"""Methods whose model learns during the walk: encoder and decoder learn the same from the same
tokens.

They are the two methods of test-time training (`score.sgd`, `score.lora`), with the same steps on
the same tokens in the same order. A learner reads only fixed tokens: the decoder has already
decoded them.

Shapes: S rows, B rows whose document has not ended, T positions, C positions of a chunk, D width.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from fairway.api import LanguageModel
from fairway.base.arrays import IntArray
from fairway.base.errors import UserError
from fairway.config.checks import check_learning
from fairway.config.settings import BOS_ID, MAX_STREAMS, ScoreConfig, TttConfig
from fairway.data.tokens import Tokenizer
from fairway.model.block import Adapters
from fairway.model.gpt import GPT
from fairway.model.modes import mode
from fairway.prove.streams import Stream
from fairway.prove.unadapted import UnadaptedWalk
from fairway.prove.walk import Course, Fixed, Frozen, Segment, Segments, window_segments
from fairway.score.adapting import adapting
from fairway.score.documents import chunk_bounds
from fairway.score.evaluation import Evaluation
from fairway.score.ledger import Text, Witness
from fairway.score.lora import Documents, Lanes, evaluate_lora, learn_again, phase_bounds
from fairway.score.predictor import Context, Lesson, Receipt
from fairway.score.sgd import Sgd, chunk_rate, evaluate_sgd
from fairway.score.sliding import text_of
from fairway.score.windows import Event, Window


def proven_text(language: LanguageModel, streams: Sequence[IntArray]) -> Text:
    """Return streams as one text, with the number of bytes of their documents."""
    ids = np.concatenate(list(streams))
    text_bytes = sum(map(len, language.packer.documents(ids)))
    return text_of(ids, language.tokenizer.table, text_bytes)


# ---------------------------------------------------------------------------------------------
# All weights, chunk by chunk


@dataclass(frozen=True, slots=True)
class ChunkSgd:
    """All weights learn every chunk but the last; one stream under the sliding window."""

    ttt: TttConfig

    def cut(self, ids: IntArray, count: int, tokenizer: Tokenizer) -> list[Stream]:
        """Return the whole text as one stream, so that later documents profit from earlier ones."""
        return [Stream(ids, False)]

    def segments(self, targets: int, score: ScoreConfig) -> Segments:
        """Return the windows of `score.windows`; UserError if chunks would cut some."""
        self._check(score)
        return window_segments(targets, score.seq_len, score.stride)

    def _check(self, score: ScoreConfig) -> None:
        check_learning("sgd", self.ttt, score)

    def learner(self, language: LanguageModel, course: Course) -> "ChunkLearner":
        """Return a learner that changes the weights; UserError for several streams."""
        if len(course.targets) > 1:
            count = len(course.targets)
            raise UserError(f"method sgd uses one stream, but there are {count:,}")
        return ChunkLearner(language.model, self.ttt, course)

    def scorer_nats(self, language: LanguageModel, streams: Sequence[IntArray]) -> float:
        """Return the nats of the text by `evaluate_sgd`, in windows side by side."""
        model, config = language.model, replace(language.score_config, truncate=False)
        self._check(config)
        text = proven_text(language, streams)
        with mode(model, restored=True):
            asked = Evaluation(text, config, self.ttt, description="scoring")
            return evaluate_sgd(model, asked).nats


class ChunkLearner(Frozen):
    """Learns a chunk as soon as its last token is fixed, unless it is the last chunk."""

    def __init__(self, model: GPT, ttt: TttConfig, course: Course) -> None:
        super().__init__(model)
        self._sgd = Sgd(model, ttt, course.seq_len, fixed=True)
        self._ttt, self._bos_id = ttt, course.bos_id
        self._chunks = -(-sum(course.targets) // ttt.chunk_tokens)
        self._index = 0
        self._ids: list[IntArray] = []

    def begin(self, streams: range) -> None:
        """Begin with the BOS, which is an input but no target."""
        self._ids = [np.array([self._bos_id])]

    def adapt(self, fixed: Fixed) -> None:
        """Keep the fixed tokens; learn them at the end of a chunk if another one follows."""
        self._ids += fixed.ids
        ended = fixed.segment.end == (self._index + 1) * self._ttt.chunk_tokens
        if not ended or self._index == self._chunks - 1:
            return
        ids = np.concatenate(self._ids)
        lesson = Lesson(ids[:-1], ids[1:])
        rate = chunk_rate(self._ttt.lr, self._index, self._chunks)
        self._sgd.learn(lesson, rate, self._ttt.epochs)
        self._ids = [ids[-1:]]
        self._index += 1


# ---------------------------------------------------------------------------------------------
# Adapters, document by document


@dataclass(frozen=True, slots=True)
class DocumentLora:
    """Each document has adapters that learn from it; `ttt.lora_documents` are coded side by side.

    seed: the seed of the adapters' matrices A.
    """

    ttt: TttConfig
    seed: int

    def cut(self, ids: IntArray, count: int, tokenizer: Tokenizer) -> list[Stream]:
        """Return the documents, one stream each."""
        if tokenizer.bos_id != BOS_ID:
            raise UserError(
                f"this tokenizer begins documents with token {tokenizer.bos_id}, but method lora "
                f"needs token {BOS_ID} there; choose another method"
            )
        starts = np.flatnonzero(ids == BOS_ID)
        return [Stream(part, False) for part in np.split(ids, starts[1:])]

    def segments(self, targets: int, score: ScoreConfig) -> Segments:
        """Return the chunks of `score.documents`; UserError for settings that do not fit."""
        self._check(score)

        def made() -> Iterator[Segment]:
            for first, end in chunk_bounds(self.ttt, targets):
                yield Segment(max(0, end - score.seq_len), first, end)

        return Segments(made)

    def _check(self, score: ScoreConfig) -> None:
        check_learning("lora", self.ttt, score)
        if self.ttt.lora_documents > MAX_STREAMS or not 0 <= self.seed < 2**32:
            raise UserError(
                f"{self.ttt.lora_documents} documents side by side and the seed {self.seed} must "
                f"be at most {MAX_STREAMS} and below 2^32; set ttt.lora_documents"
            )

    def learner(self, language: LanguageModel, course: Course) -> "DocumentLearner":
        """Return a learner that changes adapters; UserError for more rows than adapters."""
        if course.rows > self.ttt.lora_documents:
            raise UserError(
                f"{course.rows} rows cannot have the adapters of {self.ttt.lora_documents}"
            )
        lanes = Lanes(language.model, self.ttt, course.seq_len, self.seed, fixed=True)
        return DocumentLearner(language.model, self.ttt, lanes, course)

    def scorer_nats(self, language: LanguageModel, streams: Sequence[IntArray]) -> float:
        """Return the nats of the documents by `evaluate_lora`, without the nats of their ends."""
        config = replace(language.score_config, truncate=False)
        self._check(config)
        paid = _Paid()
        text = proven_text(language, streams)
        asked = Evaluation(text, config, self.ttt, self.seed, "scoring", witness=paid)
        # Phases change the weights.
        with mode(language.model, restored=True):
            evaluate_lora(language.model, asked)
        return sum(paid.nats)


class _Paid(Witness):
    """Sums the costs of all tokens but BOS, event by event."""

    def __init__(self) -> None:
        self.nats: list[float] = []

    def scored(self, receipt: Receipt) -> None:
        """Add the cost of an event."""
        self.nats.append(float(receipt.nats[receipt.targets != BOS_ID].sum()))


class DocumentLearner(Frozen):
    """The adapters of the rows, as in `score.lora`; rows without a document have zeros.

    Each document but the last counts as one position longer than its tokens to predict, since the
    scorer also predicts its end. So the same rows take the same steps as in the scorer.
    """

    # The attached adapters are new tensors after each chunk.
    steady = False

    def __init__(self, model: GPT, ttt: TttConfig, lanes: Lanes, course: Course) -> None:
        super().__init__(model)
        self._ttt, self._lanes, self._course = ttt, lanes, course
        self._unadapted = UnadaptedWalk(model, course, ttt.lora_frozen_share)
        self._chunks: Iterator[Segment] = iter(())
        self._chunk = Segment(0, 0, 0)
        last = len(course.targets) - 1
        self._lengths = [count + (n < last) for n, count in enumerate(course.targets)]
        batches = -(-len(course.targets) // course.rows)
        # The batches before which all weights learn, and all documents of the batches before them.
        self._phases = phase_bounds(batches, ttt.lora_phases)[1:-1]
        self._past: list[IntArray] = []
        self._batch = 0
        self._documents: Documents
        self._streams = range(0)
        self._rows: tuple[int, ...] = ()
        self._ids: list[IntArray] = []

    def begin(self, streams: range) -> None:
        """Begin a batch of documents with fresh adapters, or with the adapters of its lane."""
        if streams.start:
            self._documents.save()
            self._past += self._ids
        if self._batch in self._phases:
            self._learn_again()
        self._documents = self._lanes.start(self._batch, len(streams))
        self._batch += 1
        self._streams, self._rows = streams, tuple(range(len(streams)))
        self._chunks = iter(self._course.segments)
        self._ids = [np.array([self._course.bos_id]) for _ in streams]
        self._unadapted.begin()

    def _learn_again(self) -> None:
        """Train all weights on all documents so far, up to the BOS that begins the next one."""
        ids = np.concatenate([*self._past, [self._course.bos_id]])
        learner = Sgd(self._model, self._ttt, self._course.seq_len, fixed=True)
        learn_again(learner, len(ids) - 1, lambda a, b: Lesson(ids[a:b], ids[a + 1 : b + 1]))

    @contextmanager
    def predicting(self) -> Iterator[Adapters]:
        """Attach the adapters of all rows while a segment is walked."""
        self._chunk = next(self._chunks)
        self._unadapted.enter(self._chunk, self._ids)
        adapters, values = self._documents.adapters, self._documents.values_of(self._rows)
        adapters.use([self._of_all_rows(value) for value in values])
        with adapting(self._model):
            yield adapters

    def _of_all_rows(self, value: Tensor) -> Tensor:
        """Return matrices for all S rows: those of the B present rows, and zeros for the others."""
        whole = value.new_zeros(value.shape[0], self._course.rows, *value.shape[2:])
        whole[:, list(self._rows)] = value
        return whole

    def logits(self, states_SD: Tensor) -> Tensor:
        """Return the model's logits plus the addition of the head's adapters."""
        states_S1D = states_SD[:, None]
        adapters = self._documents.adapters
        return adapters.logits(states_S1D, adapters.head(states_S1D))[:, 0]

    def mixed(self, active_A: IntArray, previous_S: Tensor, log_probs_SV: Tensor) -> Tensor:
        """Return averages with the model itself, if `ttt.lora_frozen_share` wants them."""
        return self._unadapted.mixed(previous_S, log_probs_SV)

    def adapt(self, fixed: Fixed) -> None:
        """Let the rows whose document continues learn the chunk; drop the others before the next
        chunk."""
        # The fixed tokens end with the longest document; a chunk has its full length.
        first, end = self._chunk.first, self._chunk.end
        assert first == fixed.segment.first, "chunks come in their order"
        lengths = [self._lengths[stream] for stream in self._streams]
        for row, ids in enumerate(fixed.ids):
            self._ids[row] = np.append(self._ids[row], ids)
        going_on = [place for place, row in enumerate(self._rows) if lengths[row] > end]
        if going_on:
            self._learn(Segment(fixed.segment.start, first, end), going_on)
            # The scorer drops rows when the next chunk begins; nothing reads the rows in between.
            self._rows = tuple(row for row in self._rows if lengths[row] > end)
            self._documents.keep(self._rows)

    def _learn(self, chunk: Segment, going_on: list[int]) -> None:
        context = self._context(chunk)
        parts = [self._ids[row][chunk.first + 1 : chunk.end + 1] for row in self._rows]
        with adapting(self._model):
            dist = self._documents.predict(context, chunk.first)
            targets_BC = dist.rectangle(_filled(parts, context.event))
            self._documents.learn(dist, targets_BC, going_on)

    def _context(self, chunk: Segment) -> Context:
        """Return the chunk of the present rows as one event, one document after another."""
        ids: dict[Window, IntArray] = {}
        at = 0
        for row in self._rows:
            end = min(chunk.end, self._lengths[self._streams[row]])
            window = Window(at + chunk.start, at + end, at + chunk.first)
            ids[window] = self._ids[row][chunk.start : end]
            at = window.end
        return Context(Event(0, tuple(ids)), ids)


def _filled(parts: list[IntArray], event: Event) -> IntArray:
    """Return the targets of an event; 0 for the end of a document, which has no effect on
    learning."""
    filled = [
        np.append(part, np.zeros(window.end - window.score_from - len(part), np.int64))
        for part, window in zip(parts, event.windows, strict=True)
    ]
    return np.concatenate(filled)
