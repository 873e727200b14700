"""A document: the unit that is split, encoded and scored; and the digest of many."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Document:
    """A text and the name it is known by in messages and in the split."""

    name: str
    text: str


def document_key(document: Document) -> bytes:
    """Return 16 bytes that depend on name and text alone; they decide split and order."""
    total = hashlib.blake2b(document.name.encode(), digest_size=16)
    total.update(b"\x00")
    total.update(document.text.encode())
    return total.digest()


def corpus_digest(documents: Iterable[Document]) -> str:
    """Return the SHA-256 in hex of all names and texts, in order."""
    total = hashlib.sha256()
    for document in documents:
        total.update(document_key(document))
    return total.hexdigest()
