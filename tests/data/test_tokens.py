import functools
import io
import pickle
import pydoc_data.topics
import random
import struct
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from fairway.base.errors import UserError
from fairway.data import spmodel
from fairway.data.spmodel import MAX_FILE_BYTES
from fairway.data.tokens import (
    ByteTable,
    Tokenizer,
    _sentences,
    _too_small,
    decode_documents,
    encode_documents,
    join_documents,
    prove_bytes,
    same_characters,
    token_bytes,
    train_tokenizer,
)

DOCUMENTS = ["The cat sat.\nOn 12 mats.", "caf\u00e9 \u65e5\u672c \U0001f600", "", "a  b\t\tc"]


def _fields(data: bytes) -> list[tuple[int, Any]]:
    return list(spmodel._fields(data))


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
    with pytest.raises(UserError, match="document 1 has 10 bytes but its tokens sum to 9;"):
        prove_bytes(lossless(), ids)


def test_half_a_character_breaks_the_proof() -> None:
    ids = encode_documents(lossless(), ["\u65e5"])
    with pytest.raises(UserError, match="document 0"):
        prove_bytes(lossless(), ids[:-1])


def test_an_unknown_token_breaks_the_proof() -> None:
    with pytest.raises(UserError, match="document 0"):
        prove_bytes(lossless(), np.array([1, 3], np.uint16))


@pytest.mark.parametrize("ids", [[], [300], [300, 1], [0, 1]])
def test_a_scored_stream_starts_with_bos(ids: list[int]) -> None:
    with pytest.raises(UserError, match="must start with BOS"):
        prove_bytes(lossless(), np.array(ids, np.uint16))


@pytest.mark.parametrize("token", [-1, -400, 400, 70_000])
@pytest.mark.parametrize("use", [decode_documents, prove_bytes])
def test_ids_of_no_token_are_refused(use: Callable[..., object], token: int) -> None:
    with pytest.raises(UserError, match=f"token id {token} is outside the tokenizer's 400 ids"):
        use(lossless(), np.array([1, 5, token, 6]))
    use(lossless(), encode_documents(lossless(), ["fine"]))
    decode_documents(lossless(), np.array([1, 0, 399]))


@pytest.mark.parametrize("more", [1, -1, 40])
def test_tokens_of_too_many_or_too_few_bytes_break_the_proof(more: int) -> None:
    """In the second of three documents, so that the sum of all documents is wrong there alone."""
    tokenizer = Tokenizer(lossless().data)
    ids = encode_documents(tokenizer, ["a cat", "q", "a cat"])
    (only,) = tokenizer.encode("q")
    base = tokenizer.table.base_bytes.copy()
    base[only] += more
    tokenizer.__dict__["table"] = replace(tokenizer.table, base_bytes=base)
    with pytest.raises(UserError, match=f"document 1 has 1 bytes but its tokens sum to {1 + more}"):
        prove_bytes(tokenizer, ids)


def test_bytes_that_make_up_for_one_another_break_the_proof() -> None:
    tokenizer = Tokenizer(lossless().data)
    ids = encode_documents(tokenizer, ["q", "z"])
    base = tokenizer.table.base_bytes.copy()
    base[tokenizer.encode("q")] -= 1
    base[tokenizer.encode("z")] += 1
    tokenizer.__dict__["table"] = replace(tokenizer.table, base_bytes=base)
    with pytest.raises(UserError, match="document 0 has 1 bytes but its tokens sum to 0"):
        prove_bytes(tokenizer, ids)


def retyped(data: bytes, token: int, kind: int) -> bytes:
    """Return a model file in which one piece is of another kind."""
    parts = _fields(data)
    piece = dict(_fields(parts[token][1]))
    text, score = piece[1], struct.pack("<f", piece[2])
    parts[token] = 1, b"\x0a" + bytes([len(text)]) + text + b"\x15" + score + bytes([0x18, kind])
    return b"".join(bytes([n << 3 | 2]) + _length(value) + value for n, value in parts)


def _length(value: bytes) -> bytes:
    count, out = len(value), b""
    while count >= 0x80:
        out, count = out + bytes([count & 0x7F | 0x80]), count >> 7
    return out + bytes([count])


