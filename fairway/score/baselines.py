"""What general compressors make of the validation text: the numbers a model has to beat.

Compressors and models code the same bytes: the documents one after another, nothing between them.
*Cold* is the validation text alone, as the tool would write the file. *Primed* lets the compressor
see training text first, which is the fairer comparison, since the model has seen it too.
"""

import lzma
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any

import brotli
import zstandard

from fairway.base.errors import UserError
from fairway.base.progress import progress
from fairway.base.units import compression_bits_per_byte

# Priming with 3 MB costs one core about 6 s in brotli, 4 s in xz (two passes) and 2 s in zstd, and
# 10 MB three times that; zstd's figure then falls by a further 5 %.
PRIME_BYTES = 3_000_000

TOOL_NAMES = {"xz": "xz -9e", "brotli": "brotli -11", "zstd": "zstd -19"}

_XZ_DICT_BYTES = 1 << 26
_ZSTD_WINDOW_LOG = 23


@dataclass(frozen=True)
class _Tool:
    """A compressor: bytes of a text alone, bytes it adds after some priming text, and how."""

    cold: Callable[[bytes], int]
    primed: Callable[[bytes, bytes], int]
    how: str


def measure(
    val_documents: Sequence[str], train_texts: Iterable[str], prime_bytes: int = PRIME_BYTES
) -> dict[str, dict[str, Any]]:
    """Return, for xz, brotli and zstd at their strongest, the size of the validation text.

    Each holds `bytes` and `bpb` (cold), `primed_bytes` and `primed_bpb` (after the last
    `prime_bytes` bytes of the training text; None without any), `primed_with_bytes`, `seconds`
    (CPU time of both) and `how`. The three run side by side: they release the interpreter lock.
    Raises UserError when there is no validation text.
    """
    text = "".join(val_documents).encode()
    if not text:
        raise UserError("the validation text is empty (0 bytes); compressors need at least 1 byte")
    prime = last_bytes(train_texts, prime_bytes)
    with ThreadPoolExecutor() as pool, progress("Compressor baselines", len(_TOOLS)) as advance:
        jobs = {name: pool.submit(_measure, tool, text, prime) for name, tool in _TOOLS.items()}
        for _ in as_completed(jobs.values()):
            advance(1)
    return {name: jobs[name].result() for name in ("xz", "brotli", "zstd")}


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
        "seconds": time.thread_time() - start_s,
        "how": tool.how,
    }


def last_bytes(texts: Iterable[str], limit_bytes: int) -> bytes:
    """Return the last `limit_bytes` bytes of the texts joined, holding little more than that."""
    kept: deque[bytes] = deque()
    total = 0
    for text in texts:
        kept.append(text.encode())
        total += len(kept[-1])
        while kept and total - len(kept[0]) >= limit_bytes:
            total -= len(kept.popleft())
    return b"".join(kept)[max(0, total - limit_bytes) :]


def xz_file(text: bytes) -> bytes:
    """Return the file that `xz -9e` writes; the dictionary grows to hold a longer text."""
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


def zstd_file(text: bytes, dictionary: bytes = b"") -> bytes:
    """Return the file that `zstd -19` writes, with the window as long as all it may refer to."""
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


# Longest first, so that two cores finish together.
_TOOLS = {
    "brotli": _Tool(
        cold=lambda text: len(brotli_file(text)),
        primed=lambda text, prime: len(brotli_streams(prime, text)[1]),
        how="quality 11, window 16 MiB; primed: the bytes one stream grows by after the priming "
        "text was compressed into it and flushed",
    ),
    "xz": _Tool(
        cold=lambda text: len(xz_file(text)),
        primed=lambda text, prime: len(xz_file(prime + text)) - len(xz_file(prime)),
        how="preset 9 extreme, .xz container, dictionary 64 MiB or the text if longer; primed: "
        "size of priming text and text together less size of the priming text alone",
    ),
    "zstd": _Tool(
        cold=lambda text: len(zstd_file(text)),
        primed=lambda text, prime: len(zstd_file(text, prime)),
        how="level 19, window 8 MiB or all it may refer to if longer, with checksum; primed: the "
        "priming text is a raw-content dictionary",
    ),
}
