"""The guard's exact search for overlap beside datasketch's MinHash: what is found, and how fast.

    python benchmarks/sketches.py [--documents 400]

Training documents have 2,000 words. A tenth of the validation documents, of 300 words, holds a
stretch of a training document: a share of its words that is printed. datasketch is installed for
this script alone; it gets the same runs of 13 words.
"""

import argparse
import hashlib
import time

import numpy as np
from datasketch import MinHash, MinHashLSHEnsemble

from fairway.base.errors import UserError
from fairway.data.documents import Document
from fairway.data.guard import NEAR_SHARE, check_overlap
from fairway.data.shingles import SHINGLE_WORDS


def words(seed: int, count: int) -> list[str]:
    """Return words drawn as in a text: few often, most seldom."""
    drawn = np.random.default_rng(seed).zipf(1.3, count) % 20_000
    return [hashlib.sha256(str(n).encode()).hexdigest()[:6] for n in drawn]


def documents(count: int, share: float) -> tuple[list[list[str]], list[list[str]], set[int]]:
    """Return training and validation documents as words, and which of the latter hold a copy."""
    train = [words(n, 2000) for n in range(count)]
    val = [words(10_000_000 + n, 300) for n in range(count // 4)]
    copies = set(range(0, len(val), 10))
    for n in copies:
        length = int(300 * share)
        val[n][50 : 50 + length] = train[n][700 : 700 + length]
    return train, val, copies


def ours(train: list[list[str]], val: list[list[str]]) -> tuple[set[int], float]:
    """Return the validation documents that are found, and the seconds."""
    both = [
        [Document(f"{side}-{n}", " ".join(text)) for n, text in enumerate(texts)]
        for side, texts in (("t", train), ("v", val))
    ]
    start_s, found = time.perf_counter(), set[int]()
    left = both[1]
    while left:
        try:
            check_overlap(both[0], left)
            break
        except UserError as error:
            name = str(error).partition("'")[2].partition("'")[0]
            found.add(int(name.rpartition("-")[2]))
            left = [document for document in left if document.name != name]
        if len(found) == 1:
            seconds = time.perf_counter() - start_s
    return found, seconds if found else time.perf_counter() - start_s


def theirs(train: list[list[str]], val: list[list[str]]) -> tuple[set[int], float]:
    """Return the same by sketches of 128 hashes, asked for a containment above the guard's."""
    start_s = time.perf_counter()

    def sketch(text: list[str]) -> tuple[MinHash, int]:
        runs = {" ".join(text[at : at + SHINGLE_WORDS]) for at in range(len(text) - 12)}
        made = MinHash(num_perm=128)
        made.update_batch([run.encode() for run in runs])
        return made, len(runs)

    ensemble = MinHashLSHEnsemble(threshold=NEAR_SHARE, num_perm=128, num_part=8)
    ensemble.index([(n, *sketch(text)) for n, text in enumerate(train)])
    found = {n for n, text in enumerate(val) if any(True for _ in ensemble.query(*sketch(text)))}
    return found, time.perf_counter() - start_s


def main() -> None:
    """Print one line per way and share."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--documents", type=int, default=400)
    given = parser.parse_args()
    ours(*documents(20, 0.9)[:2])
    for share in (0.3, 0.5, 0.9):
        train, val, copies = documents(given.documents, share)
        for name, how in (("fairway", ours), ("datasketch", theirs)):
            found, seconds = how(train, val)
            print(
                f"{share:.0%} of a document copied: {name} finds {len(found & copies)} of "
                f"{len(copies)}, {len(found - copies)} others, in {seconds:.2f} s"
            )


if __name__ == "__main__":
    main()
