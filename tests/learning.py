"""A model and a text that test-time training learns from, and what every position costs."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tiny import TINY
from tiny import alive as alive_with

from fairway.config.settings import ModelConfig, ScoreConfig, TttConfig
from fairway.model.gpt import GPT
from fairway.score.evaluation import Evaluation
from fairway.score.ledger import Ledger, Score, Text

V, T = 260, 16
MODEL: ModelConfig = replace(TINY, rope_train_len=8)
SCORE = ScoreConfig(seq_len=T, stride=4, batch_windows=3, check_positions=30, truncate=False)
SGD = TttConfig(method="sgd", chunk_tokens=64, lr=0.05, epochs=2)
LORA = TttConfig(
    method="lora", lora_rank=4, lora_alpha=6, lora_lr=0.01, lora_wd=0.1, lora_chunks="8",
    lora_documents=3, lora_lanes=2,
)  # fmt: skip
STARTS = [0, 40, 41, 100, 233, 240, 290]
Evaluate = Callable[..., Score]


def alive() -> GPT:
    return alive_with(MODEL)


def text(tokens: int = 300) -> Text:
    """Documents that repeat themselves, so that there is something to learn."""
    generator = np.random.default_rng(0)
    ids = generator.integers(2, V, 12)[generator.integers(0, 12, tokens)]
    ids[STARTS] = 1
    target_bytes = generator.integers(0, 7, tokens - 1)
    return Text(ids, target_bytes, int(target_bytes.sum()), V)


def costs(
    evaluate_it: Evaluate, config: TttConfig, source: Text, score: ScoreConfig = SCORE
) -> np.ndarray:
    """Return the cost of every position."""
    kept: dict[str, Ledger] = {}
    plain = Ledger.finish

    def finish(self: Ledger, *gather: Any) -> Score:
        kept["ledger"] = self
        return plain(self, *gather)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Ledger, "finish", finish)
        evaluate_it(alive(), Evaluation(source, score, config))
    return kept["ledger"]._nats