@pytest.mark.parametrize(("kind", "boundary"), [(1, False), (4, False), (3, True), (5, True)])
def test_unused_and_control_pieces_have_no_bytes_and_are_boundaries(
    kind: int, boundary: bool
) -> None:
    """1 is a normal piece, 3 control, 4 a user's own, 5 unused."""
    pieces = lossless().piece_bytes
    token = next(t for t, p in enumerate(pieces) if p.startswith(b" ") and len(p) > 3)
    table = Tokenizer(retyped(lossless().data, token, kind)).table
    length = len(pieces[token]) - 1
    assert table.boundary[token] == boundary and table.leading[token] != boundary
    assert table.base_bytes[token] == (0 if boundary else length)
    assert np.flatnonzero(table.boundary).tolist() == [0, 1, 2, 3, *([token] if boundary else [])]
    # Before a word with a space: it counts after a piece of text, not after a boundary.
    other = next(t for t, p in enumerate(pieces) if p == b" a")
    found = token_bytes(np.array([other, other]), np.array([token, 1]), table)
    assert found.tolist() == [1 if boundary else 2, 1]


def test_what_each_piece_stands_for() -> None:
    tokenizer = lossless()
    table, pieces = tokenizer.table, tokenizer.piece_bytes
    assert pieces[:4] == [b""] * 4 and table.base_bytes[:4].tolist() == [0] * 4
    assert tokenizer.byte_ids.dtype == np.int64 and tokenizer.byte_ids.tolist() == [*range(4, 260)]
    assert pieces[4:260] == [bytes([value]) for value in range(256)]
    assert table.base_bytes[4:260].tolist() == [1] * 256 and not table.leading[:260].any()
    space = pieces.index(b" ", 260)
    assert table.base_bytes[space] == 0 and table.leading[space]
    assert table.base_bytes.dtype == np.int16
    lengths = table.base_bytes[260:] + table.leading[260:]
    assert lengths.tolist() == [len(piece) for piece in pieces[260:]]
    assert table.leading[260:].tolist() == [piece.startswith(b" ") for piece in pieces[260:]]


def test_streams_are_of_16_bits_even_when_empty() -> None:
    assert encode_documents(lossless(), []).dtype == np.uint16
    assert encode_documents(lossless(), []).tolist() == []
    joined = join_documents(lossless(), [np.array([7, 8]), np.array([], int), np.array([9])])
    assert (joined.dtype, joined.tolist()) == (np.uint16, [1, 7, 8, 1, 1, 9])
    assert lossless().encode("a").dtype == lossless().encode("").dtype == np.int64


def test_exact_encodings_are_given_or_nothing() -> None:
    assert lossless().encode_exactly("a b").tolist() == lossless().encode("a b").tolist()  # type: ignore[union-attr]
    assert lossless().encode_exactly("a\u2581b") is None
    assert normalising().encode_exactly("a  b") is None
    assert normalising().encode_exactly("\ufb01") is None
    assert lossless().canonical(" a\u2581b ") == "a\u2581b", "not represented, and not hidden"


def test_foreign_ids_are_refused() -> None:
    with pytest.raises(UserError, match="token id 400 is outside the tokenizer's 400 ids"):
        decode_documents(lossless(), np.array([1, 400], np.uint16))


def test_a_stream_cut_from_the_middle_keeps_its_head() -> None:
    ids = encode_documents(lossless(), ["first", "second"])
    cut = decode_documents(lossless(), ids[2:])
    assert len(cut) == 2 and "first".endswith(cut[0]) and cut[1] == "second"
    assert decode_documents(lossless(), ids[:0]) == []
    only = lossless().encode("q")
    assert decode_documents(lossless(), np.array([*only, 0, *only])) == ["qq"], "0 begins nothing"


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


@pytest.mark.parametrize(
    ("text", "form", "same"),
    [
        ("a\r\n b", "a b", True),
        (" \ta\u00a0b\n", "a b", True),
        ("a  b", "a  b", True),
        ("a\nb", "a" + " " * 50 + "b", False),
        ("a b", "ab", False),
        ("ab", "a b", False),
        ("a\u200bb", "a b", False),
        ("\u2026", "...", False),
        ("\x01", "", False),
        ("A", "a", False),
    ],
)
def test_a_form_may_differ_in_white_space_and_is_not_longer(
    text: str, form: str, same: bool
) -> None:
    assert same_characters(text, form) == same


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
    assert not any("\n" in piece for piece in pieces) and "\u2581" in pieces


def test_the_settings_of_training_are_written_into_the_file() -> None:
    data = train_tokenizer(["abc abd 2026 2027 2026\n" * 50], 270)
    _, trainer, normaliser = (dict(_fields(v)) for _, v in _fields(data)[-3:])
    assert trainer.pop(10) == pytest.approx(0.999)
    assert trainer == {
        3: 2, 4: 270, 16: 1, 18: 1_048_576, 25: 1, 33: 0, 35: 1, 36: "\u2581".encode(),
        40: 3, 41: 1, 42: 2, 43: 0,
    }  # fmt: skip
    assert normaliser == {1: b"identity", 2: b"", 3: 0, 4: 0}


