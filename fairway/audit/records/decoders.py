"""Decoders and decompressors of script wrappers, each with a limit on its output."""

import ast
import base64
import bz2
import io
import lzma
import zlib
from collections.abc import Callable
from typing import Any

import brotli
import zstandard

# A larger dictionary takes memory, and no honest script needs it.
_MOST_DICTIONARY = 64_000_000
_MEMORY = 128_000_000
# The errors that they raise on data in another format.
BROKEN = (
    ValueError, EOFError, OSError, TypeError, LookupError, OverflowError, lzma.LZMAError,
    zlib.error, brotli.error, zstandard.ZstdError,
)  # fmt: skip


class Unknown(Exception):  # noqa: N818 - not an error of this code
    """An expression that cannot be followed."""


class TooMuch(Exception):  # noqa: N818 - it is a finding, not an error of this code
    """A layer that unpacks to more bytes than allowed."""


DECODERS: dict[str, Callable[[bytes], bytes]] = {
    "base64.b85decode": base64.b85decode,
    "base64.a85decode": base64.a85decode,
    "base64.b64decode": base64.b64decode,
    "base64.standard_b64decode": base64.b64decode,
    "base64.urlsafe_b64decode": base64.urlsafe_b64decode,
    "base64.b32decode": base64.b32decode,
    "base64.b16decode": base64.b16decode,
    "bytes.fromhex": lambda data: bytes.fromhex(data.decode()),
    "binascii.unhexlify": lambda data: bytes.fromhex(data.decode()),
    "binascii.a2b_base64": base64.b64decode,
}


def options(node: ast.Call, modules: dict[str, str]) -> dict[str, Any]:
    """Return the keywords of a call with plain values; names of lzma's constants are allowed."""

    def plain(value: ast.expr) -> Any:
        if isinstance(value, ast.Constant):
            return value.value
        if isinstance(value, ast.List | ast.Tuple):
            return [plain(item) for item in value.elts]
        if isinstance(value, ast.Dict):
            pairs = zip(value.keys, value.values, strict=True)
            return {plain(key): plain(item) for key, item in pairs if key is not None}
        name = value.attr if isinstance(value, ast.Attribute) else ""
        if isinstance(value, ast.Name):
            name = modules.get(value.id, value.id).rpartition(".")[2]
        if name.startswith(("FORMAT_", "FILTER_", "MF_", "MODE_")) and hasattr(lzma, name):
            return getattr(lzma, name)
        raise Unknown

    found = {item.arg: plain(item.value) for item in node.keywords if item.arg}
    for name, value in zip(("format", "memlimit", "filters"), node.args[1:], strict=False):
        found[name] = plain(value)
    return found


def _lzma(data: bytes, most: int, options: dict[str, Any]) -> bytes:
    filters = options.get("filters")
    if filters is None:
        return lzma.LZMADecompressor(memlimit=_MEMORY).decompress(data, most)
    sizes = [f.get("dict_size", 0) for f in filters if isinstance(f, dict)]
    if len(sizes) != len(filters) or not all(type(s) is int for s in sizes):
        raise Unknown
    if max(sizes, default=0) > _MOST_DICTIONARY:
        raise TooMuch("it asks for a dictionary of more than 64 MB")
    raw = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=filters)
    return raw.decompress(data, most)


def _zlib(data: bytes, most: int, options: dict[str, Any]) -> bytes:
    return zlib.decompressobj(wbits=47).decompress(data, most)


def _zstd(data: bytes, most: int, options: dict[str, Any]) -> bytes:
    decompressor = zstandard.ZstdDecompressor(max_window_size=1 << 27)
    with decompressor.stream_reader(io.BytesIO(data)) as reader:
        return reader.read(most)


def _brotli(data: bytes, most: int, options: dict[str, Any]) -> bytes:
    decompressor, parts, size = brotli.Decompressor(), [], 0
    while size < most:
        part = decompressor.process(data, output_buffer_limit=1 << 16)
        data = b""
        parts.append(part)
        size += len(part)
        if decompressor.is_finished() or (not part and decompressor.can_accept_more_data()):
            break
    return b"".join(parts)


OPENERS: dict[str, Callable[[bytes, int, dict[str, Any]], bytes]] = {
    "lzma.decompress": _lzma,
    "zlib.decompress": _zlib,
    "gzip.decompress": _zlib,
    "bz2.decompress": lambda data, most, _: bz2.BZ2Decompressor().decompress(data, most),
    "brotli.decompress": _brotli,
    "zstandard.decompress": _zstd,
}
