"""Could products of float8 make a training step of `best` faster? Rates beside bfloat16, one GPU.

    python benchmarks/eight_bits.py [--recipe best] [--rows 48]

Times the six products of a layer's MLP (forward, input gradient and weight gradient of both
matrices) in bfloat16 and in float8 (e4m3, cuBLAS, one scale for a tensor, bfloat16 or float32
results), in short bursts and for three seconds each; then all six of all layers for eight seconds;
then what float8 needs besides: casts, and transposed casts, because a float8 product of Hopper
reads both factors along the dimension that it sums over. Casts and products are separate here; a
kernel that writes float8 itself would save part of the casts. The error is that of rounding random
normal numbers.
"""

import argparse
from collections.abc import Callable

import torch
from step import T, ms_of, products, random, sustained
from torch import Tensor

from fairway.recipes import recipe

EIGHT = torch.float8_e4m3fn


def product_of_eight(a_NK: Tensor, b_MK: Tensor, dtype: torch.dtype) -> Callable[[], Tensor]:
    """Return the product a b^T in float8 whose factors were cast before."""
    a, b, one = a_NK.to(EIGHT), b_MK.to(EIGHT).T, torch.ones((), device="cuda")
    return lambda: torch._scaled_mm(
        a, b, scale_a=one, scale_b=one, out_dtype=dtype, use_fast_accum=True
    )


def pairs(N: int, inputs: int, outputs: int) -> list[tuple[Callable[[], Tensor], ...]]:
    """Return the three products of a matrix, each in bfloat16 and in float8."""
    x, w, g = random(N, inputs), random(outputs, inputs) * 0.04, random(N, outputs)
    eight = [
        product_of_eight(x, w, torch.bfloat16),
        product_of_eight(g, w.T.contiguous(), torch.bfloat16),
        product_of_eight(g.T.contiguous(), x.T.contiguous(), torch.float32),
    ]
    return list(zip(products(x, w, g), eight, strict=True))


def error_of(exact: Tensor, found: Tensor) -> float:
    return float((exact.float() - found.float()).norm() / exact.float().norm())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", default="best")
    parser.add_argument("--rows", type=int, default=48)
    chosen = parser.parse_args()
    model, N = recipe(chosen.recipe).model, chosen.rows * T
    torch.manual_seed(0)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {N:,} rows")
    print("milliseconds: bfloat16 in bursts, for three seconds; float8 the same; relative error")
    both: list[list[Callable[[], object]]] = [[], []]
    for name, shape in (("up", (model.dim, model.mlp_dim)), ("down", (model.mlp_dim, model.dim))):
        kinds = ("forward", "input gradient", "weight gradient")
        for kind, pair in zip(kinds, pairs(N, *shape), strict=True):
            times = [t for f in pair for t in (ms_of(f), sustained([f] * 20, 3.0) / 20)]
            words = "  ".join(f"{ms:.3f}" for ms in times)
            print(f"  {name:4} {kind:15} {words}  {error_of(pair[0](), pair[1]()):.4f}", flush=True)
            for works, f in zip(both, pair, strict=True):
                works.append(f)
    for name, works in zip(("bfloat16", "float8"), both, strict=True):
        ms = sustained(works * model.num_layers, 8.0)
        print(f"  all layers for eight seconds, {name}: {ms:.2f} ms", flush=True)
    for width in (model.dim, model.mlp_dim):
        x = random(N, width)
        cast, turned = ms_of(lambda x=x: x.to(EIGHT)), ms_of(lambda x=x: x.T.contiguous().to(EIGHT))
        least = 3e3 * x.numel() / 3.0e12
        print(f"  to float8, {width} wide: {cast:.3f} ms, transposed {turned:.3f}; "
              f"its bytes alone at 3 TB/s: {least:.3f}")  # fmt: skip


if __name__ == "__main__":
    main()
