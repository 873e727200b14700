"""The proofs' range coder beside that of constriction: bits and speed on the same distributions.

    python benchmarks/coders.py [--symbols 20000]

Prints, for each size of the vocabulary, the bits of all symbols beyond the distributions' own and
microseconds per symbol to code and to decode, the preparation of a row included. constriction is
installed for this script alone.
"""

import argparse
import time

import constriction
import numpy as np

from fairway.prove.coder import Decoder, Encoder, frequencies

STREAMS = 64


def rows(count: int, size: int) -> np.ndarray:
    """Return log-probabilities such as a model's: a few likely tokens and a long tail."""
    generator = np.random.default_rng(0)
    logits = generator.gumbel(size=(count, size)) * 2.5
    logits -= logits.max(1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


def ours(log_probs: np.ndarray, ids: np.ndarray) -> tuple[int, float, float]:
    """Return coded bytes, and seconds to code and to decode."""
    start_s = time.perf_counter()
    encoder = Encoder()
    for part in pieces(len(ids)):
        counts = frequencies(log_probs[part])
        at = np.arange(len(counts)), ids[part]
        encoder.encode_all((counts.cumsum(1) - counts)[at], counts[at])
    data = encoder.finish()
    coded_s = time.perf_counter()
    decoder, found = Decoder(data), np.zeros(len(ids), np.int64)
    for part in pieces(len(ids)):
        counts = frequencies(log_probs[part])
        starts = (counts.cumsum(1) - counts).astype(np.uint32)
        decoder.decode_rows(starts, np.arange(len(counts)), found[part])
    ended_s = time.perf_counter()
    assert (found == ids).all()
    return len(data), coded_s - start_s, ended_s - coded_s


def theirs(log_probs: np.ndarray, ids: np.ndarray, perfect: bool) -> tuple[int, float, float]:
    """Return the same of constriction's range coder with a categorical model per symbol."""
    family = constriction.stream.model.Categorical(perfect=perfect)
    start_s = time.perf_counter()
    encoder = constriction.stream.queue.RangeEncoder()
    for part in pieces(len(ids)):
        encoder.encode(ids[part].astype(np.int32), family, np.exp(log_probs[part]))
    words = encoder.get_compressed()
    coded_s = time.perf_counter()
    decoder = constriction.stream.queue.RangeDecoder(words)
    parts = [decoder.decode(family, np.exp(log_probs[part])) for part in pieces(len(ids))]
    ended_s = time.perf_counter()
    assert (np.concatenate(parts) == ids).all()
    return 4 * len(words), coded_s - start_s, ended_s - coded_s


def pieces(count: int) -> list[slice]:
    """Return symbols in pieces of as many as streams go side by side."""
    return [slice(first, min(first + STREAMS, count)) for first in range(0, count, STREAMS)]


def main() -> None:
    """Print one line per coder and vocabulary."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--symbols", type=int, default=20_000)
    given = parser.parse_args()
    for size in (300, 2048, 8192):
        count = min(given.symbols, 60_000_000 // size)
        log_probs = rows(count, size)
        generator = np.random.default_rng(1)
        points = generator.random(count)[:, None]
        ids = np.minimum((np.exp(log_probs).cumsum(1) < points).sum(1), size - 1)
        cost_bits = -log_probs[np.arange(count), ids].sum() / np.log(2)
        ours(log_probs[:10], ids[:10])
        print(f"{size} tokens, {count} symbols, {cost_bits / count:.4f} bits per symbol")
        told = -log_probs[np.arange(count), ids] / np.log(2)
        for name, how, symbols in (
            ("fairway", ours, count),
            ("constriction, fast", lambda p, i: theirs(p, i, False), count),
            ("constriction, perfect", lambda p, i: theirs(p, i, True), 256),
        ):
            size_bytes, code_s, decode_s = how(log_probs[:symbols], ids[:symbols])
            more_bits = 8 * size_bytes - told[:symbols].sum()
            print(
                f"  {name:22s} {symbols:6d} symbols in {more_bits:+6.1f} bits more; us to code "
                f"{1e6 * code_s / symbols:.1f}, to decode {1e6 * decode_s / symbols:.1f}"
            )


if __name__ == "__main__":
    main()
