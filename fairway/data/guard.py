"""Training and validation text are kept apart: the split, and the search for overlap.

A shingle is a run of 13 words, the length customary in contamination checks since GPT-3 (Brown et
al. 2020, appendix C). A document is a near duplicate of the other side when more than `NEAR_SHARE`
of its shingles occur there. Both directions are searched: a short validation document may be a
small part of a long training one.
"""

import string
import zlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fairway.data.documents import Document, document_key
from fairway.errors import UserError
from fairway.progress import progress

SHINGLE_WORDS = 13
# Stock phrases shared by honest neighbours (licences, boilerplate) stay below a fifth; an edited
# copy that has one word in thirteen replaced at random still shares a third of its shingles.
NEAR_SHARE = 0.2

Shares = npt.NDArray[np.float64]
Shingles = npt.NDArray[np.uint64]
_BREAKS = string.punctuation.encode()
_TO_WORDS = bytes.maketrans(_BREAKS, b" " * len(_BREAKS))
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Split:
    """The two sides, and how many documents were left out of each and why."""

    train: list[Document]
    val: list[Document]
    dropped: dict[str, int]


def split_documents(documents: Iterable[Document], val_share: float) -> Split:
    """Return documents divided by a hash of their name and text, without overlap.

    Repeats of a text (but for case, punctuation and blanks) are kept once. Near duplicates of
    validation text leave training; validation documents that training still covers leave
    validation. Raises UserError when there are not two documents to divide.
    """
    unique, repeats = _without_repeats(documents)
    if len(unique) < 2:
        raise UserError(
            f"{len(unique)} distinct documents cannot be split into training and validation; "
            "give at least two, or separate validation files"
        )
    unique.sort(key=document_key)
    bound = int(val_share * 2**128)
    count = sum(int.from_bytes(document_key(document)) < bound for document in unique)
    count = min(max(count, 1), len(unique) - 1)
    val, train = unique[:count], unique[count:]
    train_shares, val_shares = _overlap(train, val)
    split = Split(
        train=_below(train, train_shares),
        val=_below(val, val_shares),
        dropped={
            "repeats": repeats,
            "train_near_validation": int(np.count_nonzero(train_shares > NEAR_SHARE)),
            "validation_near_train": int(np.count_nonzero(val_shares > NEAR_SHARE)),
        },
    )
    if not split.train or not split.val:
        raise UserError(
            f"the {len(unique)} documents are too alike to be split into training and validation; "
            "give separate validation files"
        )
    return split


def check_overlap(train: Iterable[Document], val: Iterable[Document]) -> None:
    """Raise UserError when the two sides share documents or near duplicates, naming the first."""
    train, val = list(train), list(val)
    train_shares, val_shares = _overlap(train, val)
    for documents, shares, side, other in (
        (val, val_shares, "validation", "training"),
        (train, train_shares, "training", "validation"),
    ):
        near = np.flatnonzero(shares > NEAR_SHARE)
        if len(near):
            raise UserError(
                f"{len(near)} {side} documents overlap with the {other} text, the first is "
                f"'{documents[near[0]].name}' (by {shares[near[0]]:.0%}); remove them from one side"
            )


def _below(documents: list[Document], shares: Shares) -> list[Document]:
    return [
        document for document, share in zip(documents, shares, strict=True) if share <= NEAR_SHARE
    ]


def _without_repeats(documents: Iterable[Document]) -> tuple[list[Document], int]:
    seen: dict[bytes, Document] = {}
    total = 0
    for document in documents:
        total += 1
        seen.setdefault(b" ".join(_words(document.text)), document)
    return list(seen.values()), total - len(seen)


def _words(text: str) -> list[bytes]:
    return text.casefold().encode().translate(_TO_WORDS).split()


def shingles(text: str) -> Shingles:
    """Return a 64-bit hash of each run of 13 words, sorted, once each; fewer words are one run."""
    words = _words(text)
    codes = np.fromiter(map(zlib.crc32, words), np.uint64, len(words))
    length = max(1, min(SHINGLE_WORDS, len(words)))
    total = np.zeros(len(words) - length + 1 if words else 0, np.uint64)
    for offset in range(length if words else 0):
        total = (total ^ codes[offset : offset + len(total)]) * _MULTIPLIER
        total ^= total >> np.uint64(29)
    return np.unique(total)


def _overlap(train: list[Document], val: list[Document]) -> tuple[Shares, Shares]:
    """Return for each document of both sides the share of its shingles found on the other side.

    Training documents that are near duplicates do not count against validation, as they go first.
    Only the validation side is held in memory, 8 bytes a word.
    """
    val_shingles = [shingles(document.text) for document in val]
    pool = np.unique(np.concatenate([*val_shingles, np.zeros(1, np.uint64)]))
    covered = np.zeros(len(pool), bool)
    train_shares = np.zeros(len(train))
    with progress("comparing with validation", len(train)) as advance:
        for number, document in enumerate(train):
            mine = shingles(document.text)
            places = np.searchsorted(pool, mine).clip(max=len(pool) - 1)
            found = pool[places] == mine
            train_shares[number] = found.mean() if len(mine) else 0.0
            covered[places[found]] |= train_shares[number] <= NEAR_SHARE
            advance(1)
    places_of = (np.searchsorted(pool, mine) for mine in val_shingles)
    return train_shares, np.array([covered[p].mean() if len(p) else 0.0 for p in places_of])
