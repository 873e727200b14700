"""Shares of all rows at once, where their probabilities are: on a GPU they stay there.

A share is where a token's whole-number frequencies begin among those of all tokens, and how wide
it is. On a CPU they are those of `coder.frequencies`; on another device the same rule is written in
PyTorch's operations, whose sums of whole numbers do not depend on the order in which they are
added. The exponential may differ in its last bit between devices, so shares may, too: a file names
the device that it was coded on.

Shapes: S rows, V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fairway.prove.coder import SUM_TOLERANCE, TOTAL_BITS, frequencies, spare_of


@dataclass(frozen=True, slots=True, eq=False)
class Shares:
    """Frequencies of all tokens, which sum to 2^TOTAL_BITS, and where each one's share begins.

    `sound` is a flag on the device: whether all rows were distributions. Where they were not, the
    frequencies mean nothing.
    """

    counts_SV: Tensor
    starts_SV: Tensor
    sound: Tensor

    def taken(self, ids_S: Tensor) -> Tensor:
        """Return where the shares of some tokens begin and how wide they are, int64 [2, S]."""
        ids_S1 = ids_S[:, None]
        return torch.cat((self.starts_SV.gather(1, ids_S1), self.counts_SV.gather(1, ids_S1)), 1).T

    def starts_bits(self) -> Tensor:
        """Return where shares begin as 32 bits, to be read without a sign; int32 [S, V]."""
        return self.starts_SV.to(torch.int32)


def shares_of(log_probs_SV: Tensor) -> Shares:
    """Return the shares of float64 log-probabilities, on their device.

    On a CPU, rows that are not distributions raise ValueError at once; a GPU's are found `sound`
    or not when the host asks.
    """
    if log_probs_SV.device.type == "cpu":
        counts_SV = torch.from_numpy(frequencies(log_probs_SV.numpy()))
        sound = torch.ones((), dtype=torch.bool)
    else:
        counts_SV, sound = device_frequencies(log_probs_SV)
    return Shares(counts_SV, counts_SV.cumsum(-1) - counts_SV, sound)


def device_frequencies(log_probs_SV: Tensor) -> tuple[Tensor, Tensor]:
    """Return (`coder.frequencies` as int64 [S, V], whether all rows are distributions).

    No number leaves the device.
    """
    spare = spare_of(log_probs_SV.shape[-1], TOTAL_BITS)
    probs_SV = log_probs_SV.exp()
    counts_SV = (probs_SV * spare).floor().long()
    rest_S1 = spare - counts_SV.sum(-1, keepdim=True)
    # The first of several likeliest, as there.
    counts_SV.scatter_add_(-1, counts_SV.argmax(-1, keepdim=True), rest_S1)
    sound = ((probs_SV.sum(-1) - 1.0).abs() <= SUM_TOLERANCE).all()
    return counts_SV.add_(1), sound
