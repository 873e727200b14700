"""The tokenizer, and the one definition of how many bytes of text a token represents.

Bytes per token follow the challenge. A piece counts its UTF-8 length. Its leading space counts
unless the token before is a boundary (BOS). Control tokens count nothing. `prove_bytes` compares
the sum with the decoded documents, so that no score uses a wrong length.
"""

import io
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import sentencepiece

from fairway.base.errors import UserError
from fairway.base.files import digest_bytes, opened
from fairway.base.mistaken import require_no_pointer
from fairway.config.settings import BOS_ID
from fairway.data.case import CAPITAL, MARK_BYTES, MARKS, SMALL, Capitals
from fairway.data.spmodel import (
    BYTE,
    CONTROL,
    MAX_FILE_BYTES,
    MAX_PIECES,
    NORMAL,
    SPACE,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    ModelFile,
    model_in,
    parse_model,
)

Ids = npt.NDArray[np.integer]
_MAX_SENTENCE_BYTES = 1 << 20


@dataclass(frozen=True)
class ByteTable:
    """By token id: bytes without a leading space, whether it has one, whether it is a boundary."""

    base_bytes: npt.NDArray[np.int16]
    leading: npt.NDArray[np.bool_]
    boundary: npt.NDArray[np.bool_]


def token_bytes(targets: Ids, previous: Ids, table: ByteTable) -> npt.NDArray[np.int64]:
    """Return the text bytes of each target token, given the token before it; any shape."""
    space = table.leading[targets] & ~table.boundary[previous]
    return table.base_bytes[targets].astype(np.int64) + space


class Tokenizer:
    """A checked SentencePiece model. Unless it is lossless, text is normalised before encoding.

    A model with pieces for the marks of `case` reads and writes texts in that form (`case`). Its
    input and output are still the text itself, and so are the bytes of `table`.
    """

    def __init__(self, data: bytes):
        self.data = data
        self._model: ModelFile = parse_model(data)
        self._processor = _load_native(data)
        self.vocab_size = len(self._model.pieces)
        self.lossless = self._model.lossless
        self.case = _case_of(self._model)

    @classmethod
    def load(cls, path: Path) -> "Tokenizer":
        """Return the tokenizer of a model file; UserError for a missing or unusable one."""
        if path.is_dir():
            raise UserError(f"the tokenizer {path} is a folder; {model_in(path)}")
        with opened(path, "the tokenizer") as stream:
            require_no_pointer(path)
            data = stream.read(MAX_FILE_BYTES + 1)
        try:
            return cls(data)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None

    @classmethod
    def from_bytes(cls, data: bytes) -> "Tokenizer":
        """Return the tokenizer of a model file's bytes; UserError for an unusable one."""
        return cls(data)

    def __reduce__(self) -> tuple[type["Tokenizer"], tuple[bytes]]:
        return Tokenizer, (self.data,)

    @cached_property
    def digest(self) -> str:
        """The SHA-256 of the model file, in hex."""
        return digest_bytes(self.data)

    @property
    def case_ops(self) -> bool:
        """Whether texts have marks for capital letters."""
        return self.case is not None

    @property
    def pieces(self) -> list[str]:
        """The piece of every id, as in the model file."""
        return list(self._model.pieces)

    @cached_property
    def bos_id(self) -> int:
        """The id that starts every document."""
        return int(self._processor.bos_id())

    @cached_property
    def table(self) -> ByteTable:
        """Bytes by token id, by the challenge's rule."""
        types = np.array(self._model.types)
        text = [piece.removeprefix(SPACE) for piece in self._model.pieces]
        # Pieces of several words, which some tokenizers have, hold blanks of a byte each.
        base = np.array([len(piece.replace(SPACE, " ").encode()) for piece in text], np.int16)
        for mark in self.case.marks if self.case else ():
            counts = np.array([piece.count(mark) for piece in text], np.int16)
            base += (MARK_BYTES[mark] - len(mark.encode())) * counts
        base[types == BYTE] = 1
        boundary = np.isin(types, (CONTROL, UNKNOWN, UNUSED))
        base[boundary] = 0
        leading = np.array([piece.startswith(SPACE) for piece in self._model.pieces])
        return ByteTable(base, leading & ~boundary & (types != BYTE), boundary)

    @cached_property
    def byte_ids(self) -> npt.NDArray[np.int64]:
        """The id of the byte piece of every value from 0 to 255, int64[256]."""
        ids = {piece: token for token, piece in enumerate(self._model.pieces)}
        return np.array([ids[f"<0x{value:02X}>"] for value in range(256)], np.int64)

    @cached_property
    def mark_ids(self) -> dict[bytes, int]:
        """The ids of the marks of `case`; none without them."""
        marks = self.case.marks if self.case else ()
        return {mark.encode(): self._model.pieces.index(mark) for mark in marks}

    @cached_property
    def piece_bytes(self) -> list[bytes]:
        """The bytes that each id represents in any position: no space is ever dropped.

        With `case` they include marks; `restore` converts joined bytes to those of the text.
        """
        found = [
            b"" if boundary else piece.replace(SPACE, " ").encode()
            for piece, boundary in zip(self._model.pieces, self.table.boundary, strict=True)
        ]
        for value, token in enumerate(self.byte_ids):
            found[token] = bytes([value])
        return found

    def mark(self, data: bytes) -> bytes:
        """Return the bytes that pieces consist of, from the bytes of a text."""
        return self.case.marked(data) if self.case else data

    def restore(self, data: bytes) -> bytes:
        """Return the bytes of a text, from those of its pieces."""
        return self.case.restored(data) if self.case else data

    def encode(self, text: str) -> npt.NDArray[np.int64]:
        """Return the token ids of a text, without BOS."""
        return self.encode_marked(self.mark(text.encode()).decode() if self.case else text)

    def encode_marked(self, text: str) -> npt.NDArray[np.int64]:
        """Return the token ids of a text that `mark` made, without BOS."""
        return np.array(self._processor.encode(text), np.int64)

    def decode(self, ids: Ids | list[int]) -> str:
        """Return the text of some token ids; control tokens are dropped."""
        text = str(self._processor.decode(np.asarray(ids).tolist()))
        return self.restore(text.encode()).decode() if self.case else text

    def canonical(self, text: str) -> str:
        """Return the text as this tokenizer can represent it, the text that scores refer to.

        Blanks at both ends are removed, because a space after BOS counts no byte. Nothing else is,
        not even carriage returns and byte order marks. A tokenizer that is not lossless also
        normalises: SP8192 replaces line ends and runs of blanks by one space, but also other
        characters (an ellipsis by three dots). A build leaves such a text out (`same_characters`).
        """
        return text.strip() if self.lossless else self.decode(self.encode(text)).strip()

    def encode_exactly(self, text: str) -> npt.NDArray[np.int64] | None:
        """Return the token ids of a text, or None if they do not restore exactly this text.

        A literal U+2581 is never restored: SentencePiece cannot distinguish it from a space.
        """
        ids = self.encode(text)
        return ids if self.decode(ids) == text else None

    def represents(self, text: str) -> bool:
        """Return whether encoding and decoding restore exactly this text."""
        return self.encode_exactly(text) is not None


