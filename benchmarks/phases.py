"""Ways for all weights to learn the text scored so far, tried without adapters.

    python benchmarks/phases.py ARTIFACT TOKENIZER TEXT [--targets 786432] [--form sp8192.model]
        [--batches 6] [--score 0] [--seconds 480] [--out phases.jsonl] NAME:field=value,... ...

The text is cut into equal batches. Each is scored by the frozen model in windows side by side; then
all weights learn the text so far, as the phases of `ttt.lora_phases` do, and the next batch is
scored. A GPU needs a few seconds for an arm, because no adapters learn. Fields of an arm:

    rule=sgd           sgd, adam, or muon: matrices of blocks by Muon, others by Adam at a tenth of
                       the rate
    lr=0.015           rate of the first step; it falls to 0 as a cosine in each phase
    sequences=16       sequences of a step, as with ttt.chunk_tokens=32768
    momentum=0.9       momentum, or beta1
    beta2=0.95         of adam
    new=1              learn the last batch alone, not the whole text so far
    fresh=1            each phase begins with the packed weights, not with those learned before
    only=matrix        learn one group of weights alone: matrix, embed (the embedding) or scalar

`none` does not learn. Prints bits per byte, the difference to the first arm in all, its standard
error over windows, the difference by batch, seconds. `--score N` scores and learns only the first N
windows of a batch (for CPUs).
"""

import argparse
import json
import math
import time
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from score import read_text, read_weights
from torch import Tensor

from fairway.api import model_from
from fairway.base.optimisers import without_compiler
from fairway.config.settings import RuntimeConfig
from fairway.data.tokens import Tokenizer
from fairway.machine.plan import make_plan
from fairway.model import kinds
from fairway.model.gpt import GPT
from fairway.model.modes import mode
from fairway.recipes import recipe
from fairway.score.sgd import chunk_rate
from fairway.train.rules import coefficients, orthogonalise

T, ROWS = 2048, 8
_SGD, _ADAM = without_compiler(torch.optim.SGD), without_compiler(torch.optim.AdamW)


@dataclass(frozen=True)
class Arm:
    """How a phase learns; the fields are those above."""

    rule: str = "sgd"
    lr: float = 0.015
    sequences: int = 16
    momentum: float = 0.9
    beta2: float = 0.95
    new: int = 0
    fresh: int = 0
    only: str = ""


def arm_of(word: str) -> Arm | None:
    name, _, given = word.partition(":")
    if name == "none":
        return None
    types = {field.name: type(field.default) for field in fields(Arm)}
    pairs = (pair.split("=") for pair in filter(None, given.split(",")))
    return Arm(**{key: types[key](value) for key, value in pairs})


class Learner:
    """The weights of a model and the rule of an arm."""

    def __init__(self, model: GPT, arm: Arm) -> None:
        self.model, self.arm = model, arm
        named = dict(model.named_parameters())
        groups = {
            group: [named[name] for name in names]
            for group, names in kinds.by_group(model.declares, named).items()
            if arm.only in ("", group)
        }
        self.weights = [weight for weights in groups.values() for weight in weights]
        self.matrices = groups.pop("matrix", []) if arm.rule == "muon" else []
        rest = [weight for weights in groups.values() for weight in weights]
        self.buffers = [torch.zeros_like(w) for w in self.matrices]
        self.triples = coefficients(recipe("best").optim)
        self.share = 0.1 if arm.rule == "muon" else 1.0
        self.rest = (
            _SGD(rest, lr=0.0, momentum=arm.momentum)
            if arm.rule == "sgd"
            else _ADAM(rest, lr=0.0, betas=(arm.momentum, arm.beta2), weight_decay=0.0)
        ) if rest else None  # fmt: skip

    def learn(self, ids: Tensor) -> None:
        """Learn windows of inputs and targets [N, T + 1], once."""
        groups = ids.split(self.arm.sequences)
        for index, group in enumerate(groups):
            self._step(group, chunk_rate(self.arm.lr, index, len(groups)))

    def _step(self, group_NT1: Tensor, lr: float) -> None:
        self.model.zero_grad(set_to_none=True)
        for rows in group_NT1.split(ROWS):
            with mode(self.model, in_order=True):
                loss = self.model(rows[:, :-1].contiguous(), rows[:, 1:].contiguous())
                (loss * (len(rows) / len(group_NT1))).backward()
        torch.nn.utils.clip_grad_norm_(self.weights, 1.0)
        with torch.no_grad():
            for weight, buffer in zip(self.matrices, self.buffers, strict=True):
                buffer.mul_(self.arm.momentum).add_(weight.grad)
                step = orthogonalise(buffer[None].float(), self.triples)[0]
                weight.sub_(step, alpha=lr * math.sqrt(max(1.0, step.shape[0] / step.shape[1])))
        if self.rest is not None:
            for entry in self.rest.param_groups:
                entry["lr"] = lr * self.share
            self.rest.step()
        torch.autograd.graph.increment_version(list(self.model.parameters()))


