"""Continuations of prompts, several side by side: the next tokens, and the text that they add.

A prompt is continued at its end. Tokenizers put a blank before a word, not after one, so a blank at
the end of a prompt is not read. Instead the first drawn token must begin with that blank, and its
text is added without the blank.

Shapes: S rows side by side, V vocabulary, K tokens to choose from.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, AnyStr

import numpy as np
import torch
from torch import Tensor

from fairway.base.arrays import IntArray
from fairway.base.errors import UserError
from fairway.base.units import written
from fairway.data.pieces import Packer
from fairway.model.cache import Cache
from fairway.model.gpt import GPT

MAX_SEED = 2**63 - 1
BLANK = " "
# Stop words end a text and are not part of it.
Stops = Sequence[bytes]


@dataclass(frozen=True, slots=True)
class Manner:
    """How tokens are drawn; temperature 0 takes the likeliest.

    The choice is among the `top_k` likeliest, and of these the fewest that have at least the share
    `top_p` of their sum.
    """

    temperature: float = 0.8
    top_k: int = 50
    top_p: float = 1.0

    def __post_init__(self) -> None:
        require_number("temperature", self.temperature, 0, sys.float_info.max)
        require_whole("top_k", self.top_k, 1)
        require_number("top_p", self.top_p, 0, 1)


def require_number(name: str, value: Any, lo: float, hi: float) -> None:
    """Raise UserError unless a value is a number from `lo` to `hi`."""
    # In this form NaN fails too.
    number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    # A narrow type of NumPy would round the bound; Python's own whole numbers may have no float.
    if not number or not lo <= (float(value) if isinstance(value, np.number) else value) <= hi:
        bound = f"of {lo} or more" if hi == sys.float_info.max else f"from {lo} to {hi}"
        raise UserError(f"{name} is {described(value)}; it must be a number {bound}")


def require_whole(name: str, value: Any, lo: int, hi: int | None = None) -> None:
    """Raise UserError unless a value is a whole number from `lo` to `hi`."""
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or value < lo or (hi is not None and value > hi):
        bound = f"of {lo} or more" if hi is None else f"from {lo} to {written(hi)}"
        # Not 1 for 1.0, which would look whole.
        said = repr(value) if isinstance(value, float) else described(value)
        raise UserError(f"{name} is {said}; it must be a whole number {bound}")


def described(value: Any) -> str:
    """Return any value for a sentence: numbers for people, other values shortened."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return written(value)
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


@dataclass(frozen=True, slots=True)
class Drawn:
    """A drawn token, the byte of the row's text at which it begins, and log-probabilities.

    These are in nats, before temperature and selection, of the token and the likeliest tokens.
    """

    token: int
    start: int
    nats: float
    likeliest: tuple[tuple[int, float], ...]


