"""The device memory of every stage: announced before the stage starts, measured while it runs.

The stages use the same sums (`fairway.model.need`) to choose how much they compute at once.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from fairway.base.memory import begin_peak, free_bytes, give_back, peak_bytes
from fairway.config.checks import lora_chunks
from fairway.config.settings import AUTO, Config, TttConfig
from fairway.data.shards import Tokens
from fairway.machine.plan import DTYPES, Plan, make_plan
from fairway.model import attention, need
from fairway.model.need import Need
from fairway.pipeline.context import Run
from fairway.prove.streams import default_streams
from fairway.quantise.sensitivity import AT_ONCE
from fairway.score.adapting import rounded
from fairway.score.documents import documents
from fairway.score.halving import HELD_TWICE
from fairway.score.sgd import ROWS_AT_ONCE
from fairway.train.micro import rows_that_fit, training_need

# The stages that run a model on the device and choose how much they compute at once.
_FROZEN = tuple(f"score.{name}" for name in ("raw", "ema", "quantised", "sliding", "documents"))


def stage_needs(
    config: Config,
    plan: Plan,
    world: int = 1,
    ids: Tokens | None = None,
    free_bytes: float = float("inf"),
) -> dict[str, Need]:
    """Return the needed memory of each stage on the device of a process, by name.

    `ids` are the tokens of the validation text; without them all documents count as long as a
    window.
    """
    model, way, score = config.model, plan.way(), config.score
    looping = bool(model.loop_extra)
    frozen = need.scoring(model, way, looping, score.seq_len, score.batch_windows)
    found = {"train": training_need(config, plan, world), "pack": _packing(config, plan, looping)}
    found |= dict.fromkeys(_FROZEN, frozen)
    if config.ttt.method != "off":
        found["score.ttt"] = _adapting(config, config.ttt.method, plan, looping, ids, free_bytes)
    if config.mixture.experts:
        base = config.mixture.base
        learns = base != "sliding"
        found["score.mixture"] = (
            _adapting(config, base, plan, looping, ids, free_bytes) if learns else frozen
        )
    if config.prove.bytes:
        found["proof"] = _coding(config, plan, looping)
    return found


def _packing(config: Config, plan: Plan, looping: bool) -> Need:
    train = config.train
    read = AT_ONCE if config.quant.method == "trellis" else 0
    rows = train.micro_tokens // train.seq_len
    return need.packing(config.model, plan.way(), looping, train.seq_len, rows, read)


def _adapting(
    config: Config, method: str, plan: Plan, looping: bool, ids: Tokens | None, free_bytes: float
) -> Need:
    model, way = config.model, plan.way()
    if method == "sgd":
        seq_len = config.score.seq_len
        rows = min(ROWS_AT_ONCE, max(1, config.ttt.chunk_tokens // seq_len))
        return need.learning_all(model, way, looping, seq_len, rows)
    lanes = 1 if ids is None else min(config.ttt.lora_lanes, _batches(config.ttt, ids))
    T = config.score.seq_len
    length = T if ids is None else longest_windows(config.ttt, T, ids, way.fused)
    held = HELD_TWICE if way.fused else 1.0
    found = need.learning_documents(
        model, way, looping, config.ttt, length, lanes, held, free_bytes
    )
    kept = config.ttt.lora_documents * need.unadapted_bytes(model, way, looping, config.ttt, T)
    found = replace(found, fixed=found.fixed + kept)
    return found if ids is not None else replace(found, units="documents as long as a window")


def _batches(ttt: TttConfig, ids: Tokens) -> int:
    return -(-len(documents(ids, len(ids) - 1)) // ttt.lora_documents)


def longest_windows(ttt: TttConfig, seq_len: int, ids: Tokens, fused: bool = False) -> int:
    """Return the window length at which all documents of a batch would take the memory of its
    widest step. Ended documents take none. Kernels compute rounded sizes."""
    lengths = np.array([len(found) for found in documents(ids, len(ids) - 1)])
    chunk = max(size for size, _ in lora_chunks(ttt))
    most = 0
    for first in range(0, len(lengths), ttt.lora_documents):
        group = np.sort(lengths[first : first + ttt.lora_documents])[::-1]
        windows = np.minimum(-(-group // chunk) * chunk, seq_len).tolist()
        most = max(most, *(n * end for n, end in enumerate(windows, 1)))
        if fused:
            places = enumerate(windows, 1)
            sizes = (rounded(n, ttt.lora_documents, end - chunk, end, seq_len) for n, end in places)
            most = max(most, *(size.rows * size.length for size in sizes))
    return max(1, -(-most // ttt.lora_documents))


def _coding(config: Config, plan: Plan, looping: bool) -> Need:
    score, prove = config.score, config.prove
    # A token stands for three bytes or more.
    guessed = default_streams(prove.bytes // 3, score.seq_len, plan.device, 1024)
    rows = {"sliding": guessed, "lora": config.ttt.lora_documents}.get(prove.method, 1)
    sizes = config.model, plan.way(), looping
    found = need.coding(*sizes, score.seq_len, rows)
    if prove.method != "lora":
        return found
    kept = need.unadapted_bytes(*sizes, config.ttt, score.seq_len)
    return replace(found, each=found.each + kept)


@dataclass(frozen=True, slots=True)
class Planned:
    """The memory that a stage needs out of the free memory, and how much it computes at once."""

    need: Need
    free_bytes: float
    count: int

    def line(self) -> str:
        """Return the plan in words."""
        return self.need.line(self.free_bytes, self.count)


def planned(
    config: Config,
    plan: Plan,
    free_bytes: float = float("inf"),
    world: int = 1,
    ids: Tokens | None = None,
) -> dict[str, Planned]:
    """Return the plan of every stage that runs a model, by name: see `stage_needs`."""
    found = {}
    for name, wanted in stage_needs(config, plan, world, ids, free_bytes).items():
        halves = halved(wanted.most) if wanted.units.startswith("documents") else ()
        count = wanted.fitting(free_bytes, halves)
        if name == "train":
            count = rows_that_fit(config, wanted, world, free_bytes)
        found[name] = Planned(wanted, free_bytes, count)
    return found


def halved(count: int) -> list[int]:
    """Return how many documents are computed together, halved as `Halving` does."""
    found = [count]
    while found[-1] > 1:
        found.append(-(-found[-1] // 2))
    return found


def plan_lines(config: Config, plan: Plan, free_bytes: float = float("inf")) -> list[str]:
    """Return the plans of all stages, one line each, equal lines once."""
    lines = (stage.line() for stage in planned(config, plan, free_bytes).values())
    return list(dict.fromkeys(lines))


def memory_here(config: Config) -> list[str]:
    """Return the plans of a recipe's stages on this machine, one line each.

    Nothing is timed: on a CPU whose precision is chosen by a trial, the wider precision counts.
    """
    runtime = config.runtime
    if runtime.device == "cpu" or not torch.cuda.is_available():
        dtype = "float32" if runtime.dtype == AUTO else runtime.dtype
        backend = attention.choose(runtime.attention, "cpu", DTYPES[dtype])
        return plan_lines(config, Plan("cpu", dtype, "highest", 1, backend))
    plan = make_plan(runtime)
    return plan_lines(config, plan, free_now(plan.device))


def free_now(device: str) -> float:
    """Return the free bytes of the device for a stage; main memory is planned elsewhere."""
    if device != "cuda":
        return float("inf")
    give_back()
    return free_bytes(torch.device("cuda", torch.cuda.current_device()))


class Watch:
    """Plans and measures a stage; `facts` belong to the last stage."""

    def __init__(self, config: Config, device: str) -> None:
        self.config, self.device = config, device
        self.facts: dict[str, int | None] = {}

    def done(self, name: str, run: Run, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return the facts of a stage's work; first announce the GPU memory that it will take."""
        lora = "lora" in (self.config.ttt.method, self.config.mixture.base)
        ids = run.validation.ids if lora and name.startswith("score.") else None
        free = free_now(self.device)
        stage = planned(self.config, run.plan, free, run.ranks.world, ids).get(name)
        if stage is not None and self.device == "cuda":
            run.say(stage.line())
        begin_peak(self.device)
        facts = work()
        about = None if stage is None else stage.need.at(stage.count)
        self.facts = {"need_bytes": about, "peak_bytes": peak_bytes(self.device)}
        return facts
