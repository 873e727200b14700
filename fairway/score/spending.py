"""The bits of a score by kind of token, frequency, place and context.

Each of the four divides all scored tokens into separate groups, so the bits of its groups add up to
the bits of the score.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fairway.base.arrays import FloatArray, IntArray
from fairway.base.units import nats_to_bits
from fairway.data.case import MARKS
from fairway.data.spmodel import SPACE
from fairway.data.tokens import Tokenizer
from fairway.machine.ranks import Ranks
from fairway.score.ledger import Text, Witness
from fairway.score.predictor import Receipt
from fairway.score.windows import Event

KINDS = (
    "ends of documents",
    "line ends",
    "other single bytes",
    "marks of capital letters",
    "blanks",
    "several words",
    "digits",
    "names and other capital letters",
    "beginnings of words, with their blank",
    "parts inside words",
    "punctuation and signs",
)
# Bounds of the groups of frequency: occurrences in a million tokens of training text, decreasing.
_PER_MILLION = (1_000, 100, 10)
# The last token of the first group of places and contexts; each further group ends twice as far.
_FIRST_GROUP = 64
_GROUPS = 14
_ENDS = _FIRST_GROUP << np.arange(_GROUPS - 1, dtype=np.int64)
# The numbers of named tokens: those with the largest total cost, and in every kind.
_DEAREST, _EXAMPLES = 12, 4
# The most tokens of training text that are counted, in a tenth of a second.
COUNTED_TOKENS = 10_000_000
_LINE_ENDS = (0x0A, 0x0D)


class Passing(Witness):
    """Passes every action of a ledger on to another witness."""

    def __init__(self, witness: Witness) -> None:
        self.witness, self.wanted = witness, witness.wanted

    def opened(self, text: Text) -> None:
        """Pass it on."""
        self.witness.opened(text)

    def read(self, event: Event) -> None:
        """Pass it on."""
        self.witness.read(event)

    def row(self, position: int, row: FloatArray) -> None:
        """Pass it on."""
        self.witness.row(position, row)

    def learned(self, first: int, end: int) -> None:
        """Pass it on."""
        self.witness.learned(first, end)

    def scored(self, receipt: Receipt) -> None:
        """Pass it on."""
        self.witness.scored(receipt)


class Spending(Passing):
    """Sums the costs of a ledger by token and by place; passes every action on to `witness`."""

    def __init__(self, witness: Witness, vocab_size: int, bos_id: int) -> None:
        super().__init__(witness)
        self.bos_id = bos_id
        # Rows: tokens, bytes, nats.
        self.by_token = np.zeros((3, vocab_size))
        self.by_place = np.zeros((3, _GROUPS))
        self.by_context = np.zeros((3, _GROUPS))

    def opened(self, text: Text) -> None:
        """Note the beginnings of the documents of the text; its scorer may have sorted them."""
        self.target_bytes = text.target_bytes
        self.starts = np.flatnonzero(np.asarray(text.ids) == self.bos_id)
        self.witness.opened(text)

    def scored(self, receipt: Receipt) -> None:
        """Add an event's costs to the groups of its tokens."""
        event = receipt.event
        positions = event.positions
        found = np.stack([np.ones(len(positions)), self.target_bytes[positions], receipt.nats])
        windows = event.windows
        context = [np.arange(w.score_from, w.end) - w.start + 1 for w in windows]
        for table, places in (
            (self.by_token, receipt.targets),
            (self.by_place, _group(self._place(positions))),
            (self.by_context, _group(np.concatenate(context))),
        ):
            for total, values in zip(table, found, strict=True):
                np.add.at(total, places, values)
        self.witness.scored(receipt)

    def _place(self, positions: IntArray) -> IntArray:
        """Return the number of every target in its document; the first after BOS is 1."""
        before = np.searchsorted(self.starts, positions, side="right") - 1
        starts = self.starts[np.maximum(before, 0)] if len(self.starts) else 0
        return positions + 1 - np.where(before < 0, 0, starts)

    def total(self, ranks: Ranks) -> None:
        """Add the counts of the other processes; all of them must call this."""
        tables = (self.by_token, self.by_place, self.by_context)
        summed = ranks.total(np.concatenate([table.ravel() for table in tables]))
        ends = np.cumsum([table.size for table in tables])[:-1]
        for table, part in zip(tables, np.split(summed, ends), strict=True):
            table[:] = part.reshape(table.shape)

    def groups(self, tokenizer: Tokenizer, counts: IntArray) -> dict[str, Any]:
        """Return the groups, ready for JSON; `counts` are occurrences in training text by id."""
        kinds, pieces = kinds_of(tokenizer), tokenizer.pieces
        names = [shown(piece) for piece in pieces]
        dear = np.argsort(-self.by_token[2], kind="stable")
        groups = list(_summed(KINDS, kinds, self.by_token))
        for group in groups:
            own = dear[kinds[dear] == KINDS.index(group["name"])][:_EXAMPLES].tolist()
            group["examples"] = [names[i] for i in own if self.by_token[0, i]]
        return {
            "kinds": sorted(groups, key=lambda group: -group["bits"]),
            "frequency": list(_summed(_frequencies(), _rarity(counts), self.by_token)),
            "place": list(_placed(self.by_place)),
            "context": list(_placed(self.by_context)),
            "dearest": [
                {"token": names[i], **_values(self.by_token[:, i])}
                for i in dear[:_DEAREST].tolist()
                if self.by_token[2, i]
            ],
        }


