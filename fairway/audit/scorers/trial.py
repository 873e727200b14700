"""A probe until its verdict: its steps, the worst case so far, and the conclusion."""

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
    """A probe. Its work is cut into steps, so that a clock can share the budget among probes.

    `least` steps are made in any case, `usual` ones if the budget lasts, more where the audit is
    thorough. `share` is the part of the budget that it may take; who has a lower `turn` asks first.
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
        """Return whether there is anything to look at."""
        return True

    @abstractmethod
    def steps(self) -> Iterator[None]:
        """Work, and yield after every step; what is convicted goes no step further."""

    @abstractmethod
    def passed(self) -> str:
        """Return what is said of a scorer in which nothing was found."""

    def make_step(self, work: Iterator[None]) -> None:
        """Make one step, with random numbers of the probe's own, and note the time it took."""
        start_s = self.bench.clock()
        self.bench.draw = self._draw
        self.done = next(work, _END) is _END or bool(self.wrong)
        self.used_s += self.bench.clock() - start_s
        self.steps_made += 1

    def power(self) -> str:
        """Return which leak would have been found."""
        return ""

    def see(self, moved: FloatArray | float, index: IntArray | int) -> None:
        """Keep the worst case so far."""
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
        """Take the probe as failed; `places` are entries of `costs` at fault."""
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
