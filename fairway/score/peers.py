"""Sets of adapters side by side whose probabilities are averaged: an ensemble that learns.

Every set predicts and learns independently. The score uses the mean of their distributions, which
is a distribution. Its cost is recorded before any set learns.

Shapes: B documents, C positions of a chunk, V vocabulary.
"""

import math
from collections.abc import Sequence
from typing import Generic, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from fairway.base.arrays import FloatArray, IntArray
from fairway.score.predictor import Context


class Chunk(Protocol):
    """The prediction of a chunk of documents by one set of adapters."""

    def log_prob(self, targets: IntArray) -> FloatArray:
        """Return the natural log-probability of the target of every scored position."""

    def tables(self, first: int, end: int) -> Tensor:
        """Return log p of all V tokens at the scored positions first..end-1, in float64."""

    def row(self, position: int) -> FloatArray:
        """Return log p of all V tokens at a position, computed independently of `log_prob`."""

    def rectangle(self, targets: IntArray) -> Tensor:
        """Return targets, window after window, as [B, C] on the model's device."""


C = TypeVar("C", bound=Chunk)


class Side(Protocol[C]):
    """Documents side by side with one set of adapters each: see `lora.Documents`."""

    def keep(self, rows: tuple[int, ...]) -> None:
        """Go on with some of the rows."""

    def save(self) -> None:
        """Keep what the present rows have learned of A."""

    def predict(self, context: Context) -> C:
        """Return the distributions of a chunk of the present rows."""

    def learn(self, dist: C, targets_BC: Tensor, going_on: list[int]) -> None:
        """Take a step on the chunk of those windows (by place) that go on."""


S = TypeVar("S", bound=Side)  # type: ignore[type-arg]


class Peers(Generic[S]):
    """The members of an ensemble as one predictor."""

    def __init__(self, members: Sequence[S]) -> None:
        self.members = members

    def keep(self, rows: tuple[int, ...]) -> None:
        """Go on with some of the rows."""
        for member in self.members:
            member.keep(rows)

    def save(self) -> None:
        """Keep what the present rows have learned of A."""
        for member in self.members:
            member.save()

    def predict(self, context: Context) -> "Mean":
        """Return the mean of all members' distributions."""
        return Mean([member.predict(context) for member in self.members])

    def learn(self, dist: "Mean", targets_BC: Tensor, going_on: list[int]) -> None:
        """Let every member take a step on its own prediction."""
        for member, own in zip(self.members, dist.members, strict=True):
            member.learn(own, targets_BC, going_on)


class Mean:
    """The mean of several predictions of the same chunk."""

    def __init__(self, members: Sequence[Chunk]) -> None:
        self.members = members

    def log_prob(self, targets: IntArray) -> FloatArray:
        """Return the natural log-probability of the target of every scored position."""
        found = [member.log_prob(targets) for member in self.members]
        return found[0] if len(found) == 1 else np.minimum(_mean_of(found), 0.0)

    def tables(self, first: int, end: int) -> Tensor:
        """Return log p of all V tokens at the scored positions first..end-1, in float64."""
        return mean_of([member.tables(first, end) for member in self.members])

    def row(self, position: int) -> FloatArray:
        """Return log p of all V tokens at a position, computed independently of `log_prob`."""
        found = [member.row(position) for member in self.members]
        return found[0] if len(found) == 1 else _mean_of(found)

    def rectangle(self, targets: IntArray) -> Tensor:
        """Return targets as [B, C]; all members have their documents in the same slots."""
        return self.members[0].rectangle(targets)


def mean_of(log_probs: Sequence[Tensor]) -> Tensor:
    """Return log of the mean of some probabilities, given their logarithms."""
    if len(log_probs) == 1:
        return log_probs[0]
    return torch.stack(list(log_probs)).logsumexp(0) - math.log(len(log_probs))


def _mean_of(log_probs: Sequence[FloatArray]) -> FloatArray:
    found: FloatArray = np.logaddexp.reduce(log_probs) - math.log(len(log_probs))
    return found
