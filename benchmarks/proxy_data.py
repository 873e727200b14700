"""The bench proxy's data: token shards of given text files, and the beginning of a validation file.

    python benchmarks/proxy_data.py OUT --tokenizer sp8192.model --train A.jsonl.zst B.jsonl.zst \\
        --validation val.jsonl.zst

Unlike `fairway data build` it takes both sides as they are given, in file order and without the
overlap guard: the proxy is defined by its files, so that everybody's figures can be compared. (By
the guard's rule seven validation documents have near-duplicates in train-00.)
"""

import argparse
import functools
from pathlib import Path

import numpy as np

from fairway.data.folder import TOKENIZER
from fairway.data.parallel import map_parallel
from fairway.data.shards import Tokens, write_shard
from fairway.data.sources import read_documents
from fairway.data.tokens import Tokenizer, join_documents

CHUNK = 500


@functools.lru_cache(maxsize=1)
def tokenizer_of(data: bytes) -> Tokenizer:
    return Tokenizer.from_bytes(data)


def encode(data: bytes, texts: list[str]) -> Tokens:
    tokenizer = tokenizer_of(data)
    return join_documents(tokenizer, [tokenizer.encode(text) for text in texts])


def tokens_of(data: bytes, path: Path) -> Tokens:
    """Return a file's documents as one stream, each after its BOS."""
    texts = [document.text for document in read_documents([path])]
    chunks = [texts[n : n + CHUNK] for n in range(0, len(texts), CHUNK)]
    return np.concatenate(
        list(map_parallel(functools.partial(encode, data), chunks, f"encoding {path.name}"))
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--train", type=Path, nargs="+", required=True)
    parser.add_argument("--validation", type=Path, required=True)
    chosen = parser.parse_args()
    data = chosen.tokenizer.read_bytes()
    chosen.out.mkdir(parents=True)
    (chosen.out / TOKENIZER).write_bytes(data)
    for number, path in enumerate(chosen.train):
        tokens = tokens_of(data, path)
        write_shard(chosen.out / f"fairway_train_{number:06d}.bin", tokens)
        print(f"{path.name}: {len(tokens):,} tokens", flush=True)
    tokens = tokens_of(data, chosen.validation)
    write_shard(chosen.out / "fairway_val_000000.bin", tokens)
    print(f"{chosen.validation.name}: {len(tokens):,} tokens")


if __name__ == "__main__":
    # Helper processes find `encode` by the name of its module, and never execute a script.
    from proxy_data import main

    main()
