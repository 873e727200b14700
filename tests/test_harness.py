"""The adapter for lm-evaluation-harness, where that package is installed."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("lm_eval")

from fairway.harness import FairwayLM


def asked(*args: object) -> SimpleNamespace:
    return SimpleNamespace(args=args)


def test_a_tiny_task(smoke_run: Path) -> None:
    model = FairwayLM(str(smoke_run))
    context, rest = "The model learns", " a token."
    [(nats, _)] = model.loglikelihood([asked(context, rest)])
    costs = model.model.logprobs(context + rest)
    own = len(model.model.encode([context + rest])) - len(model.model.encode([context]))
    assert nats == pytest.approx(float(costs[-own:].sum()), abs=1e-3)
    assert model.loglikelihood_rolling([asked(context)]) == pytest.approx(
        [float(np.sum(model.model.logprobs(context)))]
    )
    [written] = model.generate_until([asked(context, {"until": ["."], "max_gen_toks": 5})])
    assert "." not in written
