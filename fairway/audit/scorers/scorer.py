"""The interface of a scorer for an audit, and adapters for scorers of other programs.

`Scorer` is the whole interface. A scorer may also show whole distributions (`RowScorer`), which are
then audited. It may also declare

        separate: bool = True       # documents, each from BOS on, do not influence one another

Two more methods help an audit and are optional:

        def byte_counts(self, ids: IntArray) -> Sequence[float]:
            '''Return the bytes of text that every token but the first stands for.'''
        def fresh(self) -> Scorer:
            '''Return a scorer that has answered no question; without it, a copy is made.'''

If `score` computes the whole text before its first result, the scorer may offer `score_part`, which
saves time and changes nothing else (`PartScorer`).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol, runtime_checkable

import numpy as np

from fairway.audit.scorers.pipe import Pipe
from fairway.base.arrays import FloatArray, IntArray
from fairway.base.errors import UserError, shown

# The largest vocabulary that an audit accepts.
MOST_WORDS = 1 << 20
# A line may have this many bytes, plus this many for every number that it can hold.
_LINE_BYTES, _NUMBER_BYTES = 1 << 16, 32
# The time for all answers together, in budgets.
_TOTAL = 3.0


class Scorer(Protocol):
    """Anything that scores a text of tokens 0..vocab_size-1."""

    @property
    def vocab_size(self) -> int:
        """Return V."""

    def score(self, ids: IntArray) -> Iterable[tuple[int, float]]:
        """Yield (index, cost in nats) of every token but the first, in the order of scoring.

        Every call begins from a fresh state.
        """


# How far a row may be from the charged cost: numbers in JSON may have been rounded. A program may
# state more, up to the rounding of logits in bfloat16 (score.sliding).
ROUNDED_NATS, MOST_ROUNDED_NATS = 1e-3, 0.25


@runtime_checkable
class RowScorer(Protocol):
    """A scorer that also shows whole distributions."""

    vocab_size: int
    # The largest difference between a row and the charged cost: rounding of another code path.
    row_tolerance_nats: float

    def score(self, ids: IntArray) -> Iterable[tuple[int, float]]:
        """Score a text; see `Scorer`."""

    def row(self, ids: IntArray, index: int) -> FloatArray:
        """Return the log-probabilities by which the token at an index was scored, for all V."""


@runtime_checkable
class PartScorer(Protocol):
    """A scorer that can end early: most probes need only the beginning of a score."""

    def score_part(
        self, ids: IntArray, count: int | None, until: int
    ) -> Iterable[tuple[int, float]]:
        """Yield the same as `score`: at least the first `count`, or up to the index `until`."""


@dataclass(frozen=True, slots=True, eq=False)
class Costs:
    """The charges of a scorer: indices in the order of scoring, and the cost of each in nats."""

    index: IntArray
    nats: FloatArray

    def at(self, index: int) -> float:
        """Return the cost of a token, or NaN if it has none."""
        found = np.flatnonzero(self.index == index)
        return float(self.nats[found[0]]) if len(found) else float("nan")

    def by_index(self, count: int) -> FloatArray:
        """Return the costs of a text of `count` tokens by index, NaN for tokens without a cost."""
        found = np.full(count, np.nan)
        found[self.index] = self.nats
        return found


def scored(scorer: Scorer, ids: IntArray, count: int | None = None, until: int = -1) -> Costs:
    """Return the costs of a text: of all tokens, of the first `count`, or up to an index."""
    if isinstance(scorer, PartScorer):
        costs = scorer.score_part(ids.copy(), count, until)
    else:
        costs = scorer.score(ids.copy())
    most = 2 * len(ids) + 1
    if until >= 0:
        costs = _through(costs, until)
    taken = [(int(at), float(cost)) for at, cost in islice(costs, min(count or most, most))]
    index, nats = zip(*taken, strict=True) if taken else ((), ())
    return Costs(np.array(index, np.int64), np.array(nats, np.float64))


def _through(costs: Iterable[tuple[int, float]], until: int) -> Iterator[tuple[int, float]]:
    """Yield costs up to that of an index."""
    for at, cost in costs:
        yield at, cost
        if at == until:
            return


class FromCallable:
    """A scorer made from a function that returns the cost in nats of each token but the first."""

    def __init__(self, vocab_size: int, function: Callable[[IntArray], Sequence[float]]) -> None:
        self.vocab_size, self._function = vocab_size, function

    def score(self, ids: IntArray) -> Iterable[tuple[int, float]]:
        """Score a text from left to right."""
        return enumerate(self._function(ids), start=1)


class FromProgram:
    """A scorer that is a program: one line of JSON in, one line of JSON out.

    The program writes the first line: {"vocab_size": V}. Then it answers {"ids": [...]} with
    {"nats": [...]}, the cost of every token but the first, or, if it scores in another order, with
    {"nats": [...], "index": [...]}. A program that writes {"vocab_size": V, "rows": true} also
    answers {"ids": [...], "row": t} with {"row": [...]}, and may state by how many nats rows and
    costs differ by rounding ("row_tolerance"); one that writes "bytes": true answers
    {"ids": [...], "bytes": true} with {"bytes": [...]}, one for every cost. Instead of any line it
    may write {"error": "why"}. This raises UserError, and so does a program that ends, takes longer
    than `pipe` allows, or writes something else. `open_program` starts one.
    """

    def __init__(
        self, pipe: Pipe, hello: dict[str, Any], fresh: Callable[[], "FromProgram"]
    ) -> None:
        size = hello.get("vocab_size")
        if type(size) is not int or not 2 <= size <= MOST_WORDS:
            raise UserError(
                f'{pipe.name} must begin with {{"vocab_size": V}}, V from 2 to {MOST_WORDS}; it '
                f"wrote {shown(hello)}"
            )
        self._pipe, self.vocab_size = pipe, size
        self.row_tolerance_nats = _row_tolerance_nats(pipe, hello)
        # Whether the program itself states that its rows are rounded.
        self.rounds = self.row_tolerance_nats > ROUNDED_NATS
        self.separate = hello.get("separate") is True
        # The same program, started once more.
        self.fresh = fresh
        if hello.get("bytes") is True:
            self.byte_counts = self._byte_counts

    def close(self) -> None:
        """End the program and all processes that it has started."""
        self._pipe.close()

    def score(self, ids: IntArray) -> Iterable[tuple[int, float]]:
        """Ask for the costs of a text."""
        found = self._ask({"ids": ids.tolist()}, len(ids))
        if "index" not in found:
            return enumerate(self._numbers(found, "nats", len(ids) - 1), start=1)
        # Twice the length is accepted, so that the audit can find a scorer that charges twice.
        nats, index = (self._numbers(found, name, 2 * len(ids)) for name in ("nats", "index"))
        strange = [at for at in index if not at.is_integer() or not 1 <= at < len(ids)]
        if len(index) != len(nats) or strange:
            of = f", {strange[0]:g} among them," if strange else ""
            raise UserError(
                f"{self._pipe.name} gave {len(nats)} costs and {len(index)} places{of} for a text "
                f"of {len(ids)} tokens; every cost needs a place, a whole number of at least 1"
            )
        return zip(map(int, index), nats, strict=True)

    def _byte_counts(self, ids: IntArray) -> list[float]:
        found = self._ask({"ids": ids.tolist(), "bytes": True}, len(ids))
        return self._numbers(found, "bytes", len(ids) - 1)

    def _ask(self, question: dict[str, Any], numbers: int) -> dict[str, Any]:
        return self._pipe.ask(question, _LINE_BYTES + _NUMBER_BYTES * 4 * numbers)

    def _numbers(self, found: dict[str, Any], name: str, most: int) -> list[float]:
        values = found.get(name)
        if not isinstance(values, list) or not all(map(_is_number, values)):
            raise UserError(f"{self._pipe.name} gave no list of numbers as '{name}'")
        if len(values) > most:
            raise UserError(
                f"{self._pipe.name} gave {len(values)} numbers as '{name}', where {most} are the "
                "most that a text of this length can need"
            )
        return [float(value) for value in values]


def _row_tolerance_nats(pipe: Pipe, hello: dict[str, Any]) -> float:
    stated = hello.get("row_tolerance", ROUNDED_NATS)
    if not _is_number(stated) or not 0 <= stated <= MOST_ROUNDED_NATS:
        raise UserError(
            f'{pipe.name} stated {shown(stated)} as "row_tolerance"; it must be a number of nats '
            f"from 0 to {MOST_ROUNDED_NATS}"
        )
    return max(ROUNDED_NATS, float(stated))


def unlike(what: str, off_nats: float, rows: RowScorer) -> str:
    """Return the sentence for a cost that is not the one shown; a program that is off by little
    gets advice."""
    if not isinstance(rows, FromProgram) or not off_nats <= MOST_ROUNDED_NATS:
        return what
    return f'{what}; if it only rounds, as bfloat16 does, it can state a "row_tolerance"'


def _is_number(value: Any) -> bool:
    return type(value) is float or (type(value) is int and abs(value) < 2**63)


class _RowProgram(FromProgram):
    """A program that also shows whole distributions."""

    def row(self, ids: IntArray, index: int) -> FloatArray:
        """Ask for the distribution at an index."""
        found = self._ask({"ids": ids.tolist(), "row": index}, self.vocab_size)
        row = self._numbers(found, "row", self.vocab_size)
        if len(row) < self.vocab_size:
            raise UserError(
                f"{self._pipe.name} gave {len(row)} of {self.vocab_size} numbers as 'row'"
            )
        return np.array(row, np.float64)


def open_program(command: Sequence[str], budget_s: float = 60.0, name: str = "") -> FromProgram:
    """Start a program that scores; error texts call it by its `name`; see `FromProgram`.

    One answer may take at most the budget, and all answers together at most three budgets, so that
    a slow program can still answer the minimum of questions of every probe.
    """
    pipe = Pipe(command, budget_s, _TOTAL * budget_s, name)
    try:
        hello = pipe.answer(_LINE_BYTES)
        kind = _RowProgram if hello.get("rows") is True else FromProgram
        return kind(pipe, hello, lambda: open_program(command, budget_s, name))
    except BaseException:
        pipe.close()
        raise
