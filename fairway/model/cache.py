"""Forward passes a few tokens at a time: keys and values of what was read are kept.

There is no second transformer here. The model's own code runs, but while it does, `attend` of every
block is replaced by one that adds the new keys and values to those of the same visit and lets the
queries see both. A block that the recurrence visits three times keeps three sets.

Shapes: S rows side by side, T new positions, N positions read so far, D width, V visits of blocks,
H query heads, G key/value heads, P = H / G, K head width, R rotated pairs, L most positions.
"""

import functools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor

from fairway.model.attention import Attention
from fairway.model.gpt import GPT, Block, rope_table


class Cache:
    """What a model has read of up to `length` positions in each of `rows` rows.

    Positions are turned by the rotary table of `length`, whose base may depend on it, so that
    states equal those of a window padded to that length. Between calls the model is as it was:
    its weights may change as long as `clear` is called before reading on. It must not change its
    looping state or dtype. If weights change in place alone and nothing is hooked on, the cache may
    be `steady`: on a GPU, single tokens are then read by recorded launches.
    """

    def __init__(self, model: GPT, rows: int, length: int, steady: bool = False) -> None:
        config, weight = model.config, model.tok_emb.weight
        cos_LR, sin_LR = rope_table(length, config)
        self._rope = cos_LR.to(weight.device), sin_LR.to(weight.device)
        self._visits = len(model.encoder_visits) + len(model.decoder_visits)
        width = config.dim // config.num_heads
        shape = (2, self._visits, rows, config.num_kv_heads, length, width)
        self._kept_2VSGLK = torch.zeros(shape, dtype=model.compute_dtype, device=weight.device)
        self.last_S1 = torch.zeros(rows, 1, dtype=torch.long, device=weight.device)
        self.model, self.rows, self.length = model, rows, length
        self.filled = 0
        self.single = Single(self) if steady and weight.device.type == "cuda" else None

    def clear(self) -> None:
        """Forget everything; the next token read stands at the beginning."""
        self.filled = 0

    @torch.no_grad()
    def read(self, ids_ST: Tensor) -> Tensor:
        """Return the normalised final states of the next T tokens of every row, [S, T, D].

        Raises ValueError for another number of rows, no token, or more than there is room for.
        """
        S, T = ids_ST.shape
        if self.rows != S or not 1 <= T <= self.length - self.filled:
            raise ValueError(
                f"cannot read {T} tokens in {S} rows after {self.filled} positions; the cache has "
                f"{self.rows} rows of {self.length}"
            )
        ids_ST = ids_ST.to(self.last_S1.device)
        if T == 1 and self.filled and self.single is not None:
            states_STD = self.single.read(ids_ST)
        else:
            cos_TR, sin_TR = (table[self.filled : self.filled + T] for table in self._rope)
            x_STD = self._embedded(ids_ST)
            with self.attending(self._attend):
                states_STD = self.model.states(x_STD, (cos_TR, sin_TR))
        self.last_S1 = ids_ST[:, -1:]
        self.filled += T
        return states_STD

    def rope_at(self, at_1: Tensor) -> tuple[Tensor, Tensor]:
        """Return the rotary table of one position, whose number is on the device."""
        cos_LR, sin_LR = self._rope
        return cos_LR.index_select(0, at_1), sin_LR.index_select(0, at_1)

    def _embedded(self, ids_ST: Tensor) -> Tensor:
        if not self.filled:
            return self.model.embedded(ids_ST)
        # SmearGate looks one token back, so that one is embedded again.
        return self.model.embedded(torch.cat((self.last_S1, ids_ST), 1))[:, 1:]

    @contextmanager
    def attending(self, attend: Callable[..., Tensor]) -> Iterator[None]:
        """While this lasts, blocks attend by a function of (kept_2SGLK, own attention, q, k, v)."""
        attentions = [cast(Block, block).attn for block in self.model.blocks]
        own = [attention.attend for attention in attentions]
        visits = iter(range(self._visits))

        def visited(plain: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return attend(self._kept_2VSGLK[:, next(visits)], plain, q, k, v)

        try:
            for attention, plain in zip(attentions, own, strict=True):
                attention.attend = functools.partial(visited, plain)
            yield
        finally:
            for attention, plain in zip(attentions, own, strict=True):
                attention.attend = plain

    def _attend(
        self,
        kept_2SGLK: Tensor,
        plain: Attention,
        q_SHTK: Tensor,
        k_SGTK: Tensor,
        v_SGTK: Tensor,
    ) -> Tensor:
        """Return y_SHTK of new queries over everything read, the new positions included."""
        first, end = self.filled, self.filled + q_SHTK.shape[2]
        kept_2SGLK[0, :, :, first:end] = k_SGTK
        kept_2SGLK[1, :, :, first:end] = v_SGTK
        if not first:
            # A beginning is what the model's own backend computes, and faster.
            return plain(q_SHTK, k_SGTK, v_SGTK)
        return attend_after(q_SHTK, *kept_2SGLK[:, :, :, :end])


class Single:
    """Reads one token per row by launches that do not depend on where it stands.

    They can be recorded: 17 visits of small products cost a GPU far less than their launches. The
    position is a number on the device, and queries see whole stretches of the cache under a mask. A
    stretch is run once as it is, then recorded as a CUDA graph.
    """

    STRETCH = 256

    def __init__(self, cache: Cache) -> None:
        self._cache, config = cache, cache.model.config
        like = cache.model.tok_emb.weight
        self._ids_S2 = torch.zeros(cache.rows, 2, dtype=torch.long, device=like.device)
        self._at_1 = torch.zeros(1, dtype=torch.long, device=like.device)
        self._places_L = torch.arange(cache.length, device=like.device)
        self._states_S1D = like.new_empty(
            cache.rows, 1, config.dim, dtype=cache.model.compute_dtype
        )
        self._graphs: dict[int, Any] = {}

    def read(self, ids_S1: Tensor) -> Tensor:
        """Return the normalised final states of the next token of every row, [S, 1, D]."""
        cache = self._cache
        self._ids_S2[:, 1:] = ids_S1
        self._ids_S2[:, :1] = cache.last_S1
        self._at_1.fill_(cache.filled)
        seen = min(cache.length, -(-(cache.filled + 1) // self.STRETCH) * self.STRETCH)
        if seen not in self._graphs:
            self._graphs[seen] = None
            self._compute(seen)
        elif not ids_S1.is_cuda:
            self._compute(seen)
        else:
            self._graphs[seen] = self._graphs[seen] or self._record(seen)
            self._graphs[seen].replay()
        return self._states_S1D.clone()

    def _compute(self, seen: int) -> None:
        model = self._cache.model
        rope = self._cache.rope_at(self._at_1)
        hidden_N = self._places_L[:seen] > self._at_1

        def attend(
            kept_2SGLK: Tensor, plain: Attention, q_SH1K: Tensor, k_SG1K: Tensor, v_SG1K: Tensor
        ) -> Tensor:
            for kept_SGLK, new_SG1K in zip(kept_2SGLK, (k_SG1K, v_SG1K), strict=True):
                kept_SGLK.index_copy_(2, self._at_1, new_SG1K)
            k_SGNK, v_SGNK = kept_2SGLK[:, :, :, :seen]
            return attend_to(q_SH1K, k_SGNK, v_SGNK, hidden_N)

        # SmearGate looks one token back.
        x_S1D = model.embedded(self._ids_S2)[:, 1:]
        with self._cache.attending(attend):
            self._states_S1D.copy_(model.states(x_S1D, rope))

    def _record(self, seen: int) -> Any:
        stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            graph.capture_begin()
            self._compute(seen)
            graph.capture_end()
        torch.cuda.current_stream().wait_stream(stream)
        return graph


def attend_after(q_SHTK: Tensor, k_SGNK: Tensor, v_SGNK: Tensor) -> Tensor:
    """Return attention of the last T of N positions over all of them, causal; y_SHTK."""
    T, N = q_SHTK.shape[2], k_SGNK.shape[2]
    if T == 1:
        return attend_to(q_SHTK, k_SGNK, v_SGNK, None)
    future_TN = torch.ones(T, N, dtype=torch.bool, device=q_SHTK.device).triu(N - T + 1)
    return attend_to(q_SHTK, k_SGNK, v_SGNK, future_TN)


def attend_to(q_SHTK: Tensor, k_SGNK: Tensor, v_SGNK: Tensor, hidden_TN: Tensor | None) -> Tensor:
    """Return attention of T queries over N positions but the hidden ones; y_SHTK."""
    S, H, T, K = q_SHTK.shape
    G = k_SGNK.shape[1]
    # Read as [S, G, P T, K]: the query heads of one key head become rows of one product.
    q = q_SHTK.reshape(S, G, (H // G) * T, K)
    scores = (q @ k_SGNK.mT) * (1.0 / math.sqrt(K))
    if hidden_TN is not None:
        hidden = hidden_TN if T == 1 else hidden_TN.repeat(H // G, 1)
        scores = scores.masked_fill(hidden, -math.inf)
    return (scores.softmax(-1) @ v_SGNK).view(S, H, T, K)
