"""Converts any bytes to tokens, and tokens to bytes, without loss.

A token represents fixed bytes, independent of the tokens before it: a piece its text with U+2581
as a space, a byte piece its byte, control tokens nothing. `unpack` only joins these bytes, so a
file may be cut between any two tokens, and every byte has a token of its own as a fallback. The
result of SentencePiece is used only if its bytes are those of the text: its normaliser may change
blanks, line ends or characters.

A document is read by the rule of `token_bytes`: the space of a piece after BOS does not count.

If a tokenizer has marks for capital letters (`case`), the bytes are those of a marked text. A mark
has its own token, and unpacking applies the marks. Tokens that were cut apart are unpacked
together.
"""

import re
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from fairway.base.arrays import IntArray
from fairway.base.errors import UserError
from fairway.data.case import MARKS
from fairway.data.spmodel import SPACE
from fairway.data.tokens import Ids, Tokenizer

# The longest text that is encoded at once; longer texts are cut at a line end, or anywhere.
_MOST_CHARACTERS = 1 << 16
# Bytes that are not UTF-8 become these characters; nothing else does.
_STRAY = re.compile("[\udc80-\udcff]+")
_LINES = re.compile(rf"[^\n]{{0,{_MOST_CHARACTERS}}}\n?")
# Words with single spaces before or between them, which all tokenizers keep; the rest separately.
_WORDS = re.compile(rf" ?[^\s{SPACE}]+(?: [^\s{SPACE}]+)*|[\s{SPACE}]")
_WORD = re.compile(r" ?[^ ]+| ")
# Splitting a text by this makes its marks separate parts.
_MARK = re.compile("|".join(MARKS).join("()").encode())
# Texts that some tokenizers change. A text with one of them is not tried on such a tokenizer.
_FOLDED = ("\n", "\r", "\t", "  ", SPACE)


