"""Costs of continuations: many texts in one pass through the model.

Context and continuation are tokenised as one document (`Packer.document`), so the tokens represent
every byte of both. The cost of a continuation is that of all tokens that end after its context. If
the context ends in a blank, the token of blank and word begins inside the context and counts too.

Shapes: B rows of a pass, T positions, N scored positions, D width, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from fairway.api import LanguageModel
from fairway.base.arrays import IntArray
from fairway.data.pieces import Packer, encoded
from fairway.data.tokens import token_bytes
from fairway.model.block import Walk
from fairway.model.gpt import rope_table
from fairway.score.windows import Window, sliding_windows

# Logits are formed for this many positions at a time: 1,024 x 8,192 in float64 is 67 MB.
_ROWS_AT_ONCE = 1024


@dataclass(frozen=True, slots=True)
class Continuation:
    """The tokens of a document, BOS first, and the first position whose target is counted."""

    ids: IntArray
    first: int

    @property
    def count(self) -> int:
        """Return how many targets are counted."""
        return len(self.ids) - 1 - self.first


def continuation(packer: Packer, context: str, text: str) -> Continuation:
    """Return the tokens of a text after a context, and which of them belong to the text.

    Raises UserError for an incomplete character.
    """
    before_bytes = len(encoded(context, "the context"))
    ids = packer.document(context + text)
    tokenizer = packer.tokenizer
    # After BOS the space of the first piece has no bytes.
    sizes = token_bytes(ids, np.insert(ids, 0, tokenizer.bos_id)[:-1], tokenizer.table)
    ends = np.cumsum(sizes, dtype=np.int64)
    reaching = (ends > before_bytes) | (ends - sizes >= before_bytes)
    first = int(np.flatnonzero(reaching)[0]) if text else len(ids)
    return Continuation(np.insert(ids, 0, packer.tokenizer.bos_id), first)


def windows(asked: Continuation, length: int, stride: int) -> list[Window]:
    """Return the windows that score a continuation, every position once.

    This is one window that ends with the continuation and begins as early as its length allows. A
    continuation longer than that is scored under the sliding windows of its whole document, like
    any text.
    """
    targets = len(asked.ids) - 1
    if not asked.count:
        return []
    if asked.count <= length:
        return [Window(max(0, targets - length), targets, asked.first)]
    return [
        Window(window.start, window.end, max(window.score_from, asked.first))
        for window in sliding_windows(targets, length, stride)
        if window.end > asked.first
    ]


@dataclass(frozen=True, slots=True)
class Cost:
    """The log-probability of a continuation in nats, and whether greedy decoding gives it."""

    nats: float = 0.0
    greedy: bool = True

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.nats + other.nats, self.greedy and other.greedy)


@dataclass(frozen=True, slots=True)
class Pass:
    """Windows of several continuations, by number, in one pass through the model."""

    numbers: tuple[int, ...]
    windows: tuple[Window, ...]


class Coster:
    """Costs of continuations under windows of `length`, up to `rows` of them in one pass.

    Without `rows`, a pass has as many positions as a pass of the scorer.
    """

    def __init__(self, language: LanguageModel, length: int, rows: int | None) -> None:
        config = language.score_config
        self._model, self._length, self._rows = language.model, length, rows
        self._stride, self._plan = min(config.stride, length), language.plan
        self._most_positions = config.batch_windows * config.seq_len
        # Rotated as in windows of full length, since the rotary base may depend on it.
        self._device = self._model.tok_emb.weight.device
        table = rope_table(config.seq_len, self._model.config)
        self._cos_LR, self._sin_LR = (part.to(self._device) for part in table)

    def costs(self, asked: Sequence[Continuation]) -> Iterator[tuple[int, Cost]]:
        """Yield the number and cost of every continuation as soon as its last window is scored.

        The longest windows come first, so that a lack of memory appears at once.
        """
        planned = [windows(item, self._length, self._stride) for item in asked]
        left = [len(parts) for parts in planned]
        found = [Cost()] * len(asked)
        yield from ((number, Cost()) for number, count in enumerate(left) if not count)
        for batch in self._passes(planned):
            with self._plan.applied():
                texts = [asked[number].ids for number in batch.numbers]
                costs = list(self._pass(texts, batch.windows))
            for number, cost in zip(batch.numbers, costs, strict=True):
                found[number] += cost
                left[number] -= 1
                if not left[number]:
                    yield number, found[number]

    def _passes(self, planned: list[list[Window]]) -> Iterator[Pass]:
        order = [(number, window) for number, parts in enumerate(planned) for window in parts]
        order.sort(key=lambda item: item[1].start - item[1].end)
        while order:
            longest = order[0][1].end - order[0][1].start
            count = self._rows or max(1, self._most_positions // longest)
            numbers, parts = zip(*order[:count], strict=True)
            yield Pass(numbers, parts)
            del order[:count]

    @torch.no_grad()
    def _pass(self, texts: list[IntArray], parts: Sequence[Window]) -> Iterator[Cost]:
        """Yield the costs of windows, padded on the right, which causal attention does not see."""
        T = max(window.end - window.start for window in parts)
        ids_BT = np.zeros((len(parts), T), np.int64)
        for row, (ids, window) in enumerate(zip(texts, parts, strict=True)):
            ids_BT[row, : window.end - window.start] = ids[window.start : window.end]
        embedded_BTD = self._model.embedded(torch.from_numpy(ids_BT).to(self._device))
        x_BTD = self._model.states(embedded_BTD, Walk((self._cos_LR[:T], self._sin_LR[:T])))
        scored = [
            x_TD[window.score_from - window.start : window.end - window.start]
            for window, x_TD in zip(parts, x_BTD, strict=True)
        ]
        targets = [
            ids[window.score_from + 1 : window.end + 1]
            for ids, window in zip(texts, parts, strict=True)
        ]
        nats_N, greedy_N = self._judged(torch.cat(scored), np.concatenate(targets))
        ends = np.cumsum([len(part) for part in targets])[:-1]
        for nats, greedy in zip(np.split(nats_N, ends), np.split(greedy_N, ends), strict=True):
            yield Cost(float(nats.sum()), bool(greedy.all()))

    def _judged(self, x_ND: torch.Tensor, targets: IntArray) -> tuple[np.ndarray, np.ndarray]:
        """Return the log-probability of every target, and whether it is the likeliest token."""
        targets_N = torch.from_numpy(targets).to(self._device)
        nats, greedy = [], []
        for first in range(0, len(x_ND), _ROWS_AT_ONCE):
            part = slice(first, first + _ROWS_AT_ONCE)
            rows_NV = self._model.logits(x_ND[part]).double().log_softmax(1)
            nats.append(rows_NV.gather(1, targets_N[part, None])[:, 0])
            greedy.append(rows_NV.argmax(1) == targets_N[part])
        return torch.cat(nats).cpu().numpy(), torch.cat(greedy).cpu().numpy()