def test_a_digit_stands_alone() -> None:
    """Though '2026' comes a thousand times, and 'the' as often, only letters grow together."""
    tokenizer = Tokenizer(train_tokenizer(["the 2026 12a a12 x99\n" * 1000], 275))
    pieces = [piece.decode(errors="replace") for piece in tokenizer.piece_bytes[260:]]
    assert any(len(piece) > 2 for piece in pieces) and "2" in pieces
    digits = [piece for piece in pieces if any(c.isdigit() for c in piece)]
    assert digits and all(len(piece) == 1 for piece in digits)
    assert len(tokenizer.encode("2026")) == 4


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


@pytest.mark.skipif(
    version("sentencepiece") in ("0.2.1", "0.2.2"), reason="they end the process at such texts"
)
def test_the_smallest_and_the_largest_vocabulary_are_tried() -> None:
    # 256 bytes, 4 control tokens, the space and three letters.
    for size in (260, 263):
        with pytest.raises(UserError, match=f"of {size} is too small .* need 264; set .*=264"):
            train_tokenizer(["abc"], size)
    assert len(Tokenizer(train_tokenizer(["abc"], 264)).piece_bytes) == 264
    with pytest.raises(UserError, match=r"small for a vocabulary of 65535; .*\d: set "):
        train_tokenizer(["abc abd"], 65_535)


@pytest.mark.parametrize(
    ("reason", "told"),
    [
        ("x required_chars. 300 vs 65535 y", "need 65535; set --vocab-size 65535"),
        ("x required_chars. 300 vs 65536 y", "a vocabulary of 65536, but 65535 is the most"),
        (
            "a.cc(12) [size > 1] What  it\n says",
            "tokenizer of 300 pieces: What it says",
        ),
    ],
)
def test_what_sentencepiece_refuses_is_told(reason: str, told: str) -> None:
    assert told in str(_too_small(reason, 300))


def test_long_lines_are_cut_where_sentencepiece_would_drop_them() -> None:
    """A character has up to four bytes, and a sentence at most 2^20."""
    found = list(_sentences(["a" * 600_000 + "\nb", "", "c"]))
    assert [len(sentence) for sentence in found] == [262_144, 262_144, 75_712, 1, 1]
    assert "".join(found) == "a" * 600_000 + "bc"


@pytest.mark.parametrize("size", [0, 259, 65_536])
def test_an_impossible_vocabulary_is_refused(size: int) -> None:
    with pytest.raises(UserError, match=f"vocabulary size {size} is not between 260 and 65535"):
        train_tokenizer(text(), size)


# Files


def test_files_are_loaded_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    with pytest.raises(UserError, match=r"the tokenizer .* does not exist"):
        Tokenizer.load(path)
    path.write_bytes(lossless().data)
    assert Tokenizer.load(path).digest == lossless().digest
    with path.open("wb") as stream:
        stream.truncate(MAX_FILE_BYTES + 9)
    with pytest.raises(UserError, match=f"it has {MAX_FILE_BYTES + 1} bytes; expected"):
        Tokenizer.load(path)
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(UserError, match=r"tokenizer\.model is a pointer of Git LFS.* git lfs pull"):
        Tokenizer.load(path)
    path.write_bytes(lossless().data[:-3])
    with pytest.raises(UserError, match=r"tokenizer\.model: the tokenizer is not a usable"):
        Tokenizer.load(path)


@pytest.mark.parametrize(
    ("names", "remedy"),
    [
        (["tokenizer.model"], r"name the file .*/run/tokenizer\.model$"),
        (["data/tokenizer.model", "data/a.model"], r"name the file .*/run/data/tokenizer\.model$"),
        (["z.model", "data/tokenizer.model"], r"name the file .*/run/z\.model$"),
        (["tokenizer.json"], r"it holds no SentencePiece file \(\.model\); name such a file$"),
    ],
)
def test_a_folder_is_not_a_tokenizer(tmp_path: Path, names: list[str], remedy: str) -> None:
    for name in names:
        (tmp_path / "run" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "run" / name).touch()
    with pytest.raises(UserError, match=f"the tokenizer .*run is a folder; {remedy}"):
        Tokenizer.load(tmp_path / "run")


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
