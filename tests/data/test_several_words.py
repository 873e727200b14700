"""A stranger's tokenizer whose tokens hold several words: each blank inside is one byte."""

import io
import random
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from fairway.data.build import build_data
from fairway.data.documents import Document
from fairway.data.folder import DataFolder
from fairway.data.pieces import Packer
from fairway.data.spmodel import SPACE
from fairway.data.tokens import Tokenizer, prove_bytes, token_bytes
from fairway.score.spending import KINDS, kinds_of

TEXTS = [
    "One of the men, and most of the others, said that it is one of the best. " * 20,
    "In the end, all of them went to the sea; some of the best did not. It is so.\n" * 20,
]
HARD = [
    " ", "of the", " of the ", "of  the", "of the\n\nof the", f"of{SPACE}the", "\tof the", "ofthe",
    "of the best. It is", "é of the \U0001f600 of the", "x" * 500, " " * 70, "\ufeffof the\r\nof",
]  # fmt: skip
VOCABULARY = 340
OPTIONS = {
    "words and blanks": {},
    "punctuation too, blanks as they are": {
        "split_by_unicode_script": False, "normalization_rule_name": "identity",
        "add_dummy_prefix": False, "remove_extra_whitespaces": False,
    },
    "by likelihood": {"model_type": "unigram", "hard_vocab_limit": False},
}  # fmt: skip


@pytest.fixture(scope="module", params=OPTIONS)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS), model_writer=model, vocab_size=VOCABULARY,
        byte_fallback=True, required_chars=SPACE, split_by_whitespace=False, pad_id=0, bos_id=1,
        eos_id=2, unk_id=3, minloglevel=3, **{"model_type": "bpe", **OPTIONS[request.param]},
    )  # fmt: skip
    return Tokenizer(model.getvalue())


def counted(words: Tokenizer, ids: np.ndarray) -> int:
    return int(token_bytes(ids[1:], ids[:-1], words.table).sum())


def test_such_tokens_are_a_kind_of_their_own(tokenizer: Tokenizer) -> None:
    inside = [n for n, piece in enumerate(tokenizer.pieces) if SPACE in piece[1:-1]]
    assert len(inside) >= 3
    assert {KINDS[kind] for kind in kinds_of(tokenizer)[inside]} == {"several words"}


@pytest.mark.parametrize("text", [*HARD, *TEXTS])
def test_tokens_count_the_bytes_of_the_text(tokenizer: Tokenizer, text: str) -> None:
    packer = Packer(tokenizer)
    assert packer.unpack(packer.pack(text.encode())) == text.encode()
    ids = packer.stream([text, text])
    assert packer.documents(ids) == [text.encode()] * 2
    assert counted(tokenizer, ids) == 2 * len(text.encode())
    usual = tokenizer.canonical(text)
    if usual and tokenizer.represents(usual):
        ids = np.array([tokenizer.bos_id, *tokenizer.encode(usual)])
        assert prove_bytes(tokenizer, ids) == len(usual.encode())


@settings(deadline=None, max_examples=200)
@given(st.lists(st.sampled_from(["of", " the", " ", ", ", "é", "\n", SPACE, "It is"]), max_size=12))
def test_any_document_comes_back(tokenizer: Tokenizer, signs: list[str]) -> None:
    text, packer = "".join(signs), Packer(tokenizer)
    if text:
        ids = packer.stream([text])
        assert packer.documents(ids) == [text.encode()]
        assert counted(tokenizer, ids) == len(text.encode())


def test_a_folder_is_built_with_it(tokenizer: Tokenizer, tmp_path: Path) -> None:
    draw = random.Random(0)
    words = TEXTS[0].split() + TEXTS[1].split()
    documents = [Document(str(n), " ".join(draw.choices(words, k=99))) for n in range(40)]
    manifest = build_data(
        documents, tmp_path / "data", vocab_size=tokenizer.vocab_size, val_share=0.2,
        shard_tokens=50_000, tokenizer=tokenizer,
    )  # fmt: skip
    found = DataFolder.open(tmp_path / "data").sample_validation()
    assert found.bytes == manifest["val"]["bytes"] == sum(len(t.encode()) for t in found.documents)
