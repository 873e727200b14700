"""Many settings in few runs: a two-level design of trainings, and the effect of every factor.

    python benchmarks/factorial.py run FACTORS --out rows.jsonl [--recipe best] [--at-once 3]
        [--seconds 400] [--each 90]
    python benchmarks/factorial.py effects FACTORS rows.jsonl

FACTORS has a line for each of up to 11 factors, `name | settings if low | settings if high`, and
one, `ALL settings`, for all runs; settings are `section.field=value`, with blanks between. The
design is that of Plackett and Burman (Biometrika 33, 1946) with 12 runs: every factor is high in
half of them, and any two are high together in a quarter. A factor's effect is the difference of the
two halves, so all runs speak of all factors: its deviation is 2 / sqrt(12) of a run's. What two
factors do together is spread over the others by thirds: the design finds large effects, and
`fairway ablate` then asks for each by pairs.

A free GPU takes the next run. GPUs of a host may differ by 2 % of the steps (docs/studies.md);
this is part of the noise. Every run has its own seed and order of text. It is trained and its raw
and averaged weights are scored on the validation text, the latter also with documents that do not
see one another.
"""

import argparse
import dataclasses
import json
import math
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fairway.config.overrides import override
from fairway.model.block import Walk
from fairway.model.gpt import GPT
from fairway.model.seen import documents_of
from fairway.pipeline import scoring
from fairway.pipeline.folder import RunFolder
from fairway.pipeline.run import Pipeline
from fairway.recipes import recipe

# The first row of the design; the others are its rotations, and one with every factor low.
FIRST = (1, 1, 0, 1, 1, 1, 0, 0, 0, 1, 0)
SCORES = ("ema", "apart", "raw")


def read_factors(path: Path) -> tuple[list[str], list[tuple[str, list[str], list[str]]]]:
    """Return the settings of all runs, and (name, settings if low, settings if high)."""
    shared: list[str] = []
    factors = []
    for line in filter(None, map(str.strip, path.read_text().splitlines())):
        if line.startswith("ALL "):
            shared += line.split()[1:]
            continue
        name, low, high = (part.strip() for part in line.split("|"))
        factors.append((name, low.split(), high.split()))
    assert 0 < len(factors) <= len(FIRST), f"{len(factors)} factors; this design has 1 to 11"
    return shared, factors


def design(count: int) -> list[list[int]]:
    """Return the levels of so many factors in each of the 12 runs."""
    n = len(FIRST)
    rows = [[FIRST[(j - i) % n] for j in range(count)] for i in range(n)]
    return [*rows, [0] * count]


def hidden_apart(self: GPT, ids_BT: torch.Tensor) -> torch.Tensor:
    """`GPT.hidden` with documents that do not see one another."""
    given = Walk(self.rope_for(ids_BT), documents=documents_of(ids_BT))
    return self.states(self.embedded(ids_BT), given)


def trained(name: str, settings: list[str]) -> dict[str, Any]:
    """Train one run in a folder that goes, and return its row."""
    with tempfile.TemporaryDirectory() as place:
        config = override(recipe(name), settings)
        pipeline = Pipeline(config, RunFolder(Path(place)), print)
        with pipeline.writing():
            train = pipeline.train()
            run = pipeline._run()
            raw = scoring.raw(run)
            known = {**pipeline.folder.all_facts(), "score.raw": raw}
            run = dataclasses.replace(run, facts=lambda: known)
            found = {"steps": train["steps"], "raw": raw["bpb"], "ema": scoring.ema(run)["bpb"]}
            GPT.hidden = hidden_apart  # type: ignore[method-assign]
            found["apart"] = scoring.ema(run)["bpb"]
    return found


def child(asked: argparse.Namespace, gpu: int, settings: list[str]) -> dict[str, Any]:
    """Return the row of a run in a process of its own, or why there is none."""
    words = [sys.executable, __file__, "one", asked.recipe, *settings]
    places = {"CUDA_VISIBLE_DEVICES": str(gpu)} if torch.cuda.is_available() else {}
    done = subprocess.run(words, env={**os.environ, **places}, capture_output=True, text=True)
    if done.returncode:
        return {"failed": done.stderr[-500:]}
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row


def finished(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a file without those of failed runs."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [row for row in rows if "failed" not in row]


def run(asked: argparse.Namespace) -> None:
    """Run what is missing of the design, so many at a time; each run adds a line to the file."""
    shared, factors = read_factors(asked.factors)
    done = {row["seed"] for row in finished(asked.out)} if asked.out.exists() else set()
    jobs: queue.Queue[tuple[int, list[int]]] = queue.Queue()
    for job in enumerate(design(len(factors)), 1):
        if job[0] not in done:
            jobs.put(job)
    start_s, lock = time.monotonic(), threading.Lock()

    def work(gpu: int) -> None:
        while time.monotonic() - start_s < asked.seconds - asked.each:
            try:
                seed, levels = jobs.get_nowait()
            except queue.Empty:
                return
            parts = (pair[1 + level] for pair, level in zip(factors, levels, strict=True))
            own = [
                f"seed={seed}",
                f"data.order_seed={seed}",
                *(word for part in parts for word in part),
            ]
            row = {"levels": levels, "seed": seed, **child(asked, gpu, [*shared, *own])}
            with lock, asked.out.open("a") as stream:
                stream.write(json.dumps(row) + "\n")
                print(json.dumps(row), flush=True)

    threads = [threading.Thread(target=work, args=(gpu,)) for gpu in range(asked.at_once)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(f"{jobs.qsize()} runs left")


def effects(asked: argparse.Namespace) -> None:
    """Print every factor's effect on every score, and what chance would make of noise."""
    _, factors = read_factors(asked.factors)
    rows = finished(asked.rows)
    least = len(factors) + 1
    assert len(rows) >= least, f"{len(rows)} runs cannot tell {len(factors)} factors; run {least}"
    levels_RF = np.array([[2 * level - 1 for level in row["levels"]] for row in rows])
    design_RC = np.column_stack((np.ones(len(rows)), levels_RF))
    for score in SCORES:
        bpb_R = np.array([row[score] for row in rows])
        found_C, *_ = np.linalg.lstsq(design_RC, bpb_R, rcond=None)
        print(f"{score}: mean {found_C[0]:.4f}, {len(rows)} runs")
        for at in np.argsort(found_C[1:]):
            print(f"  {factors[at][0]:14} {2 * found_C[at + 1]:+.4f}")
    print(f"deviation of an effect: {2 / math.sqrt(len(rows)):.2f} of a run's")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("run")
    verb.add_argument("factors", type=Path)
    verb.add_argument("--out", type=Path, required=True)
    verb.add_argument("--recipe", default="best")
    verb.add_argument("--at-once", type=int, default=1)
    verb.add_argument("--seconds", type=float, default=1e9, help="end within so many")
    verb.add_argument("--each", type=float, default=90.0, help="seconds that a run takes in all")
    verb = verbs.add_parser("effects")
    verb.add_argument("factors", type=Path)
    verb.add_argument("rows", type=Path)
    verb = verbs.add_parser("one")
    verb.add_argument("recipe")
    verb.add_argument("settings", nargs="*")
    asked = parser.parse_args()
    if asked.verb == "one":
        print(json.dumps(trained(asked.recipe, asked.settings)))
    else:
        {"run": run, "effects": effects}[asked.verb](asked)


if __name__ == "__main__":
    main()
