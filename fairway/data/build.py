"""Builds a data folder from documents: split, tokenizer, shards, and last the manifest.

Everything in the folder depends only on the documents and the settings. A folder is either complete
or refused by every reader (`fairway/base/folders.py`).
"""

import dataclasses
import functools
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from fairway.base.endings import why_unwritten
from fairway.base.errors import UserError
from fairway.base.files import digest_file, read_json, write_atomic, write_json
from fairway.base.folders import behind, held, new_folder, refuse_foreign
from fairway.base.outputs import require_folder
from fairway.base.units import counted
from fairway.data.documents import Document, LeftOut, corpus_digest, document_key, told
from fairway.data.folder import DataFolder, Validation
from fairway.data.guard import NEAR_SHARE, Split, check_overlap, split_documents
from fairway.data.manifest import (
    FORMAT,
    FORMAT_VERSION,
    MANIFEST,
    TOKENIZER,
    VAL_TEXT,
    is_unfinished,
    tokenizer_record,
    unfinished_record,
)
from fairway.data.parallel import map_parallel
from fairway.data.shards import Tokens, write_shard
from fairway.data.shingles import SHINGLE_CHARS, SHINGLE_WORDS
from fairway.data.tokens import (
    Ids,
    Tokenizer,
    join_documents,
    prove_bytes,
    same_characters,
    train_tokenizer,
)

__all__ = ["DataFolder", "Validation", "build_data"]

_SPLIT_RULE = "validation is the share of documents with the smallest BLAKE2b of name and text"
_NEAR_RULE = (
    f"over {NEAR_SHARE:.0%} of its runs of {SHINGLE_WORDS} words or {SHINGLE_CHARS} characters"
)
# SentencePiece keeps several copies of its training text in memory; more text changes little.
_TOKENIZER_SAMPLE_CHARS = 50_000_000
_CHUNK_CHARS = 1_000_000
_SHARD = re.compile(r"fairway_(train|val)_\d+\.bin")


@dataclasses.dataclass(frozen=True)
class _Encoded:
    """One side: its token stream, its documents, their canonical bytes, and what was left out."""

    tokens: Tokens
    documents: list[Document]
    bytes: int
    dropped: LeftOut


def build_data(
    documents: Iterable[Document],
    out: Path,
    *,
    vocab_size: int,
    val_share: float,
    shard_tokens: int,
    tokenizer: Tokenizer | None = None,
    case_ops: bool = False,
    val_documents: Iterable[Document] | None = None,
    provenance: dict[str, Any] | None = None,
    left_out: LeftOut | None = None,
    replace: bool = False,
) -> dict[str, Any]:
    """Write a data folder at `out` and return its manifest.

    Without a tokenizer, one of `vocab_size` pieces is trained on the training side, with marks for
    capital letters if `case_ops`; a given tokenizer must then have them. Documents that the
    tokenizer cannot restore, apart from white space, are left out and counted; `left_out` has the
    counts of the reader. All documents are held in memory. Raises UserError if there is no text, if
    text overlaps with given validation documents, if the tokenizer has another size, if `out`
    contains other files, or Fairway data without `replace`, and for a full or read-only disk.
    """
    _check_out(out, replace)
    left_out = LeftOut() if left_out is None else left_out
    if tokenizer:
        _check_tokenizer(tokenizer, vocab_size, case_ops)
    # The text is read first: the new folder may be inside a folder that is read.
    split = _split(documents, val_share, val_documents, left_out)
    digest = corpus_digest(sorted([*split.train, *split.val], key=document_key))
    with _folder(out) as folder:
        tokenizer = tokenizer or Tokenizer.from_bytes(
            train_tokenizer(_sample(split.train), vocab_size, case_ops)
        )
        train = _encode(tokenizer, sorted(split.train, key=document_key), "training")
        val = _encode(tokenizer, split.val, "validation")
        _check_bytes(tokenizer, val)
        manifest: dict[str, Any] = {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "corpus_sha256": digest,
            "tokenizer": tokenizer_record(tokenizer),
            "split": {
                "rule": "given" if val_documents is not None else _SPLIT_RULE,
                "val_share": val_share if val_documents is None else None,
                "near_duplicate": _NEAR_RULE,
                **({"collections": split.collections} if split.collections else {}),
            },
            "dropped": {
                **left_out,
                **split.dropped,
                "not_representable": 0,
                # Only reasons that occurred: a new one must not change the digest of other data.
                **(train.dropped + val.dropped),
            },
            "provenance": provenance or {},
        }
        _write(folder, manifest, tokenizer, train, val, shard_tokens)
    return manifest


def _check_bytes(tokenizer: Tokenizer, val: _Encoded) -> None:
    if prove_bytes(tokenizer, val.tokens) != val.bytes:
        raise UserError("the validation tokens do not have the bytes of the validation text")


def _check_tokenizer(tokenizer: Tokenizer, vocab_size: int, case_ops: bool) -> None:
    if tokenizer.vocab_size != vocab_size:
        raise UserError(
            f"the tokenizer has {tokenizer.vocab_size} pieces, but model.vocab_size is "
            f"{vocab_size}; set them equal"
        )
    if case_ops and not tokenizer.case_ops:
        raise UserError(
            "the tokenizer has no marks for capital letters (pieces U+E001 to U+E004), which "
            "case_ops needs; leave out the tokenizer or case_ops"
        )


