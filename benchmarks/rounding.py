"""How far the gradients of bfloat16 activations are from float32's, by the form of the operations.

    python benchmarks/rounding.py [--steps 60]

A model of the demo's shape learns tokens of a Markov chain in float32, then the gradients of one
batch are compared: relative distance of each kind of matrix, mean over its layers. The rows: loops
as a CPU runs them, tensor operations as a GPU without kernels runs them, and the plain formulas.
"""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import torch
from torch import Tensor

from fairway.model import operations, ops
from fairway.model.gpt import GPT, build
from fairway.recipes import recipe
from fairway.train.muon import Optimisers

OPERATIONS = (
    "norm", "entered", "position", "without_self", "leaky_square", "added", "mean_loss",
)  # fmt: skip
KINDS = ("c_q", "c_k", "c_v", "attn.proj", "fc", "mlp.proj")


@contextmanager
def form(name: str) -> Iterator[None]:
    """Compute by loops, by tensor operations or by plain formulas."""
    plain = {n: getattr(ops, f"{n}_plain") for n in OPERATIONS}
    with (
        mock.patch.object(ops, "fit", ops.fit if name == "loops" else lambda *x: False),
        mock.patch.multiple(operations, **(plain if name == "plain" else {"norm": ops.norm})),
    ):
        yield


def batch(rows: int, length: int, seed: int) -> Tensor:
    """Return tokens of a chain in which each is followed by one of four."""
    generator = torch.Generator().manual_seed(0)
    next_V4 = torch.randint(0, 2048, (2048, 4), generator=generator)
    generator.manual_seed(seed)
    ids_BT = torch.randint(0, 2048, (rows, length), generator=generator)
    choice_BT = torch.randint(0, 4, (rows, length), generator=generator)
    for t in range(1, length):
        ids_BT[:, t] = next_V4[ids_BT[:, t - 1], choice_BT[:, t]]
    return ids_BT


def gradients(model: GPT, ids_BT: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
    model.set_compute(dtype, "plain")
    for weight in model.parameters():
        weight.grad = None
    torch.autograd.backward(model(ids_BT[:, :-1], ids_BT[:, 1:]))
    return {n: w.grad.clone() for n, w in model.named_parameters() if w.grad is not None}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=60)
    steps = parser.parse_args().steps
    config = recipe("demo")
    model = build(config.model)
    optimisers = Optimisers(model, config.optim)
    for step in range(steps):
        ids_BT = batch(4, 257, step)
        torch.autograd.backward(model(ids_BT[:, :-1], ids_BT[:, 1:]))
        optimisers.step(1.0, step)
    ids_BT = batch(16, 257, steps)
    with form("plain"):
        exact = gradients(model, ids_BT, torch.float32)
    print(f"{'%':24s}" + "".join(f"{kind:>10s}" for kind in KINDS))
    for name in ("loops", "tensors", "plain"):
        for dtype in (torch.bfloat16, torch.float32):
            with form(name):
                found = gradients(model, ids_BT, dtype)
            errors = {n: (found[n] - g).norm() / g.norm() for n, g in exact.items()}
            kinds = [[e for n, e in errors.items() if f"{k}.weight" in n] for k in KINDS]
            means = "".join(f"{100 * sum(e) / len(e):10.4f}" for e in kinds)
            print(f"{name + ', ' + str(dtype).removeprefix('torch.'):24s}{means}")


if __name__ == "__main__":
    main()