def scored(model: GPT, windows_NT1: Tensor) -> list[float]:
    """Return the mean nats of each window."""
    with torch.no_grad(), mode(model):
        return [
            float(model(row[:, :-1].contiguous(), row[:, 1:].contiguous()))
            for row in windows_NT1.split(1)
        ]


def ran(model: GPT, packed: dict[str, Tensor], arm: Arm | None, parts: list[Tensor]) -> np.ndarray:
    """Return the mean nats of all windows, each scored before it is learned."""

    def restored() -> None:
        with torch.no_grad():
            for name, weight in model.named_parameters():
                weight.copy_(packed[name])
        torch.autograd.graph.increment_version(list(model.parameters()))

    restored()
    found: list[float] = []
    for index, part in enumerate(parts):
        if index and arm is not None:
            if arm.fresh:
                restored()
            Learner(model, arm).learn(parts[index - 1] if arm.new else torch.cat(parts[:index]))
        found += scored(model, part)
    return np.array(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("arms", nargs="+")
    parser.add_argument("--targets", type=int, default=786_432)
    parser.add_argument("--form", type=Path)
    parser.add_argument("--batches", type=int, default=6)
    parser.add_argument("--score", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=1e9)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    start_s = time.perf_counter()
    arms = {word: arm_of(word) for word in chosen.arms}
    state, shape = read_weights(chosen.artifact)
    text = read_text(Tokenizer.load(chosen.tokenizer), chosen.text, chosen.targets, chosen.form)
    plan = make_plan(RuntimeConfig())
    plan.apply()
    ids = torch.from_numpy(np.asarray(text.ids).astype(np.int64))
    windows = torch.stack([ids[at : at + T + 1] for at in range(0, len(ids) - T, T)])
    bits = len(text.target_bytes) / text.text_bytes / math.log(2.0)
    model = model_from(state, shape, plan, True)
    device = next(model.parameters()).device
    parts = [
        part[: chosen.score or None].to(device) for part in windows.tensor_split(chosen.batches)
    ]
    packed = {name: w.detach().clone() for name, w in model.named_parameters()}
    print(f"torch {torch.__version__}, {plan.describe()}, {len(windows)} windows", flush=True)
    base: np.ndarray | None = None
    for word, arm in arms.items():
        if time.perf_counter() - start_s > chosen.seconds:
            print(f"{word}: not begun, {chosen.seconds:.0f} s are over")
            continue
        began_s = time.perf_counter()
        found = ran(model, packed, arm, parts)
        base = found if base is None else base
        apart = (found - base) * bits
        ends = np.cumsum([len(part) for part in parts])[:-1]
        row = {
            "arm": word, "bpb": float(found.mean() * bits), "to_first": float(apart.mean()),
            "se": float(apart.std() / math.sqrt(len(apart))),
            "by_batch": [float(piece.mean()) for piece in np.split(apart, ends)],
            "s": time.perf_counter() - began_s, "windows": len(found),
        }  # fmt: skip
        by = " ".join(f"{piece:+.5f}" for piece in row["by_batch"])
        print(f"{word:50} {row['bpb']:.5f} {row['to_first']:+.5f} ({row['se']:.5f})  {by}  "
              f"{row['s']:.1f} s", flush=True)  # fmt: skip
        if chosen.out:
            with chosen.out.open("a") as file:
                file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
