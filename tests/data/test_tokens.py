import functools
import io
import pickle
import pydoc_data.topics
import random
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from fairway.data.tokens import (
    ByteTable,
    Tokenizer,
    decode_documents,
    encode_documents,
    prove_bytes,
    token_bytes,
    train_tokenizer,
)
from fairway.errors import UserError

DOCUMENTS = ["The cat sat.\nOn 12 mats.", "caf\u00e9 \u65e5\u672c \U0001f600", "", "a  b\t\tc"]


def text() -> list[str]:
    return [
        pydoc_data.topics.topics[name] for name in ("async", "lambda", "with", "operator-summary")
    ]


@functools.cache
def lossless() -> Tokenizer:
    return Tokenizer.from_bytes(train_tokenizer(text(), 400))


@functools.cache
def normalising() -> Tokenizer:
    """A tokenizer that normalises, like the published SP8192."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter("\n".join(text()).split("\n")),
        model_writer=model,
        model_type="bpe",
        vocab_size=400,
        byte_fallback=True,
        add_dummy_prefix=False,
        pad_id=0,
        bos_id=1,
        eos_id=2,
        unk_id=3,
        minloglevel=3,
    )
    return Tokenizer.from_bytes(model.getvalue())


# Bytes


def plain_bytes(tokenizer: Tokenizer, target: int, previous: int) -> int:
    """Algorithms.md 1.5 for one token, asked of SentencePiece itself."""
    model = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.data)

    def special(i: int) -> bool:
        return bool(model.is_control(i) or model.is_unknown(i) or model.is_unused(i))

    if special(target):
        return 0
    if model.is_byte(target):
        return 1
    piece = model.id_to_piece(target)
    bare = piece[1:] if piece.startswith("\u2581") else piece
    return len(bare.encode()) + (bare != piece and not special(previous))


def test_every_pair_of_tokens_has_the_specified_bytes() -> None:
    tokenizer = lossless()
    targets = np.arange(tokenizer.vocab_size)
    for previous in (0, 1, 3, 4, 70, 300, 399):
        found = token_bytes(targets, np.full_like(targets, previous), tokenizer.table)
        assert found.dtype == np.int64
        assert found.tolist() == [plain_bytes(tokenizer, int(t), previous) for t in targets]


def test_token_bytes_by_hand() -> None:
    table = ByteTable(
        np.array([0, 3, 0, 1], np.int16),
        np.array([False, True, True, False]),
        np.array([True, False, False, False]),
    )
    targets, previous = np.array([[1, 1, 2, 2, 3, 0]]), np.array([[0, 3, 0, 3, 0, 3]])
    assert token_bytes(targets, previous, table).tolist() == [[3, 4, 0, 1, 1, 0]]


@pytest.mark.parametrize("tokenizer", [lossless, normalising])
def test_bytes_are_proven_on_canonical_text(tokenizer) -> None:  # type: ignore[no-untyped-def]
    texts = [tokenizer().canonical(document) for document in (*DOCUMENTS, *text())]
    ids = encode_documents(tokenizer(), texts)
    assert ids.dtype == np.uint16 and np.count_nonzero(ids == 1) == len(texts)
    assert prove_bytes(tokenizer(), ids) == sum(len(document.encode()) for document in texts)
    assert decode_documents(tokenizer(), ids) == texts


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(), max_size=4))
def test_any_representable_text_is_restored_and_counted(texts: list[str]) -> None:
    tokenizer = lossless()
    kept = [c for c in map(tokenizer.canonical, texts) if tokenizer.represents(c)]
    assert all("\u2581" in c for c in map(tokenizer.canonical, texts) if c not in kept)
    ids = encode_documents(tokenizer, kept)
    assert decode_documents(tokenizer, ids) == kept
    if kept:
        assert prove_bytes(tokenizer, ids) == sum(len(document.encode()) for document in kept)


def test_a_space_after_bos_breaks_the_proof() -> None:
    ids = encode_documents(lossless(), ["fine", " the space"])
    with pytest.raises(UserError, match="document 1 has 10 bytes but its tokens sum to 9"):
        prove_bytes(lossless(), ids)


def test_half_a_character_breaks_the_proof() -> None:
    ids = encode_documents(lossless(), ["\u65e5"])
    with pytest.raises(UserError, match="document 0"):
        prove_bytes(lossless(), ids[:-1])


def test_an_unknown_token_breaks_the_proof() -> None:
    with pytest.raises(UserError, match="document 0"):
        prove_bytes(lossless(), np.array([1, 3], np.uint16))


@pytest.mark.parametrize("ids", [[], [300], [300, 1]])
def test_a_scored_stream_starts_with_bos(ids: list[int]) -> None:
    with pytest.raises(UserError, match="must start with BOS"):
        prove_bytes(lossless(), np.array(ids, np.uint16))


def test_foreign_ids_are_refused() -> None:
    with pytest.raises(UserError, match="token id 400 is outside the tokenizer's 400 ids"):
        decode_documents(lossless(), np.array([1, 400], np.uint16))


def test_a_stream_cut_from_the_middle_keeps_its_head() -> None:
    ids = encode_documents(lossless(), ["first", "second"])
    cut = decode_documents(lossless(), ids[2:])
    assert len(cut) == 2 and "first".endswith(cut[0]) and cut[1] == "second"
    assert decode_documents(lossless(), ids[:0]) == []


# Text


def test_a_lossless_tokenizer_keeps_text_as_it_is() -> None:
    tokenizer = lossless()
    assert tokenizer.lossless
    odd = "a  b\n\n\tc \r\n \u00a0\ufb01 \uff21 x\u0301 \u200b\x00 \ufeff<s> <unk> <0x41> \u2585 12"
    for sample in (odd, *text()):
        assert tokenizer.decode(tokenizer.encode(sample)) == sample
    assert tokenizer.canonical(" \n a b \t") == "a b"
    for sample in ("a\r\nb", "a\rb", "\ufeffa\r\n\r\n\tb\x00"):
        assert tokenizer.canonical(sample + "\r\n") == sample
    assert 1 not in tokenizer.encode("<s>") and 0 not in tokenizer.encode("<pad>")


def test_the_space_marker_itself_is_not_representable() -> None:
    assert not lossless().represents("a\u2581b")
    assert lossless().represents("a b")


def test_a_normalising_tokenizer_says_what_it_represents() -> None:
    tokenizer = normalising()
    assert not tokenizer.lossless
    assert tokenizer.canonical(" \uff21\n\nb  c ") == "A b c"
    assert not tokenizer.represents("a\nb") and tokenizer.represents("a b")


def test_control_tokens_leave_no_text() -> None:
    ids = [1, *lossless().encode("cat").tolist(), 2, 0]
    assert lossless().decode(ids) == "cat"


def test_a_tokenizer_travels_as_its_bytes() -> None:
    copy = pickle.loads(pickle.dumps(lossless()))
    assert copy.digest == lossless().digest and copy.vocab_size == 400


# Training


def test_training_is_deterministic_with_the_fields_settings() -> None:
    model = train_tokenizer(iter(text()), 400)
    assert model == lossless().data
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    assert [processor.pad_id(), processor.bos_id(), processor.eos_id(), processor.unk_id()] == [
        *range(4)
    ]
    pieces = [processor.id_to_piece(i) for i in range(400)]
    assert not any(len(piece) > 1 and piece[-1].isdigit() for piece in pieces[260:])
    assert not any("\n" in piece for piece in pieces) and "\u2581" in pieces


def test_training_is_silent(capfd: pytest.CaptureFixture[str]) -> None:
    train_tokenizer(text(), 400)
    assert capfd.readouterr() == ("", "")


def test_a_small_text_names_the_largest_vocabulary() -> None:
    with pytest.raises(UserError, match="the largest possible is") as caught:
        train_tokenizer(["abc abd"], 1000)
    size = int(str(caught.value).split("possible is ")[1].split(":")[0])
    assert Tokenizer.from_bytes(train_tokenizer(["abc abd"], size)).vocab_size == size


@pytest.mark.parametrize("texts", [[], ["", "\n"]])
def test_no_text_trains_no_tokenizer(texts: list[str]) -> None:
    with pytest.raises(UserError, match="no text to train"):
        train_tokenizer(texts, 400)


def test_a_vocabulary_below_the_characters_is_refused() -> None:
    with pytest.raises(UserError, match="a vocabulary of 262 is too small .* which need"):
        train_tokenizer(text(), 262)


@pytest.mark.parametrize("size", [0, 259, 65_536])
def test_an_impossible_vocabulary_is_refused(size: int) -> None:
    with pytest.raises(UserError, match=f"vocabulary size {size} is not between 260 and 65535"):
        train_tokenizer(text(), size)


# Files


def test_files_are_loaded_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    with pytest.raises(UserError, match=r"cannot read the tokenizer .*: No such file"):
        Tokenizer.load(path)
    path.write_bytes(lossless().data)
    assert Tokenizer.load(path).digest == lossless().digest
    path.write_bytes(lossless().data[:-3])
    with pytest.raises(UserError, match=r"tokenizer\.model: the tokenizer is not a usable"):
        Tokenizer.load(path)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.booleans())
def test_a_damaged_tokenizer_works_or_is_refused(seed: int, normalises: bool) -> None:
    rng = random.Random(seed)
    data = bytearray((normalising() if normalises else lossless()).data)
    for _ in range(rng.choice((1, 3, 50))):
        data[rng.randrange(len(data))] = rng.randrange(256)
    try:
        tokenizer = Tokenizer.from_bytes(
            bytes(data[: rng.choice((len(data), rng.randrange(9999)))])
        )
    except UserError:
        return
    decode_documents(tokenizer, encode_documents(tokenizer, [odd for odd in DOCUMENTS if odd]))
