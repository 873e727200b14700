"""Forward passes a few tokens at a time: keys and values of what was read are kept.

There is no second transformer here. The model's own code runs, but while it does, `attend` of every
block is replaced by one that adds the new keys and values to those of the same visit and lets the
queries see both. A block that the recurrence visits three times keeps three sets.

Shapes: S rows side by side, T new positions, N positions read so far, D width, V visits of blocks,
H query heads, G key/value heads, P = H / G, K head width, R rotated pairs, L most positions.
"""

import functools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor

from fairway.model.attention import Attention
from fairway.model.gpt import GPT, Block, rope_table


class Cache:
    """What a model has read of up to `length` positions in each of `rows` rows.

    Positions are turned by the rotary table of `length`, whose base may depend on it, so that
    states equal those of a window padded to that length. Between calls the model is as it was:
    its weights may change as long as `clear` is called before reading on. It must not change its
    looping state or dtype.
    """

    def __init__(self, model: GPT, rows: int, length: int) -> None:
        config, weight = model.config, model.tok_emb.weight
        cos_LR, sin_LR = rope_table(length, config)
        self._rope = cos_LR.to(weight.device), sin_LR.to(weight.device)
        self._visits = len(model.encoder_visits) + len(model.decoder_visits)
        width = config.dim // config.num_heads
        shape = (2, self._visits, rows, config.num_kv_heads, length, width)
        self._kept_2VSGLK = torch.zeros(shape, dtype=model.compute_dtype, device=weight.device)
        self._last_S1 = torch.zeros(rows, 1, dtype=torch.long, device=weight.device)
        self.model, self.rows, self.length = model, rows, length
        self.filled = 0

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
        ids_ST = ids_ST.to(self._last_S1.device)
        cos_TR, sin_TR = (table[self.filled : self.filled + T] for table in self._rope)
        x_STD = self._embedded(ids_ST)
        with self._attending():
            states_STD = self.model.states(x_STD, (cos_TR, sin_TR))
        self._last_S1 = ids_ST[:, -1:]
        self.filled += T
        return states_STD

    def _embedded(self, ids_ST: Tensor) -> Tensor:
        if not self.filled:
            return self.model.embedded(ids_ST)
        # SmearGate looks one token back, so that one is embedded again.
        return self.model.embedded(torch.cat((self._last_S1, ids_ST), 1))[:, 1:]

    @contextmanager
    def _attending(self) -> Iterator[None]:
        attentions = [cast(Block, block).attn for block in self.model.blocks]
        own = [attention.attend for attention in attentions]
        visits = iter(range(self._visits))
        try:
            for attention, plain in zip(attentions, own, strict=True):
                attention.attend = functools.partial(self._attend, visits, plain)
            yield
        finally:
            for attention, plain in zip(attentions, own, strict=True):
                attention.attend = plain

    def _attend(
        self,
        visits: Iterator[int],
        plain: Attention,
        q_SHTK: Tensor,
        k_SGTK: Tensor,
        v_SGTK: Tensor,
    ) -> Tensor:
        """Return y_SHTK of new queries over everything read, the new positions included."""
        first, end = self.filled, self.filled + q_SHTK.shape[2]
        kept_2SGLK = self._kept_2VSGLK[:, next(visits)]
        kept_2SGLK[0, :, :, first:end] = k_SGTK
        kept_2SGLK[1, :, :, first:end] = v_SGTK
        if not first:
            # A beginning is what the model's own backend computes, and faster.
            return plain(q_SHTK, k_SGTK, v_SGTK)
        return attend_after(q_SHTK, *kept_2SGLK[:, :, :, :end])


def attend_after(q_SHTK: Tensor, k_SGNK: Tensor, v_SGNK: Tensor) -> Tensor:
    """Return attention of the last T of N positions over all of them, causal; y_SHTK."""
    S, H, T, K = q_SHTK.shape
    G, N = k_SGNK.shape[1:3]
    # Read as [S, G, P T, K]: the query heads of one key head become rows of one product.
    q = q_SHTK.reshape(S, G, (H // G) * T, K)
    scores = (q @ k_SGNK.mT) * (1.0 / math.sqrt(K))
    if T > 1:
        future_TN = torch.ones(T, N, dtype=torch.bool, device=q.device).triu(N - T + 1)
        scores = scores.masked_fill(future_TN.repeat(H // G, 1), -math.inf)
    return (scores.softmax(-1) @ v_SGNK).view(S, H, T, K)
