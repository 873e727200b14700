"""Forward passes of a few tokens at a time, with kept keys and values.

There is no second transformer here. The model's own walk runs, but every visit attends with a
function that appends the new keys and values to those of the same visit; the queries attend to all
of them. A block that the recurrence visits three times has three sets.

Shapes: S rows side by side, B some of them, T new positions, N positions read so far, D width,
V visits of blocks, H query heads, G key/value heads, P = H / G, K head width, R rotated pairs,
L most positions.
"""

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from fairway.base.graphs import recording, rounded_rows
from fairway.model.attention import Attention
from fairway.model.block import Adapters, Attending, Walk
from fairway.model.gpt import GPT, rope_table
from fairway.model.need import AT_ONCE, passing_bytes, way_of
from fairway.model.seen import ALL, Seen

_ALL = slice(None)


def _visits(model: GPT) -> int:
    return len(model.encoder_visits) + len(model.decoder_visits)


class Cache:
    """The keys and values of up to `room` positions in each of `rows` rows.

    Positions use the rotary table of `length`, whose base may depend on it (`ntk`), so that states
    equal those of a window padded to that length. The cache does not change the model. The model's
    weights may change if `clear` is called before further reading, but its looping state and dtype
    must stay. If weights only change in place and there are no adapters, the cache may be `steady`:
    it then reads many tokens some rows at a time and, on a GPU, few tokens by recorded launches.
    """

    def __init__(
        self,
        model: GPT,
        rows: int,
        length: int,
        room: int | None = None,
        steady: bool = False,
    ) -> None:
        config, weight = model.config, model.tok_emb.weight
        self.model, self.rows, self.steady = model, rows, steady
        self.room = length if room is None else room
        self.device = weight.device
        self._rope = tuple(table.to(weight.device) for table in rope_table(length, config))
        self._visits = _visits(model)
        width = config.dim // config.num_heads
        shape = (2, self._visits, rows, config.num_kv_heads, self.room, width)
        self._kept_2VSGLK = torch.zeros(shape, dtype=model.compute_dtype, device=weight.device)
        self.last_S1 = torch.zeros(rows, 1, dtype=torch.long, device=weight.device)
        self.filled = 0
        # Adapters for all rows; with them, all rows must be read together.
        self.adapters: Adapters | None = None
        self.recorded = Recorded(self) if steady and weight.is_cuda else None

    def clear(self) -> None:
        """Drop everything; the next token is at the first position."""
        self.filled = 0

    def read(self, ids_BT: Tensor) -> Tensor:
        """Return the normalised final states of the next T tokens of the first B rows, [B, T, D].

        The other rows are not read any more. Raises ValueError for more rows than there are, no
        token, or more tokens than there is room for.
        """
        return torch.cat(list(self._read(ids_BT)))

    def move(self, source: int, target: int) -> None:
        """Let a row take the place of another one."""
        self._kept_2VSGLK[:, :, target] = self._kept_2VSGLK[:, :, source]
        self.last_S1[target] = self.last_S1[source]

    def last(self, ids_BT: Tensor) -> Tensor:
        """Read the next T tokens of the first B rows and return the last one's states, [B, D]."""
        return torch.cat([states_BTD[:, -1] for states_BTD in self._read(ids_BT)])

    @torch.no_grad()
    def _read(self, ids_BT: Tensor) -> Iterator[Tensor]:
        """Yield the states of groups of the B rows in turn; at the end all are read."""
        B, T = ids_BT.shape
        if not 1 <= B <= self.rows or not 1 <= T <= self.room - self.filled:
            raise ValueError(
                f"cannot read {T} tokens in {B} rows after {self.filled} positions; the cache has "
                f"{self.rows} rows of {self.room}"
            )
        ids_BT = ids_BT.to(self.device)
        few = self.filled and T <= Recorded.TOKENS
        if few and self.recorded is not None:
            yield self.recorded.read(self, ids_BT)
        else:
            # Adapters have a part for every row, so all rows are read at once.
            count = max(1, AT_ONCE // T) if self.steady else B
            for first in range(0, B, count):
                rows = slice(first, min(first + count, B))
                yield self._states(ids_BT[rows], rows)
        self.last_S1[:B] = ids_BT[:, -1:]
        self.filled += T

    def _states(self, ids_BT: Tensor, rows: slice) -> Tensor:
        cos_LR, sin_LR = self._rope
        places = slice(self.filled, self.filled + ids_BT.shape[1])
        x_BTD = self._embedded(ids_BT, self.last_S1[rows])
        rope = cos_LR[places], sin_LR[places]
        attending = self.attending(self._attend, rows)
        return self.model.states(x_BTD, Walk(rope, self.adapters, attending))

    def rope_at(self, at_T: Tensor) -> tuple[Tensor, Tensor]:
        """Return the rotary table of positions whose numbers are on the device."""
        cos_LR, sin_LR = self._rope
        return cos_LR.index_select(0, at_T), sin_LR.index_select(0, at_T)

    def _embedded(self, ids_BT: Tensor, last_B1: Tensor) -> Tensor:
        if not self.filled:
            return self.model.embedded(ids_BT)
        # SmearGate uses the previous token, so that one is embedded again.
        return self.model.embedded(torch.cat((last_B1, ids_BT), 1))[:, 1:]

    def attending(self, attend: Callable[..., Tensor], rows: slice = _ALL) -> Attending:
        """Return attention by a function of (kept_2BGLK, the block's own attention, q, k, v)."""

        def visited(visit: int, own: Attention) -> Attention:
            return functools.partial(attend, self._kept_2VSGLK[:, visit, rows], own)

        return visited

    def _attend(
        self,
        kept_2BGLK: Tensor,
        plain: Attention,
        q_BHTK: Tensor,
        k_BGTK: Tensor,
        v_BGTK: Tensor,
        seen: Seen = ALL,
    ) -> Tensor:
        """Return y_BHTK of new queries over all positions read, the new ones included."""
        first, end = self.filled, self.filled + q_BHTK.shape[2]
        kept_2BGLK[0, :, :, first:end] = k_BGTK
        kept_2BGLK[1, :, :, first:end] = v_BGTK
        if not first:
            # For the first tokens the model's own backend computes the same, and faster.
            return plain(q_BHTK, k_BGTK, v_BGTK, seen)
        k_BGNK, v_BGNK = kept_2BGLK[:, :, :, :end]
        return attend_after(q_BHTK, k_BGNK, v_BGNK, seen.window)


class Recorded:
    """Reads a few tokens per row with launches that do not depend on the position.

    Such launches can be recorded: 17 visits of small products take a GPU far less time than their
    launches. The position is a number on the device, and queries attend to whole stretches of the
    cache under a mask. The number of rows is rounded up to a few; the rows beyond are not in use,
    so their values do not matter. Every size first runs normally and then is recorded as a CUDA
    graph. The cache is passed to every call; a stored reference would form a cycle, which Python
    frees late.
    """

    # Positions of a stretch, and the most tokens that are read in this way.
    STRETCH, TOKENS = 256, 64

    def __init__(self, cache: Cache) -> None:
        device = cache.device
        self._at_1 = torch.zeros(1, dtype=torch.long, device=device)
        self._places_L = torch.arange(cache.room, device=device)
        # By (rows, tokens): the tokens with the one before them, and the final states.
        self._tables: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        self._graphs: dict[tuple[int, int, int], Any] = {}
        # Graphs run one at a time, so they may share intermediate memory.
        self._shared: Any = torch.cuda.graph_pool_handle() if device.type == "cuda" else None

    def read(self, cache: Cache, ids_BT: Tensor) -> Tensor:
        """Return the normalised final states of the next tokens of the first rows, [B, T, D]."""
        B, T = ids_BT.shape
        rows = rounded_rows(B, cache.rows)
        ids_PU, states_PTD = self._table(cache, rows, T)
        ids_PU[:B, 1:] = ids_BT
        ids_PU[:B, :1] = cache.last_S1[:B]
        self._at_1.fill_(cache.filled)
        stretch = min(cache.room, -(-(cache.filled + T) // self.STRETCH) * self.STRETCH)
        size = rows, T, stretch
        if size not in self._graphs:
            self._graphs[size] = None
            self._compute(cache, *size)
        elif not ids_BT.is_cuda:
            self._compute(cache, *size)
        else:
            if self._graphs[size] is None:
                room_bytes = 2 * rows * read_bytes(cache.model, T, stretch)
                with recording(self._shared, room_bytes=room_bytes) as self._graphs[size]:
                    self._compute(cache, *size)
            self._graphs[size].replay()
        return states_PTD[:B].clone()

    def _table(self, cache: Cache, rows: int, count: int) -> tuple[Tensor, Tensor]:
        if (rows, count) not in self._tables:
            ids_PU = torch.zeros(rows, count + 1, dtype=torch.long, device=cache.device)
            width, dtype = cache.model.config.dim, cache.model.compute_dtype
            states_PTD = torch.empty(rows, count, width, dtype=dtype, device=cache.device)
            self._tables[rows, count] = ids_PU, states_PTD
        return self._tables[rows, count]

    def _compute(self, cache: Cache, rows: int, count: int, stretch: int) -> None:
        ids_PU, states_PTD = self._tables[rows, count]
        at_T = self._at_1 + self._places_L[:count]
        rope = cache.rope_at(at_T)
        places_N = self._places_L[:stretch]
        hidden_TN = places_N > at_T[:, None]

        def attend(kept_2PGLK: Tensor, plain: Attention, *new: Tensor, seen: Seen = ALL) -> Tensor:
            q_PHTK, k_PGTK, v_PGTK = new
            for kept_PGLK, new_PGTK in zip(kept_2PGLK, (k_PGTK, v_PGTK), strict=True):
                kept_PGLK.index_copy_(2, at_T, new_PGTK)
            k_PGNK, v_PGNK = kept_2PGLK[:, :, :, :stretch]
            if not seen.window:
                return attend_to(q_PHTK, k_PGNK, v_PGNK, hidden_TN)
            passed_TN = places_N <= at_T[:, None] - seen.window
            return attend_to(q_PHTK, k_PGNK, v_PGNK, hidden_TN | passed_TN)

        # SmearGate uses the previous token.
        x_PTD = cache.model.embedded(ids_PU)[:, 1:]
        given = Walk(rope, attending=cache.attending(attend, slice(rows)))
        states_PTD.copy_(cache.model.states(x_PTD, given))


def read_bytes(model: GPT, count: int, stretch: int) -> float:
    """Return the bytes for reading some tokens of a row after others, up to a stretch of them."""
    config = model.config
    # Scores, masked scores and weights of one visit at a time.
    scores = 3 * config.num_heads * stretch * model.compute_dtype.itemsize
    return count * (passing_bytes(config, way_of(model), model.looping, 1) + scores)


def attend_after(q_SHTK: Tensor, k_SGNK: Tensor, v_SGNK: Tensor, window: int = 0) -> Tensor:
    """Return attention of the last T of N positions over all positions up to each; y_SHTK.

    With a window a position attends to itself and the window - 1 positions before it.
    """
    T, N = q_SHTK.shape[2], k_SGNK.shape[2]
    if T == 1:
        return attend_to(q_SHTK, k_SGNK[:, :, -window:], v_SGNK[:, :, -window:], None)
    ones_TN = torch.ones(T, N, dtype=torch.bool, device=q_SHTK.device)
    hidden_TN = ones_TN.triu(N - T + 1)
    if window:
        hidden_TN |= ones_TN.tril(N - T - window)
    return attend_to(q_SHTK, k_SGNK, v_SGNK, hidden_TN)


def attend_to(q_SHTK: Tensor, k_SGNK: Tensor, v_SGNK: Tensor, hidden_TN: Tensor | None) -> Tensor:
    """Return attention of T queries over N positions except the hidden ones; y_SHTK."""
    S, H, T, K = q_SHTK.shape
    G = k_SGNK.shape[1]
    # As [S, G, P T, K], the query heads of one key head become rows of one product.
    q = q_SHTK.reshape(S, G, (H // G) * T, K)
    scores = (q @ k_SGNK.mT) * (1.0 / math.sqrt(K))
    if hidden_TN is not None:
        hidden = hidden_TN if T == 1 else hidden_TN.repeat(H // G, 1)
        scores = scores.masked_fill(hidden, -math.inf)
    return (scores.softmax(-1) @ v_SGNK).view(S, H, T, K)
