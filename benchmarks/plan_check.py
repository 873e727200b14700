"""Is what `fairway plan` proposes the best of the grid around it?

    python benchmarks/plan_check.py run --documents documents.zst --out check.jsonl
    python benchmarks/plan_check.py show check.jsonl

For three budgets the proposal and its neighbours are trained, each by the steps that the same
seconds would allow it: a neighbour has another vocabulary, width, depth, batch, length, rate or the
recurrence, by one place of the grid. Seeds vary the initial weights. Passed is a budget whose
proposal is within 0.01 bpb of the best neighbour.
"""

import argparse
import dataclasses
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from law import SPEED, VOCABULARIES, add_running, budget_of, run_here, trial_of
from trials import Trial, read_rows

from fairway.config.settings import Config
from fairway.planning.grid import (
    BATCHES,
    DEPTHS,
    LENGTHS,
    WIDTHS,
    Fit,
    candidates,
    judged,
    shaped,
)
from fairway.planning.law import fitted_law
from fairway.planning.proposal import texts_of
from fairway.recipes import recipe

# Seconds of a core of 1e11 FLOP/s, and seeds of every neighbour: a short training varies more.
SECONDS, SEEDS = (20.0, 60.0, 150.0), (8, 6, 4)
BASE, LAW = recipe("demo"), fitted_law()
TEXTS = texts_of(None, BASE.data.case_ops)
ALLOWED_BPB = 0.01
AXES = {
    "vocabulary": VOCABULARIES, "width": WIDTHS, "depth": DEPTHS, "batch": BATCHES,
    "length": LENGTHS, "loops": (0, 1),
}  # fmt: skip


def places(config: Config) -> dict[str, int]:
    model, train = config.model, config.train
    return {
        "vocabulary": model.vocab_size, "width": model.dim, "depth": model.num_layers,
        "batch": train.batch_tokens, "length": train.seq_len, "loops": model.loop_extra,
    }  # fmt: skip


def around(config: Config) -> Iterator[tuple[str, Config]]:
    """Yield the neighbours of a proposal, by what is different."""
    own = places(config)
    for axis, values in AXES.items():
        at = values.index(own[axis])
        for near in (at - 1, at + 1):
            if 0 <= near < len(values):
                given = own | {axis: values[near]}
                yield f"{axis} {values[near]}", shaped(BASE, *given.values())
    for factor in (0.6, 1.6):
        optim = dataclasses.replace(config.optim, matrix_lr=config.optim.matrix_lr * factor)
        yield f"rate x {factor}", dataclasses.replace(config, optim=optim)


def trials(seeds: Sequence[int], budgets: Sequence[float]) -> list[tuple[Trial, float]]:
    """Return the trials of all budgets in rounds of a seed, in each the dearest first."""
    found: list[tuple[int, Trial, float]] = []
    for seconds, count in zip(budgets, seeds, strict=True):
        budget = budget_of(seconds)
        best = candidates(BASE, budget, TEXTS, LAW, SPEED)[0]
        for name, config in [("proposal", best.config), *around(best.config)]:
            text, step_s = TEXTS[config.model.vocab_size], SPEED.step_s(config)
            point = judged(config, budget, text, LAW, step_s, Fit(0.0, 0))
            if point is None:
                continue
            if name.startswith("rate"):
                point = dataclasses.replace(point, config=config)
            found += [(n, *trial_of(point, name, seconds, n)) for n in range(count)]
    found.sort(key=lambda item: (item[0], -item[2]))
    return [(trial, cost) for _, trial, cost in found]


def show(file: Path) -> bool:
    done = read_rows(file)[1]
    passed = []
    asked = sorted({trial["seconds_of"] for trial in done})
    for seconds in asked:
        scores: dict[str, list[float]] = {}
        for trial in done:
            if trial["seconds_of"] == seconds:
                scores.setdefault(trial["name"], []).append(trial["ema"])
        means = {name: statistics.fmean(values) for name, values in scores.items()}
        if "proposal" not in means or len(means) < 2:
            print(f"{seconds:g} s: too few trials came to an end")
            passed.append(False)
            continue
        own = [statistics.variance(values) for values in scores.values() if len(values) > 1]
        seed_bpb = statistics.fmean(own) ** 0.5 if own else float("nan")
        best = min(means, key=lambda name: means[name])
        behind = means["proposal"] - means[best]
        passed.append(behind <= ALLOWED_BPB)
        word = "passed" if passed[-1] else "failed"
        print(
            f"{seconds:g} s: proposal {means['proposal']:.4f}, {behind:.4f} behind {best}: {word}; "
            f"two runs of a setting deviate by {seed_bpb:.4f} each"
        )
        for name, mean in sorted(means.items(), key=lambda pair: pair[1]):
            print(f"    {mean:.4f} (n = {len(scores[name])}) {name}")
    print(f"{sum(passed)} of {len(asked)} budgets passed")
    return bool(passed) and all(passed)


def main() -> None:
    started_s = time.time()
    parser = argparse.ArgumentParser(description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    run = verbs.add_parser("run")
    add_running(run)
    run.add_argument("--budgets", type=float, nargs="+", default=SECONDS)
    run.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="one number a budget")
    verbs.add_parser("show").add_argument("file", type=Path)
    asked = parser.parse_args()
    if asked.verb == "show":
        raise SystemExit(not show(asked.file))
    if len(asked.seeds) != len(asked.budgets):
        parser.error(f"{len(asked.budgets)} budgets need as many numbers of seeds")
    asked.end_s = started_s + asked.until_s
    run_here(trials(asked.seeds, asked.budgets), asked)
    show(asked.out)


if __name__ == "__main__":
    main()
