"""Other shapes of the MLP's two product kernels, beside those of `fairway.model.gpu.products`.

    python benchmarks/slope_variants.py [--rows 98304] [--rounds 30]

The way back multiplies a product by the slope of the activation, whose tile is read late: after the
product, by a descriptor. Here it is read before the product (all of it or its left half, kept in
registers), or only called into the L2 cache; with other tiles, warps and stages; by one program per
tile or by programs that stay. The way forward gets other tiles and stages alone. Prints median
microseconds of each, round after round in turn so that the card's clock treats all alike, with
rotating buffers. Every result is compared with that of the present kernel; a variant that does
not compile or fit says so. Without a GPU, TRITON_INTERPRET=1 checks them at a small size.
"""

import argparse
import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from fairway.model.gpu import products
from fairway.model.gpu.products import _slope, _tile

WIDTH, HIDDEN, LEAK = 512, 2048, 0.5
SETS, CALLS = 3, 6


@dataclass(frozen=True)
class Variant:
    """A tile, and how its kernel runs. `stay`: programs per multiprocessor, 0 for one per tile."""

    name: str
    fetch: str = "late"
    stay: int = 0
    rows: int = 128
    outputs: int = 128
    inputs: int = 64
    warps: int = 4
    stages: int = 2

    def sizes(self, a_ND: Tensor, b_FD: Tensor) -> dict[str, int | bool]:
        """Return the kernel's constants, cut to a small product where one is checked."""
        fitting = products._sizes(a_ND, b_FD, self.stages)
        F, D = b_FD.shape
        return fitting | {
            "ROWS": self.rows,
            "OUTPUTS": min(self.outputs, max(32, triton.next_power_of_2(F))),
            "INPUTS": min(self.inputs, max(16, triton.next_power_of_2(D))),
            "num_warps": self.warps,
        }

    def programs(self, tiles: int, like: Tensor) -> int:
        return min(tiles, self.stay * products._processors(like)) if self.stay else tiles


WAYS_BACK = (
    Variant("the present settings in this file's kernel"),
    Variant("square early", "early"),
    Variant("left half early", "half"),
    Variant("square called into L2", "cache"),
    Variant("stages 3", stages=3),
    Variant("stages 3, early", "early", stages=3),
    Variant("32 inputs, stages 4", inputs=32, stages=4),
    Variant("32 inputs, stages 4, early", "early", inputs=32, stages=4),
    Variant("128 x 256, 8 warps, stages 3", outputs=256, warps=8, stages=3),
    Variant("128 x 256, 8 warps, stages 3, early", "early", outputs=256, warps=8, stages=3),
    Variant("256 x 128, 8 warps, stages 3", rows=256, warps=8, stages=3),
    Variant("128 x 64, stages 4, early", "early", outputs=64, stages=4),
    Variant("128 x 64, stages 2, early", "early", outputs=64),
    Variant("128 x 64, stages 3, called into L2", "cache", outputs=64, stages=3),
    Variant("stages 3, called into L2", "cache", stages=3),
    Variant("two stay", stay=2),
    Variant("two stay, early", "early", stay=2),
    Variant("two stay, called into L2", "cache", stay=2),
    Variant("one stays, 128 x 256, 8 warps, stages 3", stay=1, outputs=256, warps=8, stages=3),
)
WAYS_FORWARD = (
    Variant("stages 2", stay=2),
    Variant("stages 4", stay=2, stages=4),
    Variant("32 inputs, stages 4", stay=2, inputs=32, stages=4),
    Variant("one tile per program, stages 2"),
    Variant("one tile per program, stages 3", stages=3),
    Variant("one stays, 128 x 256, 8 warps", stay=1, outputs=256, warps=8, stages=3),
    Variant("three stay, 128 x 64, stages 3", stay=3, outputs=64, stages=3),
)


# ---------------------------------------------------------------------------------------------
# The way back


