"""Runs or resumes several seeds of one recipe, in turn or at once, and summarises them.

Every seed is a process of its own, so that a failure does not affect the others; its output goes
into a log beside its folder. A failed seed is reported and counted, and never left out.
"""

import re
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairway.base.errors import UserError
from fairway.base.files import write_json
from fairway.pipeline.folder import locked, sweep
from fairway.pipeline.jobs import Job, host_of, run_jobs
from fairway.pipeline.results import read_results
from fairway.train.steps import Say

SUMMARY, SCHEMA = "seeds.json", 1
_OURS = re.compile(re.escape(SUMMARY))


@dataclass(frozen=True, slots=True)
class Plan:
    """The plan of the runs: a recipe with overrides, the seeds, and how many run at once.

    `processes` is the number of processes per seed, with one GPU each.
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

    Raises UserError for repeated seeds, and for a folder in use by another call. A failed seed is
    in the summary. No seed runs longer than this process.
    """
    if not plan.seeds or len(set(plan.seeds)) < len(plan.seeds):
        raise UserError(f"seeds {', '.join(map(str, plan.seeds)) or '(none)'}: name each seed once")
    with locked(out):
        sweep(out, _OURS)
        summary = summarise(out, plan.seeds, _failures(plan, out, say))
        write_json(out / SUMMARY, summary)
    return summary


def _failures(plan: Plan, out: Path, say: Say) -> dict[int, str]:
    """Run all seeds, `at_once` at a time; return why each failed, or ''."""
    failures: dict[int, str] = {}
    waiting = list(plan.seeds)

    def following(slot: int) -> Job | None:
        if not waiting:
            return None
        seed = waiting.pop(0)
        say(f"seed {seed}: running, log in {_log(out, seed).name}")
        return _job(plan, seed, out)

    def ended(job: Job, reason: str) -> None:
        failures[int(job.name)] = reason

    run_jobs(following, ended, host_of(plan.at_once, plan.processes, _gpus(plan)))
    return failures


def _gpus(plan: Plan) -> int:
    """Return how many GPUs the seeds share; seeds in turn have all of them."""
    if plan.at_once == 1 or "runtime.device=cpu" in plan.overrides:
        return 0
    # Seconds to import, and only seeds at once need it: a sentence about an option does not.
    import torch

    return torch.cuda.device_count()


def _log(out: Path, seed: int) -> Path:
    return out / f"seed-{seed}.log"


def _job(plan: Plan, seed: int, out: Path) -> Job:
    """Return the job that runs or resumes one seed."""
    folder = seed_folder(out, seed)
    words = ["run", plan.recipe, "--out", str(folder)]
    for text in (*plan.overrides, f"seed={seed}"):
        words += ["--set", text]
    return Job(str(seed), tuple(words), folder, _log(out, seed), plan.processes)


def summarise(out: Path, seeds: tuple[int, ...], failures: dict[int, str]) -> dict[str, Any]:
    """Return every seed's figures or its failure, and means, spreads and worst cases."""
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
    results = read_results(folder)
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
