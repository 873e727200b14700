"""The model without adapters in the walk of a proof, one token after another (`score.unadapted`).

Shapes: S rows, T positions, V vocabulary.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fairway.base.arrays import IntArray
from fairway.base.floats import double
from fairway.model.gpt import GPT
from fairway.prove.walk import Course, Segment
from fairway.score.unadapted import Reading, averaged, read_from


class UnadaptedWalk:
    """Averages the adapted model's predictions with those of the model itself, if its share is not
    0."""

    def __init__(self, model: GPT, course: Course, share: float) -> None:
        self._model, self._share, self._seq_len = model, share, course.seq_len
        self._unread_ST: Tensor | None = None
        if share:
            self._reading = Reading(model, course.rows, course.seq_len, course.room())

    def begin(self) -> None:
        """Begin streams: the weights may have changed."""
        if self._share:
            self._reading.start()

    def enter(self, segment: Segment, ids: Sequence[IntArray]) -> None:
        """Begin a segment; `ids` are the tokens of every row so far, its BOS first."""
        if not self._share:
            return
        begin = read_from(segment.start, segment.first, self._seq_len)
        at, end = self._reading.unread(begin, segment.first), segment.first + 1
        unread_ST = np.zeros((self._reading.cache.rows, end - at), np.int64)
        for row, own in enumerate(ids):
            part = own[at:end]
            unread_ST[row, : len(part)] = part
        self._unread_ST = torch.from_numpy(unread_ST)

    def mixed(self, previous_S: Tensor, log_probs_SV: Tensor) -> Tensor:
        """Return the averages after the `previous` tokens, given the adapted model's log p."""
        if not self._share:
            return log_probs_SV
        ids_ST = previous_S[:, None] if self._unread_ST is None else self._unread_ST
        self._unread_ST = None
        logits_SV = double(self._model.logits(self._reading.cache.last(ids_ST)))
        return averaged(log_probs_SV, logits_SV.log_softmax(-1), self._share)
