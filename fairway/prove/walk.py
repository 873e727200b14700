"""The walk through a text that encoder and decoder share: read, predict, fix a token, read it.

Both sides run this code with this model and the same shapes, so that all numbers agree to the bit;
they differ in the source alone, which gives the token that was predicted: the encoder's source
knows it and writes it down, the decoder's reads it from the file.

A *stream* is a sequence of tokens behind a BOS, which nobody has to predict. Streams know nothing
of one another. `rows` of them go side by side; a row whose stream has ended reads on with
dummies, and what it predicts is ignored.

Shapes: S rows, T time, V vocabulary, A streams that have not ended.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fairway.model.cache import Cache
from fairway.model.gpt import GPT
from fairway.prove.coder import Decoder, Encoder, cost_bits, frequencies
from fairway.score.windows import sliding_windows

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]
Number = TypeVar("Number", np.int64, np.float64)


# ---------------------------------------------------------------------------------------------
# Where to go


@dataclass(frozen=True, slots=True)
class Segment:
    """Tokens start..first are read at once, then the positions first..end-1 predicted in turn.

    Position p reads token p and predicts token p + 1, as in `score.windows`.
    """

    start: int
    first: int
    end: int


def window_segments(targets: int, seq_len: int, stride: int) -> tuple[Segment, ...]:
    """Return the segments in which the sliding scorer's windows see `targets` positions."""
    if not targets:
        return ()
    windows = sliding_windows(targets, seq_len, stride)
    return tuple(Segment(window.start, window.score_from, window.end) for window in windows)


@dataclass(frozen=True, slots=True)
class Course:
    """What is walked: streams of so many `targets`, `rows` at a time, by common segments.

    The segments must score the positions 0, 1, 2, ... of the longest stream once and in order;
    shorter streams end within one. None may see more than `seq_len` tokens.
    """

    targets: tuple[int, ...]
    rows: int
    seq_len: int
    bos_id: int
    segments: tuple[Segment, ...]

    def groups(self) -> list[range]:
        """Return the streams that go side by side."""
        count = len(self.targets)
        return [range(at, min(at + self.rows, count)) for at in range(0, count, self.rows)]


# ---------------------------------------------------------------------------------------------
# Who takes part


class Source(Protocol):
    """What knows the tokens: the text itself, or a file that was made from it."""

    def next(self, stream: int, position: int, counts_V: IntArray) -> int:
        """Return the token that a stream's position predicts, given its exact frequencies."""


class Known:
    """Tokens that are known, which an encoder writes down; a stream's BOS is left out."""

    def __init__(self, streams: Sequence[IntArray], encoder: Encoder) -> None:
        self._streams, self._encoder = streams, encoder

    def next(self, stream: int, position: int, counts_V: IntArray) -> int:
        """Return the stream's token and write it down."""
        token = int(self._streams[stream][position])
        self._encoder.encode(int(counts_V[:token].sum()), int(counts_V[token]))
        return token


class Coded:
    """Tokens as a decoder finds them."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder

    def next(self, stream: int, position: int, counts_V: IntArray) -> int:
        """Return the next token of the file."""
        return self._decoder.decode(counts_V)


@dataclass(frozen=True, slots=True, eq=False)
class Fixed:
    """What a segment fixed: for each of `streams` the tokens that its positions predicted.

    ids: int64 and nats: float64, one array per stream, for the positions first..end-1 of the
    segment, or fewer where the stream ends. Nothing else may be learned from.
    """

    streams: range
    segment: Segment
    ids: tuple[IntArray, ...]
    nats: tuple[FloatArray, ...]


class Learner(Protocol):
    """Changes the model between segments, by what both sides know: the tokens that are fixed.

    It must be deterministic. After `adapt` the window is read anew, so weights may change freely;
    while a segment is walked they may not. One that changes weights in place alone is `steady`.
    """

    @property
    def steady(self) -> bool:
        """Return whether launches that were recorded once go on computing the model."""

    def begin(self, streams: range) -> None:
        """Prepare for streams that start now, in rows 0, 1, ..."""

    def predicting(self) -> AbstractContextManager[object]:
        """Return what is entered while a segment is walked: the model as it has learned."""

    def logits(self, states_SD: Tensor) -> Tensor:
        """Return the capped logits [S, V] of final states of all rows."""

    def mixed(self, stream: int, previous: int, log_probs_V: FloatArray) -> FloatArray:
        """Return log p of all tokens after `previous`, given the model's; the coder's are these."""

    def heard(self, stream: int, token: int) -> None:
        """Learn the token that was fixed, if it was asked for by `mixed`."""

    def adapt(self, fixed: Fixed) -> None:
        """Learn from a segment that was walked."""


class Frozen:
    """Learns nothing: the sliding scorer's model."""

    steady = True

    def __init__(self, model: GPT) -> None:
        self._model = model

    def begin(self, streams: range) -> None:
        """Leave the model as it is."""

    def predicting(self) -> AbstractContextManager[object]:
        """Leave the model as it is."""
        return nullcontext()

    def logits(self, states_SD: Tensor) -> Tensor:
        """Return the model's own."""
        return self._model.logits(states_SD)

    def mixed(self, stream: int, previous: int, log_probs_V: FloatArray) -> FloatArray:
        """Return the model's own."""
        return log_probs_V

    def heard(self, stream: int, token: int) -> None:
        """Learn nothing."""

    def adapt(self, fixed: Fixed) -> None:
        """Leave the model as it is."""


