"""Whether a model gives frequent tokens the probability with which they come.

    python benchmarks/frequencies.py ARTIFACT TOKENIZER TRAIN VALIDATION [--form sp8192.model]
        [--windows 64] [--first 211] [--scored 24] [--words 16]

For `--windows` windows of 2,048 tokens of a training file, and as many of the validation text
before target `--first` x 2,048: mean nats, mean entropy, and for the most frequent tokens the sum
of their probabilities divided by how often they come. A model with a number of its own for each
token's logits could have 1 there.

Then the next `--scored` windows of the validation text: bits per byte with all logits multiplied by
a number, and with a number added to each token's logits that corrects its frequency on the training
windows (k more times in both counts, so that rare tokens move little).
"""

import argparse
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from score import read_text, read_weights
from torch import Tensor

from fairway.api import model_from
from fairway.config.settings import RuntimeConfig
from fairway.data.tokens import Tokenizer
from fairway.machine.plan import make_plan
from fairway.model.gpt import GPT
from fairway.model.modes import mode

T = 2048
SCALES, COUNTS = (0.96, 0.97, 0.98, 0.99, 1.01), (30, 100, 300, 1000)


@dataclass
class Counts:
    """Sums over windows, in nats; the tables have an entry for each token."""

    nats: float
    entropy: float
    expected: Tensor
    found: Tensor


@dataclass
class Text:
    """Windows of tokens [N, T + 1] and the bytes that a token stands for on average."""

    windows: Tensor
    token_bytes: float


def text_of(words: Tokenizer, path: Path, form: Path | None, windows: range) -> Text:
    count = windows.stop * T
    found = read_text(words, path, count if form is None else int(1.2 * count), form)
    ids = torch.from_numpy(np.asarray(found.ids).astype(np.int64))
    rows = torch.stack([ids[n * T : (n + 1) * T + 1] for n in windows])
    return Text(rows, found.text_bytes / len(found.target_bytes))


def log_probabilities(model: GPT, row_T1: Tensor, scale: float, bias_V: Tensor | None) -> Tensor:
    logits_TV = model.logits(model.hidden(row_T1[None, :-1]))[0].float() * scale
    return torch.log_softmax(logits_TV if bias_V is None else logits_TV + bias_V, -1)


def counted(model: GPT, windows_NT1: Tensor) -> Counts:
    size = model.config.vocab_size
    expected = torch.zeros(size, dtype=torch.float64, device=windows_NT1.device)
    nats = entropy = 0.0
    with torch.no_grad(), mode(model):
        for row in windows_NT1:
            log_TV = log_probabilities(model, row, 1.0, None)
            nats -= float(log_TV.gather(-1, row[1:, None]).sum())
            entropy -= float((log_TV.exp() * log_TV).sum())
            expected += log_TV.exp().double().sum(0)
    found = torch.bincount(windows_NT1[:, 1:].reshape(-1), minlength=size).double()
    return Counts(nats, entropy, expected, found)


def bits(model: GPT, text: Text, scale: float = 1.0, bias_V: Tensor | None = None) -> float:
    """Return the bits per byte of all windows."""
    with torch.no_grad(), mode(model):
        nats = sum(
            -float(log_probabilities(model, row, scale, bias_V).gather(-1, row[1:, None]).sum())
            for row in text.windows
        )
    return nats / (len(text.windows) * T * text.token_bytes * math.log(2.0))


def tell(name: str, counts: Counts, pieces: list[str], words: int) -> None:
    total = float(counts.found.sum())
    print(f"{name}: {counts.nats / total:.4f} nats a token, entropy {counts.entropy / total:.4f}")
    for token in torch.argsort(counts.found, descending=True)[:words].tolist():
        count = float(counts.found[token])
        share = float(counts.expected[token]) / count
        print(f"  {pieces[token]!r:14} {count:8.0f} times, probability / frequency {share:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("train", type=Path)
    parser.add_argument("validation", type=Path)
    parser.add_argument("--form", type=Path)
    for name, value in (("windows", 64), ("first", 211), ("scored", 24), ("words", 16)):
        parser.add_argument(f"--{name}", type=int, default=value)
    chosen = parser.parse_args()
    words, first = Tokenizer.load(chosen.tokenizer), chosen.first
    state, shape = read_weights(chosen.artifact)
    plan = make_plan(RuntimeConfig())
    plan.apply()
    print(f"torch {torch.__version__}, {plan.describe()}", flush=True)
    model = model_from(state, shape, plan, True)
    train = text_of(words, chosen.train, chosen.form, range(chosen.windows))
    before = max(0, first - chosen.windows)
    whole = text_of(words, chosen.validation, chosen.form, range(before, first + chosen.scored))
    device = next(model.parameters()).device
    pieces = words.pieces
    seen = counted(model, train.windows.to(device))
    tell("training text", seen, pieces, chosen.words)
    earlier = whole.windows[: first - before].to(device)
    tell("validation text", counted(model, earlier), pieces, chosen.words)
    last = Text(whole.windows[first - before :].to(device), whole.token_bytes)
    base = bits(model, last)
    print(f"next {chosen.scored} windows: {base:.5f} bits per byte", flush=True)
    for scale in SCALES:
        print(f"  logits times {scale}: {bits(model, last, scale) - base:+.5f}", flush=True)
    for more in COUNTS:
        bias_V = torch.log((seen.found + more) / (seen.expected + more)).float()
        apart = [bits(model, last, scale, bias_V) - base for scale in (1.0, 0.98)]
        print(f"  frequencies, k = {more}: {apart[0]:+.5f}, times 0.98 {apart[1]:+.5f}", flush=True)


if __name__ == "__main__":
    main()
