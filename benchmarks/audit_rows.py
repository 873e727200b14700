"""How far a cost in an audit is from the row that its scorer shows, by the size of the windows.

    python benchmarks/audit_rows.py ARTIFACT TOKENIZER TEXT [--form sp8192.model] [--recipe best]
        [--tokens 384 1536 8192] [--methods sliding lora]

For each length of text and each method: the audit's own settings (`predictors.small`), the largest,
median and mean difference in nats over at most 64 positions of the text, and of a repetitive one
as audits use it. At every position the text's own token is asked, and a few that seldom come, whose
logits are far below zero. It is what ROW_TOLERANCE_NATS must allow (docs/scoring.md).
"""

import argparse
from pathlib import Path

import numpy as np
from score import read_text, read_weights

from fairway.api import model_from
from fairway.audit.scorers import texts
from fairway.audit.scorers.predictors import LedgerScorer, scorer_of, small
from fairway.base.arrays import FloatArray, IntArray
from fairway.config.settings import BOS_ID, RuntimeConfig
from fairway.data.tokens import Tokenizer
from fairway.machine.plan import make_plan
from fairway.recipes import recipe

POSITIONS, CANDIDATES = 64, 2


def differences(scorer: LedgerScorer, ids: IntArray, draw: np.random.Generator) -> FloatArray:
    """Return row minus charge of the text's tokens and of drawn ones at some positions, in nats."""
    costs, off = dict(scorer.score(ids)), []
    for index in range(1, len(ids), -(-len(ids) // POSITIONS)):
        row, other = scorer.row(ids, index), ids.copy()
        off.append(-row[ids[index]] - costs[index])
        for token in draw.integers(BOS_ID + 1, scorer.vocab_size, CANDIDATES):
            other[index] = token
            charged = dict(scorer.score_part(other, None, index))[index]
            off.append(-row[token] - charged)
    return np.array(off)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("artifact", type=Path)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--form", type=Path)
    parser.add_argument("--recipe", default="best")
    parser.add_argument("--tokens", type=int, nargs="*", default=[384, 1536, 8192])
    parser.add_argument("--methods", nargs="*", default=["sliding"])
    parser.add_argument("--dtype", default="auto")
    options = parser.parse_args()
    plan, config = make_plan(RuntimeConfig(dtype=options.dtype)), recipe(options.recipe)
    plan.apply()
    print(plan.describe())
    state, shape = read_weights(options.artifact)
    model = model_from(state, shape, plan, shape.loop_extra > 0)
    tokenizer = Tokenizer.load(options.tokenizer)
    text = read_text(tokenizer, options.text, max(options.tokens), options.form)
    for count in options.tokens:
        ids = np.asarray(text.ids[:count])
        score, ttt = small(config.score, config.ttt, count)
        for method in options.methods:
            scorer = scorer_of(model, method, score, ttt, config.seed)
            draw = np.random.default_rng(0)
            words = np.arange(BOS_ID + 1, scorer.vocab_size)
            habits = texts.of_habits(ids, words, BOS_ID, draw)
            for kind, asked in (("text", ids), ("habits", habits)):
                off = differences(scorer, asked, draw)
                print(
                    f"{method}, {kind}, {count:,} tokens in windows of {score.seq_len}: "
                    f"n {len(off)}, largest {abs(off).max():.4f}, "
                    f"median {np.median(abs(off)):.4f}, mean {off.mean():+.5f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
