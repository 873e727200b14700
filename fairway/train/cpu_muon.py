"""The steps before Muon's matrix products on a CPU, in one pass over memory.

For each value of a matrix: gradient and momentum are read, momentum and rounded row are written.
The plain steps of `rules` pass over the matrices six times.

Shapes: K matrices, R rows, C columns, N = K R, as in `rules`.
"""

from typing import Any

import numpy as np
from torch import Tensor

from fairway.base.floats import array, each, f32, put
from fairway.base.native import compiled_sums


@compiled_sums
def _nesterov(grad: Any, buffer: Any, out: Any, scale: Any, mu: Any, first: Any, end: Any) -> None:
    width = grad.shape[1]
    row = np.empty(width, np.float32)
    scale, mu = f32(scale), f32(mu)
    for n in range(first, end):
        g, kept, to = grad[n], buffer[n], out[n]
        for j in range(width):
            value = scale * g[j]
            kept[j] = value + mu * kept[j]
            row[j] = value + mu * kept[j]
        # A separate loop, as in `model.loops`.
        square = f32(0)
        for j in range(width):
            square += row[j] * row[j]
        norm = np.sqrt(square)
        norm = f32(1e-7) if norm < f32(1e-7) else norm
        for j in range(width):
            put(to, j, row[j] / norm)


def loop_nesterov(
    grad_KRC: Tensor, buffer_KRC: Tensor, scale_1: Tensor, mu: float, out: Tensor
) -> None:
    """Do the same as `rules.nesterov`; the gradient stays unchanged."""
    C, scale = grad_KRC.shape[2], scale_1.item()
    rows = (array(x.view(-1, C)) for x in (grad_KRC, buffer_KRC, out))
    count = grad_KRC.numel() // C
    each(count, grad_KRC, _nesterov, *rows, scale, mu)
