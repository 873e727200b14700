"""The walk through a text that encoder and decoder share: read, predict, fix a token, read it.

Both sides run this code with the same model and the same shapes, so all numbers agree to the bit.
They differ only in the source, which gives the predicted token: the encoder's source knows the
token and writes it, the decoder's source reads it from the file.

A *stream* is a sequence of tokens after a BOS, which is not predicted. Streams do not depend on one
another. `rows` streams are coded side by side. A row whose stream has ended reads dummies, and its
predictions are ignored.

On a GPU the numbers stay there: a step launches work without waiting, except that the decoder needs
the starts of the shares on the host. The costs of a segment's tokens are fetched when it ends.

Shapes: S rows, T time, P positions of a segment, V vocabulary, A active rows (their stream has not
ended), D width.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fairway.base.arrays import FloatArray, IntArray
from fairway.base.errors import UserError
from fairway.base.floats import double
from fairway.model.block import Adapters
from fairway.model.cache import Cache
from fairway.model.gpt import GPT
from fairway.prove.coder import Decoder, Encoder, cost_bits
from fairway.prove.shares import Shares, shares_of
from fairway.score.windows import sliding_windows

# The number of positions in a new table.
_FIRST_ROOM = 4_096
Number = TypeVar("Number", np.int64, np.float64)


# ---------------------------------------------------------------------------------------------
# Where to go


@dataclass(frozen=True, slots=True)
class Segment:
    """Tokens start..first are read at once; then the positions first..end-1 are predicted one by
    one.

    Position p reads token p and predicts token p + 1, as in `score.windows`.
    """

    start: int
    first: int
    end: int


@dataclass(frozen=True, slots=True)
class Segments:
    """Segments that are made one by one during the walk, since a file claims their number."""

    made: Callable[[], Iterator[Segment]]

    def __iter__(self) -> Iterator[Segment]:
        return self.made()


def window_segments(targets: int, seq_len: int, stride: int) -> Segments:
    """Return the segments of `targets` positions with the contexts of the sliding scorer's
    windows."""

    def made() -> Iterator[Segment]:
        if targets:
            for window in sliding_windows(targets, seq_len, stride):
                yield Segment(window.start, window.score_from, window.end)

    return Segments(made)


@dataclass(frozen=True, slots=True)
class Course:
    """The work of a walk: streams of these `targets`, `rows` at a time, in common segments.

    The segments must score the positions 0, 1, 2, ... of the longest stream once and in order;
    shorter streams end inside a segment. No segment may read more than `seq_len` tokens.
    """

    targets: tuple[int, ...]
    rows: int
    seq_len: int
    bos_id: int
    segments: Iterable[Segment]

    def require_one_group(self) -> None:
        """Raise UserError unless all streams are coded side by side, as for one text."""
        if len(self.targets) > self.rows:
            raise UserError(
                f"its header has {len(self.targets)} streams side by side in {self.rows} rows; it "
                "was not written by Fairway"
            )

    def groups(self) -> list[range]:
        """Return the groups of streams that are coded side by side."""
        count = len(self.targets)
        return [range(at, min(at + self.rows, count)) for at in range(0, count, self.rows)]

    def room(self) -> int:
        """Return the most positions of a row that are read at once."""
        longest, found = max(self.targets, default=0), 1
        for segment in self.walked(longest):
            found = max(found, min(segment.end, longest) - segment.start)
            if found == min(longest, self.seq_len):
                break
        return found

    def walked(self, targets: int) -> Iterator[Segment]:
        """Yield the segments of streams of up to this many targets."""
        return itertools.takewhile(lambda segment: segment.first < targets, self.segments)


# ---------------------------------------------------------------------------------------------
# Who takes part


class Source(Protocol):
    """Gives the tokens: from the text itself, or from a file that was made from it."""

    def begin(self, streams: range, targets_S: IntArray, device: torch.device) -> None:
        """Prepare for streams that start now, in rows 0, 1, ..., with this many targets."""

    def tokens(self, position: int, active_A: IntArray, shares: Shares) -> Tensor:
        """Return the targets of all rows at a position, ids_S on the device of the shares.

        Inactive rows get 0, the dummy.
        """

    def fixed(self, starts_N: IntArray, widths_N: IntArray) -> None:
        """Receive the shares of a segment's tokens, position by position, row by row."""