@triton.jit
def _call_into_cache(
    square_ptr, row, column, N, F: tl.constexpr, ROWS: tl.constexpr, OUTPUTS: tl.constexpr
):
    """Ask for every line of 64 numbers of a tile to be brought into the L2 cache."""
    rows = row + tl.arange(0, ROWS)[:, None]
    columns = column + tl.arange(0, tl.cdiv(OUTPUTS, 64))[None, :] * 64
    # Lines beyond the edge: the last inside it once more.
    rows, columns = tl.minimum(rows, N - 1), tl.minimum(columns, F - 1)
    at = (square_ptr + rows.to(tl.int64) * F + columns).to(tl.int64)
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [at],
        dtype=tl.int32, is_pure=False, pack=1,
    )  # fmt: skip


@triton.jit
def _half(square_ptr, row, column, N, F: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    rows, columns = row + tl.arange(0, ROWS)[:, None], column + tl.arange(0, WIDTH)[None, :]
    mask = (rows < N) & (columns < F)
    return tl.load(square_ptr + rows.to(tl.int64) * F + columns, mask, other=0.0)


@triton.jit
def _slope_tile(
    a_desc, b_desc, square_desc, out_desc, square_ptr, tile, N, leak,
    F: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr, OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr, WIDE: tl.constexpr, FETCH: tl.constexpr,
):  # fmt: skip
    across = tl.cdiv(F, OUTPUTS)
    row, column = tile // across * ROWS, tile % across * OUTPUTS
    middle = column + OUTPUTS // 2
    DTYPE: tl.constexpr = out_desc.dtype
    # The interpreter, where WIDE is set, has no assembly.
    if FETCH == "cache" and not WIDE:
        _call_into_cache(square_ptr, row, column, N, F, ROWS, OUTPUTS)
    if FETCH == "early" or FETCH == "half":
        first = _half(square_ptr, row, column, N, F, ROWS, OUTPUTS // 2)
    if FETCH == "early":
        second = _half(square_ptr, row, middle, N, F, ROWS, OUTPUTS // 2)
    left, right = _tile(a_desc, b_desc, row, column, D, ROWS, OUTPUTS, INPUTS, WIDE)
    if FETCH != "early" and FETCH != "half":
        first = square_desc.load([row, column])
    out_desc.store([row, column], (left * _slope(first, leak, DTYPE)).to(DTYPE))
    if FETCH != "early":
        second = square_desc.load([row, middle])
    out_desc.store([row, middle], (right * _slope(second, leak, DTYPE)).to(DTYPE))


@triton.jit
def _slope_variant(
    a_desc, b_desc, square_desc, out_desc, square_ptr, N, leak,
    F: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr, OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr, WIDE: tl.constexpr, FETCH: tl.constexpr, STAY: tl.constexpr,
):  # fmt: skip
    if STAY:
        tiles = tl.cdiv(N, ROWS) * tl.cdiv(F, OUTPUTS)
        for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), flatten=True):
            _slope_tile(a_desc, b_desc, square_desc, out_desc, square_ptr, tile, N, leak,
                        F, D, ROWS, OUTPUTS, INPUTS, WIDE, FETCH)  # fmt: skip
    else:
        _slope_tile(a_desc, b_desc, square_desc, out_desc, square_ptr, tl.program_id(0), N, leak,
                    F, D, ROWS, OUTPUTS, INPUTS, WIDE, FETCH)  # fmt: skip


def slope_by(variant: Variant, g_ND: Tensor, weight_FD: Tensor, square_NF: Tensor) -> Tensor:
    N, F = square_NF.shape
    out_NF = torch.empty_like(square_NF)
    sizes = variant.sizes(g_ND, weight_FD)
    programs = variant.programs(products._tiles(N, F, sizes), g_ND)
    _slope_variant[(programs,)](
        *products._inputs(g_ND, weight_FD, sizes), products._halves(square_NF, sizes),
        products._halves(out_NF, sizes), square_NF, N, LEAK, **sizes,
        FETCH=variant.fetch, STAY=variant.stay > 0,
    )  # fmt: skip
    return out_NF


def up_by(variant: Variant, x_ND: Tensor, weight_FD: Tensor) -> Tensor:
    N, F = len(x_ND), len(weight_FD)
    out_NF = x_ND.new_empty(N, F)
    sizes = variant.sizes(x_ND, weight_FD)
    programs = variant.programs(products._tiles(N, F, sizes), x_ND)
    products._up_kernel[(programs,)](
        *products._inputs(x_ND, weight_FD, sizes), products._halves(out_NF, sizes), N, LEAK, **sizes
    )
    return out_NF


# ---------------------------------------------------------------------------------------------
# Checking and timing

Work = Callable[[int], Tensor]


def checked(works: dict[str, Work]) -> dict[str, Work]:
    """Return the works whose result is that of the first one; tell of the others."""
    wanted, good = next(iter(works.values()))(0), {}
    for name, work in works.items():
        start_s = time.perf_counter()
        try:
            # A GPU reports what went wrong inside a kernel when it is asked for the result.
            off = ((work(0) - wanted).abs().max() / wanted.abs().max()).item()
        except Exception as error:
            print(f"  {name}: {type(error).__name__}: {str(error).strip()[:150]}", flush=True)
            continue
        print(f"  {name}: off by {off:.1e}, first call {time.perf_counter() - start_s:.1f} s",
              flush=True)  # fmt: skip
        if off < 1e-2:
            good[name] = work
    return good


def timed(works: dict[str, Work], rounds: int) -> dict[str, float]:
    """Return the median microseconds of a call of each, in turn, every call on other buffers."""
    taken: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            marks = [torch.cuda.Event(enable_timing=True) for _ in range(CALLS + 1)]
            work(0)
            marks[0].record()
            for number, mark in enumerate(marks[1:], 1):
                work(number)
                mark.record()
            torch.cuda.synchronize()
            taken[name] += [1e3 * a.elapsed_time(b) for a, b in itertools.pairwise(marks)]
    return {name: statistics.median(times) for name, times in taken.items()}


def report(title: str, works: dict[str, Work], bare: Work, rounds: int) -> None:
    print(title)
    works = checked(works)
    if torch.cuda.is_available():
        for name, us in timed({"cuBLAS, the product alone": bare, **works}, rounds).items():
            print(f"  {us:7.1f} us  {name}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=98_304)
    parser.add_argument("--rounds", type=int, default=30)
    chosen = parser.parse_args()
    cuda = torch.cuda.is_available()
    device, dtype = ("cuda", torch.bfloat16) if cuda else ("cpu", torch.float32)
    N, D, F = (chosen.rows, WIDTH, HIDDEN) if cuda else (150, 40, 72)
    print(f"{torch.cuda.get_device_name() if cuda else 'interpreter'}, torch {torch.__version__}, "
          f"Triton {triton.__version__}, {N} x {D} -> {F}")  # fmt: skip
    w = torch.randn(F, D, device=device).div(D**0.5).to(dtype)
    sets = [torch.randn(2, N, D, device=device).to(dtype) for _ in range(SETS)]
    squares = [products.up_square(x, w, LEAK) for x, _ in sets]

    works_back: dict[str, Work] = {
        "present": lambda n: products.slope_product(sets[n % SETS][1], w, squares[n % SETS], LEAK)
    }
    for variant in WAYS_BACK:
        works_back[variant.name] = lambda n, v=variant: slope_by(
            v, sets[n % SETS][1], w, squares[n % SETS]
        )
    works_up: dict[str, Work] = {
        "present": lambda n: products.up_square(sets[n % SETS][0], w, LEAK)
    }
    for variant in WAYS_FORWARD:
        works_up[variant.name] = lambda n, v=variant: up_by(v, sets[n % SETS][0], w)
    report("the way back, with the slope", works_back, lambda n: sets[n % SETS][1] @ w.T,
           chosen.rounds)  # fmt: skip
    report("the way forward, with the activation", works_up, lambda n: sets[n % SETS][0] @ w.T,
           chosen.rounds)  # fmt: skip


if __name__ == "__main__":
    main()