class Packer:
    """Both directions between bytes and tokens for one tokenizer.

    `leading_ids` are the tokens that begin with a space.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._adds_space = self._stands_for("a") == b" a"
        self._leading = tokenizer.table.leading
        self.leading_ids = np.flatnonzero(self._leading)
        self._spaces = [t for t in self.leading_ids if tokenizer.piece_bytes[t] == b" "]
        inside = [(blanks, f"1a{blanks}a") for blanks in _FOLDED]
        self._lost = [b for b, text in inside if not self._stands_for(text).endswith(text.encode())]

    def _stands_for(self, text: str) -> bytes:
        return self.joined(self.tokenizer.encode_marked(text))

    def joined(self, ids: Ids) -> bytes:
        """Return the bytes of pieces, with marks unchanged."""
        piece_bytes = self.tokenizer.piece_bytes
        return b"".join(piece_bytes[token] for token in ids.tolist())

    def unpack(self, ids: Ids) -> bytes:
        """Return the bytes that tokens represent."""
        return self.tokenizer.restore(self.joined(ids))

    def pack(self, data: bytes) -> IntArray:
        """Return tokens that represent exactly these bytes."""
        parts = [self._text_or_bytes(run) for run in _runs(self.tokenizer.mark(data))]
        ids = np.concatenate(parts) if parts else np.zeros(0, np.int64)
        assert self.unpack(ids) == data, "the tokens of some part have other bytes than the part"
        return ids

    def document(self, text: str) -> IntArray:
        """Return tokens that represent exactly this text directly after a BOS.

        These are SentencePiece's own tokens, as in training, if they represent the text. Raises
        UserError for half a character, which has no bytes.
        """
        data = encoded(text, "the text")
        candidates = self._readings(text, data)
        return next(ids for ids in candidates if self.unpack_document(ids) == data)

    def stream(self, documents: Sequence[str]) -> IntArray:
        """Return the tokens of documents, each after a BOS, that represent all their bytes.

        Raises UserError for half a character, and for an empty text.
        """
        bytes_ = sum(len(encoded(text, f"document {n}")) for n, text in enumerate(documents))
        if not bytes_:
            raise UserError("the text is empty (0 bytes); give at least one character")
        bos = np.array([self.tokenizer.bos_id])
        parts = [part for text in documents for part in (bos, self.document(text))]
        return np.concatenate(parts)

    def documents(self, ids: IntArray) -> list[bytes]:
        """Return the bytes of the documents of a stream that begins with BOS."""
        starts = np.flatnonzero(ids == self.tokenizer.bos_id)
        return [self.unpack_document(part[1:]) for part in np.split(ids, starts[1:])]

    def _readings(self, text: str, data: bytes) -> Iterator[IntArray]:
        """Yield tokens that may represent a document, the usual ones first; the last ones do."""
        yield self.tokenizer.encode(text)
        if self._adds_space:
            yield self.pack(b" " + data)
        ids = self.pack(data)
        yield ids
        # A single space after BOS does not count, so the space of the next piece does.
        for space in self._spaces[:1]:
            yield np.insert(ids, 0, space)
        yield self._as_bytes(self.tokenizer.mark(data))

    def unpack_document(self, ids: Ids) -> bytes:
        """Return the bytes that tokens represent directly after a BOS."""
        return self.tokenizer.restore(self.joined_document(ids))

    def joined_document(self, ids: Ids) -> bytes:
        """Return the bytes of pieces directly after a BOS, with marks unchanged."""
        return self.joined(ids)[len(ids) and int(self._leading[ids[0]]) :]

    def _text_or_bytes(self, run: str) -> IntArray:
        if _STRAY.match(run):
            return self._as_bytes(run.encode(errors="surrogateescape"))
        whole = self._exactly(run)
        if whole is not None:
            return whole
        return self._by(_LINES, run, lambda line: self._by(_WORDS, line, self._words))

    def _words(self, words: str) -> IntArray:
        return self._by(_WORD, words, lambda word: self._as_bytes(word.encode()))

    def _by(
        self, pattern: re.Pattern[str], text: str, otherwise: Callable[[str], IntArray]
    ) -> IntArray:
        """Return the tokens of a text's matches, exact ones if possible, else by `otherwise`."""
        parts = []
        for match in pattern.finditer(text):
            if match[0]:
                ids = self._exactly(match[0])
                parts.append(otherwise(match[0]) if ids is None else ids)
        return np.concatenate(parts)

    def _exactly(self, text: str) -> IntArray | None:
        """Return tokens of a text that represent exactly its bytes, or None.

        Some tokenizers put a space before every text. It either serves as the text's own first
        space, or goes to a digit put before the text; the digit's one or two tokens are dropped.
        """
        if any(blanks in text for blanks in self._lost):
            return None
        data = text.encode()
        if text.startswith(" ") or not self._adds_space:
            ids = self.tokenizer.encode_marked(text.removeprefix(" ") if self._adds_space else text)
            if self.joined(ids) == data:
                return ids
        with_digit = self.tokenizer.encode_marked(f"1{text}")
        for ids in (with_digit[1:], with_digit[2:]):
            if self.joined(ids) == data:
                return ids
        return None

    def _as_bytes(self, data: bytes) -> IntArray:
        found: list[int] = []
        marks, ids = self.tokenizer.mark_ids, self.tokenizer.byte_ids
        for part in _MARK.split(data) if marks else [data]:
            mark = marks.get(part)
            found += ids[np.frombuffer(part, np.uint8)].tolist() if mark is None else [mark]
        return np.array(found, np.int64)


def encoded(text: str, name: str) -> bytes:
    """Return a text as UTF-8; UserError, with the text's name, if it has half a character."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise UserError(
            f"{name} has half a character (an unpaired surrogate); was it read as UTF-8?"
        ) from None


def _runs(data: bytes) -> Iterator[str]:
    """Yield text and other bytes in turn; the latter as characters of `_STRAY`."""
    text = data.decode(errors="surrogateescape")
    at = 0
    for stray in _STRAY.finditer(text):
        yield from (run for run in (text[at : stray.start()], stray[0]) if run)
        at = stray.end()
    if at < len(text):
        yield text[at:]
