"""A bounded reader of SentencePiece model files, which checks them before native code reads them.

A tokenizer may be foreign. SentencePiece parses its protobuf safely, but some of its releases read
the normaliser's trie without bounds. Therefore every unit that any text can reach is followed here
first. Layout: sentencepiece_model.proto and darts-clone (both public).
"""

import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np

from fairway.base.errors import UserError

SPACE = "\u2581"
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
MAX_FILE_BYTES = 16_000_000
MAX_PIECES = 65_535
_MAX_PIECE_BYTES = 1024
_UNIGRAM, _BPE = 1, 2
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

Value = int | float | bytes


@dataclass(frozen=True)
class ModelFile:
    """The parts of a model file that Fairway uses: pieces and types by id, and the normaliser."""

    pieces: list[str]
    types: list[int]
    lossless: bool


def parse_model(data: bytes) -> ModelFile:
    """Return the checked contents of a SentencePiece model file.

    Raises UserError with the reason if it is another kind of file, damaged or hostile, or lacks
    something that exact byte counts need: byte fallback, a control token for BOS, a piece for the
    space, ids below 65,535.
    """
    try:
        return _parsed(data)
    except UserError:
        # What is wrong with its first field says nothing about a file of another kind.
        if kind := _other_kind(data):
            _refuse(f"it is {kind}; name a SentencePiece file (.model)")
        raise


def _parsed(data: bytes) -> ModelFile:
    if not 0 < len(data) <= MAX_FILE_BYTES:
        _refuse(f"it has {len(data)} bytes; expected 1 to {MAX_FILE_BYTES}")
    pieces: list[str] = []
    types: list[int] = []
    parts: dict[int, bytes] = {}
    for number, value in _fields(data):
        if number == 1 and isinstance(value, bytes):
            piece, kind = _piece(value, len(pieces))
            pieces.append(piece)
            types.append(kind)
        elif number in (2, 3) and isinstance(value, bytes) and number not in parts:
            parts[number] = value
        elif value != b"":
            _refuse(f"it has an unexpected or repeated part number {number}")
        if len(pieces) > MAX_PIECES:
            _refuse(f"it has more than {MAX_PIECES} pieces, the most that fit 16-bit token ids")
    _check_pieces(pieces, types)
    _check_trainer(dict(_fields(parts.get(2, b""))), pieces, types)
    return ModelFile(pieces, types, _check_normaliser(dict(_fields(parts.get(3, b"")))))


def _refuse(reason: str) -> NoReturn:
    raise UserError(f"the tokenizer is not a usable SentencePiece model: {reason}")


def _fields(data: bytes) -> Iterator[tuple[int, Value]]:
    """Yield (number, value) for each field of one protobuf message; lengths must stay inside it."""
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        kind = key & 7
        value: Value
        if kind == _VARINT:
            value, position = _varint(data, position)
        elif kind == _BYTES:
            length, position = _varint(data, position)
            value, position = _slice(data, position, length)
        elif kind == _FIXED32:
            raw, position = _slice(data, position, 4)
            value = float(struct.unpack("<f", raw)[0])
        elif kind == _FIXED64:
            value, position = _slice(data, position, 8)
        else:
            _refuse(f"byte {position} starts an unknown kind of field")
        yield key >> 3, value


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            _refuse("it is cut short")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    _refuse(f"the number that ends at byte {position} is too long")


def _slice(data: bytes, position: int, length: int) -> tuple[bytes, int]:
    if length > len(data) - position:
        _refuse(f"byte {position} announces {length} bytes but {len(data) - position} are left")
    return data[position : position + length], position + length


def _piece(data: bytes, index: int) -> tuple[str, int]:
    text, score, kind = b"", 0.0, NORMAL
    for number, value in _fields(data):
        if number == 1 and isinstance(value, bytes):
            text = value
        elif number == 2 and isinstance(value, float):
            score = value
        elif number == 3 and isinstance(value, int):
            kind = value
        else:
            _refuse(f"piece {index} has an unexpected part number {number}")
    if not 0 < len(text) <= _MAX_PIECE_BYTES or not NORMAL <= kind <= BYTE:
        _refuse(f"piece {index} has {len(text)} bytes and kind {kind}")
    if not np.isfinite(score):
        _refuse(f"piece {index} has the score {score}")
    try:
        return text.decode(), kind
    except UnicodeDecodeError:
        _refuse(f"piece {index} is not UTF-8")


def _check_pieces(pieces: list[str], types: list[int]) -> None:
    if len(set(pieces)) != len(pieces):
        _refuse("two of its pieces are equal")
    expected = {f"<0x{value:02X}>" for value in range(256)}
    found = {piece for piece, kind in zip(pieces, types, strict=True) if kind == BYTE}
    if found != expected:
        _refuse(f"it has {len(found & expected)} of the 256 byte pieces; train with byte fallback")
    if SPACE not in pieces:
        _refuse("it has no piece for a single space (U+2581)")


