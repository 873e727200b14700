"""From documents to a data folder: split, tokenizer, shards, and a manifest written last.

Everything in the folder is a function of the documents and the settings. It is built beside its
final place and renamed, so a folder is either whole or not there.
"""

import functools
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fairway.data.documents import Document, corpus_digest, document_key
from fairway.data.folder import (
    FORMAT,
    FORMAT_VERSION,
    MANIFEST,
    TOKENIZER,
    VAL_TEXT,
    DataFolder,
    Validation,
    is_data_folder,
)
from fairway.data.guard import NEAR_SHARE, SHINGLE_WORDS, Split, check_overlap, split_documents
from fairway.data.parallel import map_parallel
from fairway.data.shards import Tokens, write_shard
from fairway.data.tokens import Ids, Tokenizer, join_documents, prove_bytes, train_tokenizer
from fairway.errors import UserError
from fairway.files import digest_file, write_atomic, write_json

__all__ = ["DataFolder", "Validation", "build_data"]

_SPLIT_RULE = "validation is the share of documents with the smallest BLAKE2b of name and text"
# SentencePiece holds its training text several times over; more than this changes little.
_TOKENIZER_SAMPLE_CHARS = 50_000_000
_CHUNK_CHARS = 1_000_000


@dataclass(frozen=True)
class _Encoded:
    """One side: its stream of tokens, the documents in it, their canonical bytes, how many fell."""

    tokens: Tokens
    documents: list[Document]
    bytes: int
    dropped: int


