"""What attention costs by backend, with windows and documents: forward and backward of one layer.

    python benchmarks/attention.py [--rows 48] [--length 2048] [--window 256 1024] [--mean 500]

Heads of 64 (8 queries, 4 keys and values) and 128 (4, 2), bfloat16 activations on a GPU and float32
on a CPU. Documents have geometric lengths of the given mean. They are made once per batch, so what
they cost stands in a line of its own. A backend that runs in another's place is named.
"""

import argparse
import functools
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from fairway.base.timing import settle
from fairway.config.settings import BOS_ID
from fairway.model import flex
from fairway.model.attention import BACKENDS, serving, why_not
from fairway.model.seen import ALL, Seen, documents_of

REPEATS = 15
HEADS = {64: (8, 4), 128: (4, 2)}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPE = torch.bfloat16 if DEVICE == "cuda" else torch.float32


def median_ms(work: Callable[[], object]) -> float:
    taken = []
    for _ in range(REPEATS + 3):
        settle()
        start_s = time.perf_counter()
        work()
        settle()
        taken.append(1000 * (time.perf_counter() - start_s))
    return statistics.median(taken[3:])


def views(rows: int, length: int, width: int) -> list[Tensor]:
    """Return queries, keys and values as the model makes them: slices of one buffer."""
    query_heads, kv_heads = HEADS[width]
    wide = torch.randn(rows, length, (query_heads + 2 * kv_heads) * width, device=DEVICE)
    parts = wide.to(DTYPE).split([n * width for n in (query_heads, kv_heads, kv_heads)], -1)
    return [z.unflatten(-1, (-1, width)).transpose(1, 2) for z in parts]


def both_ways_ms(name: str, values: list[Tensor], seen: Seen) -> float:
    inputs = [z.detach().requires_grad_() for z in values]
    dy = torch.randn_like(values[0])

    def work() -> None:
        torch.autograd.grad(BACKENDS[name](*inputs, seen), inputs, dy)

    return median_ms(work)


def cell(name: str, values: list[Tensor], seen: Seen) -> str:
    width, length = values[0].shape[3], values[0].shape[2]
    found, _ = serving(name, DEVICE, DTYPE, width, seen.within(len(values[0]), length))
    try:
        taken_ms = both_ways_ms(name, values, seen)
    except Exception as error:  # Other people's kernels raise whatever they like.
        return f"failed: {(str(error).strip() or repr(error)).splitlines()[0]}"
    return f"{taken_ms:.2f}" + (f" by {found}" if found != name else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=48)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--window", type=int, nargs="*", default=[256, 1024])
    parser.add_argument("--mean", type=float, default=500.0)
    parser.add_argument("--backends", nargs="*", default=list(BACKENDS))
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    ends_BT = torch.rand(args.rows, args.length, device=DEVICE) < 1 / args.mean
    ids_BT = torch.where(ends_BT, BOS_ID, BOS_ID + 1)
    apart = documents_of(ids_BT)
    kinds = {"all": ALL} | {f"window {w}": Seen(w) for w in args.window}
    kinds |= {f"{name}, documents": Seen(seen.window, apart) for name, seen in kinds.items()}
    gpu = torch.cuda.get_device_name() if DEVICE == "cuda" else "CPU"
    print(f"{gpu}, torch {torch.__version__}, {args.rows} x {args.length}, {DTYPE}")
    here = [name for name in args.backends if not why_not(name, DEVICE, DTYPE)]
    for width in HEADS:
        print(f"\n| heads of {width}, ms | {' | '.join(here)} |\n|---|{'--:|' * len(here)}")
        values = views(args.rows, args.length, width)
        for kind, seen in kinds.items():
            print(f"| {kind} | {' | '.join(cell(name, values, seen) for name in here)} |")
    lengths_ms = median_ms(lambda: documents_of(ids_BT).longest)
    mask = functools.partial(flex.block_mask, Seen(0, apart), args.length, ids_BT.device)
    print(f"\n{len(apart.starts) - 1} documents, the longest {apart.longest}; per batch")
    print(f"{lengths_ms:.2f} ms for their lengths, {median_ms(mask):.2f} for a mask in blocks")


if __name__ == "__main__":
    main()
