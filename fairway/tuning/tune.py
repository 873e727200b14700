"""Fine-tuning: adapters of a frozen model learn a text, in windows side by side, and are saved.

The adapters and their learning rule are those of test-time training, with one set for all rows.
Here the same text is read several times and the rate falls to zero.

Shapes: B windows, T time.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fairway.api import LanguageModel, load
from fairway.base import units
from fairway.base.arrays import IntArray
from fairway.base.errors import UserError
from fairway.base.files import digest_file
from fairway.base.mistaken import artifact_at
from fairway.base.progress import progress
from fairway.config.checks import check_ttt
from fairway.config.settings import RuntimeConfig, TttConfig
from fairway.model.adapters import Adapters
from fairway.model.gpt import rope_table
from fairway.model.modes import mode
from fairway.score.adam import BETA2, AdamW
from fairway.score.adapter_file import save_adapter
from fairway.score.adapting import Plain, chunk_nats

# Fewer and larger steps than at test time, where every chunk of a document is a step.
TUNING = TttConfig(lora_rank=16, lora_alpha=32.0, lora_lr=3e-3, lora_wd=0.1)
# Tokens of a step, or one window if that is longer. Of this many windows one is kept for the score.
STEP_TOKENS, HELD_OUT = 4096, 10


@dataclass(frozen=True, slots=True)
class Lessons:
    """Windows of a text: ids [B, T + 1], and the bytes of the text that a window's targets are."""

    ids: IntArray
    bytes: IntArray

    def some(self, chosen: IntArray) -> "Lessons":
        """Return some windows."""
        return Lessons(self.ids[chosen], self.bytes[chosen])


def lessons(model: LanguageModel, documents: Sequence[str]) -> Lessons:
    """Return the windows of documents, each after a BOS, side by side and equally long.

    They are a little shorter than the model's window if the text does not divide into those; at
    most one token per window is left out. Raises UserError for an empty text.
    """
    text = model.proven(documents)
    targets = len(text.ids) - 1
    count = -(-targets // model.score_config.seq_len)
    length = targets // count
    places = length * np.arange(count)[:, None] + np.arange(length + 1)
    ids = text.ids.astype(np.int64)
    return Lessons(ids[places], text.target_bytes.astype(np.int64)[places[:, :-1]].sum(1))


class Tuner:
    """The adapters of a model while they learn."""

    def __init__(self, language: LanguageModel, config: TttConfig, seed: int) -> None:
        self.language, self.config = language, config
        model = language.model
        self.device = model.tok_emb.weight.device
        targets = config.lora_targets.split()
        self.adapters = Adapters(model, targets, config.lora_rank, config.lora_alpha)
        values = self.adapters.zeros(1)
        drawn = self.adapters.drawn(torch.Generator().manual_seed(seed))
        for value, start in zip(values[::2], drawn, strict=True):
            value.copy_(start)
        self.adam = AdamW(config, values)
        self.adam.start(1)
        self.way = Plain(self.adapters, self.adam)
        self._generator = np.random.default_rng(seed)

    def learn(self, text: Lessons, epochs: int) -> int:
        """Learn some windows this many times, each time in another order; return the steps."""
        length = int(text.ids.shape[1]) - 1
        rows = max(1, STEP_TOKENS // length)
        steps = -(-len(text.ids) // rows) * epochs
        done = 0
        with progress("tune", steps) as advance:
            for _ in range(epochs):
                order = self._generator.permutation(len(text.ids))
                for first in range(0, len(order), rows):
                    rate = self.config.lora_lr * (1.0 - done / steps)
                    self._step(text.ids[order[first : first + rows]], rate)
                    done += 1
                    advance(1)
        return steps

    def _step(self, ids: IntArray, rate: float) -> None:
        self.adam.config = replace(self.config, lora_lr=rate)
        self.adam.count_step()
        targets_BT = self._predict(ids)[1]
        self.way.learn(targets_BT, torch.full((len(ids),), 1 / len(ids), device=self.device))

    def bpb(self, text: Lessons) -> float:
        """Return the bits per byte of some windows side by side."""
        nats = 0.0
        for window, _ in enumerate(text.ids):
            log_probs_BTV, targets_BT = self._predict(text.ids[window : window + 1])
            nats += float(chunk_nats(log_probs_BTV, targets_BT).sum())
            self.way.forget()
        return units.bits_per_byte(nats, int(text.bytes.sum()))

    def _predict(self, ids: IntArray) -> tuple[Tensor, Tensor]:
        given = torch.from_numpy(ids).to(self.device)
        inputs_BT, targets_BT = given[:, :-1], given[:, 1:]
        cos_TR, sin_TR = rope_table(inputs_BT.shape[1], self.language.model.config)
        rope = cos_TR.to(self.device), sin_TR.to(self.device)
        return self.way.log_probs(range(len(ids)), inputs_BT, rope, 0), targets_BT


def tune(
    path: Path,
    documents: Sequence[str],
    out: Path,
    config: TttConfig = TUNING,
    *,
    epochs: int = 3,
    seed: int = 0,
    tokenizer: Path | None = None,
    runtime: RuntimeConfig | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Train adapters of an artifact on documents, write them to a file, and return its facts.

    Of ten windows or more, every tenth is not learned and shows the gain on unseen text. Raises
    UserError for an empty text.
    """
    file = artifact_at(path)
    language = load(file, tokenizer=tokenizer, runtime=runtime)
    check_ttt(config, language.score_config)
    text = lessons(language, documents)
    numbers = np.arange(len(text.ids))
    held = numbers[len(numbers) >= HELD_OUT and numbers % HELD_OUT == HELD_OUT - 1]
    parts = {"learned": text.some(np.setdiff1d(numbers, held)), "held_out": text.some(held)}
    parts = {name: part for name, part in parts.items() if len(part.ids)}
    # Plain formulas, whose gradients are added in one order on all machines.
    with language.plan.applied(), mode(language.model, plain=True, frozen=True, in_order=True):
        tuner = Tuner(language, config, seed)
        say(f"tuning {sum(w.numel() for w in tuner.adam.values):,} weights")
        before = {name: tuner.bpb(part) for name, part in parts.items()}
        steps = tuner.learn(parts["learned"], epochs)
        after = {name: tuner.bpb(part) for name, part in parts.items()}
    if not all(torch.isfinite(value).all() for value in tuner.adam.values):
        raise UserError("the adapters diverged; lower ttt.lora_lr")
    facts = {
        "base": digest_file(file),
        "tokenizer": language.tokenizer.digest,
        "targets": tuner.adapters.targets,
        "rank": config.lora_rank,
        "alpha": config.lora_alpha,
        "settings": {
            "lr": config.lora_lr,
            "beta2": BETA2,
            "wd": config.lora_wd,
            "epochs": epochs,
            "seed": seed,
        },
        "results": {
            "steps": steps,
            "bytes": {name: int(part.bytes.sum()) for name, part in parts.items()},
            "before": before,
            "after": after,
        },
    }
    return {**facts, "bytes": save_adapter(out, tuner.adam.values, facts)}
