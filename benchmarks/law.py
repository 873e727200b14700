"""The law of loss behind `fairway plan`: small trainings, and the curve through them.

    python benchmarks/law.py save runs/demo/data documents.zst       # the text, to take elsewhere
    python benchmarks/law.py grid --documents documents.zst --until-s 420 --out grid.jsonl
    python benchmarks/law.py near --documents documents.zst --until-s 540 --out near.jsonl
    python benchmarks/law.py sizes --documents documents.zst --until-s 900 --out near.jsonl
    python benchmarks/law.py gpu --data sp8192 --until-s 420 --out gpu.jsonl
    python benchmarks/law.py fit RECORD... --anchors benchmarks/studies/law_gpu.jsonl

`grid` draws settings at random (shapes, rates, batches, features) round the demo's, for several
budgets of arithmetic; each training is driven by steps, so that a busy machine changes nothing but
how many come to an end. `near` draws points of the plan's own grid for some budgets of seconds,
more often those from which the present law expects much, and varies their rates: there the law has
to rank. `sizes` trains the sizes of the demo. A call with the same `--out` goes on where the last
one ended.

`fit` writes `fairway/planning/law.json`.
"""

import argparse
import dataclasses
import datetime
import itertools
import json
import math
import os
import platform
import random
import shlex
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from trials import Trial, build_folders, run_all, save_documents

from fairway.config.overrides import override
from fairway.config.settings import Config, settings
from fairway.planning.cost import size_of, step_flops
from fairway.planning.grid import VOCABULARIES, Budget, Candidate, candidates
from fairway.planning.law import fitted_law
from fairway.planning.proposal import texts_of
from fairway.planning.speed import Speed
from fairway.recipes import recipe

LAW = Path(__file__).parents[1] / "fairway/planning/law.json"
# FLOPs of a run: 200 s of two old cores are 1.8e13, of two new ones 6e13 to 1.2e14.
BUDGETS = (3e12, 6e12, 1e13, 1.8e13, 3e13, 6e13, 1.2e14)
SHARES = (2, 3, 4, 6, 4, 3, 1)


# Seconds of a budget are those of a core of 1e11 FLOP/s.
SPEED = Speed(np.array([1e-3, 1 / 1e11, 1 / 1e11]), 0.0, 0)
NEAR_S = (10.0, 20.0, 40.0, 90.0, 200.0)
# A point whose expectation is this much behind the best is drawn 0.37 times as often.
NEAR_BPB = 0.05
# Rates are those of the law times two to a number of this deviation.
NEAR_RATES = 0.6


def drawn(rng: random.Random) -> Trial:
    """Return settings drawn at random, the number of steps left open."""
    head = rng.choice((32, 64, 64))
    dim = rng.choice([d for d in (96, 128, 160, 192, 224, 256, 320, 384) if d % head == 0])
    heads, layers = dim // head, rng.choice((2, 3, 4, 4, 5, 6, 8))
    batch = rng.choice((1024, 2048, 2048, 4096, 4096, 8192))
    length = rng.choice((128, 256, 256, 512))
    return {
        "seed": rng.randrange(1000),
        "model.vocab_size": rng.choice(VOCABULARIES),
        "model.dim": dim,
        "model.num_layers": layers,
        "model.num_heads": heads,
        "model.num_kv_heads": rng.choice((1, heads)),
        "model.mlp_dim": dim * rng.choice((2, 3, 4, 4)),
        "model.rope_dims": rng.choice((16, head)),
        "model.parallel_from": rng.choice((2, layers)),
        "model.loop_extra": rng.choice((0, 0, 0, 0, 0, 1)),
        "model.loop_first": layers // 2,
        "model.loop_last": layers // 2,
        "model.smear": rng.choice((False, True)),
        "model.gate_features": rng.choice((0, 12)),
        "model.rope_train_len": length,
        "optim.matrix_lr": round(0.05 * 2 ** rng.uniform(-1.0, 1.2), 4),
        "optim.embed_lr": round(0.05 * 2 ** rng.uniform(-1.2, 1.2), 4),
        "optim.scalar_lr": round(0.04 * 2 ** rng.uniform(-1.0, 1.0), 4),
        "optim.matrix_wd": rng.choice((0.0, 0.05, 0.095, 0.2)),
        "optim.momentum": rng.choice((0.85, 0.9, 0.95)),
        "optim.momentum_warmup_steps": rng.choice((50, 200)),
        "optim.beta2": rng.choice((0.95, 0.99)),
        "optim.grad_clip": rng.choice((0.0, 0.3, 1.0)),
        "optim.warmdown_share": rng.choice((0.5, 0.72, 1.0)),
        "optim.ema_share": rng.choice((0.01, 0.02, 0.04)),
        "train.seq_len": length,
        "train.batch_tokens": batch,
        "train.micro_tokens": min(batch, 4096),
        "score.seq_len": length,
    }


