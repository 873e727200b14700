"""Several seeds of one recipe: run or resumed, one after another or side by side, and their spread.

Every seed is a process of its own, so that one that fails takes none with it; what it says goes
into a log beside its folder. A failed seed is reported and counts: it is never left out.
"""

import os
import re
import signal
import statistics
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairway.base import children
from fairway.base.errors import UserError
from fairway.base.files import write_json
from fairway.pipeline.folder import locked, sweep
from fairway.pipeline.results import read_results
from fairway.train.loop import CHECKPOINT
from fairway.train.steps import Say

SUMMARY, SCHEMA = "seeds.json", 1
_OURS = re.compile(re.escape(SUMMARY))
_LOOK_S = 0.1
# A process that was left alone saves its state and ends within this time.
_WAIT_S = 60.0
# The end of a log that may hold a last word.
_LAST_BYTES = 1 << 16


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

    Raises UserError for seeds that are not distinct, or a folder where others run theirs; a seed
    that fails is in the summary. No seed outlives this process.
    """
    if not plan.seeds or len(set(plan.seeds)) < len(plan.seeds):
        raise UserError(f"seeds {', '.join(map(str, plan.seeds)) or '(none)'}: name each once")
    with locked(out):
        sweep(out, _OURS)
        summary = summarise(out, plan.seeds, _failures(plan, out, say))
        write_json(out / SUMMARY, summary)
    return summary


@dataclass(frozen=True, slots=True, eq=False)
class _Running:
    """A seed's process, and how long its log was before."""

    seed: int
    process: "subprocess.Popen[bytes]"
    log_bytes: int


def _failures(plan: Plan, out: Path, say: Say) -> dict[int, str]:
    """Run all seeds, so many at once; return what each failed of, or nothing."""
    failures: dict[int, str] = {}
    waiting, slots = list(plan.seeds), dict.fromkeys(range(plan.at_once))
    running: dict[int, _Running] = {}
    try:
        while waiting or running:
            for slot in slots:
                if slot not in running and waiting:
                    running[slot] = _begin(plan, waiting.pop(0), out, slot, say)
            for slot, one in list(running.items()):
                if one.process.poll() is not None:
                    failures[one.seed] = _reason(one, out)
                    del running[slot]
            time.sleep(_LOOK_S)
    finally:
        children.end(one.process for one in running.values())
    return failures


def _log(out: Path, seed: int) -> Path:
    return out / f"seed-{seed}.log"


def _begin(plan: Plan, seed: int, out: Path, slot: int, say: Say) -> _Running:
    """Start one seed, or go on with it."""
    folder = seed_folder(out, seed)
    # An earlier call that was killed may have left a process that saves its state at this moment.
    with locked(folder, wait_s=_WAIT_S):
        pass
    say(f"seed {seed}: running, log in {_log(out, seed).name}")
    words = ["run", plan.recipe, "--out", str(folder)]
    for text in (*plan.overrides, f"seed={seed}"):
        words += ["--set", text]
    if (folder / CHECKPOINT).exists():
        words.append("--resume")
    env = {}
    if plan.at_once > 1:
        first = slot * plan.processes
        visible = [str(gpu) for gpu in range(first, first + plan.processes)]
        env["CUDA_VISIBLE_DEVICES"] = ",".join(visible)
    with _log(out, seed).open("ab") as log:
        start = log.tell()
        process = children.begin(
            words, plan.processes, stdout=log, stderr=subprocess.STDOUT, env=env
        )
    return _Running(seed, process, start)


def _reason(ended: _Running, out: Path) -> str:
    """Return what a seed failed of: its own last word; or nothing."""
    code = ended.process.returncode
    assert ended.process.stdin is not None
    ended.process.stdin.close()
    if code == 0:
        return ""
    with _log(out, ended.seed).open("rb") as log:
        log.seek(max(ended.log_bytes, log.seek(0, os.SEEK_END) - _LAST_BYTES))
        lines = log.read().decode(errors="replace").strip().splitlines()
    own = [line for line in lines if line.startswith("fairway: ")]
    if own:
        return own[-1]
    if code < 0:
        return f"killed by signal {-code} ({signal.Signals(-code).name})"
    return lines[-1] if lines else f"exit code {code}"


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
