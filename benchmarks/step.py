"""A training step of the seed system on one GPU: floor, forward and backward, the whole step.

    python benchmarks/step.py [--recipe NAME] [--set SETTING=VALUE] [--compiled] [--profile]
    torchrun --standalone --nproc-per-node=2 benchmarks/step.py     # whole steps alone

Prints the measured floor, then milliseconds per micro-step of `rows` x 2,048 tokens without and
with depth recurrence if the recipe has it, and whole training steps as `fairway train` makes them
(loader, clip, optimisers, weight average). The floor is what matrix products and attention take
alone: each kind for itself, in milliseconds of work, and all of a pass in their order for ten
seconds, because a card lowers its clock when it reaches its power limit. `--compiled` also times
the plain path through torch.compile, which takes a minute; `--profile` adds up the GPU's time by
kind of kernel. Under torchrun each GPU has `rows` rows of a batch that grows with their number;
`--whole` times the same on one. Everything is timed back to back, as in training, since a GPU that
is never idle runs slower: medians over repeats.
"""

import argparse
import dataclasses
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fairway.config.overrides import override
from fairway.config.settings import Config, RuntimeConfig
from fairway.machine.plan import DTYPES, Plan, make_plan
from fairway.machine.ranks import Ranks, join_ranks
from fairway.model import attention, operations, ops
from fairway.model.gpt import GPT, build, visits
from fairway.model.paths import prepare
from fairway.quantise.estimate import estimate_bytes
from fairway.recipes import recipe
from fairway.train.loop import TrainingText, train
from fairway.train.steps import STEPS, read_steps

T = 2048


def ms_of(work: Callable[[], object], repeats: int = 20) -> float:
    """Return the median milliseconds of some work, queued without a pause."""
    for _ in range(3):
        work()
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    marks[0].record()
    for mark in marks[1:]:
        work()
        mark.record()
    torch.cuda.synchronize()
    return statistics.median(a.elapsed_time(b) for a, b in itertools.pairwise(marks))


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, device="cuda").bfloat16()


def orders(config: Config) -> list[bool]:
    """Return the values of `looping` that a recipe uses: off, and on if it has recurrence."""
    return [False, True] if config.model.loop_extra else [False]


def listed(figures_ms: list[float]) -> str:
    """Return milliseconds without recurrence, and with it if there are two."""
    words = [f"{ms:.2f} ms {how}" for ms, how in zip(figures_ms, ("without", "with"), strict=False)]
    return ", ".join(words) + " recurrence"


def floor(config: Config, backend: str, rows: int) -> list[float]:
    """Print what matrix products and attention alone take; return it for each order of visits."""
    model, N = config.model, rows * T
    kv_dim = model.dim * model.num_kv_heads // model.num_heads
    shapes = {
        "q, k, v": (model.dim, model.dim + 2 * kv_dim),
        "attention out": (model.dim, model.dim),
        "MLP up": (model.dim, model.mlp_dim),
        "MLP down": (model.mlp_dim, model.dim),
        "head": (model.dim, model.vocab_size),
    }
    layer_ms, head_ms = 0.0, 0.0
    layer: list[Callable[[], object]] = []
    head: list[Callable[[], object]] = []
    for name, (inputs, outputs) in shapes.items():
        x, w, g = random(N, inputs), random(outputs, inputs), random(N, outputs)
        work = products(x, w, g)
        (head if name == "head" else layer).extend(work)
        taken_ms = [ms_of(f, 10) for f in work]
        rates = [2 * N * inputs * outputs / ms / 1e9 for ms in taken_ms]
        print(f"  {name:14} {inputs:5} -> {outputs:5}: forward {rates[0]:4.0f}, "
              f"input gradient {rates[1]:4.0f}, weight gradient {rates[2]:4.0f} TFLOP/s, "
              f"{sum(taken_ms):6.3f} ms")  # fmt: skip
        if name == "head":
            head_ms = sum(taken_ms)
        else:
            layer_ms += sum(taken_ms)
    layer.append(attention_work(config, backend, rows))
    attention_ms = ms_of(layer[-1], 10)
    print(f"  {backend} attention, forward and backward: {attention_ms:.3f} ms")
    per_visit_ms = layer_ms + attention_ms
    counts = [sum(map(len, visits(model, looping))) for looping in orders(config)]
    least_ms = [count * per_visit_ms + head_ms for count in counts]
    print(f"  in all: {listed(least_ms)}")
    lasting_ms = [sustained([*layer * count, *head]) for count in counts]
    print(f"  in all, for ten seconds: {listed(lasting_ms)}")
    return lasting_ms