class Row:
    """A prompt and its continuation, which grows to `most` tokens or to a stop word.

    With `alternatives` it keeps the drawn tokens, and this many of the likeliest tokens each time.
    """

    def __init__(
        self,
        packer: Packer,
        prompt: str | IntArray,
        most: int,
        seed: int,
        stops: Stops = (),
        alternatives: int | None = None,
    ) -> None:
        require_whole("max_tokens", most, 0)
        require_whole("seed", seed, 0, MAX_SEED)
        bos = packer.tokenizer.bos_id
        self.owed = isinstance(prompt, str) and prompt.endswith(BLANK)
        if not isinstance(prompt, str | np.ndarray):
            raise UserError(f"the prompt is of the type {type(prompt).__name__}; give str")
        if isinstance(prompt, str):
            prompt = np.insert(packer.document(prompt.removesuffix(BLANK)), 0, bos)
        self.prompt: list[int] = prompt.tolist()
        # Bytes of the pieces so far, and the bytes of text before the continuation.
        self._pieces = packer.joined(prompt)
        self._read_bytes = len(packer.tokenizer.restore(self._pieces))
        self.text = b""
        self.ended = most == 0
        # Whether it ended by a stop word, or with the document.
        self.stopped = False
        self.drawn: list[Drawn] = []
        self._alternatives = alternatives
        self.most, self._packer, self.stops, self._bos = most, packer, stops, bos
        self.count = 0
        self._generator = torch.Generator().manual_seed(int(seed))

    def said(self) -> str:
        """Return the text. Bytes that are no character become U+FFFD, which may be a stop word."""
        return before(self.text.decode(errors="replace"), [stop.decode() for stop in self.stops])

    def draw(self, logits_V: Tensor, manner: Manner) -> int:
        """Draw and return the next token; its text is added unless the row has ended."""
        allowed_K = torch.from_numpy(self._packer.leading_ids) if self.owed else None
        token = draw(logits_V, manner, self._generator, allowed_K)
        if not self.ended:
            if self._alternatives is not None:
                self.drawn.append(self._drawn(token, logits_V, self._alternatives))
            self._add(token)
        return token

    def _drawn(self, token: int, logits_V: Tensor, alternatives: int) -> Drawn:
        row_V = logits_V.double().log_softmax(0)
        values_K, choices_K = row_V.topk(min(alternatives, len(row_V)))
        likeliest = tuple(zip(choices_K.tolist(), values_K.tolist(), strict=True))
        return Drawn(token, len(self.text), float(row_V[token]), likeliest)

    def _add(self, token: int) -> None:
        packer, ids = self._packer, np.array([token])
        starts = not self.count and self.prompt[-1] == self._bos
        cut = starts or self.owed
        self._pieces += packer.joined_document(ids) if cut else packer.joined(ids)
        self.owed = False
        self.count += 1
        whole = packer.tokenizer.restore(self._pieces)[self._read_bytes :]
        self.text = before(whole, self.stops)
        self.stopped = len(self.text) < len(whole) or token == self._bos
        self.ended = self.stopped or self.count >= self.most


def before(text: AnyStr, stops: Sequence[AnyStr]) -> AnyStr:
    """Return the text before the first stop word; all of it if there is none."""
    return text[: min((at for stop in stops if (at := text.find(stop)) >= 0), default=None)]


def draw(
    logits_V: Tensor, manner: Manner, generator: torch.Generator, allowed_K: Tensor | None = None
) -> int:
    """Return a token drawn from logits on a CPU, among all or the allowed ones."""
    logits_K = logits_V if allowed_K is None else logits_V[allowed_K]
    if manner.temperature == 0:
        choice = logits_K.argmax()
    else:
        values_K, choices_K = logits_K.double().topk(min(int(manner.top_k), len(logits_K)))
        # The largest logit becomes 0, so that even a tiny temperature makes none infinite.
        shares_K = ((values_K - values_K[0]) / float(manner.temperature)).softmax(0)
        before_K = shares_K.cumsum(0) - shares_K
        shares_K = shares_K.where((before_K < manner.top_p) | (before_K == 0), 0.0)
        choice = choices_K[torch.multinomial(shares_K, 1, generator=generator)[0]]
    return int(choice if allowed_K is None else allowed_K[choice])


@torch.no_grad()
def write(
    model: GPT,
    rows: Sequence[Row],
    manner: Manner,
    length: int,
    stride: int,
    steady: bool = True,
) -> Iterator[None]:
    """Continue rows side by side, one token per step, until all have ended.

    All are read from their first token on. Rows with a longer prompt continue reading while others
    draw, so a row's text does not depend on other rows, except by rounding. A prompt fills the
    window of `length` tokens as far as it can. A full window moves by the stride, at most half its
    length, and is read again.
    """
    read = [row.prompt[-length:] for row in rows]
    shortest = min(map(len, read))
    ahead, grown = [ids[shortest:][::-1] for ids in read], [ids[:shortest] for ids in read]
    cache, unread = Cache(model, len(rows), length, steady=steady), shortest
    while not all(row.ended for row in rows):
        unread_ST = torch.tensor([ids[-unread:] for ids in grown])
        logits_SV = model.logits(cache.last(unread_ST)).cpu()
        for row, waiting, ids, logits_V in zip(rows, ahead, grown, logits_SV, strict=True):
            ids.append(waiting.pop() if waiting else row.draw(logits_V, manner))
        yield
        unread = 1
        if cache.filled == length:
            cache.clear()
            unread = length - min(stride, length // 2)
