"""What a step of the optimisers costs with each technique, and Gram Newton-Schulz beside ours.

    python benchmarks/muon.py [--recipe pr1858_proxy] [--repeats 20]

Prints milliseconds of `Optimisers.step` alone (gradients are there already) for every setting of
docs/training.md, by turns in one process; what a look at the inputs costs (optim.newton); then for
every shape of matrices the orthogonalisation as it is and by Gram matrices (docs/training.md):
products in GFLOP, milliseconds, and how far the second is from the first in the products' dtype and
in float64. Runs on a GPU, or slowly on a CPU.

Shapes: L matrices of one shape, R rows, C columns.
"""

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fairway.base.timing import settle
from fairway.config.settings import Config
from fairway.machine.plan import DTYPES, Plan, make_plan
from fairway.model.gpt import build
from fairway.model.paths import prepare
from fairway.quantise.calibrate import collect_hessians
from fairway.recipes import recipe
from fairway.train.inputs import INPUTS_TOKENS, look
from fairway.train.muon import Optimisers, products_dtype
from fairway.train.rules import Triple, coefficients, orthogonalise

CHANGES: dict[str, dict[str, Any]] = {
    "as it is": {},
    "polar_express": {"newton_schulz": "polar_express"},
    "row_beta=0.95": {"row_beta": 0.95},
    "cautious": {"cautious": True},
    "momentum_buffers=4": {"momentum_buffers": 4},
    "momentum_buffers=6": {"momentum_buffers": 6},
    "newton=0.1": {"newton": 0.1},
}


def ms_of(works: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Return the median milliseconds of several works that take turns, after two that do not count.

    A turn is three calls in a row, so that launches are hidden as they are in training.
    """
    found: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(repeats + 2):
        for name, work in works.items():
            settle()
            begun_s = time.perf_counter()
            for _ in range(3):
                work()
            settle()
            if turn > 1:
                found[name].append((time.perf_counter() - begun_s) / 3 * 1000)
    return {name: statistics.median(times) for name, times in found.items()}


class Step:
    """A model and its optimisers, ready for steps that move nothing."""

    def __init__(self, config: Config, plan: Plan) -> None:
        self.config = config
        self.model = build(config.model, config.seed).to(plan.device)
        bits = config.train.operand_bits
        prepare(self.model, DTYPES[plan.dtype], plan.attention, plan.kernels, bits)
        self.optimisers = Optimisers(self.model, config.optim)
        self.grads = [torch.randn_like(weight) for weight in self.model.parameters()]
        if config.optim.newton:
            self.look()

    def update(self) -> None:
        for weight, grad in zip(self.model.parameters(), self.grads, strict=True):
            weight.grad = grad
        self.optimisers.step(0.0, 0)

    def look(self) -> None:
        length = self.config.train.seq_len
        ids_BT = torch.ones(
            max(1, INPUTS_TOKENS // length), length, dtype=torch.long, device=self.grads[0].device
        )
        look(self.optimisers, collect_hessians, self.model, ids_BT, 1)


# ---------------------------------------------------------------------------------------------
# Gram Newton-Schulz


def by_grams(u_LRC: Tensor, triples: Sequence[Triple], restart: int = 2) -> Tensor:
    """Return what `orthogonalise` returns, by products of the short side's Gram matrices alone.

    Every step multiplies X by a polynomial P of X X^T. All of them commute, so that products of
    polynomials are gathered in Q, and X is multiplied once, and once more where it starts over.
    """
    x_LRC: Tensor = u_LRC / (u_LRC.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    tall = x_LRC.shape[-2] > x_LRC.shape[-1]
    x_LRC = x_LRC.mT if tall else x_LRC
    parts = [triples[:restart], triples[restart:]] if restart else [triples]
    eye_RR = torch.eye(x_LRC.shape[-2], dtype=u_LRC.dtype, device=u_LRC.device)
    for part in parts:
        gram_LRR = x_LRC @ x_LRC.mT
        total_LRR: Tensor | None = None
        for number, (a, b, c) in enumerate(part):
            poly_LRR = torch.baddbmm(gram_LRR, gram_LRR, gram_LRR, beta=b, alpha=c) + a * eye_RR
            total_LRR = poly_LRR if total_LRR is None else poly_LRR @ total_LRR
            if number < len(part) - 1:
                gram_LRR = poly_LRR @ gram_LRR @ poly_LRR
        assert total_LRR is not None
        x_LRC = total_LRR @ x_LRC
    return x_LRC.mT if tall else x_LRC


def gflop(shape: torch.Size, steps: int, restart: int | None) -> float:
    """Return the products of one stack: ours (restart None), or by Gram matrices."""
    L, *sides = shape
    m, n = sorted(sides)
    if restart is None:
        return 2 * L * steps * (2 * m * m * n + m**3) / 1e9
    parts = [restart, steps - restart] if restart else [steps]
    square = sum(count + (count - 1) + 2 * (count - 1) for count in parts)
    return 2 * L * (2 * len(parts) * m * m * n + square * m**3) / 1e9


def distance(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


def orthogonalisation(step: Step, repeats: int) -> None:
    triples, dtype = coefficients(step.config.optim), products_dtype(step.model)
    for bank in step.optimisers.muon.banks:
        u_LRC = torch.randn_like(bank.grads_PRC).to(dtype)
        forms: dict[str, int | None] = {"ours": None, "Gram": 0, "Gram, restart": 2}
        works: dict[str, Callable[[], object]] = {
            name: (lambda u=u_LRC: orthogonalise(u, triples))
            if restart is None
            else (lambda u=u_LRC, at=restart: by_grams(u, triples, at))
            for name, restart in forms.items()
        }
        times, one = ms_of(works, repeats), u_LRC[:1]
        exact = orthogonalise(one.double(), triples)
        print(f"  {tuple(u_LRC.shape)}, {dtype}")
        for name, restart in forms.items():
            made = [
                orthogonalise(x, triples) if restart is None else by_grams(x, triples, restart)
                for x in (one, one.double())
            ]
            print(
                f"    {name:14s} {gflop(u_LRC.shape, len(triples), restart):8.1f} GFLOP"
                f" {times[name]:8.3f} ms, {distance(made[0], exact):.1e} from float64's, itself"
                f" {distance(made[1], exact):.1e} in float64"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", default="pr1858_proxy")
    parser.add_argument("--repeats", type=int, default=20)
    asked = parser.parse_args()
    base = recipe(asked.recipe)
    plan = make_plan(base.runtime)
    plan.apply()
    print(f"{plan.describe()}, torch {torch.__version__}, recipe {asked.recipe}")
    first = Step(base, plan)
    print("Optimisers.step alone, ms (median), and what it adds:")
    for name, change in CHANGES.items():
        optim = dataclasses.replace(base.optim, **change)
        step = Step(dataclasses.replace(base, optim=optim), plan)
        times = ms_of({"": first.update, name: step.update}, asked.repeats)
        print(f"  {name:20s} {times[name]:8.3f} {times[name] - times['']:+8.3f}")
        if optim.newton:
            look_ms = ms_of({"look": step.look}, max(1, asked.repeats // 4))["look"]
            print(f"  {'a look at the inputs':20s} {look_ms:8.3f}, once in 64 steps")
    print("Orthogonalisation of each stack:")
    orthogonalisation(first, asked.repeats)


if __name__ == "__main__":
    main()
