"""The model without adapters, beside the adapted one, on the same documents.

Adapters help a document on average and harm it in places. The average of both probabilities loses
little where they help and saves much where they harm, so adapters may learn faster than alone
(`ttt.lora_frozen_share`; docs/best.md). With a share of 0 nothing is computed here.

Keys and values are kept, so only the tokens of a chunk are computed. A document that is longer than
a window is read again from a later position, every quarter of a window. Its contexts have between
three quarters of a window and a whole one. So the model reads such a document about four times;
with a whole window for every chunk it would read it 64 times (chunks of 32, windows of 2,048).

Shapes: B documents, T positions of a window, C positions of a chunk, N positions of several
documents, D width, V vocabulary.
"""

import functools
import math

import torch
from torch import Tensor

from fairway.base.arrays import FloatArray, IntArray
from fairway.base.floats import double
from fairway.model.cache import Cache
from fairway.model.gpt import GPT
from fairway.model.operations import Rope
from fairway.score.sliding import FrozenPredictor, whole_row


def averaged(adapted: Tensor, unadapted: Tensor, share: float) -> Tensor:
    """Return the logarithm of the average of two probabilities, `share` of the unadapted one."""
    return torch.logaddexp(adapted + math.log1p(-share), unadapted + math.log(share))


def read_from(start: int, at: int, seq_len: int) -> int:
    """Return the position of a document from which the model itself reads it to predict a chunk
    that begins `at` a position; the adapted model's window begins at `start`.

    It follows from these positions alone, so a decoder reads the same.
    """
    step = max(seq_len // 4, start + seq_len - at) if start else 1
    first = -(-start // step) * step
    return first if first <= at else start


class Reading:
    """Keys and values of documents side by side, which are read from a common position on."""

    def __init__(self, model: GPT, rows: int, seq_len: int, room: int | None = None) -> None:
        self.cache = Cache(model, rows, seq_len, room, steady=True)
        self._begin = 0

    def start(self) -> None:
        """Begin other documents, or the same ones with other weights."""
        self._begin = 0
        self.cache.clear()

    def unread(self, begin: int, at: int) -> int:
        """Return the first position to read for a prediction after position `at`, if documents are
        read from `begin` on. What was read from another position on, or beyond `at`, is dropped."""
        if begin != self._begin or begin + self.cache.filled > at:
            self._begin = begin
            self.cache.clear()
        return begin + self.cache.filled


class Unadapted:
    """The model beside a batch of documents, each in the slot of its adapters."""

    def __init__(self, model: GPT, seq_len: int, rows: int, rope: Rope, share: float) -> None:
        self.share, self.frozen = share, FrozenPredictor(model, seq_len, rope)
        self._rows = rows

    @functools.cached_property
    def reading(self) -> Reading:
        """Return the keys and values of all documents; the first call takes the memory."""
        return Reading(self.frozen.model, self._rows, self.frozen.seq_len)

    def start(self) -> None:
        """Begin a batch: its documents are at their first positions."""
        if self.share:
            self.reading.start()

    def skip(self, count: int) -> None:
        """Take so many positions as read, without their values: to time the chunk after them."""
        if self.share:
            self.reading.cache.filled = count

    def move(self, source: int, target: int) -> None:
        """Let a document take the slot of another one."""
        if self.share:
            self.reading.cache.move(source, target)

    def chunk(self, ids_BT: IntArray, first: int, at: int) -> "Chunk":
        """Return the predictions of the windows' positions from `first` on, which is position `at`
        of every document."""
        return Chunk(self, ids_BT, at - first, at)

    @torch.no_grad()
    def states(self, ids_BT: IntArray, begin: int, at: int) -> Tensor:
        """Return the final states of documents from position `at` on, [B, C, D].

        The tokens are those from position `begin` on. What was not asked for is read as well.
        """
        unread_BT = torch.from_numpy(ids_BT[:, self.reading.unread(begin, at) - begin :])
        return self.reading.cache.read(unread_BT)[:, at - begin - ids_BT.shape[1] :]


class Chunk:
    """Averages the predictions of one chunk with those of the adapted model."""

    def __init__(self, model: Unadapted, ids_BT: IntArray, start: int, at: int) -> None:
        self._model, self._share = model, model.share
        begin = read_from(start, at, model.frozen.seq_len)
        self._skipped = begin - start
        self._asked = ids_BT[:, self._skipped :], begin, at

    @functools.cached_property
    def _states(self) -> Tensor:
        return self._model.states(*self._asked)

    def log_prob(self, adapted_BC: Tensor, targets_BC: Tensor) -> Tensor:
        """Return log p of the targets in float64, [B, C], given the adapted model's."""
        if not self._share:
            return adapted_BC
        x_ND, targets_N = self._states.flatten(0, 1), targets_BC.flatten()
        found_N = double(self._model.frozen.log_prob(x_ND, targets_N))
        return averaged(adapted_BC, found_N.view_as(adapted_BC), self._share)

    def tables(self, adapted_NV: Tensor, places: tuple[Tensor, ...]) -> Tensor:
        """Return log p of all V tokens at some places (slot, position of the chunk) in float64."""
        if not self._share:
            return adapted_NV
        logits_NV = double(self._model.frozen.model.logits(self._states[places]))
        return averaged(adapted_NV, logits_NV.log_softmax(-1), self._share)

    def row(self, adapted_V: FloatArray, ids: IntArray) -> FloatArray:
        """Return log p of all V tokens after a window's inputs, computed without the cache."""
        if not self._share:
            return adapted_V
        frozen, ids = self._model.frozen, ids[self._skipped :]
        found_V = whole_row(frozen.model.logits(frozen.hidden([ids])[0, len(ids) - 1]))
        both = averaged(torch.from_numpy(adapted_V), torch.from_numpy(found_V), self._share)
        row_V: FloatArray = both.numpy()
        return row_V