def build_data(
    documents: Iterable[Document],
    out: Path,
    *,
    vocab_size: int,
    val_share: float,
    shard_tokens: int,
    tokenizer: Tokenizer | None = None,
    val_documents: Iterable[Document] | None = None,
    provenance: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Write a data folder at `out` and return its manifest.

    Without a tokenizer one of `vocab_size` pieces is trained on the training side. Documents that
    the tokenizer cannot restore exactly are left out and counted. Documents are held in memory.
    Raises UserError for no text, overlap with the given validation documents, a tokenizer of
    another size, an `out` that holds something else, and a full or read-only disk.
    """
    _check_out(out)
    if tokenizer and tokenizer.vocab_size != vocab_size:
        raise UserError(
            f"the tokenizer has {tokenizer.vocab_size} pieces, but model.vocab_size is "
            f"{vocab_size}; set them equal"
        )
    split = _split(documents, val_share, val_documents)
    digest = corpus_digest(sorted([*split.train, *split.val], key=document_key))
    tokenizer = tokenizer or Tokenizer.from_bytes(_train(split.train, vocab_size))
    train = _encode(tokenizer, sorted(split.train, key=document_key), "encoding training text")
    val = _encode(tokenizer, split.val, "encoding validation text")
    if prove_bytes(tokenizer, val.tokens) != val.bytes:
        raise UserError("the bytes of the validation tokens are not those of the validation text")
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "corpus_sha256": digest,
        "tokenizer": _tokenizer_record(tokenizer),
        "split": {
            "rule": "given" if val_documents is not None else _SPLIT_RULE,
            "val_share": val_share if val_documents is None else None,
            "near_duplicate": f"over {NEAR_SHARE:.0%} of {SHINGLE_WORDS}-word shingles",
        },
        "dropped": {**split.dropped, "not_representable": train.dropped + val.dropped},
        "provenance": provenance or {},
    }
    with _new_folder(out) as folder:
        write_atomic(folder / TOKENIZER, tokenizer.data)
        manifest["train"] = _write_side(folder, "train", train, shard_tokens)
        manifest["val"] = _write_side(folder, "val", val, shard_tokens)
        write_atomic(folder / VAL_TEXT, _json_lines(val.documents))
        manifest["val"]["text_sha256"] = digest_file(folder / VAL_TEXT)
        write_json(folder / MANIFEST, manifest)
    return manifest


def _split(
    documents: Iterable[Document], val_share: float, val_documents: Iterable[Document] | None
) -> Split:
    given = list(documents)
    train = [document for document in given if document.text.strip()]
    if not train:
        raise UserError(f"there is no text in the {len(given)} documents given; nothing to build")
    blank = {"blank": len(given) - len(train)}
    if val_documents is None:
        split = split_documents(train, val_share)
        return Split(split.train, split.val, {**blank, **split.dropped})
    val = [document for document in val_documents if document.text.strip()]
    if not val:
        raise UserError("there is no text in the validation documents given")
    check_overlap(train, val)
    return Split(train, val, blank)


def _train(documents: Iterable[Document], vocab_size: int) -> bytes:
    return train_tokenizer(_sample(documents), vocab_size)


def _sample(documents: Iterable[Document]) -> Iterator[str]:
    """Yield texts in hash order until there are enough to train a tokenizer."""
    left = _TOKENIZER_SAMPLE_CHARS
    for document in sorted(documents, key=document_key):
        if left <= 0:
            return
        left -= len(document.text)
        yield document.text


# ---------------------------------------------------------------------------------------------
# Encoding


def _encode(tokenizer: Tokenizer, documents: list[Document], description: str) -> _Encoded:
    chunks = list(_chunks(documents))
    encode = functools.partial(_encode_texts, tokenizer.data)
    results = list(map_parallel(encode, [[d.text for d in chunk] for chunk in chunks], description))
    sizes = [size for _, found in results for size in found]
    kept = [document for document, size in zip(documents, sizes, strict=True) if size]
    if not kept:
        raise UserError("the tokenizer can represent none of the documents; take another one")
    tokens = np.concatenate([part for part, _ in results])
    return _Encoded(tokens, kept, sum(sizes), len(documents) - len(kept))


def _chunks(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Yield runs of documents of about a megabyte, whatever the number of processes."""
    chunk: list[Document] = []
    chars = 0
    for document in documents:
        chunk.append(document)
        chars += len(document.text)
        if chars >= _CHUNK_CHARS:
            yield chunk
            chunk, chars = [], 0
    if chunk:
        yield chunk


def _encode_texts(model: bytes, texts: list[str]) -> tuple[Tokens, list[int]]:
    """Return the stream of the texts, and each one's canonical bytes, 0 where it is left out."""
    tokenizer = _tokenizer(model)
    documents: list[Ids] = []
    sizes: list[int] = []
    for text in map(tokenizer.canonical, texts):
        ids = tokenizer.encode_exactly(text)
        if text and ids is not None:
            documents.append(ids)
        sizes.append(len(text.encode()) if ids is not None else 0)
    return join_documents(tokenizer, documents), sizes


@functools.lru_cache(maxsize=1)
def _tokenizer(model: bytes) -> Tokenizer:
    return Tokenizer.from_bytes(model)


# ---------------------------------------------------------------------------------------------
# Writing


def _tokenizer_record(tokenizer: Tokenizer) -> dict[str, Any]:
    return {
        "sha256": tokenizer.digest,
        "vocab_size": tokenizer.vocab_size,
        "lossless": tokenizer.lossless,
    }


def _write_side(folder: Path, split: str, side: _Encoded, shard_tokens: int) -> dict[str, Any]:
    """Write one side's shards, of nearly equal length so that none is too short to train on."""
    count = -(-len(side.tokens) // shard_tokens)
    shards = []
    for number, part in enumerate(np.array_split(side.tokens, count)):
        path = folder / f"fairway_{split}_{number:06d}.bin"
        write_shard(path, part)
        shards.append({"name": path.name, "tokens": len(part), "sha256": digest_file(path)})
    return {
        "documents": len(side.documents),
        "bytes": side.bytes,
        "tokens": len(side.tokens),
        "shards": shards,
    }


def _json_lines(documents: Iterable[Document]) -> bytes:
    lines = (json.dumps({"name": d.name, "text": d.text}, ensure_ascii=False) for d in documents)
    return "".join(f"{line}\n" for line in lines).encode()


def _check_out(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; name a folder for the data")
    if out.is_dir() and any(out.iterdir()) and not is_data_folder(out):
        raise UserError(f"{out} holds something else than Fairway data; name another folder")


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """Yield a folder beside `out` that takes its place if the block ends without an error."""
    part = out.parent / f".{out.name}.{os.getpid()}.part"
    try:
        part.mkdir(parents=True)
        yield part
        if out.exists():
            old = part.with_suffix(".old")
            out.rename(old)
            part.rename(out)
            shutil.rmtree(old)
        else:
            part.rename(out)
    except OSError as error:
        raise UserError(f"cannot write the data folder {out}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
