"""Settings of test-time training beside one another: one artifact, one text, one process.

    python benchmarks/ttt_arms.py ARTIFACT TOKENIZER TEXT [--targets 786432]
        [--form sp8192.model [--after 786432]] [--recipe best]
        [--arm NAME:field=value,field=value ...] [--seconds 480] [--out arms.jsonl]

An arm is a name and settings of section `ttt` that differ from the recipe's; the recipe itself is
the first arm, `base`. Without --arm the list in ARMS is tried. For each arm: bits per byte, gains
over the windows side by side, over the sliding window and over the same documents without learning,
the difference to `base` with its standard error over documents, microseconds a token, memory. The
first call of every size compiles; a short text is scored first so that `base` does not pay for it.
With `--form` the text is in the usual form of another tokenizer, as in proxy_data.py: a model that
learned such text scores other texts far worse, and gains more by learning. With `--after` it is
the text behind so many targets, to choose settings on text that is not scored.
The rows of --out also have the scores of averages with the model that does not learn, by its share
(`ttt.lora_frozen_share`, for arms without one).
ARTIFACT may be codes (seed_model.py) as well. An arm that does not fit is told and left out.
"""

import argparse
import json
import math
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from score import read_text, read_weights

from fairway.api import model_from
from fairway.base.errors import UserError
from fairway.base.units import bits_per_byte
from fairway.config.checks import check_ttt
from fairway.config.overrides import override
from fairway.config.settings import Config, RuntimeConfig
from fairway.data.tokens import Tokenizer
from fairway.machine.plan import make_plan
from fairway.model.gpt import GPT
from fairway.recipes import recipe
from fairway.score.documents import documents
from fairway.score.evaluation import Evaluation
from fairway.score.ledger import Score, Text, Witness
from fairway.score.lora import evaluate_unlearned
from fairway.score.predictor import Receipt
from fairway.score.unadapted import averaged
from fairway.score.ways import evaluate

ARMS = [
    "small chunks:lora_chunks=8@64 24@512 48",
    "lr 1.5e-4 wd 0.5:lora_lr=1.5e-4,lora_wd=0.5",
    "no q v:lora_targets=k o mlp head",
    "24:lora_chunks=24",
    "16@256 48:lora_chunks=16@256 48",
    "lr 1.5e-4 wd 0.25:lora_lr=1.5e-4,lora_wd=0.25",
    "8@256 24@2000 48:lora_chunks=8@256 24@2000 48",
    "rank 80:lora_rank=80",
]
SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
_FIELD = re.compile(r",(?=[a-z_0-9]+=)")


class Costs(Witness):
    """Hears what every position costs."""

    def __init__(self, targets: int) -> None:
        self.nats = np.zeros(targets)

    def scored(self, receipt: Receipt) -> None:
        self.nats[receipt.event.positions] = receipt.nats


def arm_of(word: str) -> tuple[str, list[str]]:
    """Return an arm's name and its overrides."""
    name, _, fields = word.partition(":")
    return name, [f"ttt.{field.strip()}" for field in _FIELD.split(fields) if field]


def beside(nats: np.ndarray, base: np.ndarray, text: Text) -> tuple[float, float]:
    """Return the difference in bits per byte and its standard error over documents."""
    found = documents(text.ids, len(nats))
    starts = [document.start for document in found]
    apart = np.add.reduceat(nats - base, starts) / (math.log(2.0) * text.text_bytes)
    return float(apart.sum()), float(np.std(apart) * math.sqrt(len(apart)))


def averages(nats: np.ndarray, unlearned: np.ndarray, text_bytes: int) -> dict[float, float]:
    """Return bits per byte of averages of both probabilities, by the share of the unlearned."""
    learned_N, unlearned_N = (torch.from_numpy(-costs.ravel()) for costs in (nats, unlearned))
    both = {share: averaged(learned_N, unlearned_N, share) for share in SHARES}
    return {
        share: bits_per_byte(-float(found_N.sum()), text_bytes) for share, found_N in both.items()
    }


class Bench:
    """One model and one text, asked again and again."""

    def __init__(self, model: GPT, text: Text, config: Config) -> None:
        self.model, self.text, self.config = model, text, config
        self.targets = len(text.ids) - 1

    def asked(self, config: Config, witness: Witness, name: str) -> Evaluation:
        return Evaluation(self.text, config.score, config.ttt, 0, name, witness=witness)

    def scored(self, config: Config, name: str, way: str) -> tuple[Score, np.ndarray, float]:
        costs = Costs(self.targets)
        settle()
        start_s = time.perf_counter()
        asked = self.asked(config, costs, name)
        if way == "unlearned":
            found = evaluate_unlearned(self.model, asked)
        else:
            found = evaluate(self.model, asked, way)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return found, costs.nats, time.perf_counter() - start_s


