"""Sizes of the validation text under general compressors: the numbers that a model must beat.

Compressors and models code the same bytes: the documents in order, with nothing between them.
*Cold* is the validation text alone, in the file that the tool would write. *Primed* lets the
compressor read training text first, which is the fairer comparison, because the model has read it,
too. PPMd is the strongest usual compressor: it mixes contexts of up to 16 bytes, and codes 2 MB a
second.
"""

import importlib.util
import lzma
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any

import brotli
import zstandard

from fairway.base.errors import UserError
from fairway.base.progress import progress
from fairway.base.units import compression_bits_per_byte

# Priming with 3 MB costs one core about 6 s in brotli, 4 s in xz (two passes) and 2 s in zstd.
# Priming with 10 MB costs three times that, and makes zstd's figure 5 % lower. PPMd takes 4 s for 8
# MB, all of the demo's training text; the text beyond 3 MB makes its figure 5 % lower.
PRIME_BYTES = 3_000_000
PPMD_PRIME_BYTES = 12_000_000
# Brotli codes 0.3 MB a second, so this takes a minute; the 150 MB of the challenge would take a
# quarter of an hour.
MOST_BYTES = 8_000_000

TOOL_NAMES = {
    "xz": "xz -9e", "brotli": "brotli -11", "zstd": "zstd -19", "ppmd": "PPMd, order 16"
}  # fmt: skip

_XZ_DICT_BYTES = 1 << 26
_ZSTD_WINDOW_LOG = 23
_PPMD_ORDER = 16
# PPMd's counts for English take 25 bytes per byte of text; with too little memory it drops them.
PPMD_MEMORY, _PPMD_LEAST, _PPMD_MOST = 32, 1 << 24, 1 << 30


@dataclass(frozen=True)
class _Tool:
    """A compressor: bytes of a text alone, bytes it adds after a priming text, and its settings."""

    cold: Callable[[bytes], int]
    primed: Callable[[bytes, bytes], int]
    how: str
    prime_bytes: int = PRIME_BYTES


def measure(
    val_documents: Sequence[str], train_texts: Iterable[str], prime_bytes: int = PPMD_PRIME_BYTES
) -> dict[str, dict[str, Any]]:
    """Return, for xz, brotli, zstd and PPMd at their strongest, the size of the validation text.

    The training texts come from the last to the first. Each tool has `bytes` and `bpb` (cold),
    `primed_bytes` and `primed_bpb` (after the last bytes of the training text, at most the tool's
    limit and `prime_bytes`; None without any), `primed_with_bytes`, `text_bytes` (of a longer
    validation text only the first MOST_BYTES), `seconds` (CPU time of both) and `how`. The tools
    run in parallel, because they release the interpreter lock. PPMd is left out if `pyppmd` is not
    installed. Raises UserError if there is no validation text.
    """
    tools = usable()
    text = first_bytes(val_documents, MOST_BYTES)
    if not text:
        raise UserError("the validation text is empty (0 bytes); compressors need at least 1 byte")
    prime = last_bytes(train_texts, prime_bytes)
    with ThreadPoolExecutor() as pool, progress("Compressor baselines", len(tools)) as advance:
        jobs = {
            name: pool.submit(_measure, tool, text, prime[-tool.prime_bytes :])
            for name, tool in tools.items()
        }
        for _ in as_completed(jobs.values()):
            advance(1)
    return {name: jobs[name].result() for name in TOOL_NAMES if name in jobs}


def part_bytes(tools: Mapping[str, Mapping[str, Any]] | None, text_bytes: int) -> int | None:
    """Return the bytes that tools read of a validation text; None if they read all of it.

    Results of earlier versions do not say it: their tools read all.
    """
    read = [tool.get("text_bytes", text_bytes) for tool in (tools or {}).values()]
    least = min(read, default=text_bytes)
    return least if least < text_bytes else None


def usable() -> dict[str, _Tool]:
    """Return the tools of this installation, the slowest first."""
    has_ppmd = importlib.util.find_spec("pyppmd") is not None
    return {name: tool for name, tool in _TOOLS.items() if name != "ppmd" or has_ppmd}


def missing() -> list[str]:
    """Return the titles of the tools that are not installed."""
    return [title for name, title in TOOL_NAMES.items() if name not in usable()]


def _measure(tool: _Tool, text: bytes, prime: bytes) -> dict[str, Any]:
    start_s = time.thread_time()
    cold_bytes = tool.cold(text)
    primed_bytes = primed_bpb = None
    if prime:
        primed_bytes = tool.primed(text, prime)
        primed_bpb = compression_bits_per_byte(primed_bytes, len(text))
    return {
        "bytes": cold_bytes,
        "bpb": compression_bits_per_byte(cold_bytes, len(text)),
        "primed_bytes": primed_bytes,
        "primed_bpb": primed_bpb,
        "primed_with_bytes": len(prime),
        "text_bytes": len(text),
        "seconds": time.thread_time() - start_s,
        "how": tool.how,
    }


