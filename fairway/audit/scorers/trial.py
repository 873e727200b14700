"""The base class of probes: steps, the worst case so far, and the verdict."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator

import numpy as np

from fairway.audit.scorers.bench import Bench
from fairway.audit.scorers.scorer import Costs
from fairway.audit.scorers.verdicts import Probe, Verdict
from fairway.base.arrays import FloatArray, IntArray

_END = object()


class Trial(ABC):
    """A probe. Its work is divided into steps, so that probes can share the budget.

    `least` steps are always made, `usual` ones if the budget allows, and more in a thorough audit.
    `share` is the probe's part of the budget; probes with a lower `turn` begin earlier.
    """

    name: str
    rules: tuple[str, ...]
    did: str
    share: float = 0.1
    turn: int = 2
    least: int = 1
    usual: int = 1

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.samples = 0
        self.worst: float | None = None
        self.position: int | None = None
        self.wrong = ""
        self.doubt = ""
        self.used_s = 0.0
        self.steps_made = 0
        self.done = False
        self._draw = np.random.default_rng([bench.seed, *self.name.encode()])

    @classmethod
    def concerns(cls, bench: Bench) -> bool:
        """Return whether the probe applies."""
        return True

    @abstractmethod
    def steps(self) -> Iterator[None]:
        """Do the work, and yield after every step; stop after a conviction."""

    @abstractmethod
    def passed(self) -> str:
        """Return the sentence for a scorer without a fault."""

    def make_step(self, work: Iterator[None]) -> None:
        """Make one step with the probe's own random numbers, and record its time."""
        start_s = self.bench.clock()
        self.bench.draw = self._draw
        self.done = next(work, _END) is _END or bool(self.wrong)
        self.used_s += self.bench.clock() - start_s
        self.steps_made += 1

    def power(self) -> str:
        """Return which leaks would have been found."""
        return ""

    def see(self, moved: FloatArray | float, index: IntArray | int) -> None:
        """Update the worst case."""
        values, places = np.atleast_1d(moved), np.atleast_1d(index)
        if not len(values):
            return
        at = int(np.argmax(values))
        if self.worst is None or values[at] > self.worst:
            self.worst, self.position = float(values[at]), int(places[at])

    def above(self, bound: float) -> bool:
        """Return whether the worst case exceeds a bound."""
        return self.worst is not None and not self.worst <= bound

    def convict(self, why: str, costs: Costs | None = None, places: IntArray | None = None) -> None:
        """Mark the probe as failed; `places` are the entries of `costs` at fault."""
        self.wrong = why
        if costs is not None and places is not None:
            self.position, self.worst = int(costs.index[places[0]]), float(costs.nats[places[0]])

    def probe(self) -> Probe:
        """Return the result."""
        verdict: Verdict = "valid"
        why, power = self.passed, self.power
        if self.wrong:
            verdict, words = "invalid", (self.wrong, "")
        elif self.doubt:
            verdict, words = "not decidable", (self.doubt, "")
        else:
            words = (why(), power())
        worst = self.worst if self.worst is None or math.isfinite(self.worst) else None
        return Probe(
            self.name, self.rules, self.did, self.samples, worst, self.position, verdict, *words
        )
