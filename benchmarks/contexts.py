"""Does text before a document help to predict it? Frozen seed weights, float32, on a CPU.

    python benchmarks/contexts.py FOLDER [--targets 49152]

FOLDER holds sp8192.model, val.jsonl.zst and the trained seed weights (`seed_model`). Each line is a
way to begin the windows of 2,048 tokens: anywhere (a sliding window of stride 512), at the
document, or with some tokens before it: of the text, or of another document. Bits per byte on the
same documents. Half an hour on two cores.
"""

import argparse
import itertools
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from score import read_text, read_weights

from fairway.api import model_from
from fairway.base.arrays import IntArray
from fairway.config.settings import BOS_ID, RuntimeConfig
from fairway.data.tokens import Tokenizer
from fairway.machine.plan import make_plan
from fairway.model.gpt import GPT

WINDOW, CHUNK = 2048, 512
# The text before the first scored document, and how much longer the text is than what is scored.
BEFORE, LONGER = 3 * WINDOW, 6
# Prefix, first and last input, first scored position.
Part = tuple[IntArray, int, int, int]


def chunks(first: int, end: int) -> Iterator[tuple[int, int]]:
    return ((at, min(at + CHUNK, end)) for at in range(first, end, CHUNK))


def sliding(spans: list[tuple[int, int]], ids: IntArray) -> Iterator[Part]:
    for at, stop in chunks(spans[0][0], spans[-1][1]):
        yield ids[:0], max(0, stop - WINDOW), stop, at


def by_document(
    spans: list[tuple[int, int]], ids: IntArray, before: int, others: IntArray | None
) -> Iterator[Part]:
    """Yield the parts of documents behind `before` tokens of the text, or of other documents."""
    for number, (first, end) in enumerate(spans):
        for at, stop in chunks(first, end):
            if others is None:
                yield ids[:0], max(first - before, stop - WINDOW), stop, at
            else:
                other = int(others[number % len(others)])
                yield ids[other - before : other], max(first, stop - WINDOW), stop, at


@torch.no_grad()
def nats_of(model: GPT, ids: IntArray, parts: Iterator[Part]) -> float:
    total = 0.0
    for prefix, start, stop, at in parts:
        inputs = torch.from_numpy(np.concatenate([prefix, ids[start:stop]])[-WINDOW:])
        targets = torch.from_numpy(ids[at + 1 : stop + 1])
        logits = model.logits(model.hidden(inputs[None])[:, at - stop :])[0].double()
        total += float(torch.nn.functional.cross_entropy(logits, targets, reduction="sum"))
    return total


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--targets", type=int, default=49_152)
    options = parser.parse_args()
    plan = make_plan(RuntimeConfig(dtype="float32"))
    plan.apply()
    state, shape = read_weights(options.folder / "pr1858_ema_int8.safetensors")
    model = model_from(state, shape, plan, True)
    tokenizer = Tokenizer.load(options.folder / "sp8192.model")
    text = read_text(tokenizer, options.folder / "val.jsonl.zst", LONGER * options.targets)
    ids = np.asarray(text.ids).astype(np.int64)
    starts = np.flatnonzero(ids[:-1] == BOS_ID)
    own = starts[(starts >= BEFORE) & (starts < BEFORE + options.targets)]
    spans = [(int(a), int(b)) for a, b in itertools.pairwise(own)]
    scored_bytes = int(np.asarray(text.target_bytes)[spans[0][0] : spans[-1][1]].sum())
    others = starts[starts > own[-1] + WINDOW]
    ways = {"a sliding window": sliding(spans, ids)}
    for before in (0, 256, 1024):
        ways[f"documents behind {before} tokens of the text"] = by_document(
            spans, ids, before, None
        )
    for before in (256, 1024):
        ways[f"behind {before} of another document"] = by_document(spans, ids, before, others)
    for name, parts in ways.items():
        print(f"{name}: {nats_of(model, ids, parts) / math.log(2) / scored_bytes:.4f}", flush=True)


if __name__ == "__main__":
    main()
