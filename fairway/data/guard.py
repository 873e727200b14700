"""Keeps training and validation text apart: the split, and the search for overlap.

Documents are compared by runs of 13 words, or of 20 characters in scripts without blanks
(`fairway/data/shingles.py`). A document is a near duplicate of the other side if more than
`NEAR_SHARE` of its runs occur there. The search goes in both directions, because a short validation
document may be a small part of a long training document. A document shorter than a run, but of at
least 8 words or 12 characters, is a near duplicate if the other side contains all of it. A still
shorter one is a near duplicate if the other side has an equal document.

A file that holds the text of most other documents, such as a book beside its chapters, would leave
nothing of one side. If a side loses more than half of its documents, such a collection is sought
and left out instead.
"""

import heapq
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from fairway.base.errors import UserError
from fairway.base.progress import progress
from fairway.base.units import counted
from fairway.data.documents import Document, document_key
from fairway.data.shingles import (
    SHINGLE_WEIGHT,
    WORD_WEIGHT,
    Hashes,
    Slots,
    Units,
    index_of,
    look_up,
    views,
)

# Stock phrases that different documents share (licences, boilerplate) stay below a fifth. An edited
# copy with one word in thirteen replaced at random still shares a third of its runs.
NEAR_SHARE = 0.2
# Any text may contain a greeting or a name; eight words in a row rarely coincide.
SHORT_WEIGHT = 8 * WORD_WEIGHT
# A collection of documents has about their length; less, if they repeat each other's stock phrases.
_COLLECTION_SHARE = 0.75
# Collections are sought among this many of the longest documents; each takes a look at all text.
_LONGEST = 5

Shares = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Split:
    """The two sides, how many documents were left out, by reason, and the names of collections."""

    train: list[Document]
    val: list[Document]
    dropped: dict[str, int]
    collections: list[str] = field(default_factory=list)

    @property
    def poor(self) -> bool:
        """Whether a side lost more than half of its documents to the other."""
        return any(
            self.dropped[reason] > len(kept)
            for reason, kept in (
                ("train_near_validation", self.train),
                ("validation_near_train", self.val),
            )
        )


def split_documents(documents: Iterable[Document], val_share: float) -> Split:
    """Return documents divided by a hash of their name and text, without overlap.

    Repeats of a text (apart from case, punctuation and blanks) are kept once. Near duplicates of
    validation text are removed from training; validation documents that training still covers are
    removed from validation. If that takes more than half of a side because one document is a
    collection of the others, it is removed instead. Raises UserError if there are fewer than two
    documents.
    """
    unique, repeats = _without_repeats(documents)
    if len(unique) < 2:
        raise UserError(
            f"{counted(len(unique), 'distinct document')} cannot be split into training and "
            "validation; give at least two, or separate validation files"
        )
    unique.sort(key=document_key)
    rest, collections = unique, list[str]()
    while (split := _divided(rest, val_share)).poor and (found := _collection(rest)).most:
        collections.append(found.document.name)
        rest = [document for document in rest if document is not found.document]
    if not split.train or not split.val:
        raise _too_alike(rest)
    dropped = {"repeats": repeats, **split.dropped}
    if collections:
        # Only a reason that occurred: a new one must not change the digest of other data.
        dropped["collection"] = len(collections)
    return Split(split.train, split.val, dropped, collections)


def _divided(unique: list[Document], val_share: float) -> Split:
    """Return the two sides of sorted documents without the near duplicates of either."""
    bound = int(val_share * 2**128)
    count = sum(int.from_bytes(document_key(document)) < bound for document in unique)
    count = min(max(count, 1), len(unique) - 1)
    val, train = unique[:count], unique[count:]
    train_shares, val_shares = _overlap(train, val)
    return Split(
        train=_below(train, train_shares),
        val=_below(val, val_shares),
        dropped={
            "train_near_validation": int(np.count_nonzero(train_shares > NEAR_SHARE)),
            "validation_near_train": int(np.count_nonzero(val_shares > NEAR_SHARE)),
        },
    )


def _too_alike(documents: list[Document]) -> UserError:
    named, remedy = "", ""
    if len(documents) > 2 and (found := _collection(documents)).held:
        named = f": '{found.document.name}' holds the text of {found.held:,} of them"
        remedy = "leave it out, or "
    return UserError(
        f"the {len(documents)} documents are too alike to be split into training and "
        f"validation{named}; {remedy}give separate validation files (--validation)"
    )


@dataclass(frozen=True)
class _Collection:
    """A document, how many others it is a collection of, and whether these are most of them."""

    document: Document
    held: int
    most: bool


def _collection(documents: list[Document]) -> _Collection:
    """Return which of the longest documents is a collection of the most others."""
    longest = heapq.nlargest(_LONGEST, documents, key=lambda document: len(document.text))
    held = [_held(one, [other for other in documents if other is not one]) for one in longest]
    best = int(np.argmax(held))
    most = held[best] > 1 and 2 * held[best] > len(documents) - 1
    return _Collection(longest[best], held[best], most)


