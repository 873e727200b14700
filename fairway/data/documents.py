"""Documents, the unit of splits, encoding and scores: digests, and reasons to leave one out."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

# The number of documents, files or folders left out, by a key of REASONS.
LeftOut = Counter[str]

# Reasons to leave something out, in the words of a message, by their keys in a manifest.
REASONS = {
    "unknown_kind": "files of unknown ending",
    "hidden": "hidden files or folders",
    "broken_link": "links to missing files",
    "linked_again": "links to folders that were already read",
    "not_a_file": "pipes, sockets or devices",
    "null_text": "rows or lines whose text is null",
    "blank": "documents without text",
    "repeats": "repeats of another document",
    "train_near_validation": "training documents too near to validation text",
    "validation_near_train": "validation documents too near to training text",
    "collection": "documents that hold the text of most others",
    "changed_by_tokenizer": (
        "documents in which the tokenizer changes other characters than blanks and line ends"
    ),
    "not_representable": "documents that the tokenizer cannot restore",
}


@dataclass(frozen=True, slots=True)
class Document:
    """A text, and its name in messages and in the split."""

    name: str
    text: str


def document_key(document: Document) -> bytes:
    """Return 16 bytes that depend only on name and text; they decide split and order."""
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


def told(left_out: Mapping[str, int]) -> str:
    """Return one line that says what was left out and why; '' if nothing was."""
    parts = [f"{words} ({left_out[key]:,})" for key, words in REASONS.items() if left_out.get(key)]
    return f"left out: {', '.join(parts)}" if parts else ""
