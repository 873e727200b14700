"""Mixtures with experts under audit: Fairway's are valid, the published one is not."""

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from audit.honest import PIECES, Charges, Ids, V, frozen, nats, text
from tiny import TINY, alive, tuned

from fairway.audit.scorers.bench import Bench, exercise
from fairway.audit.scorers.predictors import scorer_of, small
from fairway.audit.scorers.probes import audit_scorer
from fairway.audit.scorers.verdicts import Probe, verdict_of
from fairway.config.settings import BOS_ID, MixtureConfig, ScoreConfig, TttConfig
from fairway.data.folder import DataFolder
from fairway.score.experts.published import Rule, spread


class Published:
    """`fairway.score.experts.published` as a scorer: a token costs what it adds to the whole."""

    vocab_size = V

    def __init__(self, hijack: float) -> None:
        self.rule = Rule(order=2, hijack=hijack)

    def score(self, ids: Ids) -> Charges:
        model, before = frozen(), 0.0
        costs = np.array([nats(model.row(a)[b]) for a, b in itertools.pairwise(ids)])
        strings = [(PIECES[token] or "\0").encode() for token in ids[1:]]
        for t in range(1, len(ids)):
            found = spread(strings[:t], costs[:t], 8_000_000, {}, t, 1, self.rule)
            total = found.bpb * math.log(2.0)
            yield t, total - before
            before = total


@pytest.mark.long
@pytest.mark.parametrize("hijack", [0.0, 0.277])
def test_the_published_mixture_and_its_gate_are_no_distribution(hijack: float) -> None:
    found = {p.name: p for p in audit_scorer(Bench(Published(hijack), text(0, 13), 0, 0.0))}
    assert found["P1 substitution"].verdict == "invalid"
    assert "more than one" in found["P1 substitution"].why
    # It is causal: that is not what is wrong with it.
    assert found["P3 future flip"].verdict == found["coverage"].verdict == "valid"


ALL = "ppm match tilt"
# A probe asks about a hundred times, each time about a text of so many tokens.
TOKENS = 32


def probed(experts: str, base: str, seed: int, data: DataFolder) -> list[Probe]:
    """Audit a mixture; the seed draws model, text and places, and chooses among settings."""
    model = alive(replace(TINY, vocab_size=data.tokenizer.vocab_size), seed)
    draw = np.random.default_rng(seed)
    written = data.sample_validation(0, 0).ids
    first = int(draw.integers(len(written) - TOKENS))
    # Text, whose words experts know again, or tokens that nobody can know.
    ids = (
        written[first : first + TOKENS]
        if seed % 2
        else draw.integers(4, model.config.vocab_size, TOKENS)
    )
    ids = np.where(np.arange(TOKENS) % 13 == 0, BOS_ID, ids)
    score, ttt = small(
        ScoreConfig(seq_len=16, stride=8, batch_windows=2),
        TttConfig(epochs=1, lora_rank=2, lora_chunks="8", lora_documents=2),
        len(ids),
    )
    mixture = MixtureConfig(experts=experts, variant="AB"[seed // 2 % 2], memory_mb=8)
    scorer = scorer_of(model, base, score, ttt, seed, (data.tokenizer, mixture))
    with tuned({
        "order": seed % 6, "switch": (0.002, 1.0)[seed % 3 == 2],
        "escapes": "DC"[seed // 4 % 2], "exclusion": seed % 5 > 0,
        "tilt_bits": 10, "match_min": 4,
    }):  # fmt: skip
        return audit_scorer(Bench(scorer, exercise(ids, TOKENS), seed, 0.0))


def slow(*values: object) -> Any:
    return pytest.param(*values, marks=pytest.mark.slow)


# Beside the frozen model, and all repetitions with `make test-slow`.
REPEATED = [
    ("ppm", "sliding", 1),
    *itertools.product((ALL, "tilt"), ["sliding"], range(2)),
    ("match", "sliding", 1),
    *(slow(experts, "sliding", 0) for experts in ("ppm", "match")),
    *(
        slow(*c)
        for c in itertools.product(("ppm", "match", "tilt", ALL), ["sliding"], range(2, 20))
    ),
    *(slow(*c) for c in itertools.product([ALL], ["sgd", "lora"], range(20))),
]


@pytest.mark.parametrize(("experts", "base", "seed"), REPEATED)
def test_fairways_mixtures_are_valid_every_time(
    experts: str, base: str, seed: int, data_folder: Path
) -> None:
    found = probed(experts, base, seed, DataFolder.open(data_folder))
    assert verdict_of(found) == "valid", [p for p in found if p.verdict != "valid"]