def _held(one: Document, others: list[Document]) -> int:
    """Return how many others are near duplicates of parts of a document; 0 for no collection.

    A part is at most half as long. Of texts that are only alike, each is near to all others, but
    none is as long as they are together.
    """
    size = len(one.text)
    parts = [other for other in others if 2 * len(other.text) <= size]
    shares, _ = _overlap(parts, [one])
    lengths = [
        len(part.text) for part, share in zip(parts, shares, strict=True) if share > NEAR_SHARE
    ]
    return len(lengths) if size >= _COLLECTION_SHARE * sum(lengths) else 0


def check_overlap(train: Iterable[Document], val: Iterable[Document]) -> None:
    """Raise UserError if the two sides share documents or near duplicates, naming the first."""
    train, val = list(train), list(val)
    train_shares, val_shares = _overlap(train, val)
    for documents, shares, side, other in (
        (val, val_shares, "validation", "training"),
        (train, train_shares, "training", "validation"),
    ):
        near = np.flatnonzero(shares > NEAR_SHARE)
        if len(near):
            does = "overlaps" if len(near) == 1 else "overlap"
            name, share = documents[near[0]].name, shares[near[0]]
            raise UserError(
                f"{counted(len(near), f'{side} document')} {does} with the {other} text, the first "
                f"is '{name}' (by {share:.0%}); remove them from one side"
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
        view = views(document.text)[0]
        seen.setdefault(view.key() if len(view.bare) else document.text.encode(), document)
    return list(seen.values()), total - len(seen)


class _Pool:
    """Distinct hashes of one side with their indices, for searches from the other side."""

    def __init__(self, parts: Iterable[Hashes]) -> None:
        self.keys = np.unique(np.concatenate([np.zeros(0, np.uint64), *parts]))
        self.slots = np.full(1 << int(2 * len(self.keys)).bit_length(), -1, np.int64)
        index_of(self.keys, self.slots)

    def find(self, hashes: Hashes) -> Slots:
        """Return the indices of the given hashes that are here, once each."""
        return np.unique(look_up(self.keys, self.slots, hashes))


def _is_short(view: Units) -> bool:
    return SHORT_WEIGHT <= view.weight < SHINGLE_WEIGHT


def _share(found: Slots, runs: Hashes) -> float:
    return len(found) / len(np.unique(runs)) if len(found) else 0.0


class _Side:
    """Validation text, prepared for searches from one training document after another."""

    def __init__(self, documents: list[Document]) -> None:
        self._views = [views(document.text) for document in documents]
        self._all = [view for some in self._views for view in some]
        self._pool = _Pool(view.runs(SHINGLE_WEIGHT) for view in self._all)
        self._covered = np.zeros(len(self._pool.keys), bool)
        short = [view for view in self._all if _is_short(view)]
        # By weight: the short validation documents, and whether training text contains them.
        self._short = {
            weight: _Pool(v.runs(weight) for v in short if v.weight == weight)
            for weight in {v.weight for v in short}
        }
        self._held = {weight: np.zeros(len(p.keys), bool) for weight, p in self._short.items()}
        self._runs: dict[int, _Pool] = {}

    def meet(self, text: str) -> float:
        """Return the share of a training document that is here; record it if it may stay."""
        readings = views(text)
        runs = [view.runs(SHINGLE_WEIGHT) for view in readings]
        found = [self._pool.find(some) for some in runs]
        share = max(_share(places, some) for places, some in zip(found, runs, strict=True))
        if any(_is_short(view) and self._holds(view) for view in readings):
            share = 1.0
        if share <= NEAR_SHARE:
            for places in found:
                self._covered[places] = True
            for weight, pool in self._short.items():
                for view in (view for view in readings if view.weight >= weight):
                    self._held[weight][pool.find(view.runs(weight))] = True
        return share

    def _holds(self, short: Units) -> bool:
        """Return whether some validation text contains a short training document."""
        weight = short.weight
        if weight not in self._runs:
            self._runs[weight] = _Pool(view.runs(weight) for view in self._all)
        return len(self._runs[weight].find(short.runs(weight))) > 0

    def shares(self) -> Shares:
        """Return for every validation document the share that training documents cover."""
        return np.array([max(map(self._covered_share, some)) for some in self._views])

    def _covered_share(self, view: Units) -> float:
        places = self._pool.find(view.runs(SHINGLE_WEIGHT))
        share = float(self._covered[places].mean()) if len(places) else 0.0
        if _is_short(view):
            held = self._held[view.weight][self._short[view.weight].find(view.runs(view.weight))]
            return max(share, float(held.any()))
        return share


def _overlap(train: list[Document], val: list[Document]) -> tuple[Shares, Shares]:
    """Return for each document of both sides the share of its runs found on the other side.

    Training documents that are near duplicates do not count against validation, because they are
    removed first. Only the validation side is held in memory.
    """
    side = _Side(val)
    train_shares = np.zeros(len(train))
    with progress("comparing with validation", len(train)) as advance:
        for number, document in enumerate(train):
            train_shares[number] = side.meet(document.text)
            advance(1)
    return train_shares, side.shares()