def settle() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_gb() -> tuple[float, float]:
    if not torch.cuda.is_available():
        return 0.0, 0.0
    return torch.cuda.max_memory_allocated() / 1e9, torch.cuda.max_memory_reserved() / 1e9


def line_of(row: dict[str, Any]) -> str:
    apart = f"{row['to_base']:+.5f} ({row['to_base_se']:.5f})"
    gains = "  ".join(f"{row[name]:.5f}" for name in ("side_by_side", "sliding", "unlearned"))
    memory = f"{row['peak_gb']:.1f} ({row['kept_gb']:.1f})"
    return (
        f"{row['arm']:28} {row['bpb']:.5f}  {apart:>20}  {gains}  {row['us']:7.1f}  {memory:>13}  "
        f"{row['settings']}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--targets", type=int, default=786_432)
    parser.add_argument("--form", type=Path)
    parser.add_argument("--after", type=int, default=0)
    parser.add_argument("--recipe", default="best")
    parser.add_argument("--set", nargs="*", default=[], help="overrides of every arm")
    parser.add_argument("--arm", action="append", default=[], metavar="NAME:field=value,...")
    parser.add_argument("--seconds", type=float, default=1e9, help="begin no arm after that")
    parser.add_argument("--out", type=Path, help="lines of JSON are added to this file")
    parser.add_argument("--device", default="auto")
    chosen = parser.parse_args()
    if chosen.after and chosen.form is None:
        parser.error("--after needs --form; name the tokenizer itself if the text has its form")
    start_s = time.perf_counter()
    config = override(recipe(chosen.recipe), [*chosen.set, "ttt.method=lora"])
    arms = [("base", list[str]()), *map(arm_of, chosen.arm or ARMS)]
    # What is misspelt is told before anything is scored.
    settings = {name: override(config, changes) for name, changes in arms}
    for each in settings.values():
        check_ttt(each.ttt, each.score)
    state, model_config = read_weights(chosen.artifact)
    text = read_text(
        Tokenizer.load(chosen.tokenizer), chosen.text, chosen.targets, chosen.form, chosen.after
    )
    plan = make_plan(RuntimeConfig(device=chosen.device))
    plan.apply()
    print(f"torch {torch.__version__}, {plan.describe()}, {len(text.ids) - 1} targets", flush=True)
    bench = Bench(model_from(state, model_config, plan, True), text, config)
    few = min(bench.targets, 20_000)
    part = Text(text.ids[: few + 1], text.target_bytes[:few], int(text.target_bytes[:few].sum()),
                text.vocab_size)  # fmt: skip
    warm = Bench(bench.model, part, config)
    others = {"side_by_side": "blocks", "sliding": "sliding", "unlearned": "unlearned"}
    for way in (*others.values(), "lora"):
        whole = replace(config, score=replace(config.score, truncate=False))
        warm.scored(whole, "warming up", way)
    frozen: dict[str, float] = {}
    for name, way in others.items():
        found, unlearned, seconds = bench.scored(config, name, way)
        frozen[name] = found.bpb
        print(f"{name:28} {found.bpb:.5f}  {1e6 * seconds / bench.targets:.1f} us", flush=True)
    print("arm, bpb, to base (se), gains: side by side, sliding, unlearned; us a token, GB (kept)")
    base: np.ndarray | None = None
    for (name, changes), each in zip(arms, settings.values(), strict=True):
        if time.perf_counter() - start_s > chosen.seconds:
            print(f"{name}: not begun, {chosen.seconds:.0f} s are over", flush=True)
            continue
        if each.ttt.lora_phases:
            bench.model = model_from(state, model_config, plan, True)
        try:
            found, nats, seconds = bench.scored(each, name, "lora")
        except UserError as error:
            print(f"{name}: {error}", flush=True)
            continue
        if each.ttt.lora_phases:
            bench.model = model_from(state, model_config, plan, True)
        base = nats if base is None else base
        apart, error_bpb = beside(nats, base, text)
        peak, kept = peak_gb()
        row = {
            "arm": name, "settings": " ".join(changes), "bpb": found.bpb, "to_base": apart,
            "to_base_se": error_bpb, **{n: bpb - found.bpb for n, bpb in frozen.items()},
            "us": 1e6 * seconds / bench.targets, "peak_gb": peak, "kept_gb": kept,
            "averages": averages(nats, unlearned, text.text_bytes), "row_error_nats":
            found.worst_row_error_nats, "targets": bench.targets, "plan": plan.describe(),
            "torch": torch.__version__,
        }  # fmt: skip
        print(line_of(row), flush=True)
        if chosen.out:
            with chosen.out.open("a") as file:
                file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
