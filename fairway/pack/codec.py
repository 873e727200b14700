"""Lossless coding of a section: byte shuffle, then Brotli, LZMA2 or nothing.

Every parameter is fixed here and none is stored, so a section decodes from its bytes, its codec,
its stride and its length. That length bounds the decoding, even for damaged bytes.
"""

import lzma
from typing import Any

import brotli

from fairway.base.errors import UserError

CODECS = ("brotli", "lzma", "raw")
MAX_STRIDE = 16

# Windows of 2^22 and 2^24 bytes gave equal sizes on trained codes, 2^16 0.1 % more: there are no
# distant repeats. A larger window only takes more memory in the decoder.
_BROTLI_QUALITY, _BROTLI_WINDOW = 11, 22

# The complete chain of filters, since a raw stream does not contain it. 4 MiB of dictionary for the
# same reason.
_LZMA_CHAIN: list[dict[str, Any]] = [
    {
        "id": lzma.FILTER_LZMA2,
        "dict_size": 1 << 22,
        "lc": 0,
        "lp": 0,
        "pb": 0,
        "mode": lzma.MODE_NORMAL,
        "nice_len": 273,
        "mf": lzma.MF_BT4,
        "depth": 512,
    }
]

# Brotli's Python decoder returns pieces of at most about this much, so a bomb costs one piece.
_PIECE_BYTES = 1 << 15


def shuffle(data: bytes, stride: int) -> bytes:
    """Return the bytes at 0, s, 2s, ..., then those at 1, s + 1, ..., and so on: s planes.

    So bytes of equal place in s-byte numbers are side by side. Any length is possible: with n = qs
    + r bytes the first r planes have q + 1 bytes and the others q. A stride of 1 changes nothing.
    """
    _require_stride(stride)
    return b"".join(data[plane::stride] for plane in range(stride))


def unshuffle(data: bytes, stride: int) -> bytes:
    """Return the bytes that `shuffle` was given."""
    _require_stride(stride)
    whole = bytearray(len(data))
    first = 0
    for plane in range(stride):
        count = len(range(plane, len(data), stride))
        whole[plane::stride] = data[first : first + count]
        first += count
    return bytes(whole)


def compress(data: bytes, codec: str, stride: int) -> bytes:
    """Return a section's stored bytes. The same bytes for the same library version."""
    _require_codec(codec)
    planes = shuffle(data, stride)
    if codec == "brotli":
        return bytes(brotli.compress(planes, quality=_BROTLI_QUALITY, lgwin=_BROTLI_WINDOW))
    if codec == "lzma":
        return lzma.compress(planes, format=lzma.FORMAT_RAW, filters=_LZMA_CHAIN)
    return planes


def decompress(data: bytes, codec: str, stride: int, expected_bytes: int) -> bytes:
    """Return the input bytes of `compress`; their number must be `expected_bytes`.

    It holds at most 32 KiB beyond that and the codec's own window of 4 MiB. Raises UserError for a
    damaged, cut or longer stream and for bytes after its end.
    """
    _require_codec(codec)
    decode = {"brotli": _brotli, "lzma": _lzma, "raw": _raw}[codec]
    try:
        planes = decode(data, expected_bytes)
    except (brotli.error, lzma.LZMAError):
        raise UserError(f"a {codec} stream is damaged; copy the file again") from None
    if len(planes) != expected_bytes:
        raise UserError(
            f"a {codec} stream does not hold the {expected_bytes} bytes it should; "
            "copy the file again"
        )
    return unshuffle(planes, stride)


def _raw(data: bytes, expected_bytes: int) -> bytes:
    return data


def _brotli(data: bytes, expected_bytes: int) -> bytes:
    decoder = brotli.Decompressor()
    # The decoder itself reports bytes after the end of the stream.
    pieces = [decoder.process(data, output_buffer_limit=_PIECE_BYTES)]
    total = len(pieces[0])
    while total <= expected_bytes and not decoder.is_finished():
        pieces.append(decoder.process(b"", output_buffer_limit=_PIECE_BYTES))
        total += len(pieces[-1])
        if not pieces[-1]:
            break
    if not decoder.is_finished():
        raise brotli.error("unfinished")
    return b"".join(pieces)


def _lzma(data: bytes, expected_bytes: int) -> bytes:
    decoder = lzma.LZMADecompressor(format=lzma.FORMAT_RAW, filters=_LZMA_CHAIN)
    # Ask for one byte more than expected, so that the decoder reads the end marker or a longer
    # stream shows.
    out = decoder.decompress(data, max_length=expected_bytes + 1)
    if not decoder.eof or decoder.unused_data:
        raise lzma.LZMAError("unfinished")
    return out


def _require_stride(stride: int) -> None:
    if not 1 <= stride <= MAX_STRIDE:
        raise UserError(f"byte shuffle stride {stride} must be between 1 and {MAX_STRIDE}")


def _require_codec(codec: str) -> None:
    if codec not in CODECS:
        raise UserError(f"unknown codec '{codec}'; choose one of {', '.join(CODECS)}")
