"""The cost of each token of a few documents, as a scoring stage recorded it.

A stage that learns cannot be repeated for one document, since its costs depend on all text before.
So a file beside the ledger keeps the costs of the first validation documents.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fairway.base.arrays import IntArray
from fairway.base.errors import UserError
from fairway.base.files import canonical_json, read_json, write_atomic
from fairway.base.names import recorded_file
from fairway.data.folder import Validation, beginnings
from fairway.data.spans import token_ends
from fairway.data.tokens import Tokenizer
from fairway.machine.ranks import Ranks
from fairway.pipeline.folder import RunFolder
from fairway.score.costs import priced
from fairway.score.documents import documents
from fairway.score.ledger import Text, Witness
from fairway.score.predictor import Receipt
from fairway.score.spending import Passing

# The stages whose costs are kept: they score the artifact with all available context.
RECORDED = ("sliding", "documents", "ttt", "mixture")
# The most documents, bytes of each document, and bytes of a file to read.
DOCUMENTS, DOCUMENT_BYTES = 12, 1500
_MOST_FILE_BYTES = 1 << 22
# Decimal places of a cost in nats.
_DECIMALS = 6


@dataclass(frozen=True, slots=True, eq=False)
class Opening:
    """The beginning of a document as text, its tokens, and all tokens of the document, both with
    BOS."""

    text: str
    ids: IntArray
    whole: IntArray


def openings(text: Validation, tokenizer: Tokenizer) -> list[Opening]:
    """Return the kept beginnings; each holds the tokens that fit into its bytes."""
    ids = np.asarray(text.ids, np.int64)
    wholes = [ids[one.start : one.stop] for one in documents(ids, len(ids))]
    if len(wholes) != len(text.documents):
        return []
    found = []
    for beginning in beginnings(text.documents, DOCUMENTS, DOCUMENT_BYTES):
        place = next(n for n, one in enumerate(text.documents) if one.startswith(beginning))
        data, whole = text.documents[place].encode(), wholes[place]
        count, size = _fitting(token_ends(whole, tokenizer), data, len(beginning.encode()))
        if count:
            found.append(Opening(data[:size].decode(), whole[: count + 1], whole))
    return found


def _fitting(ends: IntArray, data: bytes, most_bytes: int) -> tuple[int, int]:
    """Return how many tokens fit into the first bytes of a text and end at the end of a
    character."""
    for size in np.unique(ends[ends <= most_bytes])[::-1].tolist():
        # A continuation byte of UTF-8 begins with the bits 10.
        if size and (size == len(data) or data[size] & 0xC0 != 0x80):
            return int(np.searchsorted(ends, size)) + 1, size
    return 0, 0


class Recorder(Passing):
    """Keeps the costs of some openings from a ledger; passes everything on to `witness`."""

    def __init__(self, witness: Witness, kept: Sequence[Opening]) -> None:
        super().__init__(witness)
        self._kept = kept

    def opened(self, text: Text) -> None:
        """Find the openings in the order of scoring."""
        ids = np.asarray(text.ids, np.int64)
        places = {ids[d.start : d.stop].tobytes(): d.start for d in documents(ids, len(ids))}
        self._starts = [places.get(one.whole.tobytes()) for one in self._kept]
        # Rows: how often a target was recorded, and its nats.
        self._booked = np.zeros((2, len(ids)))
        self.witness.opened(text)

    def scored(self, receipt: Receipt) -> None:
        """Note the costs of an event."""
        self._booked[0, receipt.event.positions] += 1
        self._booked[1, receipt.event.positions] = receipt.nats
        self.witness.scored(receipt)

    def write(self, path: Path, ranks: Ranks) -> None:
        """Write the costs of the completely scored openings; all `ranks` call this."""
        counts, nats = ranks.total(self._booked.ravel()).reshape(self._booked.shape)
        found = []
        for one, start in zip(self._kept, self._starts, strict=True):
            if start is None or (counts[start : start + len(one.ids) - 1] != 1).any():
                continue
            own = nats[start : start + len(one.ids) - 1].round(_DECIMALS).tolist()
            found.append({"text": one.text, "ids": one.ids.tolist(), "nats": own})
        if ranks.first:
            write_atomic(path, canonical_json(found))


def recorded(folder: RunFolder, stage: str, tokenizer: Tokenizer) -> dict[str, dict[str, Any]]:
    """Return the kept costs of a stage of a run, by the text of each document.

    They have the form of `fairway.score.costs.document_costs`, without ranks and likeliest tokens.
    The result is empty if the stage was not scored, or if an earlier version of Fairway scored it.
    Raises UserError if the file of the stage has changed.
    """
    name, record = f"score.{stage}", folder.memory["stages"].get(f"score.{stage}")
    if record is None or recorded_file(stage) not in record["files"]:
        return {}
    path = folder.file(recorded_file(stage))
    folder.require_unchanged(name, path.name, again=f"fairway score {folder.path}")
    return {one["text"]: one for one in read(path, tokenizer)}


def read(path: Path, tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """Return the content of a file; UserError unless it holds costs of texts by this tokenizer."""
    found = read_json(path, _MOST_FILE_BYTES)
    try:
        return [_told(one["text"], one["ids"], one["nats"], tokenizer) for one in found]
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise UserError(f"{path} does not hold the costs of tokens ({error})") from None


def _told(text: str, ids: list[int], nats: list[float], tokenizer: Tokenizer) -> dict[str, Any]:
    ids_N, nats_N = np.asarray(ids, np.int64), np.asarray(nats, np.float64)
    if ids_N.ndim != 1 or nats_N.shape != (len(ids_N) - 1,) or not len(nats_N):
        raise ValueError("tokens and costs do not belong together")
    if ids_N.min() < 0 or ids_N.max() >= tokenizer.vocab_size:
        raise ValueError("a token is not one of the tokenizer's")
    if not (np.isfinite(nats_N) & (nats_N >= 0)).all():
        raise ValueError("a cost is negative or not finite")
    ends, size = token_ends(ids_N, tokenizer), len(text.encode())
    if ends[-1] != size:
        raise ValueError("the tokens are not those of the text")
    return priced(text, ids_N, nats_N, (math.fsum(nats_N), size), tokenizer)
