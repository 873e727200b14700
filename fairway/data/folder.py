"""A data folder: a tokenizer, training and validation shards, and the manifest.

There are two kinds: folders from `fairway data build`, with a manifest, and folders fetched or
copied from the challenge, with only shards and a tokenizer.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fairway.base.errors import UserError
from fairway.base.files import digest_bytes, digest_file
from fairway.base.progress import progress
from fairway.data.manifest import (
    FETCHED,
    MANIFEST,
    TOKENIZER,
    VAL_TEXT,
    blamed,
    recorded,
    require_counts,
    require_tokenizer,
)
from fairway.data.shards import Tokens, check_vocabulary, find_shards, open_shard
from fairway.data.tokens import (
    Tokenizer,
    checked_starts,
    decode_documents,
    encode_documents,
    prove_bytes,
    same_characters,
    token_bytes,
)

# File names have at most this many characters, but names in a record may be longer.
_LONGEST_NAME = 255
# A sampled piece is long enough as context for a model, and short enough for many documents.
PIECE_BYTES = 4096
_MIN_PIECE_BYTES = 256


@dataclass(frozen=True)
class Validation:
    """Text to be scored: ids (N,) with BOS before each document, the documents, their bytes."""

    ids: Tokens
    documents: list[str]
    bytes: int


class DataFolder:
    """A folder of token shards with their tokenizer."""

    def __init__(
        self, path: Path, tokenizer: Tokenizer, digests: dict[str, str], manifest: dict[str, Any]
    ):
        self.path = path
        self.tokenizer = tokenizer
        self._digests = digests
        self._manifest = manifest

    @classmethod
    def open(cls, path: Path) -> "DataFolder":
        """Return a data folder after checking its tokenizer; shards are checked when they are read.

        Raises UserError if the folder, its tokenizer or its shards are missing, for a record with
        impossible facts, and for data whose
        bytes per token are in a sidecar file (CaseOps), because tokens alone do not determine them.
        """
        if not path.is_dir():
            raise UserError(f"there is no data folder {path}; make one with `fairway data build`")
        if sidecars := sorted(path.glob("*_val_bytes_*.bin")):
            raise UserError(
                f"{sidecars[0]} belongs to CaseOps data of the challenge, whose byte counts "
                "differ from the bytes of its tokens; Fairway cannot score it exactly"
            )
        find_shards(path, "train")
        find_shards(path, "val")
        digests, manifest = recorded(path)
        if missing := sorted(digests.keys() - {file.name for file in path.iterdir()}):
            name = missing[0][:_LONGEST_NAME]
            raise UserError(f"{path / name} is missing; build or fetch the data again")
        tokenizer = Tokenizer.load(tokenizer_file(path))
        if digests.get(TOKENIZER, tokenizer.digest) != tokenizer.digest:
            raise UserError(f"{path / TOKENIZER} is not the tokenizer that made the shards")
        if manifest:
            with blamed(path / MANIFEST):
                require_tokenizer(manifest, tokenizer)
        return cls(path, tokenizer, digests, manifest)

    @cached_property
    def digest(self) -> str:
        """SHA-256 in hex of the folder's content: of its record, or of all files if it has none."""
        for name in (MANIFEST, FETCHED):
            if (self.path / name).exists():
                return digest_file(self.path / name)
        files = [*find_shards(self.path, "train"), *find_shards(self.path, "val")]
        # A name may not be valid UTF-8, so its bytes are used.
        lines = [os.fsencode(file.name) + f" {digest_file(file)}\n".encode() for file in files]
        return digest_bytes(b"".join([*lines, self.tokenizer.digest.encode()]))

    @cached_property
    def bytes_per_token(self) -> float:
        """Text bytes per training token, from the first million tokens; only for step lines."""
        ids = self.train_shards()[0][:1_000_000]
        return float(token_bytes(ids[1:], ids[:-1], self.tokenizer.table).mean())

    def facts(self) -> dict[str, Any]:
        """Return the facts of the data for a result; bytes and documents are None if unknown."""
        train = self._manifest.get("train", {})
        return {
            "train_tokens": sum(len(shard) for shard in self.train_shards()),
            "train_bytes": train.get("bytes"),
            "train_documents": train.get("documents"),
            "corpus_digest": self._manifest.get("corpus_sha256"),
            "tokenizer_digest": self.tokenizer.digest,
            "data_digest": self.digest,
        }

    def description(self) -> dict[str, Any]:
        """Return what the folder contains, for a user: `facts`, vocabulary, validation, left out.

        The validation text is counted in its shards, which `verify` has to read first. `left_out`
        is None without a manifest.
        """
        return {
            "vocab_size": self.tokenizer.vocab_size,
            **self.facts(),
            **{f"val_{name}": count for name, count in self._counts("val").items()},
            "left_out": self._manifest.get("dropped"),
        }

    def _counts(self, split: str) -> dict[str, int]:
        """Return how many documents, bytes and tokens the shards of a split have."""
        bos = last = np.uint16(self.tokenizer.bos_id)
        documents = size = tokens = 0
        for path in find_shards(self.path, split):
            ids = open_shard(path)
            before = np.concatenate([[last], ids[:-1]])
            documents += int(np.count_nonzero(ids == bos))
            size += int(token_bytes(ids, before, self.tokenizer.table).sum())
            tokens += len(ids)
            last = ids[-1]
        return {"documents": documents, "bytes": size, "tokens": tokens}

    def verify(self, splits: Sequence[str] = ("train", "val")) -> None:
        """Read everything; raise UserError for a changed file or an id outside the vocabulary.

        So are other counts than those in the manifest.
        """
        shards = [file for split in splits for file in find_shards(self.path, split)]
        names = {file.name for file in shards} | {VAL_TEXT} & self._digests.keys()
        with progress("checking data", len(names)) as advance:
            for name in sorted(names):
                self._verify_file(self.path / name)
                advance(1)
        if self._manifest:
            with blamed(self.path / MANIFEST):
                for split in splits:
                    require_counts(self._manifest, split, self._counts(split))

    def _verify_file(self, path: Path) -> None:
        # The file's own checks come first: "cut short" explains more than "not the one recorded".
        tokens = open_shard(path) if path.suffix == ".bin" else None
        if self._digests and self._digests.get(path.name) != digest_file(path):
            raise UserError(
                f"{path} is not the file that was recorded; build or fetch the data again"
            )
        if tokens is not None:
            check_vocabulary(tokens, self.tokenizer.vocab_size, str(path))

    def train_shards(self, most: int = 0) -> list[Tokens]:
        """Return all training shards, or the first `most`, mapped read-only, in name order."""
        paths = find_shards(self.path, "train")
        return [open_shard(path) for path in paths[: most or None]]

    @property
    def fetched(self) -> bool:
        """Whether this is the challenge's data, according to the record of `fetch`."""
        return (self.path / FETCHED).exists()

    def val_tokens(self) -> Tokens:
        """Return all validation tokens (N,), the shards joined in name order."""
        return np.concatenate([open_shard(path) for path in find_shards(self.path, "val")])

    def last_train_documents(self) -> Iterator[str]:
        """Yield the training texts from the last to the first; one that shards share is joined.

        Only what is asked for is decoded: all of 100 million tokens would take 14 s.
        """
        rest = np.zeros(0, np.uint16)
        for shard in reversed(self.train_shards()):
            end = len(shard)
            for first in checked_starts(self.tokenizer, shard)[::-1]:
                yield self.tokenizer.decode(np.concatenate([shard[first:end], rest]))
                end, rest = int(first), rest[:0]
            rest = np.concatenate([shard[:end], rest])
        if len(rest):
            yield self.tokenizer.decode(rest)

    def sample_validation(self, max_bytes: int = 0, max_tokens: int = 0) -> Validation:
        """Return the text to be scored: everything by default, about `max_bytes` across documents,
        or the first `max_tokens` targets; then the last document may be cut.

        A sample takes documents in the order of their hash, and from each a run of whole paragraphs
        of at most `PIECE_BYTES`, or more if there are few documents. It depends only on the text.
        The bytes are checked against the documents.
        """
        ids = self.val_tokens()
        if max_tokens:
            ids = ids[: max_tokens + 1]
        documents = decode_documents(self.tokenizer, ids)
        if max_bytes:
            documents = list(self._scorable(_sample(documents, max_bytes)))
            ids = encode_documents(self.tokenizer, documents)
        if not any(documents):
            raise UserError(f"{self.path} has no validation text")
        total = prove_bytes(self.tokenizer, ids)
        assert total == sum(len(document.encode()) for document in documents)
        return Validation(ids, documents, total)

    def _scorable(self, pieces: Iterable[str]) -> Iterator[str]:
        """Yield the canonical forms of the pieces that the tokenizer keeps, as a build does."""
        for piece in pieces:
            form = self.tokenizer.canonical(piece)
            if form and same_characters(piece, form) and self.tokenizer.represents(form):
                yield form