def with_steps(trial: Trial, budget: float, scale: float = 1.0) -> tuple[Trial, float] | None:
    """Return a trial with the steps that a budget allows; None where that is a foolish run."""
    config = override(recipe("demo"), [f"{k}={v}" for k, v in trial.items()])
    steps = round(budget / step_flops(config))
    if scale < 1.0:
        return {**trial, "train.steps": max(2, round(scale * steps))}, scale * budget
    tokens = steps * config.train.batch_tokens
    share = tokens / size_of(config.model, config.train.seq_len).parameters
    if not (80 <= steps <= 6000 and 0.25 <= share <= 25):
        return None
    return {**trial, "train.steps": steps}, budget


def cpu_grid(count: int, seed: int, only: str, scale: float) -> list[tuple[Trial, float]]:
    """Return so many trials at random, and the demo's own settings first."""
    rng = random.Random(seed)
    found: list[tuple[Trial, float]] = []
    while len(found) < count:
        trial = drawn(rng) | dict(pair.split("=", 1) for pair in only.split())
        budget = rng.choices(BUDGETS, SHARES)[0]
        if made := with_steps(trial, budget, scale):
            found.append(made)
    demo = {"model.vocab_size": 2048}
    first = [with_steps(demo | {"seed": n}, BUDGETS[3], scale) for n in (42, 7)]
    return [*filter(None, first), *found]


RECORDED = (*drawn(random.Random(0)), "score.stride")


def trial_of(point: Candidate, name: str, seconds: float, seed: int) -> tuple[Trial, float]:
    """Return the trial of a point of a plan's grid, and its cost: FLOPs of a width of 128."""
    config = point.config
    trial = {key: value for key, _, value in settings(config) if key in RECORDED}
    trial |= {
        "seed": seed, "train.steps": point.steps, "name": name, "seconds_of": seconds,
        "expected": round(point.prediction.bpb, 5),
    }  # fmt: skip
    # Wider products run faster: by the 0.75th power on the machine of `law_cpu.jsonl`.
    return trial, point.steps * step_flops(config) * (128 / config.model.dim) ** 0.75


def budget_of(seconds: float) -> Budget:
    return Budget(seconds, 16_000_000, 40_000)


def varied(rng: random.Random, point: Candidate) -> Candidate:
    optim = point.config.optim
    rates = {
        name: round(getattr(optim, name) * 2 ** rng.gauss(0.0, NEAR_RATES), 4)
        for name in ("matrix_lr", "embed_lr")
    }
    config: Config = dataclasses.replace(point.config, optim=dataclasses.replace(optim, **rates))
    return dataclasses.replace(point, config=config)