def _write(
    folder: Path,
    manifest: dict[str, Any],
    tokenizer: Tokenizer,
    train: _Encoded,
    val: _Encoded,
    shard_tokens: int,
) -> None:
    """Write all files; the manifest is last, because it contains the digests of the others."""
    write_atomic(folder / TOKENIZER, tokenizer.data)
    manifest["train"] = _write_side(folder, "train", train, shard_tokens)
    manifest["val"] = _write_side(folder, "val", val, shard_tokens)
    write_atomic(folder / VAL_TEXT, _json_lines(val.documents))
    manifest["val"]["text_sha256"] = digest_file(folder / VAL_TEXT)
    write_json(folder / MANIFEST, manifest)


def _split(
    documents: Iterable[Document],
    val_share: float,
    val_documents: Iterable[Document] | None,
    left_out: LeftOut,
) -> Split:
    given = list(documents)
    train = [document for document in given if document.text.strip()]
    if not train:
        reasons = f" ({told(left_out)})" if told(left_out) else ""
        raise UserError(f"there is no text in the {counted(len(given), 'document')} given{reasons}")
    blank = len(given) - len(train)
    if val_documents is None:
        split = split_documents(train, val_share)
        return dataclasses.replace(split, dropped={"blank": blank, **split.dropped})
    given = list(val_documents)
    val = [document for document in given if document.text.strip()]
    if not val:
        raise UserError("there is no text in the validation documents given")
    check_overlap(train, val)
    return Split(train, val, {"blank": blank + len(given) - len(val)})


def _sample(documents: Iterable[Document]) -> Iterator[str]:
    """Yield texts in hash order until they are enough to train a tokenizer."""
    left = _TOKENIZER_SAMPLE_CHARS
    for document in sorted(documents, key=document_key):
        if left <= 0:
            return
        left -= len(document.text)
        yield document.text


# ---------------------------------------------------------------------------------------------
# Encoding


def _encode(tokenizer: Tokenizer, documents: list[Document], side: str) -> _Encoded:
    chunks = list(_chunks(documents))
    encode = functools.partial(_encode_texts, tokenizer.data)
    texts = [[document.text for document in chunk] for chunk in chunks]
    results = list(map_parallel(encode, texts, f"encoding {side} text"))
    sizes = [size for _, found in results for size in found]
    kept = [d for d, size in zip(documents, sizes, strict=True) if isinstance(size, int)]
    dropped = LeftOut(size for size in sizes if isinstance(size, str))
    if not kept:
        raise _nothing_left(side, dropped)
    tokens = np.concatenate([part for part, _ in results])
    total = sum(size for size in sizes if isinstance(size, int))
    return _Encoded(tokens, kept, total, dropped)


def _nothing_left(side: str, dropped: LeftOut) -> UserError:
    remedy = (
        "train a new tokenizer: leave out --tokenizer"
        if dropped["changed_by_tokenizer"]
        else "give text without U+2581, which tokenizers use as their sign for a blank"
    )
    return UserError(f"no {side} text remains for this tokenizer ({told(dropped)}); {remedy}")


def _chunks(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Yield groups of documents of about a megabyte, independent of the number of processes."""
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


def _encode_texts(model: bytes, texts: list[str]) -> tuple[Tokens, list[int | str]]:
    """Return the token stream of texts, and each one's canonical bytes, or why it is left out."""
    tokenizer = _tokenizer(model)
    documents: list[Ids] = []
    sizes: list[int | str] = []
    for text in texts:
        form = tokenizer.canonical(text)
        ids = tokenizer.encode_exactly(form)
        # Otherwise the score would count the bytes of another text than the user's.
        if not same_characters(text, form):
            sizes.append("changed_by_tokenizer")
        elif ids is None:
            sizes.append("not_representable")
        else:
            documents.append(ids)
            sizes.append(len(form.encode()))
    return join_documents(tokenizer, documents), sizes


@functools.lru_cache(maxsize=1)
def _tokenizer(model: bytes) -> Tokenizer:
    return Tokenizer.from_bytes(model)


# ---------------------------------------------------------------------------------------------
# Writing


def _write_side(folder: Path, split: str, side: _Encoded, shard_tokens: int) -> dict[str, Any]:
    """Write one side's shards; they have nearly equal lengths, so that none is too short."""
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


def _is_ours(name: str) -> bool:
    return name in (MANIFEST, TOKENIZER, VAL_TEXT) or _SHARD.fullmatch(name) is not None


def _check_out(out: Path, replace: bool) -> None:
    refuse_foreign(out, _is_ours)
    require_folder(behind(out))
    if replace or not out.is_dir() or not held(out):
        return
    if (out / MANIFEST).exists() and is_unfinished(read_json(out / MANIFEST)):
        return
    raise UserError(
        f"{out} already contains data; replace it with --replace, or name another folder"
    )


@contextmanager
def _folder(out: Path) -> Iterator[Path]:
    """Yield a new folder that replaces `out` if the block ends without an error."""

    def mark(final: Path) -> None:
        write_json(final / MANIFEST, unfinished_record())

    try:
        with new_folder(out, _is_ours, mark, MANIFEST) as folder:
            yield folder
    except OSError as error:
        told = "".join(why_unwritten(error))
        raise UserError(f"cannot write the data folder {out}: {told}") from None
