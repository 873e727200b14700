"""The format of a coded file: a header with all that decoding needs, then the coder's bytes
(docs/proof.md).

    magic, version, kind, digest of the body | body

The body of a stored file is its bytes. The body of a coded file has the two lengths of its header
(packed and unpacked), the header as packed JSON, and the coder's bytes. Every field is checked
before use.
"""

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fairway.base.errors import UserError, shown
from fairway.base.files import canonical_json, digest_bytes, parse_json
from fairway.config.settings import MAX_STREAMS
from fairway.config.written import from_dict, to_dict
from fairway.pack.codec import compress, decompress
from fairway.prove.machine import Machine

MAGIC = b"FWYCODE\0"
FORMAT_VERSION = 2
STORED, ARCHIVE, PROOF = 0, 1, 2
KINDS = {STORED: "a stored file", ARCHIVE: "a compressed file", PROOF: "a proof"}
_PREFIX = struct.Struct("<8sBB32s")
_LENGTHS = struct.Struct("<II")
PREFIX_BYTES = _PREFIX.size
_MAX_HEADER_BYTES = 1 << 22
# The most tokens that a header may claim per byte of the coder. The encoder pads a shorter code
# with zeros (`padded`), so an almost certain token costs 1/128 bit.
MOST_TOKENS_PER_BYTE = 1024
# Rows whose stream has ended read dummies: at most this factor times the tokens, plus this number.
_MOST_DUMMIES, _FEW_TOKENS = 16, 1 << 14


@dataclass(frozen=True, kw_only=True, slots=True)
class Header:
    """The facts that a decoder needs.

    artifact, digest: SHA-256 in hex of the artifact file and of the bytes to restore; bytes: the
    number of these bytes. targets: the number of tokens of each stream, without BOS. joined: for
    each stream, whether it continues the document of the previous stream. documents: their number.
    method: the name of a `fairway.prove.coding` method, with its settings. fingerprint: see
    `fairway.prove.machine`.
    """

    artifact: str
    digest: str
    bytes: int
    documents: int
    targets: tuple[int, ...]
    joined: tuple[bool, ...]
    rows: int
    method: dict[str, Any]
    machine: Machine
    fingerprint: str


def stored_file(data: bytes) -> bytes:
    """Return a file that holds some bytes unchanged; it is PREFIX_BYTES longer."""
    return _file(STORED, data)


def coded_file(kind: int, header: Header, payload: bytes) -> bytes:
    """Return a file of a header and the coder's bytes."""
    text = canonical_json(to_dict(header))
    packed = compress(text, "brotli", 1)
    return _file(kind, _LENGTHS.pack(len(packed), len(text)) + packed + payload)


def uneven(targets: Sequence[int], rows: int) -> bool:
    """Return whether most positions of a walk would be dummies, because one stream is much
    longer."""
    return rows * max(targets, default=0) > _MOST_DUMMIES * sum(targets) + _FEW_TOKENS


