"""How far the trellis is from the bound of rate and distortion, on sources that are known.

    python benchmarks/rate_distortion.py [--bits 3.4 3.0 2.6 2.2] [--states 1 8 16 32]

A matrix of 512 x 512 independent numbers goes through the encoder and through `cabac`. Printed is
by how many decibels the error exceeds the least that any code of so many bits can have (for a
Laplacian the lower bound of Shannon); 6.02 dB are a bit. One state is a plain grid.
"""

import argparse
import math
import time

import numpy as np
import torch
from torch import Tensor

from fairway.pack.cabac import Side, encode_codes
from fairway.quantise.rates import WIDE_BITS, code_bits, row_classes
from fairway.quantise.trellis import codes_of
from fairway.quantise.viterbi import Encoder, Problem

SIZE, BLOCK = 512, 128
# Differential entropy of a number of variance 1, in bits.
ENTROPY_BITS = {
    "Gaussian": math.log2(2 * math.pi * math.e) / 2,
    "Laplacian": math.log2(math.sqrt(2) * math.e),
}


def source(kind: str) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    if kind == "Gaussian":
        return torch.randn(SIZE, SIZE, generator=generator)
    ends = torch.empty(2, SIZE, SIZE).exponential_(generator=generator)
    return (ends[0] - ends[1]) / math.sqrt(2)


def coded(w_RC: Tensor, step: float, price: float, states: int) -> tuple[float, float]:
    """Return bits per number and the mean squared error."""
    problem = Problem(
        (w_RC.T / step)[None].contiguous(),
        torch.eye(SIZE)[None],
        torch.ones(1, SIZE),
        torch.full((1, SIZE), price),
        code_bits(WIDE_BITS),
        row_classes(torch.full((1, SIZE), float(w_RC.std()) / step)),
        torch.zeros(1, SIZE, dtype=torch.long),
    )
    multiples_RC = Encoder(states, BLOCK).cheapest_paths(problem)[0].T
    codes = codes_of(multiples_RC).numpy().astype(np.int16)
    logs = np.full(SIZE, round(256 * math.log2(step)), np.int64)
    stream = encode_codes([codes], [Side((SIZE, SIZE), logs, states if states > 1 else 0)])
    return 8 * len(stream) / w_RC.numel(), float((multiples_RC * step - w_RC).square().mean())


def excess_db(kind: str, bits: float, price: float, states: int) -> float:
    w_RC = source(kind)
    step = 2 ** (ENTROPY_BITS[kind] - bits - 1)
    for _ in range(2):
        found_bits, error = coded(w_RC, step, price, states)
        step *= 2 ** (found_bits - bits)
    least = 2 ** (2 * (ENTROPY_BITS[kind] - found_bits)) / (2 * math.pi * math.e)
    return 10 * math.log10(error / float(w_RC.var()) / least)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bits", type=float, nargs="*", default=[3.4, 3.0, 2.6, 2.2])
    parser.add_argument("--states", type=int, nargs="*", default=[1, 8, 16, 32])
    parser.add_argument("--price", type=float, default=0.0)
    chosen = parser.parse_args()
    for kind in ENTROPY_BITS:
        for bits in chosen.bits:
            start_s, told = time.process_time(), ""
            for states in chosen.states:
                found_db = excess_db(kind, bits, chosen.price, states)
                told += f"  {states} states {found_db:.2f} dB"
            taken_s = time.process_time() - start_s
            print(f"{kind:9} {bits:g} bits:{told}  ({taken_s:.1f} s)", flush=True)


if __name__ == "__main__":
    main()
