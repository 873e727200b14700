"""The exported tokenizer as a class of transformers, for `trust_remote_code=True`."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizer

from fairway.export.words import VOCABULARY, Words


class FairwayTokenizer(PreTrainedTokenizer):
    """Fairway's tokenizer. The token that begins a document also ends one, and pads."""

    vocab_files_names = {"vocab_file": VOCABULARY}  # noqa: RUF012 - as transformers declares it
    model_input_names = ("input_ids", "attention_mask")

    def __init__(self, vocab_file: str, **named: Any) -> None:
        self.vocab_file = vocab_file
        self.words = Words(vocab_file)
        self.pieces = self.words.packer.tokenizer.pieces
        self.ids = {piece: n for n, piece in enumerate(self.pieces)}
        begins = self.pieces[self.words.bos_id]
        special = {"bos_token": begins, "eos_token": begins, "pad_token": begins}
        super().__init__(**{**special, **named})

    @property
    def vocab_size(self) -> int:
        """Return V."""
        return len(self.pieces)

    def get_vocab(self) -> dict[str, int]:
        """Return every piece with its id."""
        return dict(self.ids)

    def _tokenize(self, text: str, **named: Any) -> list[str]:
        return [self.pieces[n] for n in self.words.encode(text)[1:]]

    def _convert_token_to_id(self, token: str) -> int | None:
        return self.ids.get(token)

    def _convert_id_to_token(self, index: int) -> str:
        return self.pieces[index]

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Return the text of pieces."""
        return self.words.decode(np.array([self.ids[token] for token in tokens], np.int64))

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """Return a text after the token that begins a document; a second text after another one."""
        begins = [self.words.bos_id]
        return begins + token_ids_0 + (begins + token_ids_1 if token_ids_1 else [])

    def save_vocabulary(
        self, save_directory: str, filename_prefix: str | None = None
    ) -> tuple[str]:
        """Copy the tokenizer's file into a folder; return its path."""
        name = f"{filename_prefix}-{VOCABULARY}" if filename_prefix else VOCABULARY
        file = Path(save_directory) / name
        if file.resolve() != Path(self.vocab_file).resolve():
            shutil.copyfile(self.vocab_file, file)
        return (str(file),)
