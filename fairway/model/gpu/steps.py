"""Shared code of the kernel steps: a typed autograd function, and working copies of weights.

Shapes: M, N, L free; R rows, C columns of a matrix.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fairway.model.gpu.short import shorten_


def rows_of(x: Tensor) -> Tensor:
    """Return a view of a tensor as rows, [N, ...]."""
    return x.view(-1, x.shape[-1])


class Step(torch.autograd.Function):
    """An autograd function with a typed `run`; gradients that are not needed stay None."""

    @classmethod
    def run(cls, *args: Any) -> Any:
        """Apply the function."""
        return cls.apply(*args)  # type: ignore[no-untyped-call]


class Working:
    """A tensor computed from parameters, and computed again in place when one has changed.

    `make(out, *sources)` writes it, with rounding, so that no float32 tensor is needed in between.
    Then it is shortened to a unit.
    """

    def __init__(
        self,
        make: Callable[..., None],
        shape: Sequence[int],
        dtype: torch.dtype,
        unit: int,
        *sources: Tensor,
    ) -> None:
        self._make, self._unit, self._sources = make, unit, sources
        self._versions: tuple[int, ...] = ()
        self._value = sources[0].new_empty(shape, dtype=dtype)

    def get(self) -> Tensor:
        """Return the up-to-date tensor."""
        versions = tuple(source._version for source in self._sources)
        if versions != self._versions:
            self._make(self._value, *(source.detach() for source in self._sources))
            shorten_(self._value, self._unit)
            self._versions = versions
        return self._value


def side_by_side(out_RC: Tensor, *weights: Tensor) -> None:
    """Write matrices one below the other."""
    parts = torch.split(out_RC, [len(weight) for weight in weights])
    torch._foreach_copy_(list(parts), list(weights))


def scaled(out_RC: Tensor, weight_RC: Tensor, scale_R: Tensor) -> None:
    """Write a matrix with its rows scaled."""
    torch.mul(weight_RC, scale_R[:, None], out=out_RC)


def scaled_transposed(out_CR: Tensor, weight_RC: Tensor, scale_R: Tensor) -> None:
    """Write the transpose of a matrix with scaled rows."""
    scaled(out_CR.T, weight_RC, scale_R)
