"""What a training step of the demo costs on this CPU, and how far it is from its floor.

    python benchmarks/cpu_step.py [--repeats 9] [--dtype float32] [--threads 1]

Runs with the plan that `fairway run demo` finds here. The floor is the time of the step's matrix
products alone: those that a step was seen to ask for, in its order, from memory to memory; without
what else it does. Baselines beside it: the operations by tensors instead of loops, the plain
formulas, fresh memory for every tensor, the blocked attention kernel. All take turns, so that a
busy machine is busy for all. The last table is of single operations, forward and backward.
"""

import argparse
import dataclasses
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fairway.machine.plan import DTYPES, Plan, make_plan
from fairway.model import gpt, operations, ops
from fairway.model.gpt import SOFTCAP, build
from fairway.recipes import recipe
from fairway.train.muon import Optimisers

OPERATIONS = (
    "norm", "entered", "position", "without_self", "leaky_square", "added", "mean_loss",
)  # fmt: skip
PRODUCTS = {"mm": (0, 1), "bmm": (0, 1), "baddbmm": (1, 2)}
CONFIG = recipe("demo")


class Times:
    """Milliseconds of wall and of processor time of one piece of work, by repeats."""

    def __init__(self) -> None:
        self.wall_ms: list[float] = []
        self.cpu_ms: list[float] = []

    def measure(self, work: Callable[[], object]) -> None:
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        work()
        self.wall_ms.append(1000 * (time.perf_counter() - wall_s))
        self.cpu_ms.append(1000 * (time.process_time() - cpu_s))

    @property
    def best_ms(self) -> float:
        return min(self.wall_ms)

    def __str__(self) -> str:
        median_ms, cpu_ms = map(statistics.median, (self.wall_ms, self.cpu_ms))
        return f"{self.best_ms:7.1f} {median_ms:7.1f} {min(self.cpu_ms):7.1f} {cpu_ms:7.1f}"


def by_turns(works: dict[str, Callable[[], object]], repeats: int) -> dict[str, Times]:
    """Measure several works, each once a turn, after two turns that do not count."""
    found = {name: Times() for name in works}
    for turn in range(repeats + 2):
        for name, work in works.items():
            (Times() if turn < 2 else found[name]).measure(work)
    return found


# ---------------------------------------------------------------------------------------------
# A step, in several forms


@contextmanager
def form(name: str) -> Iterator[None]:
    """Compute by loops, by tensor operations or by the plain formulas."""
    chosen = {n: getattr(ops, f"{n}_plain" if name == "plain" else n) for n in OPERATIONS}
    fit = ops.fit if name == "loops" else lambda *tensors: False
    with mock.patch.object(ops, "fit", fit), mock.patch.multiple(operations, **chosen):
        yield


class Step:
    """A model of the demo and its optimisers, ready to take steps that change nothing."""

    def __init__(self, plan: Plan, backend: str) -> None:
        rows, length = CONFIG.train.micro_tokens // CONFIG.train.seq_len, CONFIG.train.seq_len
        self.model = build(CONFIG.model)
        self.model.set_compute(DTYPES[plan.dtype], backend)
        self.optimisers = Optimisers(self.model, CONFIG.optim)
        self.ids_BT = torch.randint(0, CONFIG.model.vocab_size, (rows, length + 1))

    def forward(self) -> Tensor:
        loss: Tensor = self.model(self.ids_BT[:, :-1], self.ids_BT[:, 1:])
        return loss

    def update(self) -> None:
        self.optimisers.step(0.0, 0)

    def work(self, name: str = "loops") -> Callable[[], None]:
        def run() -> None:
            with form(name):
                torch.autograd.backward(self.forward())
                self.update()

        return run


# ---------------------------------------------------------------------------------------------
# Its floor


class Products(TorchDispatchMode):
    """Notes the matrix products that are computed inside, by what they are for."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, list[tuple[Tensor, Tensor]]] = {}
        self.optimiser = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        name = func.overloadpacket.__name__
        if name in PRODUCTS:
            left, right = (args[n].detach().clone() for n in PRODUCTS[name])
            kind = "Newton-Schulz" if self.optimiser else "layers" if name == "mm" else "attention"
            self.found.setdefault(kind, []).append((left, right))
        return func(*args, **(kwargs or {}))


def products_of(step: Step) -> dict[str, Callable[[], None]]:
    """Return works that repeat a step's matrix products and nothing else."""
    with Products() as noted:
        torch.autograd.backward(step.forward())
        noted.optimiser = True
        step.update()

    def repeat(pairs: list[tuple[Tensor, Tensor]]) -> Callable[[], None]:
        def run() -> None:
            for left, right in pairs:
                torch.matmul(left, right)

        return run

    return {kind: repeat(pairs) for kind, pairs in noted.found.items()}