def first_bytes(texts: Iterable[str], limit_bytes: int) -> bytes:
    """Return the first `limit_bytes` bytes of the joined texts."""
    kept = bytearray()
    for text in texts:
        kept += text.encode()[: limit_bytes - len(kept)]
        if len(kept) == limit_bytes:
            break
    return bytes(kept)


def last_bytes(texts: Iterable[str], limit_bytes: int) -> bytes:
    """Return the last `limit_bytes` bytes of texts that come from the last to the first.

    Texts before these bytes are not asked for.
    """
    kept: list[bytes] = []
    total = 0
    for text in texts:
        kept.append(text.encode())
        total += len(kept[-1])
        if total >= limit_bytes:
            break
    return b"".join(reversed(kept))[max(0, total - limit_bytes) :]


def xz_file(text: bytes) -> bytes:
    """Return the file that `xz -9e` writes; the dictionary grows with a longer text."""
    dictionary = {"dict_size": max(_XZ_DICT_BYTES, len(text))}
    lzma2 = {"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, **dictionary}
    return lzma.compress(text, lzma.FORMAT_XZ, lzma.CHECK_CRC64, filters=[lzma2])


def brotli_file(text: bytes) -> bytes:
    """Return the file that `brotli -q 11 -w 24` writes."""
    return bytes(brotli.compress(text, quality=11, lgwin=24))


def brotli_streams(prime: bytes, text: bytes) -> tuple[bytes, bytes]:
    """Return one Brotli stream in two parts: the priming text, flushed, then what the text adds."""
    encoder = brotli.Compressor(quality=11, lgwin=24)
    head = encoder.process(prime) + encoder.flush()
    return head, encoder.process(text) + encoder.finish()


def ppmd_streams(prime: bytes, text: bytes) -> tuple[bytes, bytes]:
    """Return one PPMd stream (variant H, as in 7z) in two parts: the priming text, the text."""
    # Imported only here: comparisons alone need it, and other code must work without it.
    import pyppmd

    encoder = pyppmd.Ppmd7Encoder(_PPMD_ORDER, ppmd_memory(len(prime) + len(text)))
    head = encoder.encode(prime) if prime else b""
    return head, encoder.encode(text) + encoder.flush()


def ppmd_memory(text_bytes: int) -> int:
    """Return the memory in bytes that PPMd gets for a text."""
    return max(_PPMD_LEAST, min(_PPMD_MOST, PPMD_MEMORY * text_bytes))


def zstd_file(text: bytes, dictionary: bytes = b"") -> bytes:
    """Return the file that `zstd -19` writes, with a window over dictionary and text."""
    window_log = max(_ZSTD_WINDOW_LOG, (len(dictionary) + len(text)).bit_length())
    settings = zstandard.ZstdCompressionParameters.from_level(
        19,
        source_size=len(text),
        dict_size=len(dictionary),
        window_log=min(window_log, zstandard.WINDOWLOG_MAX),
        write_checksum=True,
    )
    raw = zstandard.ZstdCompressionDict(dictionary, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    encoder = zstandard.ZstdCompressor(
        compression_params=settings, dict_data=raw if dictionary else None
    )
    return bytes(encoder.compress(text))


# The slowest first, so that two cores finish at about the same time.
_TOOLS = {
    "brotli": _Tool(
        cold=lambda text: len(brotli_file(text)),
        primed=lambda text, prime: len(brotli_streams(prime, text)[1]),
        how="quality 11, window 16 MiB; primed: the bytes that the text adds to a stream "
        "after the training text",
    ),
    "xz": _Tool(
        cold=lambda text: len(xz_file(text)),
        primed=lambda text, prime: len(xz_file(prime + text)) - len(xz_file(prime)),
        how="preset 9 extreme, .xz container, dictionary 64 MiB or the text if longer; primed: "
        "size of training text and text together, minus the size of the training text alone",
    ),
    "zstd": _Tool(
        cold=lambda text: len(zstd_file(text)),
        primed=lambda text, prime: len(zstd_file(text, prime)),
        how="level 19, window 8 MiB, or larger if text and dictionary are, with checksum; "
        "primed: the training text is the dictionary",
    ),
    "ppmd": _Tool(
        cold=lambda text: len(ppmd_streams(b"", text)[1]),
        primed=lambda text, prime: len(ppmd_streams(prime, text)[1]),
        how="variant H of 7z, contexts of up to 16 bytes, 32 bytes of memory for each byte; "
        "primed: the bytes that the text adds to a stream after the training text",
        prime_bytes=PPMD_PRIME_BYTES,
    ),
}
