"""Mixtures with experts under audit: Fairway's are valid, the published one is not."""

import itertools
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from audit.honest import PIECES, Charges, Ids, V, frozen, nats, text
from tiny import TINY, alive

from fairway.audit.bench import Bench, exercise
from fairway.audit.predictors import scorer_of, small
from fairway.audit.probes import audit_scorer
from fairway.audit.verdicts import verdict_of
from fairway.config import BOS_ID, MixtureConfig, ScoreConfig, TttConfig
from fairway.data.folder import DataFolder
from fairway.score.spread import spread


class Published:
    """`fairway.score.spread` as a scorer: a token costs what it adds to the whole."""

    vocab_size = V

    def __init__(self, hijack: float) -> None:
        self.config = MixtureConfig(published_order=2, published_hijack=hijack, memory_mb=8)

    def score(self, ids: Ids) -> Charges:
        model, before = frozen(), 0.0
        costs = np.array([nats(model.row(a)[b]) for a, b in itertools.pairwise(ids)])
        strings = [(PIECES[token] or "\0").encode() for token in ids[1:]]
        for t in range(1, len(ids)):
            found = spread(strings[:t], costs[:t], self.config, {}, t, 1)
            total = found.bpb * math.log(2.0)
            yield t, total - before
            before = total


@pytest.mark.parametrize("hijack", [0.0, 0.277])
def test_the_published_mixture_and_its_gate_are_no_distribution(hijack: float) -> None:
    found = {p.name: p for p in audit_scorer(Bench(Published(hijack), text(0, 25), 0, 0.0))}
    assert found["P1 substitution"].verdict == "invalid"
    assert "more than there is to give away" in found["P1 substitution"].why
    # It is causal: that is not what is wrong with it.
    assert found["P3 future flip"].verdict == found["coverage"].verdict == "valid"


@pytest.mark.parametrize(
    ("experts", "base"),
    [
        ("ppm match tilt", "sliding"),
        pytest.param("tilt", "sgd", marks=pytest.mark.slow),
        pytest.param("ppm", "lora", marks=pytest.mark.slow),
    ],
)
def test_fairways_mixtures_are_valid(experts: str, base: str, data_folder: Path) -> None:
    tokenizer = DataFolder.open(data_folder).tokenizer
    model = alive(replace(TINY, vocab_size=tokenizer.vocab_size))
    draw = np.random.default_rng(1)
    ids = draw.integers(4, tokenizer.vocab_size, 48)
    ids[::13] = BOS_ID
    score, ttt = small(
        ScoreConfig(seq_len=16, stride=8, batch_windows=2),
        TttConfig(epochs=1, lora_rank=2, lora_chunks="8", lora_documents=2),
        len(ids),
    )
    mixture = MixtureConfig(experts=experts, order=2, memory_mb=8, tilt_bits=10, match_min=4)
    scorer = scorer_of(model, base, score, ttt, 0, (tokenizer, mixture))
    found = audit_scorer(Bench(scorer, exercise(ids, 48), 0, 0.0))
    assert verdict_of(found) == "valid", [p for p in found if p.verdict != "valid"]
