"""Is what `fairway plan` proposes the best of the grid around it?

    python benchmarks/plan_check.py run --documents documents.zst --out check.json
    python benchmarks/plan_check.py show check.json

For three budgets the proposal and its neighbours are trained, each by the steps that the same
seconds would allow it: a neighbour has another vocabulary, width, depth, batch, length, rate or the
recurrence, by one place of the grid. Seeds vary the initial weights. Passed is a budget whose
proposal is within 0.01 bpb of the best neighbour.
"""

import argparse
import dataclasses
import json
import os
import shlex
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from law import VOCABULARIES, facts
from trials import Trial, build_folders, run_all

from fairway.config.settings import Config, settings
from fairway.planning.cost import step_flops
from fairway.planning.grid import (
    BATCHES,
    DEPTHS,
    LENGTHS,
    WIDTHS,
    Budget,
    Fit,
    candidates,
    judged,
    shaped,
)
from fairway.planning.law import fitted_law
from fairway.planning.proposal import texts_of
from fairway.planning.speed import Speed
from fairway.recipes import recipe

# FLOPs of a training: about 40, 100 and 200 s of two old cores at this speed.
SPEED = Speed(np.array([1e-3, 1 / 1e11, 1 / 1e11]), 0.0, 0)
SECONDS = (40.0, 100.0, 200.0)
TEXTS, LAW = texts_of(None), fitted_law()
BASE = recipe("demo")
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


def around(config: Config, budget: Budget) -> Iterator[tuple[str, Config]]:
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


def trials(seeds: int, budgets: Sequence[float]) -> list[tuple[Trial, float]]:
    found: list[tuple[Trial, float]] = []
    usual = {name: value for name, _, value in settings(recipe("demo"))}
    for seconds in budgets:
        budget = Budget(seconds, 16_000_000, 40_000)
        best = candidates(BASE, budget, TEXTS, LAW, SPEED)[0]
        for name, config in [("proposal", best.config), *around(best.config, budget)]:
            text, step_s = TEXTS[config.model.vocab_size], SPEED.step_s(config)
            point = judged(config, budget, text, LAW, step_s, Fit(0.0, 0))
            if point is None:
                continue
            chosen = config if name.startswith(("rate", "proposal")) else point.config
            changed = {k: v for k, _, v in settings(chosen) if v != usual[k]}
            for seed in range(seeds + (name == "proposal")):
                trial = {
                    **changed, "seed": seed, "train.steps": point.steps, "name": name,
                    "seconds_of": seconds, "expected": point.prediction.bpb,
                }  # fmt: skip
                trial.setdefault("model.vocab_size", config.model.vocab_size)
                found.append((trial, point.steps * step_flops(config)))
    return sorted(found, key=lambda pair: -pair[1])


def show(file: Path) -> bool:
    done = [trial for trial in json.loads(file.read_text())["trials"] if "ema" in trial]
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
        best = min(means, key=lambda name: means[name])
        behind = means["proposal"] - means[best]
        passed.append(behind <= ALLOWED_BPB)
        word = "passed" if passed[-1] else "failed"
        print(
            f"{seconds:g} s: proposal {means['proposal']:.4f}, {behind:.4f} behind {best}: {word}"
        )
        for name, mean in sorted(means.items(), key=lambda pair: pair[1]):
            print(f"    {mean:.4f} (n = {len(scores[name])}) {name}")
    print(f"{sum(passed)} of {len(asked)} budgets passed")
    return bool(passed) and all(passed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    run = verbs.add_parser("run")
    run.add_argument("--documents", type=Path, required=True)
    run.add_argument("--seconds", type=float, default=400.0)
    run.add_argument("--threads", type=int, default=2)
    run.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)) // 2)
    run.add_argument("--seeds", type=int, default=2)
    run.add_argument("--budgets", type=float, nargs="+", default=SECONDS)
    run.add_argument("--out", type=Path, required=True)
    verbs.add_parser("show").add_argument("file", type=Path)
    asked = parser.parse_args()
    if asked.verb == "show":
        raise SystemExit(not show(asked.file))
    with tempfile.TemporaryDirectory() as place:
        found = trials(asked.seeds, asked.budgets)
        sizes = sorted({int(trial["model.vocab_size"]) for trial, _ in found})
        folders = build_folders(asked.documents, Path(place), sizes)
        run_all(
            found, "demo", folders, asked.processes, asked.threads, asked.seconds,
            asked.out, facts(shlex.join(sys.argv)),
        )  # fmt: skip
    show(asked.out)


if __name__ == "__main__":
    main()
