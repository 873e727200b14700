import math
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from fairway.api import LanguageModel, load
from fairway.base.errors import UserError
from fairway.config.settings import RuntimeConfig
from fairway.score.costs import document_costs

RUNTIME = RuntimeConfig(threads=1, dtype="float32", matmul="highest")


@pytest.fixture(scope="module")
def model(smoke_run: Path) -> LanguageModel:
    return load(smoke_run, runtime=RUNTIME)


@pytest.mark.parametrize("text", ["The model.", " ", "\U0001f389\x00\r\n", "the token is " * 40])
def test_costs_add_up_to_the_score_to_the_bit(model: LanguageModel, text: str) -> None:
    costs = model.costs(text)
    assert asdict(costs.score) == asdict(model.score(text))
    assert math.fsum(costs.nats) == pytest.approx(costs.score.nats, rel=1e-12)
    assert costs.nats.tolist() == (-model.logprobs(text)).tolist()
    shown = document_costs(text, costs, model.tokenizer)
    assert math.fsum(shown["bits"]) / shown["bytes"] == pytest.approx(model.bits_per_byte(text))
    assert len(shown["names"]) == len(shown["ends"]) == len(shown["likeliest"]) == shown["tokens"]


def test_ranks_and_likeliest_tokens_are_those_of_the_distribution(model: LanguageModel) -> None:
    text = "The model predicts a small token."
    costs = model.costs(text, alternatives=400)
    tables = costs.likeliest_nats
    assert tables.shape == (len(costs.nats), 300), "no more alternatives than tokens"
    assert np.exp(-tables).sum(1) == pytest.approx(1.0)
    assert (np.diff(tables) >= 0).all()
    for place, token in enumerate(costs.ids[1:]):
        at = costs.likeliest[place].tolist().index(token)
        assert tables[place, at] == pytest.approx(costs.nats[place], abs=1e-5)
        assert tables[place, costs.ranks[place] - 1] == tables[place, at]
    few = model.costs(text, alternatives=5)
    assert few.likeliest.tolist() == costs.likeliest[:, :5].tolist()


def test_no_costs_of_nothing(model: LanguageModel) -> None:
    with pytest.raises(UserError, match="the text is empty"):
        model.costs("")
