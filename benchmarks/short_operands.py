"""What a GPU at its power limit gains from operands with fewer bits: seconds of products on end.

    python benchmarks/short_operands.py

Repeats the six products of an MLP of `best` (98,304 rows), attention forward and backward, and the
three products of the head for 2.5 seconds each, after one second of warming up, with operands of
so many bits of mantissa. Prints the milliseconds of a round, and what `nvidia-smi` tells in the
middle: clock in MHz, power in W, temperature. The order repeats all bits several times, because a
card slows down while it warms up.
"""

import subprocess
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fairway.model import attention
from fairway.model.gpu.short import shorten_, unit_of

ROWS, DIM, HIDDEN, VOCABULARY, LEAK = 98_304, 512, 2624, 8192, 0.5
SECONDS, WARM_SECONDS = 2.5, 1.0
QUERY = "--query-gpu=clocks.sm,power.draw,temperature.gpu"


def drawn(*shape: int, size: float = 1.0) -> Tensor:
    return (torch.randn(*shape, device="cuda") * size).bfloat16()


def short(x: Tensor, bits: int) -> Tensor:
    x = x.clone()
    shorten_(x, unit_of(bits))
    return x


def told() -> str:
    """Return what the driver says of the first card now."""
    words = ["nvidia-smi", QUERY, "--format=csv,noheader"]
    return subprocess.run(words, capture_output=True, text=True).stdout.splitlines()[0]


def lasting(name: str, work: Callable[[], Any]) -> None:
    """Print the milliseconds of some work, repeated until the card has its lasting clock."""
    start_s, count, middle = time.perf_counter(), 0, ""
    while (now_s := time.perf_counter() - start_s) < WARM_SECONDS + SECONDS:
        if now_s < WARM_SECONDS:
            begun_s, count = time.perf_counter(), 0
        for _ in range(50):
            work()
        if not middle and now_s > WARM_SECONDS + SECONDS / 2:
            middle = told()
        torch.cuda.synchronize()
        count += 50
    taken_ms = (time.perf_counter() - begun_s) / count * 1e3
    print(f"{name:34} {taken_ms:.3f} ms   {middle}", flush=True)


def mlp(leak: float) -> list[Tensor]:
    """Return operands: the input, both matrices, the square, and two gradients."""
    x_ND, up_FD = drawn(ROWS, DIM), drawn(HIDDEN, DIM, size=0.03)
    down_DF, dy_ND = drawn(DIM, HIDDEN, size=0.03), drawn(ROWS, DIM, size=1e-4)
    h_NF = x_ND @ up_FD.T
    root_NF = torch.where(h_NF > 0, h_NF, leak * h_NF)
    slope_NF = 2 * root_NF * torch.where(h_NF > 0, 1.0, leak).bfloat16()
    return [x_ND, up_FD, down_DF, root_NF.square(), (dy_ND @ down_DF) * slope_NF, dy_ND]


def six(operands: list[Tensor]) -> Callable[[], None]:
    """Return the six products of an MLP's forward and backward pass."""
    x_ND, up_FD, down_DF, square_NF, dh_NF, dy_ND = operands
    wide_NF, out_ND = torch.empty_like(square_NF), torch.empty_like(x_ND)
    up_out_FD, down_out_DF = torch.empty_like(up_FD), torch.empty_like(down_DF)

    def work() -> None:
        torch.mm(x_ND, up_FD.T, out=wide_NF)
        torch.mm(square_NF, down_DF.T, out=out_ND)
        torch.mm(dy_ND, down_DF, out=wide_NF)
        torch.mm(dh_NF, up_FD, out=out_ND)
        torch.mm(dh_NF.T, x_ND, out=up_out_FD)
        torch.mm(dy_ND.T, square_NF, out=down_out_DF)

    return work


def attending(bits: int) -> Callable[[], Any]:
    q, k, v, dy = (drawn(48, heads, 2048, 128) for heads in (4, 2, 2, 4))
    q, k, v, dy = (short(z, bits) for z in (q, k, v, dy * 1e-4))
    q, k, v = (z.requires_grad_() for z in (q, k, v))
    return lambda: torch.autograd.grad(attention.cudnn(q, k, v), (q, k, v), dy)


def head(bits: int) -> Callable[[], None]:
    x_ND, table_VD = drawn(ROWS // 3, DIM), drawn(VOCABULARY, DIM, size=0.05)
    d_NV = (torch.softmax(x_ND @ table_VD.T, -1) * 1e-4).bfloat16()
    x_ND, table_VD, d_NV = (short(z, bits) for z in (x_ND, table_VD, d_NV))

    def work() -> None:
        torch.mm(x_ND, table_VD.T)
        torch.mm(d_NV, table_VD)
        torch.mm(d_NV.T, x_ND)

    return work


def main() -> None:
    torch.manual_seed(0)
    operands = mlp(LEAK)
    for bits in (7, 5, 4, 3, 7, 2):
        lasting(f"MLP, {bits} bits", six([short(x, bits) for x in operands]))
    for name, chosen in (("the matrices", (1, 2)), ("all but the matrices", (0, 3, 4, 5))):
        some = [short(x, 3) if n in chosen else x for n, x in enumerate(operands)]
        lasting(f"MLP, 3 bits in {name}", six(some))
    lasting("MLP, 7 bits, squares without leak", six(mlp(0.0)))
    lasting("MLP, zeros", six([torch.zeros_like(x) for x in operands]))
    lasting("MLP, 7 bits", six(operands))
    for bits in (7, 3, 4, 7):
        lasting(f"attention, {bits} bits", attending(bits))
    for bits in (7, 3, 7):
        lasting(f"head, {bits} bits", head(bits))


if __name__ == "__main__":
    main()
