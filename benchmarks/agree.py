"""Do backends and kernels train the same model? Runs of equal steps, compared step by step.

    python benchmarks/agree.py DATA [--steps 600] [--plain-steps 300]

DATA is a folder made by `proxy_data.py`. On one GPU the recipe `pr1858_proxy` is trained with the
fastest attention there (FlashAttention 4 if it is installed) and again, with the next one (cuDNN),
with the next one from another seed, and for `--plain-steps` of the same schedule by the plain path:
formulas without our kernels, half the micro-batch. Prints the losses' differences of every pair,
the final losses, and the bpb of raw and averaged weights on the first 786,432 validation targets:
how much of a difference does a backend explain, beside a seed and beside running the same again?
With the variable OUT set, everything is in $OUT/agree.json, rewritten after every run.
"""

import argparse
import gc
import itertools
import json
import os
import tempfile
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from fairway.config.overrides import override
from fairway.config.settings import Config
from fairway.data.folder import DataFolder
from fairway.machine.plan import DTYPES, Plan, make_plan
from fairway.machine.ranks import Ranks
from fairway.model import attention
from fairway.quantise.estimate import estimate_bytes
from fairway.recipes import recipe
from fairway.score.evaluation import Evaluation
from fairway.score.ledger import Text
from fairway.score.sliding import evaluate_frozen, text_of
from fairway.train.loop import Training, TrainingText, train
from fairway.train.steps import STEPS, cut_steps, read_steps

TARGETS = 786_432
WINDOW = 50


@dataclass(frozen=True)
class Way:
    """One run: what differs from the recipe, and whether it follows the schedule's beginning."""

    name: str
    attention: str
    seed: int = 42
    plain: bool = False


@dataclass
class Found:
    """What a run gave. bpb of raw and averaged weights; none for a run that was cut short."""

    plan: str
    rows: int
    losses: list[float]
    seconds: float
    step_ms: float
    final_loss: float
    bpb: dict[str, float] = field(default_factory=dict)


def ways(plan: Plan) -> list[Way]:
    """Return the runs, the ones that tell most first."""
    names = ("fa4", "cudnn", "flash") if plan.device == "cuda" else ("plain", "sdpa")
    dtype = DTYPES[plan.dtype]
    fast, other = [n for n in names if not attention.why_not(n, plan.device, dtype)][:2]
    return [
        Way(f"{fast}", fast),
        Way(f"plain path, {other}", other, plain=True),
        Way(f"{other}", other),
        Way(f"{fast}, again", fast),
        Way(f"{other}, seed 314", other, seed=314),
    ]


# ---------------------------------------------------------------------------------------------
# Runs


def settings(config: Config, way: Way, micro_tokens: int, beginning: Path) -> Config:
    """Return the recipe as a run takes it; the plain path follows the recorded `beginning`."""
    runtime = replace(config.runtime, attention=way.attention)
    config = replace(config, seed=way.seed, runtime=runtime)
    if not way.plain:
        return config
    shorter = replace(
        config.train, clock="replay", replay=str(beginning), micro_tokens=micro_tokens
    )
    return replace(config, train=shorter, runtime=replace(runtime, kernels="plain"))


def run(config: Config, text: TrainingText, validation: Text | None, folder: Path) -> Found:
    """Train, and score on a validation text if there is one."""
    plan = make_plan(config.runtime)
    plan.apply()
    folder.mkdir()
    start_s = time.perf_counter()
    training = train(
        config, plan, Ranks(), text, folder,
        lambda model: estimate_bytes(model, config.quant), say,
    )  # fmt: skip
    seconds = time.perf_counter() - start_s
    records = read_steps(folder / STEPS)
    losses = [record["loss"] for record in records]
    pairs = itertools.pairwise(record["seconds"] for record in records)
    found = Found(
        plan=plan.describe(),
        rows=training.rows,
        losses=losses,
        seconds=seconds,
        step_ms=1e3 * float(np.median([after - before for before, after in pairs])),
        final_loss=float(np.mean(losses[-WINDOW:])),
    )
    if validation is not None:
        found.bpb = scores(training, config, validation)
    return found


def say(line: str) -> None:
    """Print what a run tells, its step lines apart."""
    if not line.startswith("step "):
        print("   ", line)


@torch.no_grad()
def scores(training: Training, config: Config, validation: Text) -> dict[str, float]:
    """Return the bpb of the raw weights, then of the averaged ones, which take their place."""

    def bpb(name: str) -> float:
        return evaluate_frozen(
            training.model,
            Evaluation(validation, config.score, seed=config.seed, description=name),
            sliding=False,
        ).bpb

    raw = bpb("raw")
    for name, weight in training.model.named_parameters():
        weight.copy_(training.average.average[name])
    return {"raw": raw, "average": bpb("average")}


