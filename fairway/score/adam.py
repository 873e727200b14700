"""AdamW without first moments (beta1 = 0), over matrices of which only the first rows are in use.

The learning rule of adapters at test time (pull request #1530). `AdamW.step` is the plain rule;
`fused_adam` makes the same step in one pass over memory.

Tensors are [slots, rows, outputs, inputs].
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fairway.config.settings import TttConfig

# What is added to the root of the second moment: small, since rates are as in #1530.
EPS = 1e-10


class AdamW:
    """Values with their second moments; steps change the rows in use, the first `count`."""

    def __init__(self, config: TttConfig, values: Sequence[Tensor]) -> None:
        self.config, self.values = config, list(values)
        self.squares = [torch.zeros_like(value) for value in values]
        self.count = self.steps = 0
        # What roots of second moments are multiplied by: on the device, where graphs read it.
        self.unbiased = values[0].new_ones(())

    def start(self, count: int) -> None:
        """Begin with fresh moments for some rows."""
        self.count, self.steps = count, 0
        for square in self.squares:
            square[:, :count].zero_()

    def rows(self, first: int, count: int) -> list[Tensor]:
        """Return the values of some rows, views."""
        return [value[:, first : first + count] for value in self.values]

    @torch.no_grad()
    def step(self, grads: list[Tensor], first: int = 0) -> None:
        """Decay the values of the rows from `first` on, move them against their gradients.

        The step was counted before (`count_step`): rows may take it in several calls.
        """
        config, count = self.config, grads[0].shape[1]
        values = self.rows(first, count)
        squares = [square[:, first : first + count] for square in self.squares]
        # Memory is taken before anything changes: where it does not suffice, no step was taken.
        roots = [torch.empty_like(square) for square in squares]
        torch._foreach_mul_(squares, config.lora_beta2)
        torch._foreach_addcmul_(squares, grads, grads, 1.0 - config.lora_beta2)
        torch._foreach_copy_(roots, squares)
        torch._foreach_sqrt_(roots)
        torch._foreach_mul_(roots, self.unbiased)
        torch._foreach_add_(roots, EPS)
        torch._foreach_mul_(values, 1.0 - config.lora_lr * config.lora_wd)
        torch._foreach_addcdiv_(values, grads, roots, -config.lora_lr)

    def count_step(self) -> None:
        """Count a step, before the rows take it."""
        self.steps += 1
        self.unbiased.fill_((1.0 - self.config.lora_beta2**self.steps) ** -0.5)