# ---------------------------------------------------------------------------------------------
# The walk


@dataclass(frozen=True, slots=True, eq=False)
class Walked:
    """What a walk found: tokens without BOS and nats by stream, and the cost of all frequencies.

    `nats` are minus the log-probabilities before they became frequencies.
    """

    ids: tuple[IntArray, ...]
    nats: tuple[FloatArray, ...]
    frequency_bits: float


def walk(
    model: GPT,
    course: Course,
    source: Source,
    learner: Learner,
    advance: Callable[[int], None],
) -> Walked:
    """Return the tokens of all streams and what they cost; `advance` hears of every token."""
    cache = Cache(model, course.rows, course.seq_len, learner.steady)
    groups = [_Group(cache, course, streams, source, learner) for streams in course.groups()]
    for group in groups:
        learner.begin(group.streams)
        for segment in group.segments:
            with learner.predicting():
                fixed = group.walk(segment, advance)
            learner.adapt(fixed)
    return Walked(
        tuple(ids for group in groups for ids in group.result(group.ids_ST[:, 1:])),
        tuple(nats for group in groups for nats in group.result(group.nats_ST)),
        sum(group.frequency_bits for group in groups),
    )


class _Group:
    """Streams side by side: their tokens so far, and what these cost."""

    def __init__(
        self, cache: Cache, course: Course, streams: range, source: Source, learner: Learner
    ) -> None:
        self.cache, self.streams = cache, streams
        self.source, self.learner = source, learner
        self.targets_S = np.zeros(course.rows, np.int64)
        self.targets_S[: len(streams)] = course.targets[streams.start : streams.stop]
        longest = int(self.targets_S.max())
        self.segments = [s for s in course.segments if s.first < longest]
        self.ids_ST = np.zeros((course.rows, longest + 1), np.int64)
        self.ids_ST[:, 0] = course.bos_id
        self.nats_ST = np.zeros((course.rows, longest))
        self.frequency_bits = 0.0

    def walk(self, segment: Segment, advance: Callable[[int], None]) -> Fixed:
        """Predict and fix the positions of a segment."""
        end = min(segment.end, self.ids_ST.shape[1] - 1)
        self.cache.clear()
        unread = segment.start
        for position in range(segment.first, end):
            log_probs_SV = self._predict(unread, position + 1)
            active_A = np.flatnonzero(self.targets_S > position)
            self._fix(position, active_A, log_probs_SV[active_A])
            unread = position + 1
            advance(len(active_A))
        return Fixed(
            self.streams,
            Segment(segment.start, segment.first, end),
            self.result(self.ids_ST[:, 1:], segment.first, end),
            self.result(self.nats_ST, segment.first, end),
        )

    @torch.no_grad()
    def _predict(self, first: int, end: int) -> FloatArray:
        """Return log p of what follows after the tokens first..end-1 are read too, [S, V]."""
        ids_ST = torch.from_numpy(self.ids_ST[:, first:end])
        last_SD = self.cache.read(ids_ST)[:, -1]
        log_probs_SV = self.learner.logits(last_SD).double().log_softmax(-1)
        return np.asarray(log_probs_SV.cpu().numpy())

    def _fix(self, position: int, active_A: IntArray, log_probs_AV: FloatArray) -> None:
        streams = [self.streams[row] for row in active_A.tolist()]
        previous = self.ids_ST[active_A, position].tolist()
        mixed_AV = np.stack(
            [
                self.learner.mixed(stream, before, log_probs_V)
                for stream, before, log_probs_V in zip(streams, previous, log_probs_AV, strict=True)
            ]
        )
        counts_AV = frequencies(mixed_AV)
        for row, stream, log_probs_V, counts_V in zip(
            active_A, streams, mixed_AV, counts_AV, strict=True
        ):
            token = self.source.next(stream, position, counts_V)
            self.ids_ST[row, position + 1] = token
            self.nats_ST[row, position] = -log_probs_V[token]
            self.frequency_bits += cost_bits(int(counts_V[token]))
            self.learner.heard(stream, token)

    def result(
        self, table_ST: NDArray[Number], first: int = 0, end: int | None = None
    ) -> tuple[NDArray[Number], ...]:
        """Return the part of a table between two positions by stream, without what is dummy."""
        counts = self.targets_S[: len(self.streams)].tolist()
        rows = zip(table_ST, counts, strict=False)
        return tuple(row[first : min(count, end or count)].copy() for row, count in rows)
