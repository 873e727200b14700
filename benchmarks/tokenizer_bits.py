"""What a bigram model makes of tokenizers: a cheap look at how hard their tokens are to foretell.

    python benchmarks/tokenizer_bits.py A.model B.model --form sp8192.model \\
        --validation val.jsonl.zst

Each half of the validation text is scored by the counts of the other half (absolute discounting of
0.75 over single tokens), in bits per byte of the text. All tokenizers get the same text: what the
first `--targets` targets of the tokenizer `--form` stand for. docs/LOG.md says what it foretold
and what not (2026-11-28).
"""

import argparse
from pathlib import Path

import numpy as np
from proxy_data import beginning, tokenizer_of

from fairway.base.arrays import IntArray

DISCOUNT = 0.75
# Added to the count of every token, so that none is impossible.
UNSEEN = 0.1


def bits(counted: IntArray, scored: IntArray, vocab_size: int) -> float:
    """Return the bits of a stream's tokens from the second one on, by the counts of another."""
    single = np.bincount(counted, minlength=vocab_size) + UNSEEN
    pairs, counts = np.unique(counted[:-1] * vocab_size + counted[1:], return_counts=True)
    followers = np.bincount(pairs // vocab_size, minlength=vocab_size)
    before = np.bincount(counted[:-1], minlength=vocab_size)
    asked = scored[:-1] * vocab_size + scored[1:]
    places = np.searchsorted(pairs, asked).clip(max=len(pairs) - 1)
    found = np.where(pairs[places] == asked, counts[places], 0)
    total, kinds = before[scored[:-1]], followers[scored[:-1]]
    base = (single / single.sum())[scored[1:]]
    seen = (np.maximum(found - DISCOUNT, 0) + DISCOUNT * kinds * base) / np.maximum(total, 1)
    return float(-np.log2(np.where(total, seen, base)).sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tokenizers", type=Path, nargs="+")
    parser.add_argument("--form", type=Path, required=True)
    parser.add_argument("--validation", type=Path, required=True)
    parser.add_argument("--targets", type=int, default=786_432)
    chosen = parser.parse_args()
    texts = beginning(chosen.form.read_bytes(), chosen.validation, chosen.targets)
    text_bytes = sum(len(text.encode()) for text in texts)
    for path in chosen.tokenizers:
        tokenizer = tokenizer_of(path.read_bytes())
        documents = [tokenizer.encode(text) for text in texts]
        half = len(documents) // 2
        a, b = np.concatenate(documents[:half]), np.concatenate(documents[half:])
        found = bits(a, b, tokenizer.vocab_size) + bits(b, a, tokenizer.vocab_size)
        print(f"{path}: {len(a) + len(b):,} tokens, {found / text_bytes:.4f} bits per byte")


if __name__ == "__main__":
    main()