def sustained(works: list[Callable[[], object]], seconds: float = 10.0) -> float:
    """Return the median milliseconds of a list of works in the second half of so many seconds."""
    start_s, taken_ms = time.perf_counter(), []
    while time.perf_counter() - start_s < seconds:
        taken_ms.append(ms_of(lambda: [work() for work in works], 10))
    return statistics.median(taken_ms[len(taken_ms) // 2 :])


def products(x: Tensor, w: Tensor, g: Tensor) -> list[Callable[[], Tensor]]:
    return [
        lambda: x @ w.T,
        lambda: g @ w,
        lambda: torch.mm(g.T, x, out_dtype=torch.float32),
    ]


def attention_work(config: Config, backend: str, rows: int) -> Callable[[], object]:
    H, G = config.model.num_heads, config.model.num_kv_heads
    K = config.model.dim // H
    both = random(rows, T, H + 2 * G, K).transpose(1, 2)
    q, k, v = (z.detach().requires_grad_() for z in both.split((H, G, G), 1))
    attend, dy = attention.BACKENDS[backend], random(rows, T, H, K).transpose(1, 2)
    return lambda: torch.autograd.grad(attend(q, k, v), (q, k, v), dy)


def new_model(config: Config, plan: Plan) -> GPT:
    """Return the model with every weight away from zero, as after some training."""
    model = build(config.model, config.seed).to("cuda")
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("proj.weight"):
                weight.normal_(0.0, 0.02)
    bits = config.train.operand_bits
    prepare(model, DTYPES[plan.dtype], plan.attention, plan.kernels, bits)
    return model


def passes(name: str, config: Config, plan: Plan, rows: int, compiled: bool = False) -> list[float]:
    """Print and return the milliseconds of forward and backward, for each order of visits."""
    model = new_model(config, plan)
    run: Any = model
    if compiled:
        # The compiler makes its own backward passes: it gets the formulas, not our functions.
        for lean in (
            "added",
            "entered",
            "norm",
            "position",
            "without_self",
            "leaky_square",
            "mean_loss",
        ):
            setattr(operations, lean, getattr(ops, f"{lean}_plain"))
        run = torch.compile(model, dynamic=False)
    ids, targets = (
        torch.randint(0, config.model.vocab_size, (rows, T), device="cuda") for _ in range(2)
    )

    def work() -> None:
        model.zero_grad(set_to_none=True)
        run(ids, targets).backward()

    found = []
    for looping in orders(config):
        model.set_looping(looping)
        start_s = time.perf_counter()
        work()
        torch.cuda.synchronize()
        first_s = time.perf_counter() - start_s
        torch.cuda.reset_peak_memory_stats()
        found.append(ms_of(work))
        print(f"  {name}, recurrence {'on' if looping else 'off':3}: {found[-1]:7.2f} ms, "
              f"{rows * T / found[-1] / 1e3:6.3f} Mtok/s, "
              f"peak {torch.cuda.max_memory_allocated() / 2**30:5.1f} GiB, "
              f"first call {first_s:5.1f} s", flush=True)  # fmt: skip
    return found


# Kinds of kernels by parts of their names, in the order in which they are tried.
KINDS = {
    "attention": ("attn", "flash", "fmha", "cudnn", "mha"),
    "MLP products with activation": ("_up_kernel", "_slope_kernel"),
    "matrix products": ("gemm", "cutlass", "nvjet", "xmma", "cublas", "splitk"),
    "entering blocks": ("_enter",),
    "norms and embedding": ("_norm", "embedding"),
    "queries and keys": ("_position",),
    "XSA": ("_without_self",),
    "loss": ("_loss", "_capped"),
    "gradients of scaled matrices": ("_unscale",),
}


def profile(config: Config, plan: Plan, rows: int) -> None:
    """Print what a pass spends on every kind of kernel, with recurrence if there is one."""
    model = new_model(config, plan)
    model.set_looping(orders(config)[-1])
    ids, targets = (
        torch.randint(0, config.model.vocab_size, (rows, T), device="cuda") for _ in range(2)
    )

    def work() -> None:
        model.zero_grad(set_to_none=True)
        torch.autograd.backward(model(ids, targets))

    for _ in range(5):
        work()
    torch.cuda.synchronize()
    repeats, found = 5, dict.fromkeys((*KINDS, "other"), 0.0)
    other: dict[str, float] = {}
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        for _ in range(repeats):
            work()
        torch.cuda.synchronize()
    for event in profiler.key_averages():
        ms = event.self_device_time_total / 1e3 / repeats
        kind = next(
            (k for k, parts in KINDS.items() if any(p in event.key for p in parts)), "other"
        )
        found[kind] += ms
        if kind == "other":
            other[event.key] = ms
    print("where a pass spends the GPU's time")
    for kind, ms in sorted(found.items(), key=lambda item: -item[1]):
        print(f"  {kind:30} {ms:7.2f} ms")
    for name, ms in sorted(other.items(), key=lambda item: -item[1])[:6]:
        print(f"    other: {ms:6.2f} ms {name[:90]}")


def whole_steps(config: Config, plan: Plan, ranks: Ranks, rows: int, steps: int) -> list[float]:
    """Return the median milliseconds of whole training steps, for each order of visits."""
    tokens = rows * T
    config = dataclasses.replace(
        config,
        train=dataclasses.replace(
            config.train, clock="steps", steps=steps, loop_from=0.5, warmup_steps=5,
            batch_tokens=tokens * ranks.world, micro_tokens=tokens, checkpoint_every_s=0.0,
        ),
    )  # fmt: skip
    ids = np.random.default_rng(0).integers(0, config.model.vocab_size, 4_000_000)
    text = TrainingText([ids.astype(np.uint16)] * ranks.world, 3.6)
    with tempfile.TemporaryDirectory() as folder:
        train(
            config, plan, ranks, text, Path(folder),
            lambda model: estimate_bytes(model, config.quant), lambda _: None,
        )  # fmt: skip
        if not ranks.first:
            return []
        records = read_steps(Path(folder) / STEPS)
    pairs = list(itertools.pairwise(records))
    # The first and last steps of a run wait for what steady ones do not.
    inner = pairs[3:-3]
    return [
        statistics.median(
            1e3 * (b["seconds"] - a["seconds"]) for a, b in inner if b["looping"] == looping
        )
        for looping in orders(config)
    ]


def ratios(above_ms: list[float], below_ms: list[float]) -> str:
    return ", ".join(f"{a / b:.2f}" for a, b in zip(above_ms, below_ms, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", default="pr1858_proxy")
    parser.add_argument("--set", nargs="*", default=[], help="overrides of the recipe")
    parser.add_argument("--rows", type=int, default=48)
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--attention", default="auto")
    parser.add_argument("--whole", action="store_true", help="whole training steps alone")
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--profile", action="store_true")
    chosen = parser.parse_args()
    config = override(recipe(chosen.recipe), chosen.set)
    ranks = join_ranks()
    plan = make_plan(RuntimeConfig(attention=chosen.attention))
    plan.apply()
    if chosen.whole or ranks.world > 1:
        step = whole_steps(config, plan, ranks, chosen.rows, chosen.steps)
        if ranks.first:
            print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {plan.describe()}")
            print(f"{ranks.world} ranks, whole step: {listed(step)}")
        return
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {plan.describe()}")
    print("floor: matrix products and attention alone")
    least_ms = floor(config, plan.attention, chosen.rows)
    if chosen.profile:
        profile(config, plan, chosen.rows)
    print("forward and backward")
    ours = passes("fused", config, plan, chosen.rows)
    if chosen.compiled:
        plain = dataclasses.replace(plan, kernels="plain")
        theirs = passes("plain, compiled", config, plain, chosen.rows, compiled=True)
        print(f"  compiled / fused: {ratios(theirs, ours)}")
    print(f"  fused / floor of ten seconds: {ratios(ours, least_ms)}")
    step = whole_steps(config, plan, ranks, chosen.rows, chosen.steps)
    print(f"whole step: {listed(step)}")


if __name__ == "__main__":
    main()
