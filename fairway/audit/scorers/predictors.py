"""Fairway's own evaluations as scorers for an audit: all that keep a ledger.

The audit runs the evaluation itself, not a copy of it. A witness of the ledger receives every cost
when it is committed, in the order of the account. It receives the rows that it asked for before
their targets are shown.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np

from fairway.base.arrays import FloatArray, IntArray
from fairway.config.checks import lora_chunks
from fairway.config.settings import MixtureConfig, ScoreConfig, TttConfig
from fairway.data.tokens import Tokenizer
from fairway.model.gpt import GPT
from fairway.model.modes import restore
from fairway.score.evaluation import Evaluation
from fairway.score.experts.evaluate import evaluate_mixture
from fairway.score.ledger import Text, Witness
from fairway.score.predictor import Receipt
from fairway.score.sliding import ROW_TOLERANCE_NATS
from fairway.score.ways import evaluate

# Scores a text from a fresh state and passes every cost to the witness.
Evaluate = Callable[[Text, Witness], object]


class _Enough(Exception):  # noqa: N818 - no error: the wanted costs have arrived
    """Ends an evaluation early."""


class _Costs(Witness):
    """Collects costs, and stops the evaluation after `count` of them or at index `until`."""

    def __init__(self, count: int | None, until: int) -> None:
        self._count, self._until = count, until
        self.found: list[tuple[int, float]] = []

    def scored(self, receipt: Receipt) -> None:
        """Record the costs of an event; position p predicts token p + 1."""
        positions = (receipt.event.positions + 1).tolist()
        self.found += zip(positions, receipt.nats.tolist(), strict=True)
        many = self._count is not None and len(self.found) >= self._count
        if many or self._until in positions:
            raise _Enough


class _Row(Witness):
    """Takes the distribution of one position, then stops the evaluation."""

    def __init__(self, position: int) -> None:
        self.wanted, self.found = (position,), np.empty(0)

    def row(self, position: int, row: FloatArray) -> None:
        """Record the row, before its target is shown to anyone."""
        self.found = row
        raise _Enough


class LedgerScorer:
    """A scorer that runs an evaluation with a ledger."""

    def __init__(
        self, vocab_size: int, evaluation: Evaluate, row_tolerance_nats: float = 1e-6
    ) -> None:
        self.vocab_size, self.row_tolerance_nats = vocab_size, row_tolerance_nats
        self._evaluation = evaluation

    def score(self, ids: IntArray) -> Iterable[tuple[int, float]]:
        """Evaluate a text and return its costs in the order of the account."""
        return self.score_part(ids, None, -1)

    def score_part(
        self, ids: IntArray, count: int | None, until: int
    ) -> Iterable[tuple[int, float]]:
        """Return the first costs only, and leave the rest of the text unscored."""
        witness = _Costs(count, until)
        self._run(ids, witness)
        return witness.found

    def row(self, ids: IntArray, index: int) -> FloatArray:
        """Return the distribution by which a token was scored."""
        witness = _Row(index - 1)
        self._run(ids, witness)
        return witness.found

    def _run(self, ids: IntArray, witness: Witness) -> None:
        # Byte counts do not matter here: every token counts as one byte.
        ones = np.ones(len(ids) - 1, np.int64)
        try:
            self._evaluation(Text(ids, ones, len(ones), self.vocab_size), witness)
        except _Enough:
            return


def small(score: ScoreConfig, ttt: TttConfig, tokens: int) -> tuple[ScoreConfig, TttConfig]:
    """Return the same evaluation with windows and chunks so small that the text holds three.

    All code paths stay in use: overlapping windows, and several chunks learned in turn.
    """
    seq_len = min(score.seq_len, max(8, tokens // 3 // 8 * 8))
    stride = next(s for s in (score.stride, seq_len // 4) if seq_len % s == 0 and s <= seq_len)
    sizes = ttt.lora_chunks
    if max(size for size, _ in lora_chunks(ttt)) > seq_len:
        sizes = str(seq_len // 2)
    # Phases come between batches, and so short a text has few documents.
    documents = 1 if ttt.lora_phases else ttt.lora_documents
    return (
        replace(score, seq_len=seq_len, stride=stride, truncate=False, check_positions=0),
        replace(ttt, chunk_tokens=seq_len, lora_chunks=sizes, lora_documents=documents),
    )


def scorer_of(
    model: GPT,
    method: str,
    score: ScoreConfig,
    ttt: TttConfig,
    seed: int,
    experts: tuple[Tokenizer, MixtureConfig] | None = None,
) -> LedgerScorer:
    """Return a model under an evaluation ('sliding', 'sgd' or 'lora') as a scorer.

    With `experts` it is the mixture of the experts with the model, whose method is `method`.

    Every evaluation begins with the weights that the model has at this call.
    """
    weights = [weight.detach().clone() for weight in model.parameters()]

    def evaluation(text: Text, witness: Witness) -> object:
        restore(model, weights)
        asked = Evaluation(text, score, ttt, seed, "audit", witness=witness)
        if experts is None:
            return evaluate(model, asked, method)
        tokenizer, mixture = experts
        return evaluate_mixture(model, asked, replace(mixture, base=method), tokenizer)

    tolerance_nats = ROW_TOLERANCE_NATS[model.compute_dtype]
    return LedgerScorer(model.config.vocab_size, evaluation, tolerance_nats)
