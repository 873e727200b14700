"""The cost of each token of a text, and the likeliest tokens, in the windows of a score.

The ledger commits these costs, so they add up exactly to the score.

Shapes: N targets of the text, K alternatives, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fairway.base.arrays import FloatArray, IntArray
from fairway.base.units import bits_per_byte, nats_to_bits
from fairway.data.spans import token_ends, token_name
from fairway.data.tokens import Tokenizer
from fairway.model.gpt import GPT
from fairway.score.evaluation import Evaluation
from fairway.score.ledger import Score
from fairway.score.predictor import Context, Receipt
from fairway.score.sliding import FrozenDistribution, FrozenPredictor, evaluate_windows
from fairway.score.windows import sliding_windows

# Tables are formed for this many positions at a time: 1,024 x 8,192 in float64 is 67 MB.
_ROWS_AT_ONCE = 1024


@dataclass(frozen=True, slots=True, eq=False)
class Costs:
    """The tokens of a text and the cost of each.

    `ids` (N + 1) begins with BOS; entry i of the others belongs to ids[i + 1]: its cost in nats,
    its rank among all tokens (1 is the likeliest), and the K likeliest tokens with their costs.
    """

    score: Score
    ids: IntArray
    nats: FloatArray
    ranks: IntArray
    likeliest: IntArray
    likeliest_nats: FloatArray


class _Recorder(FrozenPredictor):
    """A frozen model that keeps the costs of the ledger's receipts, and the likeliest tokens."""

    def __init__(self, model: GPT, seq_len: int, alternatives: int) -> None:
        super().__init__(model, seq_len)
        self._alternatives = alternatives
        self._predicted: FrozenDistribution | None = None
        self.nats: list[FloatArray] = []
        self.ranks: list[IntArray] = []
        self.likeliest: list[IntArray] = []
        self.likeliest_nats: list[FloatArray] = []

    def predict(self, context: Context) -> FrozenDistribution:
        """Return the distributions of an event's scored positions."""
        self._predicted = super().predict(context)
        return self._predicted

    def adapt(self, receipt: Receipt) -> None:
        """Keep the costs; learn nothing."""
        self.nats.append(receipt.nats)
        for first in range(0, len(receipt.targets) if self._alternatives else 0, _ROWS_AT_ONCE):
            self._look(first, receipt.targets[first : first + _ROWS_AT_ONCE])

    def _look(self, first: int, targets: IntArray) -> None:
        assert self._predicted is not None
        rows_NV = self._predicted.tables(first, first + len(targets))
        targets_N = torch.tensor(targets, device=rows_NV.device)
        ranks_N = 1 + (rows_NV > rows_NV.gather(1, targets_N[:, None])).sum(1)
        values_NK, choices_NK = rows_NV.topk(self._alternatives)
        self.ranks.append(ranks_N.cpu().numpy())
        self.likeliest.append(choices_NK.cpu().numpy())
        self.likeliest_nats.append(-values_NK.cpu().numpy())


def costs_of(model: GPT, asked: Evaluation, alternatives: int) -> Costs:
    """Return the cost of each token of a text by a frozen model under the sliding window of a
    score.

    Without `alternatives`, ranks and likeliest tokens are empty. Raises the same errors as
    `evaluate_frozen`.
    """
    config = asked.score
    alternatives = min(alternatives, model.config.vocab_size)
    recorder = _Recorder(model, config.seq_len, alternatives)
    score = evaluate_windows(
        recorder, asked, lambda: sliding_windows(asked.targets, config.seq_len, config.stride)
    )
    return Costs(
        score,
        np.asarray(asked.text.ids, np.int64),
        np.concatenate(recorder.nats),
        np.concatenate([np.zeros(0, np.int64), *recorder.ranks]),
        np.concatenate([np.zeros((0, alternatives), np.int64), *recorder.likeliest]),
        np.concatenate([np.zeros((0, alternatives)), *recorder.likeliest_nats]),
    )


def priced(
    text: str, ids: IntArray, nats_N: FloatArray, total: tuple[float, int], tokenizer: Tokenizer
) -> dict[str, Any]:
    """Return the part of `document_costs` that needs no model.

    `ids` begin with BOS; `total` is the sum in nats and the bytes of the text.
    """
    return {
        "text": text,
        "bpb": bits_per_byte(*total),
        "total_bits": nats_to_bits(total[0]),
        "tokens": len(nats_N),
        "bytes": total[1],
        "names": [token_name(tokenizer, token) for token in ids[1:].tolist()],
        "ends": token_ends(ids, tokenizer).tolist(),
        "bits": [nats_to_bits(nats) for nats in nats_N.tolist()],
    }


def document_costs(text: str, costs: Costs, tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the costs of a document, ready for JSON and for the pages that show them.

    `bits`, `ranks`, `ends` (the byte of the text at which a token ends) and `names` have an entry
    per token, `likeliest` a list of [name, bits] per token, rounded to 1e-4 bits. `total_bits` is
    that of the ledger.
    """
    score = costs.score
    names = [token_name(tokenizer, token) for token in range(tokenizer.vocab_size)]
    return priced(text, costs.ids, costs.nats, (score.nats, score.bytes), tokenizer) | {
        "ranks": costs.ranks.tolist(),
        "likeliest": [
            [[names[token], round(nats_to_bits(nats), 4)] for token, nats in zip(*row, strict=True)]
            for row in zip(costs.likeliest.tolist(), costs.likeliest_nats.tolist(), strict=True)
        ],
    }