def least_bytes(tokens: int) -> int:
    """Return the fewest coder's bytes for which a header may claim this many tokens."""
    return -(-tokens // MOST_TOKENS_PER_BYTE)


def padded(payload: bytes, tokens: int) -> bytes:
    """Return a coder's bytes, padded so that a header may claim this many tokens."""
    return payload.ljust(least_bytes(tokens), b"\0")


def _file(kind: int, body: bytes) -> bytes:
    return _PREFIX.pack(MAGIC, FORMAT_VERSION, kind, hashlib.sha256(body).digest()) + body


def kind_of(head: bytes) -> int | None:
    """Return the kind of a file by its first bytes, or None if Fairway did not write it."""
    if len(head) < PREFIX_BYTES or not head.startswith(MAGIC):
        return None
    return int(_PREFIX.unpack(head[:PREFIX_BYTES])[2])


def open_file(data: bytes) -> tuple[int, bytes]:
    """Return the kind and the body of a file; UserError if any byte has changed."""
    if data[: len(MAGIC)] != MAGIC:
        raise UserError("it was not written by fairway compress or fairway prove")
    if len(data) < PREFIX_BYTES:
        raise UserError(f"it ends after {len(data)} bytes; copy it again")
    _, version, kind, digest = _PREFIX.unpack(data[:PREFIX_BYTES])
    if version != FORMAT_VERSION or kind not in KINDS:
        raise UserError(
            f"it has version {version} and kind {kind}; this Fairway reads version "
            f"{FORMAT_VERSION}, kinds 0 to {max(KINDS)}"
        )
    body = data[PREFIX_BYTES:]
    if hashlib.sha256(body).digest() != digest:
        raise UserError("it is damaged or cut short (its digest differs); copy it again")
    return kind, body


def restores(file: bytes, digest: str) -> bool:
    """Return whether a file says that it restores the bytes of this digest; not if it is damaged
    or was not written by Fairway."""
    try:
        kind, body = open_file(file)
        return digest == (digest_bytes(body) if kind == STORED else open_coded(body)[0].digest)
    except UserError:
        return False


def open_coded(body: bytes) -> tuple[Header, bytes]:
    """Return the checked header of a coded file's body, and the coder's bytes."""
    if len(body) < _LENGTHS.size:
        raise UserError(f"its body has {len(body)} bytes, too few for a header")
    packed_bytes, text_bytes = _LENGTHS.unpack(body[: _LENGTHS.size])
    end = _LENGTHS.size + packed_bytes
    if end > len(body) or text_bytes > _MAX_HEADER_BYTES:
        raise UserError(f"its header claims {packed_bytes} bytes that decode to {text_bytes}")
    text = decompress(body[_LENGTHS.size : end], "brotli", 1, text_bytes)
    try:
        fields = parse_json(text)
        same = canonical_json(fields) == text
    except ValueError as error:
        raise UserError(f"its header is not valid JSON ({error})") from None
    if not isinstance(fields, dict) or set(fields) != set(Header.__slots__):
        raise UserError(f"its header must have the fields {', '.join(Header.__slots__)}")
    if not same:
        raise UserError("its header has blanks, escapes or an order that Fairway never writes")
    return _checked(fields, len(body) - end), body[end:]


def _checked(fields: dict[str, Any], payload_bytes: int) -> Header:
    machine: Machine = from_dict(fields["machine"], Machine, "machine.")
    targets, joined, method = fields["targets"], fields["joined"], fields["method"]
    size, rows = _whole(fields["bytes"], "bytes"), _whole(fields["rows"], "rows")
    if not isinstance(targets, list) or not isinstance(joined, list):
        raise UserError("its header has no lists of streams")
    for count in targets:
        if not _whole(count, "a stream's length"):
            raise UserError("its header has a stream of no tokens")
    if len(joined) != len(targets) or not all(type(flag) is bool for flag in joined):
        raise UserError(f"its header joins {len(joined)} of {len(targets)} streams")
    # Every token but BOS stands for at least one byte. Only documents have a BOS, and none is
    # empty.
    most = max(1, min(MAX_STREAMS, len(targets)))
    if not 1 <= rows <= most or sum(targets) > 2 * size:
        raise UserError(
            f"its header claims {rows} rows and {sum(targets)} tokens in {len(targets)} streams "
            f"for {size} bytes; at most {most} rows and 2 tokens a byte can be"
        )
    if (documents := _whole(fields["documents"], "documents")) > size:
        raise UserError(
            f"its header claims {documents:,} documents in {size:,} bytes; none is empty"
        )
    if sum(targets) > MOST_TOKENS_PER_BYTE * payload_bytes:
        raise UserError(
            f"its header claims {sum(targets)} tokens in {payload_bytes} bytes; a byte can stand "
            f"for {MOST_TOKENS_PER_BYTE} at most"
        )
    if not isinstance(method, dict) or not isinstance(method.get("name"), str):
        raise UserError("its header names no method")
    # Documents keep their lengths; all other streams were cut evenly.
    if method["name"] != "lora" and uneven(targets, rows):
        raise UserError(
            f"its header has a stream of {max(targets)} tokens among {len(targets)}, which have "
            f"{sum(targets)} in all; it was not written by Fairway"
        )
    return Header(
        artifact=_text(fields["artifact"], "the artifact"),
        digest=_text(fields["digest"], "the digest"),
        bytes=size,
        documents=documents,
        targets=tuple(targets),
        joined=tuple(joined),
        rows=rows,
        method=method,
        machine=machine,
        fingerprint=_text(fields["fingerprint"], "the fingerprint"),
    )


def _whole(value: Any, what: str) -> int:
    if type(value) is not int or not 0 <= value < 2**48:
        raise UserError(f"its header has {shown(value)} for {what}, not a whole number below 2^48")
    return value


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise UserError(f"its header has {shown(value)} for {what}, not a text")
    return value


def check_restored(data: bytes, documents: int, header: Header) -> None:
    """Raise UserError unless the restored bytes equal the coded bytes, as many documents."""
    if len(data) != header.bytes or digest_bytes(data) != header.digest:
        raise UserError(
            "decoding gave other bytes than were coded: this machine computes differently, though "
            "it looks the same; decode on the machine that coded it"
        )
    if documents != header.documents:
        raise UserError(
            f"its header claims {header.documents:,} documents, but {documents:,} were restored; "
            "it was not written by Fairway"
        )
