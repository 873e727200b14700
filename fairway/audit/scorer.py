"""What a scorer must offer to be audited, and how others than Fairway's offer it.

    class Scorer(Protocol):
        vocab_size: int

        def score(self, ids: IntArray) -> Iterable[tuple[int, float]]:
            '''Score a text from a fresh state: yield the index of every token but the first, with
            its cost in nats, in the order in which they are scored.'''

That is all. Two things more may be offered, and are then audited too:

        separate: bool = True       # documents, each from BOS on, do not influence one another
        row_tolerance_nats = 1e-6   # how far a row may lie from what was charged
        def row(self, ids: IntArray, index: int) -> FloatArray:
            '''Return the log-probabilities of all V tokens at an index, as they stood there.'''

A scorer whose `score` makes everything before it yields anything may offer `score_part`, which
saves time and changes nothing else (`PartScorer`).
"""

import json
import subprocess
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from fairway.errors import UserError
from fairway.score.ledger import FloatArray, IntArray


class Scorer(Protocol):
    """Anything that scores a text of tokens 0..vocab_size-1."""

    @property
    def vocab_size(self) -> int:
        """Return V."""

    def score(self, ids: IntArray) -> Iterable[tuple[int, float]]:
        """Yield (index, cost in nats) of every token but the first, in the order of scoring.

        Every call begins from a fresh state.
        """


@runtime_checkable
class RowScorer(Protocol):
    """A scorer that also shows whole distributions."""

    vocab_size: int
    # How far a row may lie from the cost that was charged: rounding of another path.
    row_tolerance_nats: float

    def score(self, ids: IntArray) -> Iterable[tuple[int, float]]:
        """Score a text; see `Scorer`."""

    def row(self, ids: IntArray, index: int) -> FloatArray:
        """Return the log-probabilities of all V tokens at an index, as they stood there."""


@runtime_checkable
class PartScorer(Protocol):
    """A scorer that can end early: most probes ask for the beginning of a score alone."""

    def score_part(
        self, ids: IntArray, count: int | None, until: int
    ) -> Iterable[tuple[int, float]]:
        """Yield what `score` would, at least its first `count` or up to the index `until`."""


@dataclass(frozen=True, slots=True, eq=False)
class Costs:
    """What a scorer charged: indices in the order of scoring, and the cost of each in nats."""

    index: IntArray
    nats: FloatArray

    def at(self, index: int) -> float:
        """Return the cost of a token, NaN if it has none."""
        found = np.flatnonzero(self.index == index)
        return float(self.nats[found[0]]) if len(found) else float("nan")


def scored(scorer: Scorer, ids: IntArray, count: int | None = None, until: int = -1) -> Costs:
    """Return what a scorer charges for a text: all, the first `count`, or up to an index."""
    index: list[int] = []
    nats: list[float] = []
    if isinstance(scorer, PartScorer):
        costs = scorer.score_part(ids.copy(), count, until)
    else:
        costs = scorer.score(ids.copy())
    for at, cost in costs:
        index.append(int(at))
        nats.append(float(cost))
        if len(index) == count or at == until or len(index) > 2 * len(ids):
            break
    return Costs(np.array(index, np.int64), np.array(nats, np.float64))


class FromCallable:
    """A scorer made of a function that returns the cost of every token but the first, in nats."""

    def __init__(self, vocab_size: int, function: Callable[[IntArray], Sequence[float]]) -> None:
        self.vocab_size, self._function = vocab_size, function

    def score(self, ids: IntArray) -> Iterable[tuple[int, float]]:
        """Score a text in its own order."""
        return enumerate(self._function(ids), start=1)


class FromProgram:
    """A scorer that is a program: one line of JSON in, one line of JSON out.

    The program first writes {"vocab_size": V}, then answers {"ids": [...]} by {"nats": [...]}, the
    cost of every token but the first, or, if it scores in another order, by {"nats": [...],
    "index": [...]}. A program that writes {"vocab_size": V, "rows": true} also answers
    {"ids": [...], "row": t} by {"row": [...]}. UserError for a program that ends, is silent for
    `timeout_s`, or writes something else. `open_program` starts one.
    """

    def __init__(self, command: Sequence[str], timeout_s: float = 600.0) -> None:
        self._timeout_s = timeout_s
        self._name = command[0]
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        except OSError as error:
            raise UserError(f"cannot start {self._name}: {error.strerror}") from None
        hello = self._answer()
        size = hello.get("vocab_size")
        if type(size) is not int or size < 2:
            raise UserError(f'{self._name} must begin with {{"vocab_size": V}}, it wrote {hello}')
        self.vocab_size = size
        self.separate = hello.get("separate") is True
        self.shows_rows = hello.get("rows") is True
        # What stands in JSON has been rounded, and by whom we do not know.
        self.row_tolerance_nats = 1e-3

    def close(self) -> None:
        """End the program."""
        self._process.kill()
        self._process.communicate()

    def score(self, ids: IntArray) -> Iterable[tuple[int, float]]:
        """Ask for the costs of a text."""
        found = self._ask({"ids": ids.tolist()})
        nats = self._numbers(found, "nats")
        index = self._numbers(found, "index") if "index" in found else range(1, len(nats) + 1)
        return [(int(at), float(cost)) for at, cost in zip(index, nats, strict=False)]

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
        except OSError:
            raise UserError(f"{self._name} has ended; nothing more can be asked of it") from None
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        late = threading.Timer(self._timeout_s, self._process.kill)
        late.start()
        line = self._process.stdout.readline()
        late.cancel()
        if not line:
            raise UserError(f"{self._name} gave no answer within {self._timeout_s:.0f} s, or ended")
        try:
            found = json.loads(line)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise UserError(f"{self._name} wrote '{line.strip()[:60]}', which is no JSON object")
        return found

    def _numbers(self, found: dict[str, Any], name: str) -> list[float]:
        values = found.get(name)
        if not isinstance(values, list) or not all(type(v) in (int, float) for v in values):
            raise UserError(f"{self._name} gave no list of numbers as '{name}'")
        return values


class _RowProgram(FromProgram):
    """A program that shows whole distributions too."""

    def row(self, ids: IntArray, index: int) -> FloatArray:
        """Ask for the distribution at an index."""
        found = self._ask({"ids": ids.tolist(), "row": index})
        return np.array(self._numbers(found, "row"), np.float64)


def open_program(command: Sequence[str], timeout_s: float = 600.0) -> FromProgram:
    """Start a program that scores; see `FromProgram`."""
    program = FromProgram(command, timeout_s)
    if program.shows_rows:
        # The same process: only what may be asked of it differs.
        program.__class__ = _RowProgram
    return program
