"""Any bytes become tokens and come back, whatever the tokenizer's normaliser does to texts."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from fairway.base.errors import UserError
from fairway.data.folder import DataFolder
from fairway.data.pieces import Packer
from fairway.data.tokens import Ids, Tokenizer, token_bytes

ODD = "\ufb01\u2581  a\r\n\u3000b\t \u00a0e\u0301 x\u200b\u0085y "
text_like = st.lists(
    st.one_of(st.text(max_size=8), st.sampled_from([" the model", "\r\n", "  ", ODD, " a", "1 2"])),
    max_size=8,
).map(lambda parts: "".join(parts).encode(errors="surrogatepass"))
anything = st.lists(st.one_of(text_like, st.binary(max_size=9)), max_size=5).map(b"".join)


@pytest.fixture(scope="module")
def lossless(data_folder: Path) -> Packer:
    return Packer(DataFolder.open(data_folder).tokenizer)


def trained(*lines: str, **settings: Any) -> Packer:
    """Return a packer for a small tokenizer: with byte pieces, BPE, of some settings."""
    model = io.BytesIO()
    fixed = {"model_type": "bpe", "byte_fallback": True, "hard_vocab_limit": False}
    fixed |= {"pad_id": 0, "bos_id": 1, "eos_id": 2, "unk_id": 3, "minloglevel": 3}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*lines] * 9), model_writer=model, **fixed, **settings
    )
    return Packer(Tokenizer.from_bytes(model.getvalue()))


SENTENCE = "the model reads the text and the token"
FOLDING = {"vocab_size": 300, "split_digits": True, "normalization_rule_name": "nmt_nfkc"}
AS_IS: dict[str, Any] = {"vocab_size": 300, "normalization_rule_name": "identity"}
# Blanks stay, and pieces reach across them.
ACROSS = AS_IS | dict.fromkeys(
    ["split_by_whitespace", "split_by_number", "split_by_unicode_script"], False
)
ACROSS |= {"vocab_size": 275, "remove_extra_whitespaces": False}


@pytest.fixture(scope="module")
def folding() -> Packer:
    """Return a packer for a tokenizer that normalises as SP8192 does."""
    packer = trained(SENTENCE, **FOLDING)
    assert not packer.tokenizer.lossless
    return packer


@settings(max_examples=150, deadline=None)
@given(data=anything)
def test_bytes_come_back(lossless: Packer, folding: Packer, data: bytes) -> None:
    for packer in (lossless, folding):
        assert packer.unpack(packer.pack(data)) == data


@settings(max_examples=50, deadline=None)
@given(data=anything, share=st.floats(0, 1))
def test_tokens_may_be_cut_anywhere(lossless: Packer, data: bytes, share: float) -> None:
    ids = lossless.pack(data)
    at = int(share * len(ids))
    assert lossless.unpack(ids[:at]) + lossless.unpack(ids[at:]) == data


def test_every_byte_alone(lossless: Packer, folding: Packer) -> None:
    every = bytes(range(256))
    for packer in (lossless, folding):
        assert all(packer.unpack(packer.pack(bytes([b]))) == bytes([b]) for b in every)
        assert packer.unpack(packer.pack(every * 2)) == every * 2


def test_plain_text_is_coded_as_the_model_knows_it(lossless: Packer, folding: Packer) -> None:
    text = "the model reads the text and the token"
    for packer in (lossless, folding):
        known = packer.tokenizer.encode(text)
        ids = packer.pack(text.encode())
        assert len(ids) <= len(known) + 1
        after = packer.pack(b"\xff\n" + text.encode())
        assert np.array_equal(after[-5:], known[-5:])
        spaced = packer.pack(b"\r\n  the model  reads\r\n")
        assert np.isin(spaced, packer.tokenizer.byte_ids).sum() <= 4 + 2


TEXTS = [
    "the model", "  the model", "the\r\nmodel\n", " the", "1 the", "\u00e9 the", "the  mode",
    "the\u2581", "", "a  b",
]  # fmt: skip
CUTS: dict[str, tuple[list[str], dict[str, Any], list[str], list[str]]] = {
    "folding": (
        [SENTENCE], FOLDING,
        ["t|he| model", " | the| model", "t|he|\r|\n|mo|del|\n", " the", "1| the",
         "\xc3|\xa9| the", "t|he| | mo|de", "t|he|\xe2|\x96|\x81", "", "a| | |b"],
        [" the| model", " | the| model", " the|\r|\n|mo|del|\n", " | the", " |1| the",
         " |\xc3|\xa9| the", " the| | mo|de", " the|\xe2|\x96|\x81", "", " |a| | |b"],
    ),
    "without a prefix": (
        [SENTENCE], AS_IS | {"add_dummy_prefix": False},
        ["the| model", " | the| model", "the|\r|\n|mo|del|\n", " the", "1| the",
         "\xc3|\xa9| the", "the| | mo|de", "the|\xe2|\x96|\x81", "", "a| | |b"],
        ["the| model", " | the| model", "the|\r|\n|mo|del|\n", " | the", "1| the",
         "\xc3|\xa9| the", "the| | mo|de", "the|\xe2|\x96|\x81", "", "a| | |b"],
    ),
    "across blanks": (
        ["1 the", "the", "the", "a  b"], ACROSS | {"vocab_size": 280},
        ["the| |m|o|d|e|l", " | the| |m|o|d|e|l", "the|\r|\n|m|o|d|e|l|\n", " the", "1 the",
         "\xc3|\xa9| the", "the| | |m|o|d|e", "the|\xe2|\x96|\x81", "", "a|  b"],
        [" the| |m|o|d|e|l", " | | the| |m|o|d|e|l", " the|\r|\n|m|o|d|e|l|\n", " | the",
         " 1 the", " |\xc3|\xa9| the", " the| | |m|o|d|e", " the|\xe2|\x96|\x81", "", " a  b"],
    ),
    "across blanks without a prefix": (
        ["1 the", "1the", "a the"], ACROSS | {"add_dummy_prefix": False},
        ["the| |m|o|d|e|l", " | the| |m|o|d|e|l", "the|\r|\n|m|o|d|e|l|\n", " the", "1 the",
         "\xc3|\xa9| the", "the| | |m|o|d|e", "the|\xe2|\x96|\x81", "", "a| | |b"],
        ["the| |m|o|d|e|l", " | | the| |m|o|d|e|l", "the|\r|\n|m|o|d|e|l|\n", " | the", "1 the",
         "\xc3|\xa9| the", "the| | |m|o|d|e", "the|\xe2|\x96|\x81", "", "a| | |b"],
    ),
}  # fmt: skip


def cut(packer: Packer, ids: Ids) -> str:
    return "|".join(packer.tokenizer.piece_bytes[token].decode("latin-1") for token in ids.tolist())


@pytest.mark.parametrize("kind", CUTS)
def test_texts_are_cut_where_the_tokenizer_cuts_them(kind: str) -> None:
    lines, settings, packed, documents = CUTS[kind]
    packer = trained(*lines, **settings)
    assert [cut(packer, packer.pack(text.encode())) for text in TEXTS] == packed
    assert [cut(packer, packer.document(text)) for text in TEXTS] == documents
    # What is not UTF-8 stands between texts.
    assert cut(packer, packer.pack(b" the\xff the")) == " the|\xff| the"
    nothing = packer.pack(b"")
    assert nothing.dtype == np.int64 and nothing.shape == (0,)


def test_a_line_is_cut_behind_65_536_characters(folding: Packer) -> None:
    ids = folding.pack(b"x" * 32_766 + b" the" + b"x" * 32_764 + b"the model\t")
    assert cut(folding, ids[32_766:32_768]) == " the|x"
    assert cut(folding, ids[65_531:]) == "t|h|e| model|\t"


@settings(max_examples=150, deadline=None)
@given(text=st.one_of(st.text(max_size=30), st.from_regex(r"[ \n\r\t]{0,3}(the model)?[ \n]{0,2}")))
def test_documents_come_back(lossless: Packer, folding: Packer, text: str) -> None:
    text = text.encode(errors="replace").decode()
    for packer in (lossless, folding):
        ids = packer.document(text)
        assert packer.unpack_document(ids) == text.encode()
        table, bos = packer.tokenizer.table, packer.tokenizer.bos_id
        assert token_bytes(ids, np.insert(ids, 0, bos)[:-1], table).sum() == len(text.encode())


@pytest.mark.parametrize("text", ["the model", "the model reads\u00e9", "1 2 the", "a"])
def test_a_plain_document_is_what_training_reads(
    lossless: Packer, folding: Packer, text: str
) -> None:
    for packer in (lossless, folding):
        assert packer.document(text).tolist() == packer.tokenizer.encode(text).tolist()


def test_documents_that_differ_have_different_tokens(lossless: Packer, folding: Packer) -> None:
    texts = ["the", " the", "  the", "the ", "the\n", "the\r\n", "\nthe", "\tthe", "the\u2581", ""]
    for packer in (lossless, folding):
        found = {tuple(packer.document(text).tolist()) for text in texts}
        assert len(found) == len(texts)


def test_half_a_character_is_no_document(lossless: Packer) -> None:
    with pytest.raises(UserError, match="the text has half a character"):
        lossless.document("a\ud800")
