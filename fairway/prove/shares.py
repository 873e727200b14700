"""Shares of all rows at once, on the device of their probabilities; on a GPU they stay there.

A share is the interval of a token in the cumulative whole-number frequencies: where it begins and
how wide it is. On a CPU the frequencies come from `coder.frequencies`. On another device PyTorch's
operations follow the same rule; their sums of whole numbers do not depend on the order of addition.
The exponential may differ in its last bit between devices, and so may shares: a file names the
device that coded it.

Shapes: S rows, V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fairway.prove.coder import SUM_TOLERANCE, TOTAL_BITS, frequencies, spare_of


@dataclass(frozen=True, slots=True, eq=False)
class Shares:
    """Frequencies of all tokens, which sum to 2^TOTAL_BITS, and where the share of each token
    begins.

    `sound` is a flag on the device: whether all rows were distributions. If it is false, the
    frequencies are meaningless.
    """

    counts_SV: Tensor
    starts_SV: Tensor
    sound: Tensor

    def taken(self, ids_S: Tensor) -> Tensor:
        """Return the starts and widths of the shares of some tokens, int64 [2, S]."""
        ids_S1 = ids_S[:, None]
        return torch.cat((self.starts_SV.gather(1, ids_S1), self.counts_SV.gather(1, ids_S1)), 1).T

    def starts_bits(self) -> Tensor:
        """Return the starts of shares as 32-bit numbers, to be read as unsigned; int32 [S, V]."""
        return self.starts_SV.to(torch.int32)


def shares_of(log_probs_SV: Tensor) -> Shares:
    """Return the shares of float64 log-probabilities, on their device.

    On a CPU, rows that are not distributions raise ValueError at once. On a GPU the host learns it
    when it reads `sound`.
    """
    if log_probs_SV.device.type == "cpu":
        counts_SV = torch.from_numpy(frequencies(log_probs_SV.numpy()))
        sound = torch.ones((), dtype=torch.bool)
    else:
        counts_SV, sound = device_frequencies(log_probs_SV)
    return Shares(counts_SV, counts_SV.cumsum(-1) - counts_SV, sound)


def device_frequencies(log_probs_SV: Tensor) -> tuple[Tensor, Tensor]:
    """Return (`coder.frequencies` as int64 [S, V], whether all rows are distributions).

    All numbers stay on the device.
    """
    spare = spare_of(log_probs_SV.shape[-1], TOTAL_BITS)
    probs_SV = log_probs_SV.exp()
    counts_SV = (probs_SV * spare).floor().long()
    rest_S1 = spare - counts_SV.sum(-1, keepdim=True)
    # The first of several likeliest tokens, as in `coder.frequencies`.
    counts_SV.scatter_add_(-1, counts_SV.argmax(-1, keepdim=True), rest_S1)
    sound = ((probs_SV.sum(-1) - 1.0).abs() <= SUM_TOLERANCE).all()
    return counts_SV.add_(1), sound
