"""How far a position's cost moves between a batch of windows and its own window alone.

    python benchmarks/score_rows.py WEIGHTS.safetensors TOKENIZER.model TEXT [--device cuda]

Prints, per precision and attention backend, the largest and the mean difference in nats over the
positions that were compared: what ROW_TOLERANCE_NATS has to allow (docs/scoring.md).
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from seed_model import load_state

from fairway.base.arrays import IntArray
from fairway.config.settings import ModelConfig
from fairway.data.tokens import Tokenizer, encode_documents
from fairway.model.gpt import GPT
from fairway.score.ledger import Ledger, Text
from fairway.score.sliding import FrozenPredictor
from fairway.score.windows import events, sliding_windows


def differences(model: GPT, ids: IntArray, seq_len: int, count: int) -> "np.ndarray":
    draw, found = np.random.default_rng(0), []
    text = Text(ids, np.ones(len(ids) - 1, np.int64), len(ids) - 1, model.config.vocab_size)
    ledger, predictor = Ledger(text, len(ids) - 1), FrozenPredictor(model, seq_len)
    for event in events(sliding_windows(len(ids) - 1, seq_len, 64), 32):
        dist = predictor.predict(ledger.context(event))
        receipt = ledger.commit(event, dist)
        for at in draw.choice(len(receipt.nats), min(count, len(receipt.nats)), replace=False):
            row = dist.row(event.first + int(at))
            found.append(-row[receipt.targets[at]] - receipt.nats[at])
    return np.array(found)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("weights", type=Path)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tokens", type=int, default=10_000)
    parser.add_argument("--seq-len", type=int, default=2048)
    arguments = parser.parse_args()
    text = arguments.text.read_text()[: 8 * arguments.tokens]
    ids = encode_documents(Tokenizer.load(arguments.tokenizer), [text])[: arguments.tokens]
    model = GPT(ModelConfig())
    model.load_state_dict(load_state(arguments.weights))
    model.set_looping(True)
    model.eval().to(arguments.device)
    for precision in ("highest", "high"):
        torch.set_float32_matmul_precision(precision)
        for dtype in (torch.float32, torch.bfloat16):
            for backend in ("plain", "sdpa"):
                model.set_compute(dtype, backend)
                off = differences(model, ids.astype(np.int64), arguments.seq_len, 60)
                print(
                    f"{precision} {dtype} {backend}: n {len(off)}, largest {abs(off).max():.2g}, "
                    f"mean {off.mean():+.1g} nats"
                )


if __name__ == "__main__":
    main()
