"""What every expert gains over the frozen scorer and over test-time training.

    python benchmarks/experts.py --run RUN [--bases sliding sgd]
    python benchmarks/experts.py WEIGHTS TOKENIZER TEXT [--targets 786432] [--bases sliding sgd]

With a run folder: its artifact on its validation text, by its settings. Otherwise the seed model
from 8-bit codes (see seed_model.py) on a .jsonl.zst of documents, by the settings of `pr1858`.
Every line: the experts, bits per byte without and with them (the same pass, the same tables), the
difference, seconds, and the worst row of 64. Last, the published mixture, which is no distribution.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from score import read_text
from seed_model import load_state

from fairway.api import load, model_from
from fairway.base.units import bits_per_byte
from fairway.config.settings import (
    MixtureConfig,
    ModelConfig,
    RuntimeConfig,
    ScoreConfig,
    TttConfig,
)
from fairway.data.tokens import Tokenizer
from fairway.machine.plan import make_plan
from fairway.model.gpt import GPT
from fairway.pipeline.run import open_run
from fairway.recipes import recipe
from fairway.score.evaluation import Evaluation
from fairway.score.experts import mixture
from fairway.score.experts.evaluate import evaluate_mixture, evaluate_published
from fairway.score.experts.mixture import Helpers
from fairway.score.experts.published import Rule
from fairway.score.ledger import Score, Text
from fairway.score.predictor import Context, Predictor, Receipt
from fairway.score.sliding import text_of
from fairway.score.ways import evaluate

# Settings of a mixture, and numbers of `mixture.Tuning`.
VARIANTS: dict[str, dict[str, Any]] = {
    # All of a learned weight returns at each step: it is not learned.
    "ppm, fixed 0.98": {"experts": "ppm", "weight": 0.98, "switch": 1.0},
    "ppm": {"experts": "ppm"},
    "ppm, variant B": {"experts": "ppm", "variant": "B"},
    "ppm, method C": {"experts": "ppm", "escapes": "C"},
    "ppm, no exclusion": {"experts": "ppm", "exclusion": False},
    "ppm, order 8": {"experts": "ppm", "order": 8},
    "match": {"experts": "match"},
    "match, 24 bytes": {"experts": "match", "match_min": 24},
    "tilt": {"experts": "tilt"},
    "ppm match": {"experts": "ppm match"},
    "all": {"experts": "ppm match tilt"},
    "all, variant B": {"experts": "ppm match tilt", "variant": "B"},
}


@dataclass(frozen=True, eq=False)
class Subject:
    """What is scored."""

    model: Callable[[], GPT]
    tokenizer: Tokenizer
    text: Text
    score: ScoreConfig
    ttt: TttConfig


def of_run(path: Path) -> Subject:
    pipeline = open_run(path, [], print)
    plan, source = pipeline.plan(), pipeline.data()
    data = pipeline.config.data
    validation = source.sample_validation(data.val_bytes, data.val_tokens)
    return Subject(
        lambda: load(path, plan=plan).model,
        source.tokenizer,
        text_of(validation.ids, source.tokenizer.table, validation.bytes),
        pipeline.config.score,
        pipeline.config.ttt,
    )


def of_weights(weights: Path, tokenizer: Path, text: Path, targets: int) -> Subject:
    state, words = load_state(weights), Tokenizer.load(tokenizer)
    plan = make_plan(RuntimeConfig())
    plan.apply()
    print(f"torch {torch.__version__}, {plan.describe()}, {targets} targets")
    return Subject(
        lambda: model_from(state, ModelConfig(), plan, True),
        words,
        read_text(words, text, targets),
        ScoreConfig(),
        recipe("pr1858").ttt,
    )


class Kept:
    """A frozen scorer whose tables are kept, so that the next mixture need not run the model."""

    separable = True

    def __init__(self, base: Predictor, store: dict[tuple[int, int], torch.Tensor]) -> None:
        self.base, self.store = base, store

    def predict(self, context: Context) -> "KeptDistribution":
        return KeptDistribution(self, context)

    def adapt(self, receipt: Receipt) -> None:
        self.base.adapt(receipt)


class KeptDistribution:
    def __init__(self, kept: Kept, context: Context) -> None:
        self.kept, self.context = kept, context
        self.positions = context.event.positions

    @cached_property
    def made(self) -> Any:
        return self.kept.base.predict(self.context)

    def tables(self, first: int, end: int) -> torch.Tensor:
        key = (int(self.positions[first]), end - first)
        if key not in self.kept.store:
            self.kept.store[key] = self.made.tables(first, end)
        return self.kept.store[key]

    def row(self, position: int) -> np.ndarray:
        return np.asarray(self.made.row(position))


def kept_mixture(
    subject: Subject, config: MixtureConfig, store: dict[tuple[int, int], torch.Tensor]
) -> tuple[Score, float]:
    """Return the score and what the model alone takes."""
    helpers = Helpers(subject.tokenizer, config, len(subject.text.ids) - 1)
    score = evaluate(
        subject.model(),
        Evaluation(
            subject.text,
            subject.score,
            subject.ttt,
            description="mixture",
            helped=lambda base: helpers.beside(Kept(base, store)),
        ),
        "sliding",
    )
    return score, bits_per_byte(helpers.own_nats, score.bytes)


def config_of(base: str, changes: dict[str, Any]) -> MixtureConfig:
    """Return a variant's settings; its tuning holds from now on."""
    own = {item.name for item in fields(mixture.Tuning)} & changes.keys()
    mixture.TUNING = mixture.Tuning(**{name: changes[name] for name in own})
    return MixtureConfig(base=base, **{k: v for k, v in changes.items() if k not in own})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", type=Path, nargs="*", metavar="WEIGHTS TOKENIZER TEXT")
    parser.add_argument("--run", type=Path)
    parser.add_argument("--targets", type=int, default=786_432)
    parser.add_argument("--bases", nargs="*", default=["sliding", "sgd"])
    parser.add_argument("--only", nargs="*", default=list(VARIANTS))
    parser.add_argument("--keep", action="store_true", help="tables of the frozen scorer in memory")
    parser.add_argument("--no-published", action="store_true")
    chosen = parser.parse_args()
    subject = of_run(chosen.run) if chosen.run else of_weights(*chosen.files, chosen.targets)
    store: dict[tuple[int, int], torch.Tensor] = {}
    for base in chosen.bases:
        for name in chosen.only:
            config = config_of(base, VARIANTS[name])
            start_s = time.perf_counter()
            if chosen.keep and base == "sliding":
                score, alone_bpb = kept_mixture(subject, config, store)
            else:
                score, facts = evaluate_mixture(
                    subject.model(),
                    Evaluation(subject.text, subject.score, subject.ttt, description=name),
                    config,
                    subject.tokenizer,
                )
                alone_bpb = facts["base_bpb"]
            print(
                f"{base:8} {name:18} {alone_bpb:.5f} -> {score.bpb:.5f}  "
                f"{score.bpb - alone_bpb:+.5f}  {time.perf_counter() - start_s:6.1f} s  "
                f"|sum - 1| {score.worst_sum_error:.1e}  row {score.worst_row_error_nats:.1e}",
                flush=True,
            )
        if chosen.no_published:
            continue
        for name, hijack in (("published", 0.0), ("published, gate", 0.277)):
            found = evaluate_published(
                subject.model(),
                Evaluation(subject.text, subject.score, subject.ttt),
                MixtureConfig(base=base),
                subject.tokenizer,
                Rule(hijack=hijack),
            )
            print(f"{base:8} {name}, NOT A DISTRIBUTION: {found}", flush=True)


if __name__ == "__main__":
    main()