def free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def record_beginning(run_folder: Path, beginning: Path, steps: int) -> None:
    """Make a run folder of the first steps of another, to be followed by `clock=replay`."""
    beginning.mkdir()
    (beginning / STEPS).write_bytes((run_folder / STEPS).read_bytes())
    cut_steps(beginning / STEPS, steps)


# ---------------------------------------------------------------------------------------------
# What came


def difference(one: Found, two: Found, first: int, end: int) -> tuple[float, float]:
    """Return the means of |a - b| and of a - b over the steps first..end-1."""
    gaps = np.array(one.losses[first:end]) - np.array(two.losses[first:end])
    return float(np.abs(gaps).mean()), float(gaps.mean())


def compare(found: dict[str, Found], skip: int, end: int) -> list[dict[str, object]]:
    """Print and return the differences of all pairs, over some steps and window by window."""
    print(f"\nlosses: mean |a - b|, mean a - b over steps {skip} to {end}; then by {WINDOW} steps")
    pairs = []
    for one, two in itertools.combinations(found, 2):
        a, b = found[one], found[two]
        common = min(len(a.losses), len(b.losses))
        whole = difference(a, b, skip, min(end, common))
        windows = {
            first: difference(a, b, first, min(first + WINDOW, common))
            for first in range(0, common, WINDOW)
        }
        pairs.append({"a": one, "b": two, "steps": [skip, end], "mean": whole, "by": windows})
        print(f"  {one} - {two}: {whole[0]:.5f}, {whole[1]:+.5f}")
        print("   ", "  ".join(f"{n}: {m:.4f} {s:+.4f}" for n, (m, s) in windows.items()))
    return pairs


def tell(name: str, found: Found) -> None:
    scored = [f"{kind} {bpb:.4f} bpb" for kind, bpb in found.bpb.items()]
    print(f"{name}: {found.plan}; {found.rows} sequences a micro-step")
    print(f"    {found.step_ms:.1f} ms a step, {found.seconds:.0f} s; "
          f"loss of the last {WINDOW} steps {found.final_loss:.4f}",
          *scored, sep=", ", flush=True)  # fmt: skip


def keep(found: dict[str, Found], pairs: list[dict[str, object]]) -> None:
    """Write everything known so far, if OUT says where."""
    if "OUT" in os.environ:
        what = {
            "torch": torch.__version__,
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
            "runs": {name: asdict(one) for name, one in found.items()},
            "pairs": pairs,
        }
        (Path(os.environ["OUT"]) / "agree.json").write_text(json.dumps(what))


def train_all(
    config: Config, data: Path, plain_steps: int, micro_tokens: int, folder: Path
) -> None:
    source = DataFolder.open(data)
    text = TrainingText(source.train_shards(), source.bytes_per_token)
    sample = source.sample_validation(max_tokens=TARGETS)
    validation = text_of(sample.ids, source.tokenizer.table, sample.bytes)
    print(f"{sample.bytes:,} bytes to be scored", flush=True)
    found: dict[str, Found] = {}
    beginning = folder / "beginning"
    for number, way in enumerate(ways(make_plan(config.runtime))):
        chosen = settings(config, way, micro_tokens, beginning)
        run_folder = folder / f"{number}"
        found[way.name] = run(chosen, text, None if way.plain else validation, run_folder)
        if number == 0:
            record_beginning(run_folder, beginning, plain_steps)
        tell(way.name, found[way.name])
        keep(found, [])
        free_memory()
    keep(found, compare(found, min(100, plain_steps // 3), plain_steps))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--plain-steps", type=int, default=300)
    parser.add_argument("--plain-micro-tokens", type=int, default=49_152)
    # For a trial on a CPU: another recipe, smaller sizes.
    parser.add_argument("--recipe", default="pr1858_proxy", help=argparse.SUPPRESS)
    parser.add_argument("--set", action="append", default=[], help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    fixed = ("train.clock=steps", f"train.steps={chosen.steps}", "train.warmup_steps=3",
             "train.checkpoint_every_s=0")  # fmt: skip
    config = override(recipe(chosen.recipe), [*fixed, *chosen.set])
    with tempfile.TemporaryDirectory() as folder:
        train_all(
            config, chosen.data, chosen.plain_steps, chosen.plain_micro_tokens, Path(folder)
        )  # fmt: skip


if __name__ == "__main__":
    main()
