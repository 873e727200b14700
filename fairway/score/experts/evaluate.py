"""Scores with experts beside the model: the valid mixture, and the published one to compare.

Experts follow the text token by token, so only one process scores, even if there are several.
"""

from dataclasses import asdict, dataclass, replace
from typing import Any, cast

import numpy as np

from fairway.base.arrays import FloatArray, IntArray
from fairway.base.units import bits_per_byte
from fairway.config.settings import MixtureConfig
from fairway.data.tokens import Tokenizer
from fairway.model.gpt import GPT
from fairway.score.evaluation import Evaluation
from fairway.score.experts.mixture import Helpers
from fairway.score.experts.published import PUBLISHED, Rule, Spread, spread
from fairway.score.experts.trie import token_strings
from fairway.score.ledger import Score
from fairway.score.predictor import Context, Distribution, Predictor, Receipt
from fairway.score.ways import evaluate

# The number of positions at which the published mixture's prices of all tokens are summed.
_SUMMED = 32


def evaluate_mixture(
    model: GPT, asked: Evaluation, mixture: MixtureConfig, tokenizer: Tokenizer
) -> tuple[Score, dict[str, Any]]:
    """Return the score of the mixture, and facts, such as the cost by the model alone with the same
    tables.

    A model that learns (`mixture.base`) changes its weights.
    """
    helpers = Helpers(tokenizer, mixture, len(asked.text.ids) - 1)
    found = evaluate(model, replace(asked, helped=helpers.beside), mixture.base)
    alone_bpb = bits_per_byte(helpers.own_nats, found.bytes)
    return found, {
        "experts": mixture.experts,
        "base": mixture.base,
        "base_bpb": alone_bpb,
        "gain_bpb": alone_bpb - found.bpb,
        "tables": helpers.room._asdict(),
    }


# ---------------------------------------------------------------------------------------------
# The published mixture


@dataclass(eq=False)
class _Notes:
    """Keeps the costs of all positions of a scorer, and some rows."""

    nats: FloatArray
    wanted: set[int]
    rows: dict[int, FloatArray]

    def beside(self, predictor: Predictor) -> Predictor:
        """Return the predictor, whose costs are noted here."""
        return _Noting(predictor, self)


class _Noting:
    def __init__(self, base: Predictor, notes: _Notes) -> None:
        self._base, self._notes = base, notes

    def predict(self, context: Context) -> "_NotedDistribution":
        """Return the prediction, and note its costs."""
        return _NotedDistribution(
            cast(Distribution, self._base.predict(context)), context, self._notes
        )

    def adapt(self, receipt: Receipt) -> None:
        """Pass on the receipt."""
        self._base.adapt(receipt)


class _NotedDistribution:
    def __init__(self, base: Distribution, context: Context, notes: _Notes) -> None:
        self._base, self._notes, self._positions = base, notes, context.event.positions

    def log_prob(self, targets: IntArray) -> FloatArray:
        """Return the base's log-probabilities, and note them."""
        found = self._base.log_prob(targets)
        self._notes.nats[self._positions] = -found
        for position in self._notes.wanted.intersection(self._positions.tolist()):
            self._notes.rows[position] = self._base.row(position)
        return found

    def row(self, position: int) -> FloatArray:
        """Return the base's log-probabilities."""
        return self._base.row(position)


def evaluate_published(
    model: GPT,
    asked: Evaluation,
    mixture: MixtureConfig,
    tokenizer: Tokenizer,
    rule: Rule = PUBLISHED,
) -> Spread:
    """Return the published mixture of the base's costs: not a distribution, and not a score."""
    text, targets = asked.text, asked.targets
    count = min(rule.tokens or targets, targets)
    drawn = np.random.default_rng(asked.seed).choice(count, min(_SUMMED, count), replace=False)
    notes = _Notes(np.zeros(targets), set(drawn.tolist()), {})
    evaluate(model, replace(asked, helped=notes.beside), mixture.base)
    strings = token_strings(tokenizer)
    after = tokenizer.table.boundary[text.ids[:count]].astype(int).tolist()
    tokens = [strings[which][token] for which, token in zip(after, text.ids[1:], strict=False)]
    rows = {position: (row, strings[after[position]]) for position, row in notes.rows.items()}
    size = int(np.sum(text.target_bytes[:count], dtype=np.int64))
    memory_bytes = mixture.memory_mb * 1_000_000
    return spread(tokens, notes.nats[:count], memory_bytes, rows, targets, size, rule)


def published_facts(found: Spread) -> dict[str, Any]:
    """Return the published mixture's figures for results.json."""
    return asdict(found)
