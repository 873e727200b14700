"""Documents side by side, computed in parts if the memory of the device is short.

All documents of a batch are predicted before the cost of any is recorded. If the memory does not
suffice for the backward pass of all, they are computed in parts: the states of all parts but one
are dropped and computed again for learning. Documents do not depend on one another, so the sums are
the same, up to the rounding of products of another size. A part takes about a third longer in this
way.

Shapes: B rows in use, T positions of a window, C of a chunk, V vocabulary.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fairway.base.errors import UserError
from fairway.base.memory import free_bytes, give_back
from fairway.base.progress import notice
from fairway.model.need import together
from fairway.model.operations import Rope
from fairway.score.adapting import Size, Way

# At most, one chunk runs directly while recordings hold the memory of another one.
HELD_TWICE = 2.0
# The memory is checked again for batches that exceed the largest known fitting size by this share.
_LOOK_AGAIN = 1.125


class Halving:
    """A way to predict and learn for any number of rows, of which at most `at_once` run together.

    `capacity` is the number of slots; `row_bytes` gives the memory of a row by the lengths of its
    window and its chunk. If it is `fixed`, all rows run together, or it refuses: decoding must
    repeat the sums of coding.
    """

    def __init__(
        self,
        way: Way,
        capacity: int,
        device: torch.device,
        fixed: bool,
        row_bytes: Callable[[int, int], float],
    ) -> None:
        self._way, self._capacity, self._device, self._fixed = way, capacity, device, fixed
        self._row_bytes = row_bytes
        self.at_once = capacity
        self._kept: range | None = None
        self._ids_BT = torch.empty(0)
        self._rope: Rope = (self._ids_BT, self._ids_BT)
        self._first = 0
        # Positions that are known to fit.
        self._fitting = 0

    def begin(self) -> None:
        """Begin a batch: other tensors may have taken memory since the last one."""
        self._fitting = 0

    def log_probs(self, ids_BT: Tensor, rope: Rope, first: int) -> Tensor:
        """Return log-probabilities of the positions from `first` on, [B, C, V].

        Raises UserError if the memory does not suffice for one row.
        """
        self._ids_BT, self._rope, self._first = ids_BT, rope, first
        self._choose()
        while True:
            found_BCV: Tensor | None = _unless_full(self._predict)
            if found_BCV is not None:
                return found_BCV
            self._make_room()

    def learn(self, targets_BC: Tensor, share_B: Tensor) -> None:
        """Step on the last chunk's mean cost, by shares of rows."""
        work = functools.partial(self._learned, targets_BC, share_B)
        # The last part comes first, because its graph for gradients exists.
        todo = self._parts(range(len(share_B)))
        while todo:
            part = todo.pop()
            if len(part) > self.at_once:
                todo += self._parts(part)
            elif not _unless_full(functools.partial(work, part)):
                self._make_room()
                todo.append(part)

    def _parts(self, rows: range) -> list[range]:
        n = self.at_once
        return [range(at, min(at + n, rows.stop)) for at in range(rows.start, rows.stop, n)]

    def _predict(self) -> Tensor:
        parts = self._parts(range(len(self._ids_BT)))
        if len(parts) == 1:
            return self._predicted(parts[0])
        found_BCV: Tensor | None = None
        for part in parts:
            part_BCV = self._predicted(part)
            if found_BCV is None:
                found_BCV = part_BCV.new_empty(len(self._ids_BT), *part_BCV.shape[1:])
            found_BCV[part.start : part.stop] = part_BCV
        assert found_BCV is not None
        return found_BCV

    def _predicted(self, part: range) -> Tensor:
        """Return the log-probabilities of a part; only its graph for gradients is kept."""
        self._kept = None
        self._way.forget()
        # Slots after the last row are unused, so the number of rows may be rounded up.
        last = part.stop == len(self._ids_BT)
        room = range(part.start, min(self._capacity, part.start + self.at_once)) if last else part
        ids_PT = self._ids_BT[part.start : part.stop]
        found_BCV = self._way.log_probs(room, ids_PT, self._rope, self._first)
        self._kept = part
        return found_BCV

    def _learned(self, targets_BC: Tensor, share_B: Tensor, part: range) -> bool:
        if self._kept != part:
            self._predicted(part)
        self._kept = None
        rows = slice(part.start, part.stop)
        self._way.learn(targets_BC[rows], share_B[rows])
        return True

    # ----------------------------------------------------------------------------------------- Rows
    # that fit into memory

    def _choose(self) -> None:
        """Take fewer rows together if the free memory would not suffice."""
        size = self._size()
        if size.rows * size.length <= self._fitting or self._fixed:
            return
        self._fitting = int(size.rows * size.length * _LOOK_AGAIN)
        each_bytes = self._row_bytes(size.length, size.chunk)
        fit = together(HELD_TWICE * each_bytes * _LOOK_AGAIN, free_bytes(self._device))
        while self.at_once > 1 and self._size().rows > fit:
            self._halve()

    def _size(self) -> Size:
        """Return the size of one computation."""
        rows, length = self._ids_BT.shape
        most = min(self._capacity, self.at_once)
        return self._way.size(min(rows, most), most, self._first, length, len(self._rope[0]))

    def _make_room(self) -> None:
        """Drop recordings or, if there are none, take fewer rows together."""
        self._way.forget()
        if not self._way.release():
            if self.at_once == 1 or self._fixed:
                raise UserError(
                    f"the device has too little memory for {self.at_once} documents side "
                    "by side; lower ttt.lora_documents, ttt.lora_rank or score.seq_len"
                )
            self._halve()
        give_back()

    def _halve(self) -> None:
        before, self.at_once = self.at_once, -(-self.at_once // 2)
        self._way.release()
        notice(
            f"there is too little memory for {before} documents at a time: continuing with "
            f"{self.at_once}; the score does not change"
        )


def _unless_full(work: Callable[[], Any]) -> Any:
    """Return the result of some work, or None if memory did not suffice.

    The error is freed before this returns, with all objects that its frames referred to.
    """
    try:
        return work()
    except torch.OutOfMemoryError:
        return None
