"""Nats, bits, bytes and seconds: every conversion, and the bits-per-byte formula, once."""

import math

NATS_PER_BIT = math.log(2.0)


def nats_to_bits(nats: float) -> float:
    """Return an information content in bits, given it in nats."""
    return nats / NATS_PER_BIT


def bits_per_byte(total_nats: float, text_bytes: int) -> float:
    """Return bits per byte: the total cost of a text in nats over its UTF-8 length in bytes.

    The denominator is the raw text, never a sum over tokens that was not proven equal to it.
    Raises ValueError when there is no text, since the score of nothing is not zero.
    """
    if text_bytes <= 0:
        raise ValueError(f"bits per byte needs a text of at least one byte, got {text_bytes}")
    return nats_to_bits(total_nats) / text_bytes


def compression_bits_per_byte(compressed_bytes: int, text_bytes: int) -> float:
    """Return the bits per byte of a compressed file, to compare compressors with models."""
    return bits_per_byte(8 * compressed_bytes * NATS_PER_BIT, text_bytes)


def megabytes(count_bytes: int) -> str:
    """Return a byte count in decimal megabytes, as text: 16,000,000 bytes is 16.00 MB.

    From 10 GB on it is in gigabytes.
    """
    return f"{count_bytes / 1e6:.2f} MB" if count_bytes < 1e10 else gigabytes(count_bytes)


def gigabytes(count_bytes: float) -> str:
    """Return a byte count in decimal gigabytes, as text: 19.8 GB."""
    return f"{count_bytes / 1e9:.1f} GB" if count_bytes >= 5e7 else f"{count_bytes / 1e9:.3f} GB"


def counted(count: int, word: str) -> str:
    """Return a number of things: `1 document`, `1,200 documents`."""
    return f"{count:,} {word}{'' if count == 1 else 's'}"


def duration(seconds: float) -> str:
    """Return a duration for people: 8.2 s, 3 min 20 s, 1 h 05 min."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest_s = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest_s:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def written(value: float) -> str:
    """Return a number for people: 4,294,967,295, 0.0001; very long ones as a number of digits."""
    if isinstance(value, int) and abs(value) >= 10**21:
        return f"a number of about {int(math.log10(abs(value))) + 1:,} digits"
    return f"{value:,}".removesuffix(".0")