def near_grid(budgets: list[float], rounds: int, seed: int) -> list[tuple[Trial, float]]:
    """Return rounds of trials near the present proposals, in each the dearest first.

    The first round has the proposals themselves too, with three seeds.
    """
    rng, found = random.Random(seed), []
    base, law = recipe("demo"), fitted_law()
    texts = texts_of(None, base.data.case_ops)
    grids = {s: candidates(base, budget_of(s), texts, law, SPEED) for s in budgets}
    for number in range(rounds):
        part = []
        for seconds, points in grids.items():
            least = points[0].prediction.bpb
            weights = [math.exp((least - point.prediction.bpb) / NEAR_BPB) for point in points]
            if not number:
                part += [trial_of(points[0], "proposal", seconds, n) for n in range(3)]
            for point in rng.choices(points, weights, k=round(90 / seconds**0.3)):
                part.append(trial_of(varied(rng, point), "near", seconds, rng.randrange(1000)))
        found += sorted(part, key=lambda pair: -pair[1])
    return found


# Steps that the sizes of the demo make in 192 s on slow, fast and faster cores, and between.
SIZES = {"demo_small": (854, 1200, 1811, 3416), "demo_wide": (228, 561, 1025)}


def sizes_grid(seeds: list[int], chosen: list[int]) -> list[tuple[Trial, float]]:
    """Return trials of the sizes of the demo, which its choice knows by their own runs; some
    numbers of steps, or all."""
    found = []
    for size, counts in SIZES.items():
        config = recipe(size)
        own = {key: value for key, _, value in settings(config) if key in RECORDED}
        for seed, steps in itertools.product(seeds, counts):
            if steps in chosen or not chosen:
                trial = own | {"seed": seed, "train.steps": steps, "size": size, "name": size}
                found.append((trial, steps * step_flops(config)))
    return found


# FLOPs of about 50, 75, 100 and 150 s of an H100 at 280 TFLOP/s.
GPU_BUDGETS = (1.4e16, 1.4e16, 2.1e16, 2.8e16, 4.2e16)


def gpu_grid(count: int, seed: int) -> list[tuple[Trial, float]]:
    """Return trials of the published system on one GPU: shapes, batches and rates at random."""
    rng, found = random.Random(seed), []
    for number in range(count):
        heads, layers = rng.choice((3, 4, 4, 5)), rng.choice((7, 9, 11, 11, 13))
        trial: Trial = {
            "seed": rng.randrange(1000), "data.val_tokens": 786_432,
            "model.dim": 128 * heads, "model.num_heads": heads,
            "model.num_kv_heads": heads if heads % 2 else heads // 2,
            "model.num_layers": layers, "model.mlp_dim": 128 * heads * rng.choice((3, 4, 4, 5)),
            "model.rope_dims": 32,
            "model.parallel_from": round(layers * 0.64), "model.loop_extra": 0,
            "model.loop_first": 1, "model.loop_last": 2,
            "optim.matrix_lr": round(0.022 * 2 ** rng.uniform(-0.7, 0.7), 4),
            "optim.embed_lr": round(0.03 * 2 ** rng.uniform(-0.5, 1.2), 4),
            "optim.momentum_start": 0.85, "optim.momentum": 0.95,
            "optim.momentum_warmup_steps": 300,
            "train.batch_tokens": rng.choice((49_152, 98_304, 98_304)),
            "train.micro_tokens": 49_152, "train.warmup_steps": 3,
        }  # fmt: skip
        budget = GPU_BUDGETS[number % len(GPU_BUDGETS)]
        config = override(recipe("pr1858_proxy"), [f"{k}={v}" for k, v in trial.items()])
        found.append((trial | {"train.steps": round(budget / step_flops(config))}, budget))
    return found


def facts(command: str) -> dict[str, Any]:
    import torch

    return {
        "command": command,
        "date": datetime.date.today().isoformat(),
        "cores": len(os.sched_getaffinity(0)),
        "processor": platform.machine(),
        "torch": torch.__version__,
    }


