"""How far a cost in an audit is from the row that its scorer shows, by the size of the windows.

    python benchmarks/audit_rows.py ARTIFACT TOKENIZER TEXT [--recipe best] [--tokens 384 1536 8192]
        [--methods sliding lora]

For each length of text and each method: the audit's own settings (`predictors.small`), the largest,
median and mean difference in nats over at most 128 positions. It is what ROW_TOLERANCE_NATS must
allow (docs/scoring.md).
"""

import argparse
from pathlib import Path

import numpy as np
from score import read_text, read_weights

from fairway.api import model_from
from fairway.audit.scorers.predictors import scorer_of, small
from fairway.config.settings import RuntimeConfig
from fairway.data.tokens import Tokenizer
from fairway.machine.plan import make_plan
from fairway.recipes import recipe

POSITIONS = 128


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("artifact", type=Path)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("text", type=Path)
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
    text = read_text(tokenizer, options.text, max(options.tokens))
    for count in options.tokens:
        ids = np.asarray(text.ids[:count])
        score, ttt = small(config.score, config.ttt, count)
        for method in options.methods:
            scorer = scorer_of(model, method, score, ttt, config.seed)
            costs, at = dict(scorer.score(ids)), range(1, count, -(-count // POSITIONS))
            off = np.array([-float(scorer.row(ids, i)[ids[i]]) - costs[i] for i in at])
            print(
                f"{method}, {count:,} tokens in windows of {score.seq_len}: n {len(off)}, largest "
                f"{abs(off).max():.4f}, median {np.median(abs(off)):.4f}, mean {off.mean():+.5f}"
            )


if __name__ == "__main__":
    main()