def _sample(documents: list[str], max_bytes: int) -> Iterator[str]:
    """Yield pieces of documents with about `max_bytes` in all, and never more."""
    cap = max(PIECE_BYTES, _level([len(document.encode()) for document in documents], max_bytes))
    left = max_bytes
    for key, document in sorted((_hash(document), document) for document in documents):
        if left < min(_MIN_PIECE_BYTES, max_bytes):
            return
        piece = _run_of_paragraphs(document, min(cap, left), key)
        left -= len(piece.encode())
        yield piece


def beginnings(documents: Sequence[str], most: int, size_bytes: int) -> list[str]:
    """Return the beginnings of the first documents of at least this size, then of shorter ones.

    Each ends at a line end in its second half, else at the end of a word there, else anywhere.
    """
    long = [text for text in documents if len(text.encode()) >= size_bytes]
    chosen = [*long, *(text for text in documents if text and text not in long)][:most]
    return [_beginning(text, size_bytes) for text in chosen]


def _beginning(text: str, size_bytes: int) -> str:
    if len(text.encode()) <= size_bytes:
        return text
    cut = text.encode()[:size_bytes].decode(errors="ignore")
    ends = (cut.rpartition(mark)[0] for mark in ("\n", " "))
    return next((part for part in ends if 2 * len(part.encode()) >= size_bytes), cut)


