"""A text's tokens in parts that are coded side by side, and how many there are."""

from dataclasses import dataclass

import numpy as np

from fairway.base.arrays import IntArray
from fairway.data.tokens import Tokenizer


def default_streams(tokens: int, seq_len: int, device: str, most: int) -> int:
    """Return how many streams this many tokens are cut into, unless the user says: at most `most`.

    They begin without context. On a CPU, where more of them save little time, each is four windows
    long. A GPU reads hundreds of tokens in the time of one: there each fits a window, so that no
    token is read twice, with a sixteenth to spare for streams that come out longer than others.
    Where that makes too many, longer ones read a window anew for every stride of tokens.
    """
    on_gpu, on_cpu = -(-tokens // (seq_len - seq_len // 16)), tokens // (4 * seq_len)
    return max(1, min(most, on_gpu if device == "cuda" else on_cpu))


@dataclass(frozen=True, slots=True, eq=False)
class Stream:
    """Tokens from a BOS on; `joined` says that they go on within a document, behind a new BOS."""

    ids: IntArray
    joined: bool


def cut_evenly(ids: IntArray, count: int, tokenizer: Tokenizer) -> list[Stream]:
    """Return documents, each behind its BOS, as up to `count` streams of about equal length.

    A stream begins with a document, or within one at a token that is no byte and has no space
    before it, so that behind its new BOS it stands for the same bytes as before.
    """
    table, bos = tokenizer.table, tokenizer.bos_id
    apart = np.isin(np.arange(tokenizer.vocab_size), tokenizer.byte_ids)
    free = ~(table.leading | table.boundary | apart)[ids]
    # What follows a mark belongs to it.
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
