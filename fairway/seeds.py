"""Several seeds of one recipe: run or resumed, one after another or side by side, and their spread.

Every seed is a process of its own, so that one that fails takes none with it; what it says goes
into a log beside its folder. A failed seed is reported and counts: it is never left out.
"""

import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from fairway.errors import UserError
from fairway.files import read_json, write_json
from fairway.stages import RunFolder
from fairway.steps import Say
from fairway.train import CHECKPOINT

SUMMARY, SCHEMA = "seeds.json", 1


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run: a recipe with its overrides, and the seeds; how many at once, on how many GPUs.

    `processes` is the number of processes per seed, one GPU each.
    """

    recipe: str
    overrides: tuple[str, ...]
    seeds: tuple[int, ...]
    at_once: int = 1
    processes: int = 1


def seed_folder(out: Path, seed: int) -> Path:
    """Return the run folder of a seed."""
    return out / f"seed-{seed}"


def run_seeds(plan: Plan, out: Path, say: Say) -> dict[str, Any]:
    """Run all seeds and return their summary, which is also written to `seeds.json`.

    Raises UserError for seeds that are not distinct; a seed that fails is in the summary.
    """
    if not plan.seeds or len(set(plan.seeds)) < len(plan.seeds):
        raise UserError(f"seeds {', '.join(map(str, plan.seeds)) or '(none)'}: name each once")
    out.mkdir(parents=True, exist_ok=True)
    slots: SimpleQueue[int] = SimpleQueue()
    for slot in range(plan.at_once):
        slots.put(slot)

    def work(seed: int) -> str:
        slot = slots.get()
        try:
            say(f"seed {seed}: running, log in {_log(out, seed).name}")
            return _run(plan, seed, out, slot)
        finally:
            slots.put(slot)

    with ThreadPoolExecutor(plan.at_once) as pool:
        failures = dict(zip(plan.seeds, pool.map(work, plan.seeds), strict=True))
    summary = summarise(out, plan.seeds, failures)
    write_json(out / SUMMARY, summary)
    return summary


def _log(out: Path, seed: int) -> Path:
    return out / f"seed-{seed}.log"


def _run(plan: Plan, seed: int, out: Path, slot: int) -> str:
    """Run one seed, or go on with it; return what it failed of, or nothing."""
    folder = seed_folder(out, seed)
    command = ["run", plan.recipe, "--out", str(folder)]
    for text in (*plan.overrides, f"seed={seed}"):
        command += ["--set", text]
    if (folder / CHECKPOINT).exists():
        command.append("--resume")
    start = [sys.executable]
    environment = dict(os.environ)
    if plan.processes > 1:
        start += ["-m", "torch.distributed.run", "--standalone"]
        start.append(f"--nproc-per-node={plan.processes}")
    if plan.at_once > 1:
        first = slot * plan.processes
        visible = [str(gpu) for gpu in range(first, first + plan.processes)]
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(visible)
    with _log(out, seed).open("ab") as log:
        ended = subprocess.run(
            [*start, "-m", "fairway.cli", *command],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            check=False,
        )
    if ended.returncode == 0:
        return ""
    lines = _log(out, seed).read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else f"exit code {ended.returncode}"


def summarise(out: Path, seeds: tuple[int, ...], failures: dict[int, str]) -> dict[str, Any]:
    """Return every seed's figures, or what it failed of; means, spreads and worst cases."""
    runs: dict[str, dict[str, Any]] = {}
    for seed in seeds:
        failed = failures.get(seed, "")
        runs[str(seed)] = {"failed": failed} if failed else _figures(seed_folder(out, seed))
    done = [run for run in runs.values() if "failed" not in run]
    stages = list(done[0]["bpb"]) if done else []
    return {
        "schema": SCHEMA,
        "seeds": runs,
        "failed": sum("failed" in run for run in runs.values()),
        "bpb": {name: _spread([run["bpb"][name] for run in done]) for name in stages},
        "worst": {
            name: max((run[name] for run in done), default=None)
            for name in ("artifact_bytes", "train_s", "score_s")
        },
    }


def _figures(folder: Path) -> dict[str, Any]:
    results = read_json(RunFolder.existing(folder).file("results.json"))
    stages = results["stages"]
    return {
        "bpb": {name: stage["bpb"] for name, stage in stages.items()},
        "artifact_bytes": results["artifact"]["bytes"],
        "train_s": results["budget"]["used_s"],
        "score_s": max(stage["seconds"] for stage in stages.values()),
        "steps": results["train"]["steps"],
    }


def _spread(values: list[float]) -> dict[str, Any]:
    sd = statistics.stdev(values) if len(values) > 1 else None
    return {"n": len(values), "mean": statistics.fmean(values), "sd": sd}
