"""Time the split and the search for overlap on text that this script makes.

    python benchmarks/guard.py --kind ascii --bytes 1e8
    python benchmarks/guard.py --kind chinese --bytes 1e8

Words (or characters) are drawn with the frequencies of a natural text, document after document;
some validation documents have an edited copy in the training text, and all of them must be found.
"""

import argparse
import resource
import time

import numpy as np

from fairway.base.units import megabytes
from fairway.data.documents import Document, document_key
from fairway.data.guard import split_documents

VAL_SHARE = 0.01
DOCUMENT_BYTES = 6_000


def words_of(kind: str, rng: np.random.Generator) -> tuple[np.ndarray, str]:
    """Return 30,000 words of a kind and what stands between them."""
    if kind == "ascii":
        lengths = rng.integers(2, 11, 30_000)
        letters = "etaoinshrdlucmfwypvbgkjqxz"
        return np.array(["".join(rng.choice(list(letters), n)) for n in lengths]), " "
    codes = 0x4E00 + rng.integers(0, 5_000, (30_000, 2))
    return np.array(["".join(map(chr, row)) for row in codes]), ""


def made(kind: str, size: int, seed: int) -> list[Document]:
    """Return documents of `size` bytes in all."""
    rng = np.random.default_rng(seed)
    words, between = words_of(kind, rng)
    weights = 1 / np.arange(10, 10 + len(words))
    count = DOCUMENT_BYTES // 6
    documents = []
    while size > 0:
        drawn = rng.choice(len(words), (1_000, count), p=weights / weights.sum())
        for row in drawn:
            text = between.join(words[row])
            documents.append(Document(f"d{len(documents)}", text))
            size -= len(text.encode())
            if size <= 0:
                break
    return documents


def with_copies(documents: list[Document]) -> tuple[list[Document], int]:
    """Return the documents and copies, one character changed, of some that fall to validation."""
    ordered = sorted(documents, key=document_key)
    copied = ordered[: int(VAL_SHARE * len(ordered) / 2) : 2]
    copies = []
    for document in copied:
        half = len(document.text) // 2
        text = f"{document.text[:half]}\u4e00{document.text[half + 1 :]}".upper()
        name = next(
            name
            for n in range(10**6)
            if document_key(Document(name := f"{document.name}-{n}", text))[0] > 128
        )
        copies.append(Document(name, text))
    return [*documents, *copies], len(copies)


def main() -> None:
    """Print the bytes, the seconds, and how many of the copies were found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kind", choices=("ascii", "chinese"), default="ascii")
    parser.add_argument("--bytes", type=float, default=1e8)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    documents = made(chosen.kind, int(chosen.bytes), chosen.seed)
    documents, copies = with_copies(documents)
    size = sum(len(document.text.encode()) for document in documents)
    # Compiling is not what is measured.
    split_documents([Document("a", "a b"), Document("b", "c d")], 0.5)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start_s = time.perf_counter()
    split = split_documents(documents, VAL_SHARE)
    seconds = time.perf_counter() - start_s
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(
        f"{chosen.kind}: {megabytes(size)}, {len(documents):,} documents in {seconds:.1f} s, "
        f"{size / seconds / 1e6:.1f} MB/s, {megabytes(1024 * (after - before))} more memory; "
        f"{copies} copies, dropped {split.dropped}"
    )


if __name__ == "__main__":
    main()