def run_here(trials: list[tuple[Trial, float]], asked: argparse.Namespace) -> None:
    """Run trials of the demo's recipe on the cores of this machine."""
    shared = dict(pair.split("=", 1) for pair in asked.only.split())
    trials = [(trial | shared, cost) for trial, cost in trials]
    sizes = sorted({int(trial["model.vocab_size"]) for trial, _ in trials})
    with tempfile.TemporaryDirectory() as place:
        folders = build_folders(asked.documents, asked.folders or Path(place), sizes)
        run_all(
            trials, "demo", folders, asked.processes, asked.threads, asked.end_s, asked.out,
            facts(shlex.join(sys.argv)),
        )  # fmt: skip


def grid(asked: argparse.Namespace) -> None:
    run_here(cpu_grid(asked.count, asked.seed, asked.only, asked.scale), asked)


def near(asked: argparse.Namespace) -> None:
    run_here(near_grid(asked.budgets, asked.rounds, asked.seed), asked)


def sizes(asked: argparse.Namespace) -> None:
    run_here(sizes_grid(asked.seeds, asked.steps), asked)


def gpu(asked: argparse.Namespace) -> None:
    import torch

    run_all(
        gpu_grid(asked.count, asked.seed), "pr1858_proxy", {8192: asked.data},
        torch.cuda.device_count(), asked.threads, asked.end_s, asked.out,
        facts(shlex.join(sys.argv)) | {"device": torch.cuda.get_device_name()}, "cuda",
    )  # fmt: skip


def fit(asked: argparse.Namespace) -> None:
    import law_fit

    command = shlex.join(["python", "benchmarks/law.py", *sys.argv[1:]])
    found = law_fit.fit(asked.trials, asked.anchors, command)
    found |= {"damage_bpb": asked.damage, "gptq_bpb": asked.gptq}
    LAW.write_text(json.dumps(found, indent=1) + "\n")


def add_running(verb: argparse.ArgumentParser) -> None:
    """Add the arguments of a command that trains on the cores of this machine."""
    verb.add_argument("--documents", type=Path, help="the text, for folders that are missing")
    verb.add_argument("--folders", type=Path, help="where data folders by vocabulary are, or go")
    verb.add_argument("--until-s", type=float, default=400.0, help="seconds of the whole command")
    verb.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    verb.add_argument("--threads", type=int, default=1)
    verb.add_argument("--only", default="", help="settings that all trials share")
    verb.add_argument("--out", type=Path, required=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    save = verbs.add_parser("save")
    save.add_argument("folder", type=Path)
    save.add_argument("out", type=Path)
    for name in ("grid", "near", "sizes", "gpu"):
        verb = verbs.add_parser(name)
        add_running(verb)
        if name == "sizes":
            verb.add_argument("--seeds", type=int, nargs="+", default=[42])
            verb.add_argument("--steps", type=int, nargs="*", default=[], help="all, if none")
            continue
        verb.add_argument("--seed", type=int, default=1)
        if name == "near":
            verb.add_argument("--budgets", type=float, nargs="+", default=NEAR_S)
            verb.add_argument("--rounds", type=int, default=4)
            continue
        verb.add_argument("--count", type=int, default=3000)
        verb.add_argument("--scale", type=float, default=1.0, help="below 1: shorter runs, a test")
        if name == "gpu":
            verb.add_argument("--data", type=Path, required=True)
    made = verbs.add_parser("fit")
    made.add_argument("trials", type=Path, nargs="+")
    made.add_argument("--anchors", type=Path, required=True)
    made.add_argument("--damage", type=float, default=0.003, help="bpb at 3.4 bits, by a trellis")
    made.add_argument("--gptq", type=float, default=0.006, help="bpb that GPTQ costs")
    return parser.parse_args()


def main() -> None:
    started_s = time.time()
    asked = parse()
    if asked.verb == "save":
        save_documents(asked.folder, asked.out)
        return
    if asked.verb != "fit":
        asked.end_s = started_s + asked.until_s
    {"grid": grid, "near": near, "sizes": sizes, "gpu": gpu, "fit": fit}[asked.verb](asked)


if __name__ == "__main__":
    main()
