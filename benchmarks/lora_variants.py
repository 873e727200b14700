"""Ideas for the LoRA score that are not in the code, on a few documents and a CPU.

    python benchmarks/lora_variants.py WEIGHTS TOKENIZER TEXT [--documents 8] NAME:field=value,...

WEIGHTS are codes (seed_model.py) or an artifact. The first 768 tokens of the first documents that
have so many are scored in chunks; after each chunk the adapters of a document take one AdamW step
on it, as `fairway.score.lora` does. Fields of an arm, all numbers:

    chunk=48 rate=1e-4     tokens of a chunk, learning rate (0: the model does not learn)
    factor=0.97            logits are multiplied by it
    kept=1 again=96        keys and values of earlier chunks stay as they were when those were
                           scored, and gradients do not reach them; all are computed again after
                           every so many tokens, without gradients
    last=192               each step learns the last 192 tokens instead of the chunk alone
    warm=4                 the rate rises over so many steps
    fade=384               the rate falls as (1 + n / 384)^-0.5 after n tokens of the document
    beta1=0.5              steps follow a running mean of gradients
    inner=0.25             the rate of matrices A is so many times that of matrices B
    muon=1                 steps of matrices B are orthogonalised, of the size that AdamW's have

Prints bits per byte, the difference to the first arm, its standard error over documents, the best
average of probabilities with the first arm (difference, share of the first arm), seconds.
Rank 96, alpha 144, decay 1, and the factors of `best`; float32, one thread.
"""

import argparse
import math
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from score import read_text, read_weights
from torch import Tensor
from ttt_arms import averages

from fairway.api import model_from
from fairway.base.units import bits_per_byte
from fairway.config.checks import lora_factors
from fairway.config.settings import RuntimeConfig
from fairway.data.tokens import Tokenizer
from fairway.machine.plan import make_plan
from fairway.model.adapters import Adapters
from fairway.model.attention import Attention
from fairway.model.block import Walk
from fairway.model.cache import attend_after
from fairway.model.gpt import GPT, rope_table
from fairway.recipes import recipe
from fairway.score.adam import BETA2, EPS, AdamW
from fairway.score.adapting import adapting
from fairway.score.documents import documents
from fairway.train.rules import POLAR_EXPRESS, orthogonalise

LENGTH, ROWS = 768, 4
FIELDS = {
    "chunk": 48.0, "rate": 1e-4, "factor": 1.0, "kept": 0.0, "again": 0.0, "last": 0.0,
    "warm": 0.0, "fade": 0.0, "beta1": 0.0, "inner": 1.0, "muon": 0.0,
}  # fmt: skip