def _check_trainer(spec: dict[int, Value], pieces: list[str], types: list[int]) -> None:
    if spec.get(3, _UNIGRAM) not in (_BPE, _UNIGRAM):
        _refuse(f"its model type is {spec.get(3)!r}; expected {_BPE} (BPE) or {_UNIGRAM} (unigram)")
    if not spec.get(35):
        _refuse("byte fallback is off")
    if spec.get(24):
        _refuse("it marks spaces at the end of words, so the bytes of a token are not known")
    bos = spec.get(46, b"<s>")
    name = bos.decode(errors="replace") if isinstance(bos, bytes) else ""
    if name not in pieces or types[pieces.index(name)] != CONTROL:
        _refuse(f"it has no control piece {name!r} for the start of a document (BOS)")


def _check_normaliser(spec: dict[int, Value]) -> bool:
    """Return whether the normaliser leaves text unchanged; UserError for a damaged one."""
    charsmap = spec.get(2, b"")
    if not isinstance(charsmap, bytes):
        _refuse("its normaliser is not a byte string")
    if not spec.get(5, 1):
        _refuse("it does not mark spaces with U+2581, so the bytes of a token are not known")
    if charsmap:
        _check_charsmap(charsmap)
    # Both flags default to true in the file format.
    return not charsmap and not spec.get(3, 1) and not spec.get(4, 1)


def _check_charsmap(charsmap: bytes) -> None:
    """Follow every trie unit that some text reaches; refuse one that points outside the tables."""
    size = int.from_bytes(charsmap[:4], "little")
    strings = charsmap[4 + size :]
    if size % 4 or not 1024 <= size < len(charsmap) - 4 or strings[-1] != 0:
        _refuse("the tables of its normaliser are cut short")
    units = np.frombuffer(charsmap, "<u4", size // 4, 4).astype(np.int64)
    bases = _offsets(units[:1])
    seen = np.zeros(len(units), bool)
    labels = np.arange(256)
    while len(bases):
        if np.any(bases | 255 >= len(units)):
            _refuse("its normaliser points outside its own tables")
        bases = np.unique(bases)
        bases = bases[~seen[bases]]
        seen[bases] = True
        children = (bases[:, None] ^ labels).ravel()
        followed = (units[children] & 0x800000FF) == np.tile(labels, len(bases))
        children = children[followed]
        bases = children ^ _offsets(units[children])
        leaves = bases[(units[children] >> 8) & 1 == 1]
        if np.any(leaves >= len(units)) or np.any((units[leaves] & 0x7FFFFFFF) >= len(strings)):
            _refuse("its normaliser points outside its own tables")


def _offsets(units: np.ndarray) -> np.ndarray:
    return (units >> 10) << ((units & 0x200) >> 6)


# ---------------------------------------------------------------------------------------------
# Files of other kinds

_HEAD_BYTES = 4096
# A token in base64 and its rank.
_TIKTOKEN = re.compile(rb"[A-Za-z0-9+/]+={0,2} \d+\r?(\n|$)")
# A piece and its score, which SentencePiece writes beside its model.
_VOCAB = re.compile(rb"[^\t\n]+\t-?\d[\d.e+-]*\r?(\n|$)")
_HUGGING_FACE = (b'"added_tokens"', b'"tokenizer_class"', b'"added_tokens_decoder"')


def _other_kind(data: bytes) -> str:
    """Return in words what kind of file this is instead of a SentencePiece model; '' if unknown."""
    return next((words for holds, words in _KINDS if holds(data)), "")


def _is_json(data: bytes) -> bool:
    return data.lstrip()[:1] in (b"{", b"[") and _is_text(data)


def _is_hugging_face(data: bytes) -> bool:
    return _is_json(data) and any(name in data for name in _HUGGING_FACE)


def _is_text(data: bytes) -> bool:
    """Return whether the beginning of a file is UTF-8 without control characters."""
    # The last character may be cut.
    head = data[:_HEAD_BYTES].decode(errors="ignore")
    lost = len(data[:_HEAD_BYTES]) - len(head.encode())
    return bool(head) and lost <= 3 and all(sign >= " " or sign in "\r\n\t" for sign in head)


_KINDS: tuple[tuple[Callable[[bytes], object], str], ...] = (
    (_is_hugging_face, "a Hugging Face tokenizer (JSON)"),
    (_is_json, "a JSON file"),
    (_TIKTOKEN.match, "a tiktoken file (tokens in base64 with ranks)"),
    (_VOCAB.match, "a list of pieces (.vocab), not the model that is beside it"),
    (_is_text, "a text file"),
)


def model_in(folder: Path) -> str:
    """Return in words which file to name instead of a folder."""
    found = sorted(folder.glob("*.model")) or sorted(folder.glob("*/*.model"))
    if not found:
        return "it holds no SentencePiece file (.model); name such a file"
    usual = [path for path in found if path.name == "tokenizer.model"]
    return f"name the file {(usual or found)[0]}"