def same_characters(text: str, form: str) -> bool:
    """Return whether the canonical form of a text differs from it in white space alone.

    The form must not be longer either: a denominator never exceeds the bytes of the text.
    """
    return form.split() == text.split() and len(form.encode()) <= len(text.encode())


def _case_of(model: ModelFile) -> Capitals | None:
    """Return how a tokenizer writes capital letters, or None if it has no marks for them.

    Words that are pieces with capital letters need no marks.
    """
    own = {kind: set[str]() for kind in (NORMAL, USER_DEFINED)}
    for piece, kind in zip(model.pieces, model.types, strict=True):
        own.get(kind, set()).add(piece)
    words = (piece.replace(SPACE, " ").encode() for piece in own[NORMAL])
    kept = frozenset(word for word in words if CAPITAL.search(word))
    form = Capitals(SMALL in own[USER_DEFINED], kept)
    return form if own[USER_DEFINED].issuperset(form.marks) else None


def _load_native(data: bytes) -> sentencepiece.SentencePieceProcessor:
    try:
        return sentencepiece.SentencePieceProcessor(model_proto=data)
    except (RuntimeError, ValueError, TypeError) as error:
        raise UserError(
            f"the tokenizer is not a usable SentencePiece model: {str(error).splitlines()[0]}"
        ) from None


# ---------------------------------------------------------------------------------------------
# Documents and streams of tokens


def encode_documents(tokenizer: Tokenizer, texts: Iterable[str]) -> npt.NDArray[np.uint16]:
    """Return all documents as one stream of ids, with BOS before each."""
    return join_documents(tokenizer, map(tokenizer.encode, texts))


def join_documents(tokenizer: Tokenizer, documents: Iterable[Ids]) -> npt.NDArray[np.uint16]:
    """Return encoded documents as one stream of ids, with BOS before each."""
    bos = np.array([tokenizer.bos_id], np.uint16)
    parts = [part for ids in documents for part in (bos, ids.astype(np.uint16))]
    return np.concatenate(parts) if parts else np.zeros(0, np.uint16)


def decode_documents(tokenizer: Tokenizer, ids: Ids) -> list[str]:
    """Return the texts between the BOS tokens of a stream, including any before the first BOS."""
    return list(_decoded(tokenizer, ids, checked_starts(tokenizer, ids)))


def prove_bytes(tokenizer: Tokenizer, ids: Ids) -> int:
    """Return the text bytes of all targets ids[1:], after a check of every document.

    `ids` contains complete documents, each after its BOS. Raises UserError if the bytes of some
    document's tokens do not sum to the UTF-8 length of its decoded text.
    """
    starts = checked_starts(tokenizer, ids)
    if len(ids) == 0 or ids[0] != tokenizer.bos_id:
        raise UserError(f"a stream to be scored must start with BOS (id {tokenizer.bos_id})")
    counts = np.zeros(len(ids), np.int64)
    counts[1:] = token_bytes(ids[1:], ids[:-1], tokenizer.table)
    sums = np.add.reduceat(counts, starts)
    for number, text in enumerate(_decoded(tokenizer, ids, starts)):
        if sums[number] != (length := len(text.encode())):
            raise UserError(
                f"document {number} has {length} bytes but its tokens sum to {sums[number]}; "
                "this text and this tokenizer cannot be scored exactly"
            )
    return int(sums.sum())


