"""Training that considers the rate: the bits that the codes of its matrices will take.

In the last part of a run two methods can be switched on, both with steps at which codes take about
`train.rate_bits` bits per weight. If the packer sets steps by the cost of errors, all rows of a
matrix have one step here, and small rows have few bits; if it sets them by deviations, each row has
its own step. Steps change with the weights.

Errors: every forward and backward pass runs on weights with the errors of such codes, and the
gradient goes to the weights without them. The errors are either uniform noise within half a
distance of two codes (Defossez et al. 2021, arXiv 2104.09987), as any quantiser leaves it, or those
of rounding to the nearest code (straight through: Bengio et al. 2013, arXiv 1308.3432).

Decay: a code costs about log2(1 + u^2) / 2 bits, u being its weight in steps; weights move against
that cost's derivative, beside the optimiser as weight decay does (a rate in the loss: BackSlash,
Wu et al. 2025, arXiv 2504.16968). Small weights decay, and so do small rows; large ones stay.

Shapes: L matrices of one shape, R rows, C columns, K codes.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fairway.base.errors import UserError
from fairway.config.settings import Config
from fairway.train.muon import Bank

# The number of rows of a matrix whose codes are counted for the step line, and the largest distinct
# code.
SAMPLE_ROWS = 64
LARGEST_CODE = 127


def step_ratio(bits: float) -> float:
    """Return the step, in deviations of its row, at which Gaussian codes take this many bits.

    This is a formula for the tables of `quantise.rates`, which this module may not import: log2(2 +
    pi e x^2 / 2) / 2 bits at a deviation of x steps, within 0.03 from 1.5 bits on. It is valid
    above half a bit.
    """
    return math.sqrt(math.pi * math.e / (2 * (math.pow(4.0, bits) - 2)))


def steps_of(weights_LRC: Tensor, bits: float, by_row: bool) -> Tensor:
    """Return the step of every row, [L, R, 1], or matrix, [L, 1, 1]; a tiny one for zeros."""
    over = (-1,) if by_row else (-2, -1)
    norms: Tensor = torch.linalg.vector_norm(weights_LRC, dim=over, keepdim=True)
    counts = math.prod(weights_LRC.shape[dim] for dim in over)
    return (norms * (step_ratio(bits) / math.sqrt(counts))).clamp_min(2.0**-60)


def cost_bits(weights_LRC: Tensor, steps: Tensor) -> Tensor:
    """Return a smooth estimate of the cost of the code of each weight, in bits."""
    return (weights_LRC / steps).square().log1p() / (2 * math.log(2))


def decay_(weights_LRC: Tensor, steps: Tensor, rate: float) -> None:
    """Move weights, in steps, by -rate times the derivative of `cost_bits`."""
    # With u = w / step this is u - rate u / (1 + u^2) / ln 2, so the weight shrinks by the same
    # share.
    slope_LRC = (weights_LRC / steps).square_().add_(1.0)
    weights_LRC.addcdiv_(weights_LRC, slope_LRC, value=-rate / math.log(2))


def entropy_bits(weights_LRC: Tensor, steps: Tensor) -> float:
    """Return the entropy of rows' codes in bits per weight, with a distribution for each row.

    A trellis uses both grids equally often, the even and the odd multiples of a step; here a weight
    takes the nearest multiple of both.
    """
    u_LRC = weights_LRC.float() / steps
    return (_entropy((u_LRC / 2).round()) + _entropy(((u_LRC + 1) / 2).round())) / 2


def _entropy(codes_LRC: Tensor) -> float:
    C = codes_LRC.shape[-1]
    places_LRC = codes_LRC.clamp(-LARGEST_CODE, LARGEST_CODE).long() + LARGEST_CODE
    counts_LRK = torch.zeros(*places_LRC.shape[:2], 2 * LARGEST_CODE + 1, device=codes_LRC.device)
    counts_LRK.scatter_add_(2, places_LRC, torch.ones_like(places_LRC, dtype=torch.float32))
    shares_LRK = counts_LRK.double() / C
    bits_LR = -torch.special.xlogy(shares_LRK, shares_LRK).sum(2) / math.log(2)
    # Few samples give too small an entropy: Miller 1955.
    missed_LR = ((counts_LRK > 0).sum(2) - 1) / (2 * C * math.log(2))
    return float((bits_LR + missed_LR).mean())


class Rates:
    """The matrices that a packer codes, during training.

    Noise depends on the number of processes, as the banks do.
    """

    def __init__(self, config: Config, banks: Sequence[Bank], device: torch.device) -> None:
        self.config, self.seed = config.train, config.seed
        self.by_row = config.quant.method != "trellis"
        self.banks = [
            bank for bank in banks if bank.weights_LRC[0].numel() > config.quant.min_numel
        ]
        self.parameters: list[nn.Parameter] = [w for bank in self.banks for w in bank.weights]
        if not self.banks:
            raise UserError(
                "train.rate_errors and train.rate_weight need matrices that are packed as codes, "
                f"but none has more than quant.min_numel {config.quant.min_numel} weights; lower "
                "that, or set train.rate_errors=off and train.rate_weight=0"
            )
        self._generator = torch.Generator(device)

    def begun(self, progress: float) -> bool:
        """Return whether a run is in the part that considers the rate."""
        return progress >= 1.0 - self.config.rate_share

    @contextmanager
    def errors(self, progress: float, step: int) -> Iterator[None]:
        """Give the weights the errors of codes in this context; a repeated step has the same."""
        if self.config.rate_errors == "off" or not self.begun(progress):
            yield
            return
        kept = [bank.weights_LRC.clone() for bank in self.banks]
        self._generator.manual_seed((self.seed << 32) + step)
        for bank in self.banks:
            self._disturb(bank.weights_LRC)
        self._tell()
        try:
            yield
        finally:
            for bank, weights_LRC in zip(self.banks, kept, strict=True):
                bank.weights_LRC.copy_(weights_LRC)
            self._tell()

    def steps(self, weights_LRC: Tensor) -> Tensor:
        """Return the steps of rows or matrices, [L, R or 1, 1]."""
        return steps_of(weights_LRC, self.config.rate_bits, self.by_row)

    def _disturb(self, weights_LRC: Tensor) -> None:
        apart = 2 * self.steps(weights_LRC)
        if self.config.rate_errors == "round":
            weights_LRC.div_(apart).round_().mul_(apart)
        else:
            noise_LRC = torch.empty_like(weights_LRC)
            noise_LRC.uniform_(-0.5, 0.5, generator=self._generator)
            weights_LRC.addcmul_(noise_LRC, apart)

    def _tell(self) -> None:
        # Banks do not change version counters, which owners of copied weights check.
        torch.autograd.graph.increment_version(self.parameters)

    def decay(self, progress: float, lr: float) -> None:
        """Decay weights by the cost of their bits, in this part of the run, at a learning rate."""
        rate = lr * self.config.rate_weight
        if not rate or not self.begun(progress):
            return
        for bank in self.banks:
            decay_(bank.weights_LRC, self.steps(bank.weights_LRC), rate)
        self._tell()

    def bits(self) -> float:
        """Return the entropy of the codes at these steps, in bits per weight, from some rows."""
        total = 0.0
        for bank in self.banks:
            steps, every = self.steps(bank.weights_LRC), bank.weights_LRC.shape[1] // SAMPLE_ROWS
            rows = slice(None, None, max(1, every))
            some = steps[:, rows] if self.by_row else steps
            total += bank.weights_LRC.numel() * entropy_bits(bank.weights_LRC[:, rows], some)
        return total / max(1, sum(bank.weights_LRC.numel() for bank in self.banks))