# ---------------------------------------------------------------------------------------------
# Single operations


def inputs(dtype: torch.dtype) -> dict[str, tuple[list[Tensor], list[Any]]]:
    """Return the tensors that learn, and the rest, of one call of each operation in the demo."""
    model, T = CONFIG.model, CONFIG.train.seq_len
    B, D, H, G = CONFIG.train.micro_tokens // T, model.dim, model.num_heads, model.num_kv_heads
    K = D // H

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape).to(dtype).requires_grad_()

    rope = gpt.rope_table(T, model)
    gain_H = torch.full((H,), model.qk_gain)
    y_BTHK = drawn(B, H, T, K).detach().transpose(1, 2).requires_grad_()
    targets_N = torch.randint(0, model.vocab_size, (B * T,))
    return {
        "norm": ([drawn(B, T, D)], [0.7]),
        "entered": ([drawn(B, T, D), drawn(B, T, D), drawn(2, D)], [0.7]),
        "added": ([drawn(B, T, D), drawn(D), drawn(B, T, D)], []),
        "position": ([drawn(B, T, H, K)], [gain_H, *rope]),
        "without_self": ([y_BTHK, drawn(B, T, G, K)], []),
        "leaky_square": ([drawn(B, T, model.mlp_dim)], [gpt.LEAK]),
        "mean_loss": ([drawn(B * T, model.vocab_size)], [targets_N, SOFTCAP]),
    }


def operation(name: str, how: str, leaves: list[Tensor], rest: list[Any]) -> Callable[[], None]:
    operate = getattr(ops, f"{name}_plain" if how == "plain" else name)

    def run() -> None:
        with form(how):
            found = operate(*leaves, *rest)
            out = found if isinstance(found, tuple) else (found,)
            torch.autograd.backward(out, [torch.ones_like(z) for z in out])
        for leaf in leaves:
            leaf.grad = None

    return run


# ---------------------------------------------------------------------------------------------


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--dtype", choices=list(DTYPES), help="instead of the plan's")
    parser.add_argument("--threads", type=int, help="instead of the plan's")
    return parser.parse_args()


def main() -> None:
    asked = parse()
    chosen = {"dtype": asked.dtype, "threads": asked.threads}
    plan = make_plan(CONFIG.runtime)
    plan = dataclasses.replace(plan, **{n: v for n, v in chosen.items() if v})
    torch.set_num_threads(plan.threads)
    torch.set_float32_matmul_precision(plan.matmul)
    fresh = by_turns({"fresh memory": Step(plan, plan.attention).work()}, asked.repeats)
    plan.apply()
    ours, blocked = Step(plan, plan.attention), Step(plan, "sdpa")
    floors = products_of(ours)
    works = {
        "as the demo runs": ours.work(),
        "all matrix products": lambda: [work() for work in floors.values()],
        **{f"products: {kind}": work for kind, work in floors.items()},
        "tensors instead of loops": ours.work("tensors"),
        "plain formulas": ours.work("plain"),
        "blocked attention": blocked.work(),
    }
    times = by_turns(works, asked.repeats) | fresh
    print(f"{plan.describe()}; {len(os.sched_getaffinity(0))} cores, torch {torch.__version__}")
    print("ms: best and median by the clock, best and median of processor time")
    for name, taken in times.items():
        print(f"{name:28s} {taken}")
    step, floor, layers = (times[n] for n in list(works)[:3])
    for what, times_of in (("all products", floor), ("the layers' products alone", layers)):
        wall, cpu = step.best_ms / times_of.best_ms, min(step.cpu_ms) / min(times_of.cpu_ms)
        print(f"a step takes {wall:.2f} times the wall time of {what}, {cpu:.2f} times the CPU's")
    for name, (leaves, rest) in inputs(DTYPES[plan.dtype]).items():
        forms = {h: operation(name, h, leaves, rest) for h in ("plain", "tensors", "loops")}
        found = by_turns(forms, 3 * asked.repeats)
        figures = "".join(f"{how} {taken.best_ms:7.2f}  " for how, taken in found.items())
        print(f"{name:16s} forward and backward, best ms: {figures}")


if __name__ == "__main__":
    main()