class Known:
    """Known tokens, which an encoder writes; the BOS of a stream is left out."""

    def __init__(self, streams: Sequence[IntArray], encoder: Encoder) -> None:
        self._streams, self._encoder = streams, encoder
        self._ids_TS = torch.zeros(0, 0, dtype=torch.long)

    def begin(self, streams: range, targets_S: IntArray, device: torch.device) -> None:
        """Put the streams side by side on the model's device."""
        ids_TS = np.zeros((int(targets_S.max()), len(targets_S)), np.int64)
        for row, stream in enumerate(streams):
            ids_TS[: targets_S[row], row] = self._streams[stream]
        self._ids_TS = torch.from_numpy(ids_TS).to(device)

    def tokens(self, position: int, active_A: IntArray, shares: Shares) -> Tensor:
        """Return the streams' tokens."""
        return self._ids_TS[position].to(shares.counts_SV.device)

    def fixed(self, starts_N: IntArray, widths_N: IntArray) -> None:
        """Write the tokens."""
        self._encoder.encode_all(starts_N, widths_N)


class Coded:
    """Tokens that a decoder reads; UserError if the file ends too early."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._rows = 0
        self._landing_SV = torch.zeros(0, 0, dtype=torch.int32)

    def begin(self, streams: range, targets_S: IntArray, device: torch.device) -> None:
        """Continue at the present place of the file."""
        self._rows = len(targets_S)

    def tokens(self, position: int, active_A: IntArray, shares: Shares) -> Tensor:
        """Return the next tokens of the file."""
        starts_SV = self._fetched(shares.starts_bits()).numpy().view(np.uint32)
        ids_S = torch.zeros(self._rows, dtype=torch.long, pin_memory=shares.counts_SV.is_cuda)
        self._decoder.decode_rows(starts_SV, active_A, ids_S.numpy())
        if self._decoder.beyond:
            raise UserError(
                "it ends before the tokens that its header claims: it is damaged, or this machine "
                "computes other numbers than the one where it was coded"
            )
        return ids_S.to(shares.counts_SV.device, non_blocking=True)

    def _fetched(self, bits_SV: Tensor) -> Tensor:
        if not bits_SV.is_cuda:
            return bits_SV
        if self._landing_SV.shape != bits_SV.shape:
            # Pinned memory, so that the device writes into it directly.
            self._landing_SV = torch.empty_like(bits_SV, device="cpu", pin_memory=True)
        self._landing_SV.copy_(bits_SV, non_blocking=True)
        torch.cuda.current_stream().synchronize()
        return self._landing_SV

    def fixed(self, starts_N: IntArray, widths_N: IntArray) -> None:
        """Do nothing: the tokens came from the file."""


@dataclass(frozen=True, slots=True, eq=False)
class Fixed:
    """The fixed tokens of a segment: for each of `streams`, the targets of its positions.

    ids: int64 and nats: float64, one array per stream, for the positions first..end-1 of the
    segment, or fewer where the stream ends. Learners may use nothing else.
    """

    streams: range
    segment: Segment
    ids: tuple[IntArray, ...]
    nats: tuple[FloatArray, ...]


class Learner(Protocol):
    """Changes the model between segments, using only the fixed tokens, which both sides know.

    It must be deterministic. After `adapt` the window is read again, so weights may change there,
    but not during the walk of a segment. A learner that changes weights only in place is `steady`.
    """

    @property
    def steady(self) -> bool:
        """Return whether recorded launches (CUDA graphs) stay valid for the model."""

    def begin(self, streams: range) -> None:
        """Prepare for streams that start now, in rows 0, 1, ..."""

    def predicting(self) -> AbstractContextManager[Adapters | None]:
        """Return a context manager for the walk of a segment; it gives the adapters of the
        model."""

    def logits(self, states_SD: Tensor) -> Tensor:
        """Return the capped logits [S, V] of the final states of S rows."""

    def mixed(self, active_A: IntArray, previous_S: Tensor, log_probs_SV: Tensor) -> Tensor:
        """Return log p of all tokens [S, V] after `previous`, given the model's log p, in float64.

        The coder uses these. Inactive rows have no effect.
        """

    def heard(self, active_A: IntArray, ids_S: Tensor) -> None:
        """Learn the tokens fixed after `mixed`."""

    def adapt(self, fixed: Fixed) -> None:
        """Learn from a finished segment."""


class Frozen:
    """The model of the sliding scorer, which learns nothing."""

    steady = True

    def __init__(self, model: GPT) -> None:
        self._model = model

    def begin(self, streams: range) -> None:
        """Leave the model as it is."""

    def predicting(self) -> AbstractContextManager[Adapters | None]:
        """Leave the model as it is."""
        return nullcontext()

    def logits(self, states_SD: Tensor) -> Tensor:
        """Return the model's own."""
        return self._model.logits(states_SD)

    def mixed(self, active_A: IntArray, previous_S: Tensor, log_probs_SV: Tensor) -> Tensor:
        """Return the model's own."""
        return log_probs_SV

    def heard(self, active_A: IntArray, ids_S: Tensor) -> None:
        """Learn nothing."""

    def adapt(self, fixed: Fixed) -> None:
        """Leave the model as it is."""


