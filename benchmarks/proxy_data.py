"""The bench proxy's data: token shards of given text files, and the beginning of a validation file.

    python benchmarks/proxy_data.py OUT --tokenizer sp8192.model --train A.jsonl.zst B.jsonl.zst \\
        --validation val.jsonl.zst [--form sp8192.model --targets 786432]
    python benchmarks/proxy_data.py OUT.model --learn [case_ops] --form sp8192.model \\
        --train A.jsonl.zst --validation val.jsonl.zst [--characters 5e7] [--vocab-size 8192]

Unlike `fairway data build` it takes both sides as they are given, in file order and without the
overlap guard: the proxy is defined by its files, so that everybody's figures can be compared. (By
the guard's rule seven validation documents have near-duplicates in train-00.)

With `--form` all texts are in the usual form of another tokenizer, and the validation text is what
its first `--targets` targets stand for. So another tokenizer is scored on the same characters; set
data.val_tokens=0. `--learn` trains such a tokenizer, with marks for capital letters or without, and
prints how many bytes its tokens have on average.
"""

import argparse
import functools
import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fairway.data.manifest import TOKENIZER
from fairway.data.parallel import map_parallel
from fairway.data.shards import Tokens, write_shard
from fairway.data.sources import read_documents
from fairway.data.tokens import Tokenizer, join_documents, train_tokenizer

CHUNK = 500


@functools.lru_cache(maxsize=2)
def tokenizer_of(data: bytes) -> Tokenizer:
    return Tokenizer.from_bytes(data)


def encode(data: bytes, form: bytes, texts: list[str]) -> Tokens:
    tokenizer = tokenizer_of(data)
    if form:
        texts = list(map(tokenizer_of(form).canonical, texts))
    return join_documents(tokenizer, [tokenizer.encode(text) for text in texts])


def tokens_of(data: bytes, form: bytes, texts: list[str], what: str) -> Tokens:
    """Return documents as one stream, each after its BOS."""
    chunks = [texts[n : n + CHUNK] for n in range(0, len(texts), CHUNK)]
    return np.concatenate(
        list(map_parallel(functools.partial(encode, data, form), chunks, f"encoding {what}"))
    )


def texts_of(path: Path) -> Iterator[str]:
    return (document.text for document in read_documents([path]))


def beginning(form: bytes, path: Path, targets: int, after: int = 0) -> list[str]:
    """Return the texts that the first targets of a validation file stand for, the last one cut.

    With `after` they follow the documents of its first so many targets.
    """
    found, left, tokenizer = [], targets + 1, tokenizer_of(form)
    skipped = len(beginning(form, path, after)) if after else 0
    for text in itertools.islice(texts_of(path), skipped, None):
        ids = tokenizer.encode(text)[: left - 1]
        left -= 1 + len(ids)
        found.append(tokenizer.decode(ids).strip())
        if left <= 1:
            break
    return found


def learn(chosen: argparse.Namespace, form: bytes) -> None:
    """Write a tokenizer of the first characters of the training files."""
    canonical, sample, left = tokenizer_of(form).canonical, [], chosen.characters
    for text in itertools.chain.from_iterable(map(texts_of, chosen.train)):
        sample.append(canonical(text))
        left -= len(sample[-1])
        if left < 0:
            break
    case_ops = "case_ops" in chosen.learn
    chosen.out.write_bytes(train_tokenizer(sample, chosen.vocab_size, case_ops))
    told(chosen.out.read_bytes(), form, chosen)


def told(data: bytes, form: bytes, chosen: argparse.Namespace) -> None:
    texts = beginning(form, chosen.validation, chosen.targets)
    bytes_ = sum(len(text.encode()) for text in texts)
    count = sum(len(tokenizer_of(data).encode(text)) for text in texts)
    print(f"{bytes_:,} bytes, {count:,} tokens, {bytes_ / count:.4f} bytes a token")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--train", type=Path, nargs="+", required=True)
    parser.add_argument("--validation", type=Path, required=True)
    parser.add_argument("--form", type=Path)
    parser.add_argument("--targets", type=int, default=786_432)
    parser.add_argument("--learn", nargs="*", choices=("case_ops",))
    parser.add_argument("--characters", type=float, default=5e7)
    parser.add_argument("--vocab-size", type=int, default=8192)
    chosen = parser.parse_args()
    if chosen.learn is None and not chosen.tokenizer:
        parser.error("name a tokenizer with --tokenizer, or train one with --learn")
    if chosen.learn is not None and not chosen.form:
        parser.error("--learn needs --form, the tokenizer whose form of the texts is learned")
    form = chosen.form.read_bytes() if chosen.form else b""
    if chosen.learn is not None:
        learn(chosen, form)
        return
    data = chosen.tokenizer.read_bytes()
    chosen.out.mkdir(parents=True)
    (chosen.out / TOKENIZER).write_bytes(data)
    for number, path in enumerate(chosen.train):
        tokens = tokens_of(data, form, list(texts_of(path)), path.name)
        write_shard(chosen.out / f"fairway_train_{number:06d}.bin", tokens)
        print(f"{path.name}: {len(tokens):,} tokens", flush=True)
    ends = form and beginning(form, chosen.validation, chosen.targets)
    tokens = tokens_of(data, b"", ends or list(texts_of(chosen.validation)), "the validation text")
    write_shard(chosen.out / "fairway_val_000000.bin", tokens)
    print(f"{chosen.validation.name}: {len(tokens):,} tokens")
    if form:
        told(data, form, chosen)


if __name__ == "__main__":
    # Helper processes find `encode` by the name of its module, and never execute a script.
    from proxy_data import main

    main()
