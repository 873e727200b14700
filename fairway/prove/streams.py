"""Cuts the tokens of a text into streams that are coded side by side, and chooses their number."""

from dataclasses import dataclass

import numpy as np

from fairway.base.arrays import IntArray
from fairway.data.tokens import Tokenizer


def default_streams(tokens: int, seq_len: int, device: str, most: int) -> int:
    """Return the default number of streams for this many tokens, at most `most`.

    Each stream begins without context. On a CPU, where more streams save little time, each is four
    windows long. A GPU reads hundreds of tokens in the time of one. So there each stream fits into
    a window with a sixteenth to spare, since some streams are longer than others, and no token is
    read twice. If that gives too many streams, they are longer and read a window again for each
    stride of tokens.
    """
    on_gpu, on_cpu = -(-tokens // (seq_len - seq_len // 16)), tokens // (4 * seq_len)
    return max(1, min(most, on_gpu if device == "cuda" else on_cpu))


@dataclass(frozen=True, slots=True, eq=False)
class Stream:
    """Tokens from a BOS on. `joined`: they continue the document of the previous stream, after a
    new BOS."""

    ids: IntArray
    joined: bool


def cut_evenly(ids: IntArray, count: int, tokenizer: Tokenizer) -> list[Stream]:
    """Return documents, each after its BOS, as up to `count` streams of about equal length.

    A stream begins with a document, or inside a document at a token that is no byte token and has
    no space before it. So the token stands for the same bytes after its new BOS as before.
    """
    table, bos = tokenizer.table, tokenizer.bos_id
    apart = np.isin(np.arange(tokenizer.vocab_size), tokenizer.byte_ids)
    free = ~(table.leading | table.boundary | apart)[ids]
    # The tokens after a mark belong to it.
    free[1:] &= ~np.isin(ids[:-1], [bos, *tokenizer.mark_ids.values()])
    places = np.flatnonzero(free | (ids == bos))
    ideal = len(ids) * np.arange(1, count) / count
    after = places.searchsorted(ideal).clip(max=len(places) - 1)
    before = (after - 1).clip(min=0)
    nearest = np.where(ideal - places[before] <= places[after] - ideal, before, after)
    starts = sorted({0, *places[nearest].tolist()})
    parts = [ids[a:b] for a, b in zip(starts, [*starts[1:], len(ids)], strict=True)]
    return [
        Stream(part, False) if part[0] == bos else Stream(np.insert(part, 0, bos), True)
        for part in parts
    ]