# ---------------------------------------------------------------------------------------------
# The walk


@dataclass(frozen=True, slots=True, eq=False)
class Walked:
    """The result of a walk: tokens without BOS and nats by stream, and the cost of all frequencies.

    `nats` are minus the log-probabilities before they became frequencies.
    """

    ids: tuple[IntArray, ...]
    nats: tuple[FloatArray, ...]
    frequency_bits: float


def walk(
    model: GPT, course: Course, source: Source, learner: Learner, advance: Callable[[int], None]
) -> Walked:
    """Return the tokens of all streams and their costs; `advance` receives the tokens fixed at each
    position.

    Raises ValueError if the model's output is no distribution, for example if a weight is NaN.
    """
    cache = Cache(model, course.rows, course.seq_len, course.room(), learner.steady)
    ids: list[IntArray] = []
    nats: list[FloatArray] = []
    bits = 0.0
    for streams in course.groups():
        group = _Group(cache, course, streams, source, learner)
        group.begin()
        for segment in course.walked(group.longest):
            group.make_room(segment.end)
            with learner.predicting() as cache.adapters:
                fixed = group.walk(segment, advance)
            learner.adapt(fixed)
        ids += group.result(group.ids_ST)
        nats += group.result(group.nats_ST)
        bits += group.frequency_bits
    return Walked(tuple(ids), tuple(nats), bits)