def _level(sizes: list[int], total: int) -> int:
    """Return the limit per document at which all documents together give `total`."""
    for number, size in enumerate(sorted(sizes)):
        if size * (len(sizes) - number) >= total:
            return -(-total // (len(sizes) - number))
        total -= size
    return max(sizes, default=0)


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())


def _run_of_paragraphs(text: str, limit: int, key: int) -> str:
    """Return paragraphs of at most `limit` bytes; `key` chooses the first one.

    It is chosen among those with enough text after them. If it is too long, it is cut at a blank.
    """
    paragraphs = text.split("\n")
    sizes = np.array([len(paragraph.encode()) + 1 for paragraph in paragraphs])
    following = np.cumsum(sizes[::-1])[::-1]
    possible = int(np.count_nonzero(following > limit)) or 1
    first = key % possible
    count = int(np.count_nonzero(np.cumsum(sizes[first:]) <= limit + 1))
    if count:
        return "\n".join(paragraphs[first : first + count])
    return paragraphs[first].encode()[:limit].decode(errors="ignore").rpartition(" ")[0]


def tokenizer_file(path: Path) -> Path:
    """Return the tokenizer of a data folder; UserError for none, and for several without the usual
    name."""
    found = [path / TOKENIZER] if (path / TOKENIZER).exists() else sorted(path.glob("*.model"))
    if len(found) != 1:
        raise UserError(
            f"{path} has {len(found)} tokenizers; copy the one that made its shards to "
            f"{path / TOKENIZER}"
        )
    return found[0]
