"""What a training step of the demo costs on this CPU, and how far it is from its floor.

    python benchmarks/cpu_step.py

Baselines beside it: the plain formulas instead of the lean ones, float32 instead of bfloat16, fresh
memory for every tensor instead of reused memory, the blocked attention kernel. The floor is the
time of the matrix products alone at the rate this machine reaches on products of these shapes.
"""

import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from fairway.config.settings import ModelConfig
from fairway.machine.plan import Plan
from fairway.model import gpt, ops
from fairway.model.gpt import GPT, build
from fairway.recipes import recipe
from fairway.train.muon import Optimisers

REPEATS = 9


@contextmanager
def plain_formulas() -> Iterator[None]:
    """Replace every lean operation of the model by its plain formula."""
    names = ("norm", "position", "without_self", "leaky_square", "mean_loss")
    lean = {name: getattr(gpt, name) for name in names}
    for name in names:
        setattr(gpt, name, getattr(ops, f"{name}_plain"))
    try:
        yield
    finally:
        for name in names:
            setattr(gpt, name, lean[name])


def median_ms(work: Callable[[], object]) -> float:
    work()
    taken = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        work()
        taken.append(1000 * (time.perf_counter() - start))
    return statistics.median(taken)


def step_ms(dtype: str, backend: str) -> float:
    config = recipe("demo")
    rows, length = config.train.micro_tokens // config.train.seq_len, config.train.seq_len
    model = build(config.model)
    model.set_compute({"bfloat16": torch.bfloat16, "float32": torch.float32}[dtype], backend)
    optimisers = Optimisers(model, config.optim)
    ids_BT = torch.randint(0, config.model.vocab_size, (rows, length + 1))

    def work() -> None:
        torch.autograd.backward(model(ids_BT[:, :-1], ids_BT[:, 1:]))
        optimisers.step(0.0, 0)

    return median_ms(work)


def product_shapes(model: ModelConfig) -> list[tuple[int, int]]:
    """Return (inputs, outputs) of every matrix product of one forward pass."""
    named = dict(GPT(model).named_parameters())
    blocks = [w.shape for n, w in named.items() if n.startswith("blocks") and w.ndim == 2]
    return [(s[1], s[0]) for s in blocks if s[0] > 2] + [(model.dim, model.vocab_size)]


def floor_ms() -> tuple[float, float]:
    """Return the time of all matrix products of a step, and the rate in GFLOP/s."""
    config = recipe("demo")
    tokens, total_ms, flops = config.train.micro_tokens, 0.0, 0.0
    cache: dict[tuple[int, int], float] = {}
    for shape in product_shapes(config.model):
        if shape not in cache:
            x, g = (torch.randn(tokens, n).bfloat16() for n in shape)
            w: Tensor = torch.randn(shape[1], shape[0]).bfloat16()
            cache[shape] = median_ms(lambda x=x, g=g, w=w: (x @ w.T, g @ w, g.T @ x))
        total_ms += cache[shape]
        flops += 6.0 * tokens * shape[0] * shape[1]
    return total_ms, flops / total_ms / 1e6


def main() -> None:
    threads = len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    tokens = recipe("demo").train.micro_tokens
    rows = [("fresh memory for every tensor", step_ms("bfloat16", "plain"))]
    Plan("cpu", "bfloat16", "highest", threads, "plain").apply()
    with plain_formulas():
        rows.append(("plain formulas", step_ms("bfloat16", "plain")))
    rows.append(("float32", step_ms("float32", "plain")))
    rows.append(("blocked attention kernel", step_ms("bfloat16", "sdpa")))
    ours = step_ms("bfloat16", "plain")
    rows.append(("as the demo runs", ours))
    torch.set_num_threads(1)
    rows.append(("as the demo runs, one thread", step_ms("bfloat16", "plain")))
    torch.set_num_threads(threads)
    for name, taken_ms in rows:
        rate = tokens / taken_ms
        print(f"{name:32s} {taken_ms:7.0f} ms {rate:6.1f} ktok/s {taken_ms / ours:5.2f} x")
    products_ms, rate = floor_ms()
    print(f"{'floor: matrix products alone':32s} {products_ms:7.0f} ms at {rate:.0f} GFLOP/s")
    print(f"torch {torch.__version__}, {threads} threads, {tokens} tokens per step")


if __name__ == "__main__":
    main()
