"""The exported tokenizer: Fairway's own reading of a text, also as a class of transformers.

A text is tokenised as after the token that begins a document; its tokens represent exactly its
bytes.
"""

import importlib
from pathlib import Path
from typing import Any

import numpy as np

from fairway.data.pieces import Packer
from fairway.data.tokens import Tokenizer

VOCABULARY = "tokenizer.model"


class Words:
    """Text as token ids and back."""

    def __init__(self, file: str | Path) -> None:
        self.packer = Packer(Tokenizer.load(Path(file)))
        self.bos_id = self.packer.tokenizer.bos_id

    def encode(self, text: str) -> list[int]:
        """Return the token that begins a document, and the tokens of a text."""
        found: list[int] = [self.bos_id, *self.packer.document(text).tolist()]
        return found

    def decode(self, ids: Any) -> str:
        """Return the text of tokens; bytes that are no character become U+FFFD."""
        own = np.array([n for n in ids if n != self.bos_id], np.int64)
        return self.packer.unpack_document(own).decode("utf-8", "replace")


def open_words(folder: str | Path) -> Words:
    """Return the tokenizer of an exported folder."""
    return Words(Path(folder) / VOCABULARY)


def for_transformers() -> Any:
    """Return the class that transformers takes; it needs that package."""
    hugging = importlib.import_module("fairway.export.hugging_words")
    return hugging.FairwayTokenizer
