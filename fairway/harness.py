"""An artifact as a model of lm-evaluation-harness: `python -m fairway.harness --model fairway ...`.

Needs the package lm_eval (the extra `harness`), which nothing else imports. The arguments are those
of lm_eval's own command; `--model_args path=runs/demo` names an artifact or a run.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from lm_eval.__main__ import cli_evaluate
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model

from fairway.api import LanguageModel, load

# A continuation of more tokens than this is not asked for by any task known here.
MOST_TOKENS = 256


@register_model("fairway")
class FairwayLM(LM):  # type: ignore[misc]
    """The three questions of the harness, answered by an artifact one at a time."""

    def __init__(self, path: str, **unused: Any) -> None:
        super().__init__()
        self.model: LanguageModel = load(path)

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Return (nats, whether greedy decoding gives it) of each (context, continuation)."""
        return [self._continued(*request.args) for request in requests]

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        """Return the log-probability in nats of each whole text under a sliding window."""
        return [float(self.model.logprobs(request.args[0]).sum()) for request in requests]

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Return greedy continuations, each up to the first of its stop words."""
        return [self._written(*request.args) for request in requests]

    @torch.no_grad()
    def _continued(self, context: str, continuation: str) -> tuple[float, bool]:
        own = self.model
        ids = own.encode([context + continuation]).astype(np.int64)
        # The tokens that reach beyond the context, however they straddle its end.
        start = 1 if not context else len(own.encode([context]))
        start = min(start, len(ids) - 1)
        window = ids[-own.score_config.seq_len - 1 :]
        first = start - (len(ids) - len(window))
        states = own.model.hidden(torch.from_numpy(window[None, :-1]))
        rows = own.model.logits(states[0, max(0, first - 1) :]).log_softmax(-1)
        targets = torch.from_numpy(window[max(1, first) :])
        nats = rows.gather(1, targets[:, None]).sum()
        return float(nats), bool((rows.argmax(1) == targets).all())

    def _written(self, context: str, options: dict[str, Any]) -> str:
        most = int(options.get("max_gen_toks", MOST_TOKENS))
        text = self.model.generate(context, max_tokens=most, temperature=0.0)
        for stop in options.get("until", []):
            text = text.split(stop)[0]
        return text


if __name__ == "__main__":
    cli_evaluate()
