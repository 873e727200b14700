"""The stages of a run that put experts beside its artifact: score.mixture, and published."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from fairway import units
from fairway.config import Config, to_dict
from fairway.data.tokens import Tokenizer
from fairway.files import digest_bytes
from fairway.model.gpt import GPT
from fairway.score.experts import evaluate_mixture, evaluate_published, published_facts
from fairway.score.ledger import Text
from fairway.score.spread import LABEL
from fairway.stages import RunFolder, key_of
from fairway.steps import Say

MIXTURE, PUBLISHED = "score.mixture", "published"


def score_with_experts(
    config: Config,
    folder: RunFolder,
    text: Text,
    tokenizer: Tokenizer,
    load_model: Callable[[], GPT],
    artifact_digest: str,
    machine: dict[str, Any],
    say: Say,
) -> None:
    """Run the stages that the config asks for, forget the others.

    `load_model` reads the artifact anew, as models may learn. One process does this.
    """
    mixture = config.mixture
    shared = {
        "artifact": artifact_digest,
        "text": digest_bytes(np.asarray(text.ids).tobytes()),
        "score": to_dict(config.score),
        "ttt": to_dict(config.ttt) if mixture.base != "sliding" else None,
        "mixture": to_dict(mixture),
        "seed": config.seed,
        "machine": machine,
    }

    def mixed() -> dict[str, Any]:
        start_s = time.perf_counter()
        score, facts = evaluate_mixture(
            load_model(), tokenizer, text, config.score, config.ttt, mixture,
            seed=config.seed, description="score mixture",
        )  # fmt: skip
        seconds = time.perf_counter() - start_s
        say(
            f"{'mixture':>9}: {score.bpb:.4f} bpb, {facts['gain_bpb']:.4f} less than "
            f"{mixture.base} alone ({units.duration(seconds)})"
        )
        account = {**dataclasses.asdict(score), "seconds": seconds}
        return {**account, "file_digest": artifact_digest, **facts}

    def published() -> dict[str, Any]:
        start_s = time.perf_counter()
        found = evaluate_published(
            load_model(), tokenizer, text, config.score, config.ttt, mixture, seed=config.seed
        )
        assert found.sums is not None
        say(
            f"published: {found.bpb:.4f} on {found.coverage:.1%} of the tokens, {LABEL}: prices of "
            f"the vocabulary sum to {found.sums.mean:.3f}; the gate fired on "
            f"{found.gate_share:.1%} of the bytes"
        )
        facts = {**published_facts(found), "label": LABEL, "base": mixture.base}
        return {**facts, "seconds": time.perf_counter() - start_s, "file_digest": artifact_digest}

    for stage, wanted, work in (
        (MIXTURE, bool(mixture.experts), mixed),
        (PUBLISHED, mixture.published, published),
    ):
        if wanted:
            folder.stage(stage, key_of(stage, shared), [], work, say)
        else:
            folder.forget(stage)