@dataclass(eq=False)
class Kept:
    """Keys and values of the chunks so far, by visit; `new` are those of the present one."""

    old: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    new: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def attending(self, visit: int, own: Attention) -> Attention:
        def attend(q: Tensor, k: Tensor, v: Tensor, *_: object, **__: object) -> Tensor:
            whole = self._after(visit, (k, v))
            self.new[visit] = whole[0].detach(), whole[1].detach()
            return attend_after(q, *whole)

        return attend

    def _after(self, visit: int, new: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        if visit not in self.old:
            return new
        k, v = (torch.cat(pair, 2) for pair in zip(self.old[visit], new, strict=True))
        return k, v

    def keep(self) -> None:
        self.old, self.new = self.new, {}


class Learner:
    """The adapters of a few documents, which learn by the fields of an arm."""

    def __init__(self, model: GPT, arm: dict[str, float], ids_BT: Tensor) -> None:
        self.model, self.arm, self.ids_BT = model, arm, ids_BT
        best = recipe("best").ttt
        self.config = replace(best, lora_lr=arm["rate"])
        targets, rank, alpha = best.lora_targets.split(), best.lora_rank, best.lora_alpha
        factors = lora_factors(best)
        self.adapters = Adapters(model, targets, rank, alpha, factors, arm["factor"])
        self.adam = AdamW(self.config, self.adapters.zeros(len(ids_BT)))
        self.adam.start(len(ids_BT))
        drawn = self.adapters.drawn(torch.Generator().manual_seed(1))
        for value, inner in zip(self.adam.values[::2], drawn, strict=True):
            value[:] = inner
        self.means = [torch.zeros_like(value) for value in self.adam.values]
        self.rope = rope_table(2048, model.config)
        self.kept = Kept()

    def scored(self, at: int, end: int) -> Tensor:
        """Return the costs of a chunk, [B, C]; then learn it."""
        leaves = [value.detach().requires_grad_() for value in self.adam.values]
        self.adapters.use(leaves)
        first = at if self.arm["kept"] else max(0, min(at, end - int(self.arm["last"])))
        states_BTD = self._states(at, end)[:, first - end :]
        logits_BTV = self.adapters.logits(states_BTD, self.adapters.head(states_BTD))
        targets_BT = self.ids_BT[:, first + 1 : end + 1, None]
        nats_BT = -logits_BTV.log_softmax(-1).gather(2, targets_BT)[:, :, 0]
        if self.arm["kept"]:
            self.kept.keep()
        if self.arm["rate"] and end < LENGTH:
            torch.autograd.backward(nats_BT.mean(1).sum())
            self._step([leaf.grad for leaf in leaves if leaf.grad is not None], end)
        return nats_BT.detach()[:, at - end :]

    def _states(self, at: int, end: int) -> Tensor:
        """Return the final states of the window, or of the chunk alone if the others are kept."""
        if not self.arm["kept"]:
            return self._walk(0, end, None)
        if self.arm["again"] and at and at % self.arm["again"] == 0:
            self.kept = Kept()
            with torch.no_grad():
                self._walk(0, at, self.kept)
            self.kept.keep()
        return self._walk(at, end, self.kept)

    def _walk(self, at: int, end: int, kept: Kept | None) -> Tensor:
        embedded_BTD = self.model.embedded(self.ids_BT[:, max(0, at - 1) : end])[:, at - end :]
        rope = self.rope[0][at:end], self.rope[1][at:end]
        attending = None if kept is None else kept.attending
        return self.model.states(embedded_BTD, Walk(rope, self.adapters, attending))

    def _step(self, grads: list[Tensor], learned: int) -> None:
        arm, adam = self.arm, self.adam
        adam.count_step()
        rate = arm["rate"] * (min(1.0, adam.steps / arm["warm"]) if arm["warm"] else 1.0)
        if arm["fade"]:
            rate *= (1.0 + learned / arm["fade"]) ** -0.5
        shrink = 1 - arm["rate"] * self.config.lora_wd
        tensors = zip(adam.values, adam.squares, self.means, grads, strict=True)
        for n, (value, square, mean, grad) in enumerate(tensors):
            mean.lerp_(grad, 1 - arm["beta1"])
            square.mul_(BETA2).addcmul_(grad, grad, value=1 - BETA2)
            move = mean / (1 - arm["beta1"] ** adam.steps)
            own = rate * (1.0 if n % 2 else arm["inner"])
            if arm["muon"] and n % 2:
                step = self._orthogonal(move, n // 2)
            else:
                step = move / (square.sqrt() * adam.root_factor + EPS)
            value.mul_(shrink).add_(step, alpha=-own)

    def _orthogonal(self, move_SBOR: Tensor, group: int) -> Tensor:
        """Return the orthogonal factor of each matrix B; its numbers are about 1 in size."""
        step_SBOR = torch.empty_like(move_SBOR)
        for outer in self.adapters.groups[group].outer.values():
            move = move_SBOR[:, :, outer]
            factor = orthogonalise(move.flatten(0, 1), POLAR_EXPRESS).view_as(move)
            step_SBOR[:, :, outer] = factor * math.sqrt(move.shape[2])
        return step_SBOR


def arm_of(word: str) -> tuple[str, dict[str, float]]:
    name, _, fields = word.partition(":")
    given = dict(pair.split("=") for pair in fields.split(",") if pair)
    assert given.keys() <= FIELDS.keys(), f"fields are {', '.join(FIELDS)}"
    return name, FIELDS | {key: float(value) for key, value in given.items()}


def costs(model: GPT, arm: dict[str, float], ids_BT: Tensor) -> np.ndarray:
    """Return the nats of every position, [B, LENGTH]."""
    chunk, found = int(arm["chunk"]), []
    with adapting(model):
        for first in range(0, len(ids_BT), ROWS):
            learner = Learner(model, arm, ids_BT[first : first + ROWS])
            bounds = [(at, min(at + chunk, LENGTH)) for at in range(0, LENGTH, chunk)]
            found.append(torch.cat([learner.scored(*pair) for pair in bounds], 1))
    return torch.cat(found).double().numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("weights", type=Path)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("arms", nargs="+", metavar="NAME:field=value,...")
    parser.add_argument("--documents", type=int, default=8)
    chosen = parser.parse_args()
    arms = [arm_of(word) for word in chosen.arms]
    text = read_text(Tokenizer.load(chosen.tokenizer), chosen.text, 200_000)
    found = [d for d in documents(text.ids, len(text.ids) - 1) if len(d) >= LENGTH]
    starts = [d.start for d in found[: chosen.documents]]
    ids = np.stack([text.ids[at : at + LENGTH + 1] for at in starts]).astype(np.int64)
    text_bytes = sum(int(text.target_bytes[at : at + LENGTH].sum()) for at in starts)
    plan = make_plan(RuntimeConfig(device="cpu", threads=1, dtype="float32"))
    plan.apply()
    model = model_from(*read_weights(chosen.weights), plan, True)
    base_BT = None
    for name, arm in arms:
        start_s = time.perf_counter()
        nats_BT = costs(model, arm, torch.from_numpy(ids))
        base_BT = nats_BT if base_BT is None else base_BT
        apart = (nats_BT - base_BT).sum(1) / (math.log(2) * text_bytes)
        error = float(apart.std() * math.sqrt(len(apart)))
        both = averages(nats_BT, base_BT, text_bytes)
        share = min(both, key=both.__getitem__)
        bpb, first = (bits_per_byte(costs.sum(), text_bytes) for costs in (nats_BT, base_BT))
        print(f"{name:20} {bpb:.5f}  {apart.sum():+.5f} ({error:.5f})  "
              f"{both[share] - first:+.5f} ({share})  "
              f"{time.perf_counter() - start_s:.0f} s", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
