"""AdamW without first moments (beta1 = 0), on matrices with only their first rows in use.

The learning rule of adapters at test time (pull request #1530). `AdamW.step` is the plain rule;
`fused_adam` makes the same step in one pass over memory.

Tensors are [slots, rows, outputs, inputs].
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fairway.config.settings import TttConfig

# Added to the root of the second moment; small, since learning rates are as in #1530.
EPS = 1e-10
# The decay of the second moment.
BETA2 = 0.999


class AdamW:
    """Values with their second moments; steps change the rows in use, the first `count`."""

    def __init__(self, config: TttConfig, values: Sequence[Tensor]) -> None:
        self.config, self.values = config, list(values)
        self.squares = [torch.zeros_like(value) for value in values]
        self.count = self.steps = 0
        # The factor of the roots of second moments; on the device, where CUDA graphs read it.
        self.root_factor = values[0].new_ones(())

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
        """Decay the values of the rows from `first` on, then move them against their gradients.

        Call `count_step` before: rows may take the step in several calls.
        """
        config, count = self.config, grads[0].shape[1]
        values = self.rows(first, count)
        squares = [square[:, first : first + count] for square in self.squares]
        # Memory is allocated before anything changes, so a lack of memory leaves the values
        # unchanged.
        roots = [torch.empty_like(square) for square in squares]
        torch._foreach_mul_(squares, BETA2)
        torch._foreach_addcmul_(squares, grads, grads, 1.0 - BETA2)
        torch._foreach_copy_(roots, squares)
        torch._foreach_sqrt_(roots)
        torch._foreach_mul_(roots, self.root_factor)
        torch._foreach_add_(roots, EPS)
        torch._foreach_mul_(values, 1.0 - config.lora_lr * config.lora_wd)
        torch._foreach_addcdiv_(values, grads, roots, -config.lora_lr)

    def count_step(self) -> None:
        """Count a step, before the rows take it."""
        self.steps += 1
        self.root_factor.fill_((1.0 - BETA2**self.steps) ** -0.5)