def checked_starts(tokenizer: Tokenizer, ids: Ids) -> npt.NDArray[np.intp]:
    """Return the places of BOS in a stream; UserError for an id outside the vocabulary."""
    wrong = ids[(ids < 0) | (ids >= tokenizer.vocab_size)]
    if len(wrong):
        raise UserError(
            f"token id {int(wrong[0])} is outside the tokenizer's {tokenizer.vocab_size} ids; "
            "use the tokenizer that made the tokens"
        )
    return np.flatnonzero(ids == tokenizer.bos_id)


def _decoded(tokenizer: Tokenizer, ids: Ids, starts: npt.NDArray[np.intp]) -> Iterator[str]:
    for part in np.split(ids, starts[starts > 0]) if len(ids) else ():
        yield tokenizer.decode(part)


# ---------------------------------------------------------------------------------------------
# Training


def train_tokenizer(texts: Iterable[str], vocab_size: int, case_ops: bool = False) -> bytes:
    """Return a new SentencePiece model file of exactly `vocab_size` pieces.

    The settings are the usual ones of the field (byte fallback, digits split, 99.9 % of characters,
    ids 0 to 3 for pad, BOS, EOS, unknown), but without normalisation, so decoding restores the text
    and the bytes are those of the raw text. With case_ops it has pieces for the marks of `case`,
    which represent capital letters, and is a unigram model: its pieces are nearer to stems and
    endings than those of BPE, which costs ten times as long to train. It uses one thread, because
    the file records the number of threads. Raises UserError with the largest possible size if the
    texts cannot fill the vocabulary.
    """
    if not 260 <= vocab_size <= MAX_PIECES:
        raise UserError(f"vocabulary size {vocab_size} is not between 260 and {MAX_PIECES}")
    texts = list(texts)
    model = _trained(texts, vocab_size, case_ops)
    size = len(parse_model(model).pieces)
    if size == vocab_size:
        return model
    # The words that keep their capitals depend on the size, and the largest size on these words.
    while (fewer := len(parse_model(_trained(texts, size, case_ops)).pieces)) < size:
        size = fewer
    raise UserError(
        f"the text is too small for a vocabulary of {vocab_size}; the largest possible is "
        f"{size}: {_set_vocabulary(size)}, or add text"
    )


def _trained(texts: list[str], vocab_size: int, case_ops: bool) -> bytes:
    """Return a model file of `vocab_size` pieces, or of fewer if the texts have no more."""
    marked: Iterable[str] = texts
    if case_ops:
        form = Capitals(True, Capitals(sentences=True).frequent(texts, vocab_size))
        marked = (form.marked(text.encode()).decode() for text in texts)
    model, sentences = io.BytesIO(), list(_sentences(marked))
    if not any(sentences):
        raise UserError("there is no text to train a tokenizer on")
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=model,
            model_type="unigram" if case_ops else "bpe",
            vocab_size=vocab_size,
            character_coverage=0.999,
            byte_fallback=True,
            split_digits=True,
            required_chars=SPACE,
            user_defined_symbols=list(MARKS) if case_ops else [],
            hard_vocab_limit=False,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            max_sentence_length=_MAX_SENTENCE_BYTES,
            pad_id=0,
            bos_id=BOS_ID,
            eos_id=2,
            unk_id=3,
            num_threads=1,
            minloglevel=3,
        )
    except RuntimeError as error:
        raise _too_small(str(error), vocab_size) from None
    return model.getvalue()


def _too_small(reason: str, vocab_size: int) -> UserError:
    """Return why SentencePiece cannot train; it checks the characters first."""
    needed = re.search(r"required_chars\. \d+ vs (\d+)", reason)
    if not needed:
        told = " ".join(reason.rpartition("] ")[2].split())
        return UserError(f"cannot train a tokenizer of {vocab_size} pieces: {told}")
    size = int(needed[1])
    if size > MAX_PIECES:
        return UserError(
            f"the different characters of this text need a vocabulary of {size}, but {MAX_PIECES} "
            "is the most; build from less varied text"
        )
    return UserError(
        f"a vocabulary of {vocab_size} is too small for the different characters of this text, "
        f"which need {size}; {_set_vocabulary(size)} or more"
    )


def _set_vocabulary(size: int) -> str:
    return f"set --vocab-size {size} (in a recipe model.vocab_size={size})"


def _sentences(texts: Iterable[str]) -> Iterator[str]:
    """Yield paragraphs; line ends become byte tokens, because no piece may contain one."""
    for text in texts:
        for line in text.split("\n"):
            for start in range(0, len(line), _MAX_SENTENCE_BYTES // 4):
                yield line[start : start + _MAX_SENTENCE_BYTES // 4]