class _Group:
    """Streams side by side: their tokens so far, without BOS, and the costs of these.

    The tables grow during the walk, since a file claims the lengths of the streams.
    """

    def __init__(
        self, cache: Cache, course: Course, streams: range, source: Source, learner: Learner
    ) -> None:
        self.cache, self.streams = cache, streams
        self.source, self.learner = source, learner
        self.targets_S = np.zeros(course.rows, np.int64)
        self.targets_S[: len(streams)] = course.targets[streams.start : streams.stop]
        self.longest = int(self.targets_S.max())
        self.ids_ST = np.zeros((course.rows, 0), np.int64)
        self.nats_ST = np.zeros((course.rows, 0))
        self.frequency_bits = 0.0
        self._read_ST = torch.full((course.rows, 1), course.bos_id, device=cache.device)

    def begin(self) -> None:
        """Prepare source and learner; every row begins with a BOS."""
        self.learner.begin(self.streams)
        self.source.begin(self.streams, self.targets_S, self.cache.device)

    def make_room(self, end: int) -> None:
        """Grow the tables to hold the positions up to `end`."""
        rows, width = self.ids_ST.shape
        if min(end, self.longest) <= width:
            return
        more = min(max(end, 2 * width, _FIRST_ROOM), self.longest) - width
        self.ids_ST = np.pad(self.ids_ST, ((0, 0), (0, more)))
        self.nats_ST = np.pad(self.nats_ST, ((0, 0), (0, more)))
        self._read_ST = torch.cat((self._read_ST, self._read_ST.new_zeros(rows, more)), 1)

    @torch.no_grad()
    def walk(self, segment: Segment, advance: Callable[[int], None]) -> Fixed:
        """Predict and fix the tokens of a segment."""
        end = min(segment.end, self.longest)
        self.cache.clear()
        unread = segment.start
        taken = _Taken()
        for position in range(segment.first, end):
            active_A = np.flatnonzero(self.targets_S > position)
            read_ST = self._read_ST[:, unread : position + 1]
            self._fix(position, active_A, self.cache.last(read_ST), taken)
            unread = position + 1
            advance(len(active_A))
        self._fetch(segment.first, end, taken)
        return Fixed(
            self.streams,
            Segment(segment.start, segment.first, end),
            self.result(self.ids_ST, segment.first, end),
            self.result(self.nats_ST, segment.first, end),
        )

    def _fix(self, position: int, active_A: IntArray, last_SD: Tensor, taken: "_Taken") -> None:
        log_probs_SV = double(self.learner.logits(last_SD)).log_softmax(-1)
        mixed_SV = self.learner.mixed(active_A, self._read_ST[:, position], log_probs_SV)
        shares = shares_of(mixed_SV)
        ids_S = self.source.tokens(position, active_A, shares)
        self.learner.heard(active_A, ids_S)
        self._read_ST[:, position + 1] = ids_S
        taken.add(ids_S, mixed_SV, shares)

    def _fetch(self, first: int, end: int, taken: "_Taken") -> None:
        """Fetch the costs of a segment's tokens, and let the source write the tokens."""
        nats_PS, starts_PS, widths_PS = taken.fetched()
        self.ids_ST[:, first:end] = self._read_ST[:, first + 1 : end + 1].cpu().numpy()
        self.nats_ST[:, first:end] = nats_PS.T
        real_PS = self.targets_S > np.arange(first, end)[:, None]
        widths_N = widths_PS[real_PS]
        self.frequency_bits += float(cost_bits(widths_N).sum())
        self.source.fixed(starts_PS[real_PS], widths_N)

    def result(
        self, table_ST: NDArray[Number], first: int = 0, end: int | None = None
    ) -> tuple[NDArray[Number], ...]:
        """Return a part of a table between two positions for each stream, without dummies."""
        counts = self.targets_S[: len(self.streams)].tolist()
        rows = zip(table_ST, counts, strict=False)
        return tuple(row[first : min(count, end or count)].copy() for row, count in rows)


class _Taken:
    """The costs of a segment's tokens, kept on the device that computed them."""

    def __init__(self) -> None:
        self._nats: list[Tensor] = []
        self._shares: list[Tensor] = []
        self._sound: list[Tensor] = []

    def add(self, ids_S: Tensor, log_probs_SV: Tensor, shares: Shares) -> None:
        """Store the costs of the tokens at a position."""
        self._nats.append(-log_probs_SV.gather(1, ids_S[:, None])[:, 0])
        self._shares.append(shares.taken(ids_S))
        self._sound.append(shares.sound)

    def fetched(self) -> tuple[FloatArray, IntArray, IntArray]:
        """Return nats_PS, and the starts and widths of shares; ValueError if they are not sound."""
        if not bool(torch.stack(self._sound).all()):
            raise ValueError("the probabilities of a row do not sum to 1")
        shares_2PS = torch.stack(self._shares, 1).cpu().numpy()
        return torch.stack(self._nats).cpu().numpy(), shares_2PS[0], shares_2PS[1]