def kinds_of(tokenizer: Tokenizer) -> IntArray:
    """Return the kind of every token id, as an index into `KINDS`: the first that fits."""
    kinds = np.array([_kind(piece) for piece in tokenizer.pieces], np.int64)
    kinds[tokenizer.byte_ids] = KINDS.index("other single bytes")
    kinds[tokenizer.byte_ids[list(_LINE_ENDS)]] = KINDS.index("line ends")
    kinds[tokenizer.table.boundary] = KINDS.index("ends of documents")
    return kinds


def _kind(piece: str) -> int:
    text = re.sub(f"[{SPACE}{''.join(MARKS)}]", "", piece)
    begins = piece.startswith(SPACE)
    if not text:
        name = "blanks" if not piece.strip(SPACE) else "marks of capital letters"
    elif text.isspace():
        name = "line ends" if "\n" in text else "blanks"
    elif SPACE in piece[1:]:
        name = "several words"
    elif any(letter.isnumeric() for letter in text):
        name = "digits"
    elif any(letter.isupper() or letter in MARKS for letter in piece):
        name = "names and other capital letters"
    elif any(letter.isalpha() for letter in text):
        name = "beginnings of words, with their blank" if begins else "parts inside words"
    else:
        name = "punctuation and signs"
    return KINDS.index(name)


def shown(piece: str) -> str:
    """Return a piece for people: blanks are visible, marks of capital letters are arrows."""
    text = piece.replace(SPACE, "\N{OPEN BOX}")
    for mark in MARKS:
        text = text.replace(mark, "\N{UPWARDS ARROW}")
    return {"<0x0A>": "line end", "<0x0D>": "carriage return"}.get(text, text)


def occurrences(shards: Sequence[NDArray[np.integer]], vocab_size: int) -> IntArray:
    """Return how often every id occurs among the first tokens of training text, int64[V]."""
    found, left = np.zeros(vocab_size, np.int64), COUNTED_TOKENS
    for shard in shards:
        found += np.bincount(shard[:left], minlength=vocab_size)
        left -= min(left, len(shard))
    return found


def _rarity(counts: IntArray) -> IntArray:
    """Return the group of frequency of every token; the last one is for absent tokens."""
    per_million = counts * (1e6 / max(1, int(counts.sum())))
    groups = sum((per_million < bound).astype(np.int64) for bound in _PER_MILLION)
    return np.where(counts == 0, len(_PER_MILLION) + 1, groups)


def _frequencies() -> list[str]:
    """Return the names of the groups of frequency, the commonest first."""
    first, *others = _PER_MILLION
    above = zip(_PER_MILLION, others, strict=False)
    middle = [f"{low:,} to {high:,} times in a million" for high, low in above]
    last = f"less than {_PER_MILLION[-1]} times in a million"
    return [f"{first:,} times in a million or more", *middle, last, "never"]


def _group(distances: IntArray) -> IntArray:
    return np.searchsorted(_ENDS, distances)


def _placed(table: FloatArray) -> Iterator[dict[str, Any]]:
    """Yield the groups of distance that have tokens: 1 to 64, 65 to 128, and so on."""
    starts = [1, *(_ENDS + 1).tolist()]
    ends = [f"{end:,}" for end in _ENDS.tolist()]
    names = [f"{start:,} to {end}" for start, end in zip(starts, ends, strict=False)]
    names.append(f"from {starts[-1]:,} on")
    yield from _summed(names, np.arange(_GROUPS), table)


def _summed(names: Sequence[str], groups: IntArray, table: FloatArray) -> Iterator[dict[str, Any]]:
    """Yield the sums of a table's columns by group, without empty groups."""
    for number, name in enumerate(names):
        column = table[:, groups == number].sum(axis=1)
        if column[0]:
            yield {"name": name, **_values(column)}


def _values(column: FloatArray) -> dict[str, Any]:
    tokens, size, nats = column.tolist()
    return {"tokens": int(tokens), "bytes": int(size), "bits": nats_to_bits(nats)}
