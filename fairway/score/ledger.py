"""The account of a score: only the ledger reads the targets, and it counts the cost of each once.

The protocol (docs/scoring.md):

    for event in events:
        dist = predictor.predict(ledger.context(event))
        receipt = ledger.commit(event, dist)
        predictor.adapt(receipt)

A predictor returns distributions, never costs. The ledger refuses gaps, repeats and rewrites. So
score-before-update, single pass and full coverage hold by construction. At random positions it asks
for the whole distribution *before* it shows the event's targets. It sums the distribution by its
own arithmetic, and compares the entry of the actual token with the committed cost.

To learn from several events at once, or from other processes' events, a predictor asks for a
`lesson`: tokens whose costs are all recorded, else the ledger refuses.

No torch here: the ledger runs on NumPy and the standard library.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fairway.base.arrays import FloatArray, IntArray
from fairway.base.errors import LedgerError
from fairway.base.progress import progress
from fairway.base.units import bits_per_byte
from fairway.score.predictor import (
    Context,
    Distribution,
    Lesson,
    Predictor,
    Receipt,
    Stepwise,
)
from fairway.score.windows import Event

# |sum of exp(row) - 1| allowed at a checked position. Rows are float64. A row normalised in float32
# is off by up to 1e-6 and is refused, so the sum is a real check.
SUM_TOLERANCE = 1e-9


@dataclass(frozen=True, slots=True)
class Span:
    """Consecutive positions of one ledger, in events numbered from `first_event` on."""

    first_event: int
    positions: range


class Witness:
    """A witness receives every action of a ledger, in order; a subclass decides what to do with it.

    `wanted` are further positions that the ledger checks, so the witness gets their rows.
    """

    wanted: tuple[int, ...] = ()

    def opened(self, text: "Text") -> None:
        """Receive the text of the account, in the order in which it is scored."""

    def read(self, event: Event) -> None:
        """Learn that the ledger gave out the inputs of an event."""

    def row(self, position: int, row: FloatArray) -> None:
        """Receive all log-probabilities at a checked position, before its target is shown."""

    def scored(self, receipt: Receipt) -> None:
        """Learn that the ledger recorded an event."""

    def learned(self, first: int, end: int) -> None:
        """Learn that the ledger gave out the recorded positions first..end-1 for learning."""


@dataclass(frozen=True, slots=True)
class Score:
    """A finished account. `nats` and `bpb` are float64; `bytes` is the checked denominator.

    `worst_sum_error` is the largest |sum of probabilities - 1| over the checked positions.
    `worst_row_error_nats` is the largest difference there between row and committed cost.
    """

    bpb: float
    nats_per_token: float
    nats: float
    tokens: int
    bytes: int
    events: int
    windows: int
    checked_positions: int
    worst_sum_error: float
    worst_row_error_nats: float


@dataclass(frozen=True, slots=True)
class Part:
    """The closed account of a span; several parts together make a score.

    The events are first_event, first_event + 1, ... with one float64 sum of nats each; they score
    the positions first..end-1. The fields about checks are the same as in `Score`.
    """

    first_event: int
    first: int
    end: int
    event_nats: tuple[float, ...]
    windows: int
    checked_positions: int
    worst_sum_error: float
    worst_row_error_nats: float


# Takes the parts of one ledger; returns all parts of the text, in the order of the text.
Gather = Callable[[list[Part]], list[Part]]
# Sums float64 arrays over the processes that share a text.
Total = Callable[[FloatArray], FloatArray]


def _alone(parts: list[Part]) -> list[Part]:
    return parts


def _own(values: FloatArray) -> FloatArray:
    return values


@dataclass
class _Account:
    """The running account of one span."""

    event_nats: list[float] = field(default_factory=list)
    windows: int = 0
    checked: int = 0
    worst_sum: float = 0.0
    worst_row_nats: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Text:
    """The tokens to score and the proof of their bytes.

    ids: x[0..N-1]. target_bytes: UTF-8 bytes of each of the N - 1 targets, in order. text_bytes:
    the length of the raw text, counted on the text itself. vocab_size: V.
    """

    ids: NDArray[np.integer]
    target_bytes: NDArray[np.integer]
    text_bytes: int
    vocab_size: int


@dataclass(eq=False)
class Ledger:
    """The account of one evaluation of the first `num_targets` targets of a text.

    `check_positions` positions are drawn with `seed`; `row_tolerance_nats` bounds the difference
    between a checked row and the committed cost. Several ledgers may share the work: each accounts
    for the positions of its `spans`, in order, and checks the drawn positions inside them. Inside a
    span the positions come in the order of the text. With `side_by_side` they come in any order,
    for documents that are scored at the same time. `witness` receives every action. Raises
    LedgerError if the token bytes do not sum to the bytes of the text, or if a token lies outside
    the vocabulary.
    """

    text: Text
    num_targets: int
    check_positions: int = 0
    seed: int = 0
    row_tolerance_nats: float = 1e-3
    spans: Sequence[Span] | None = None
    side_by_side: bool = False
    witness: Witness = field(default_factory=Witness)
    _closed: list[Part] = field(default_factory=list, init=False)
    _account: _Account = field(default_factory=_Account, init=False)
    _finished: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        _check_text(self.text, self.num_targets)
        self.witness.opened(self.text)
        count = min(self.check_positions, self.num_targets)
        draw = np.random.default_rng(self.seed).choice(self.num_targets, count, replace=False)
        wanted = np.array(self.witness.wanted, np.int64)
        self._checked: IntArray = np.union1d(draw.astype(np.int64), wanted)
        if self.spans is None:
            self.spans = [Span(0, range(self.num_targets))]
        # The recorded cost of each position in this ledger; NaN without one.
        self._nats: FloatArray = np.full(self.num_targets, np.nan)
        self._own = sum(len(span.positions) for span in self.spans)
        self._count = 0
        self._enter_span()

    def _enter_span(self) -> None:
        """Move to the next span that has positions; stay at the last span if there is none."""
        assert self.spans is not None
        while len(self._closed) < len(self.spans):
            self._span = self.spans[len(self._closed)]
            self._next_event, self._next_position = (
                self._span.first_event,
                self._span.positions.start,
            )
            self._left = len(self._span.positions)
            if self._left:
                return
            self._close_span()

    def _close_span(self) -> None:
        account, positions = self._account, self._span.positions
        self._closed.append(
            Part(
                self._span.first_event,
                positions.start,
                positions.stop,
                tuple(account.event_nats),
                account.windows,
                account.checked,
                account.worst_sum,
                account.worst_row_nats,
            )
        )
        self._account = _Account()

    @property
    def remaining(self) -> int:
        """Return how many positions of this ledger have no recorded cost yet."""
        return self._own - self._count

    def context(self, event: Event) -> Context:
        """Return a copy of the inputs of the next event's windows, up to their last positions.

        Raises LedgerError if the event may not come next.
        """
        self._require_next(event)
        self.witness.read(event)
        ids = self.text.ids
        return Context(event, {w: np.array(ids[w.start : w.end], np.int64) for w in event.windows})

    def commit(self, event: Event, dist: Distribution | Stepwise) -> Receipt:
        """Add the cost of the next event's targets; return the targets with their costs.

        A stepwise prediction sees the targets up to a checked position, then gives its row, and
        sees the target of that position only afterwards.

        Raises LedgerError for an event out of order, for costs that are negative, not finite or of
        the wrong number, and for a checked row that is no distribution or differs from its cost.
        """
        self._require_next(event)
        positions = event.positions
        checked = np.flatnonzero(np.isin(positions, self._checked))
        targets = np.array(self.text.ids[positions + 1], dtype=np.int64)
        targets.setflags(write=False)
        if isinstance(dist, Stepwise):
            rows, log_probs = self._advanced(dist, targets, positions, checked)
        else:
            rows = [self._row(dist, int(positions[at])) for at in checked]
            log_probs = np.array(dist.log_prob(targets))
        nats = _costs(log_probs, targets, event)
        for at, row in zip(checked, rows, strict=True):
            self._compare(int(positions[at]), -float(row[targets[at]]), float(nats[at]))
        self._record(event, positions, nats)
        receipt = Receipt(event, targets, nats)
        self.witness.scored(receipt)
        return receipt

    def _advanced(
        self, dist: Stepwise, targets: IntArray, positions: IntArray, checked: IntArray
    ) -> tuple[list[FloatArray], FloatArray]:
        """Return the rows of checked positions and all targets' log-probabilities, in order."""
        rows: list[FloatArray] = []
        parts: list[FloatArray] = []
        at = 0
        for place in checked.tolist():
            if place > at:
                parts.append(np.array(dist.advance(targets[at:place])))
                at = place
            rows.append(self._row(dist, int(positions[place])))
        parts.append(np.array(dist.advance(targets[at:])))
        return rows, np.concatenate(parts)

    def _record(self, event: Event, positions: IntArray, nats: FloatArray) -> None:
        self._nats[positions] = nats
        self._account.event_nats.append(math.fsum(nats))
        self._account.windows += len(event.windows)
        self._count += len(positions)
        self._left -= len(positions)
        self._next_event += 1
        self._next_position = event.end
        if not self._left:
            self._close_span()
            self._enter_span()

    def lesson(self, first: int, end: int, total: Total = _own) -> Lesson:
        """Return the tokens of positions first..end-1; all of them must be scored.

        `total` sums over the ledgers that share the text; then all of them must call this. Raises
        LedgerError if a position has no recorded cost, because nothing may learn from it.
        """
        counts = total((~np.isnan(self._nats[first:end])).astype(np.float64))
        wrong = np.flatnonzero(counts != 1)
        if len(wrong) or not 0 <= first < end <= self.num_targets:
            at = first + int(wrong[0]) if len(wrong) else end
            raise LedgerError(
                f"position {at} is not scored yet; nothing may be learned from it before that"
            )
        self.witness.learned(first, end)
        ids = np.array(self.text.ids[first : end + 1], dtype=np.int64)
        return Lesson(ids[:-1], ids[1:])

    def finish(self, gather: Gather = _alone) -> Score:
        """Close the account and return the score of the whole text.

        `gather` collects the parts of all ledgers that share the text. Raises LedgerError if a
        position is not scored yet, on a second call, and for parts with a gap or an overlap.
        """
        if self._finished:
            raise LedgerError("this account is closed already")
        if self.remaining:
            raise LedgerError(
                f"only {self._count} of {self._own} positions are scored; there is no score of a "
                "part"
            )
        self._finished = True
        return self._join(gather(self._closed))

    def _join(self, parts: list[Part]) -> Score:
        """Return the sum of the parts as a score, after checking that they cover the text."""
        event_nats = _in_order(parts, self.num_targets)
        checked = sum(part.checked_positions for part in parts)
        if checked != len(self._checked):
            raise LedgerError(f"{checked} of {len(self._checked)} drawn positions were checked")
        # Correctly rounded, so the sum does not depend on how ledgers share the events.
        nats = math.fsum(event_nats)
        scored_bytes = int(np.sum(self.text.target_bytes[: self.num_targets], dtype=np.int64))
        return Score(
            bpb=bits_per_byte(nats, scored_bytes),
            nats_per_token=nats / self.num_targets,
            nats=nats,
            tokens=self.num_targets,
            bytes=scored_bytes,
            events=len(event_nats),
            windows=sum(part.windows for part in parts),
            checked_positions=checked,
            worst_sum_error=max(part.worst_sum_error for part in parts),
            worst_row_error_nats=max(part.worst_row_error_nats for part in parts),
        )

    def _require_next(self, event: Event) -> None:
        if self._finished:
            raise LedgerError(f"event {event.index} came after the account was closed")
        if event.index != self._next_event:
            kind = "was committed already" if event.index < self._next_event else "came too early"
            raise LedgerError(f"event {event.index} {kind}; the next one is {self._next_event}")
        if not event.windows:
            raise LedgerError(f"event {event.index} has no windows")
        own = self._span.positions
        for window in event.windows:
            if not 0 <= window.start <= window.score_from < window.end <= own.stop:
                raise LedgerError(
                    f"event {event.index} has a window {window.start}..{window.end} scored from "
                    f"{window.score_from}, which does not fit {own.stop} positions"
                )
        (self._require_unscored if self.side_by_side else self._require_in_order)(event)

    def _require_in_order(self, event: Event) -> None:
        expected = self._next_position
        for window in event.windows:
            if window.score_from != expected:
                kind = "scores again" if window.score_from < expected else "skips to"
                raise LedgerError(
                    f"event {event.index} {kind} position {window.score_from}; "
                    f"the next one is {expected}"
                )
            expected = window.end

    def _require_unscored(self, event: Event) -> None:
        """Refuse a position that has a cost already, or whose context is not scored yet."""
        positions = event.positions
        again = positions[~np.isnan(self._nats[positions])]
        values, counts = np.unique(positions, return_counts=True)
        again = np.concatenate([again, values[counts > 1]])
        if len(again):
            raise LedgerError(f"event {event.index} scores again position {again.min()}")
        for window in event.windows:
            unread = np.isnan(self._nats[window.start : window.score_from])
            if window.start < self._span.positions.start or unread.any():
                raise LedgerError(
                    f"event {event.index} scores position {window.score_from} with a context from "
                    f"{window.start} on, part of which has not been scored"
                )

    def _row(self, dist: Distribution | Stepwise, position: int) -> FloatArray:
        row = np.array(dist.row(position))
        if row.dtype != np.float64 or row.shape != (self.text.vocab_size,):
            raise LedgerError(
                f"the row at position {position} is {row.dtype}{list(row.shape)}; "
                f"it must be float64[{self.text.vocab_size}]"
            )
        error = abs(math.fsum(np.exp(row)) - 1.0)
        if not error <= SUM_TOLERANCE:
            raise LedgerError(
                f"the probabilities at position {position} sum to 1 with an error of {error:.3g}; "
                f"at most {SUM_TOLERANCE:g} is allowed"
            )
        self.witness.row(position, row)
        self._account.checked += 1
        self._account.worst_sum = max(self._account.worst_sum, error)
        return row

    def _compare(self, position: int, row_nats: float, committed_nats: float) -> None:
        # Costs are finite here, so an infinite row gives an infinite difference, not NaN.
        error = abs(row_nats - committed_nats)
        if not error <= self.row_tolerance_nats:
            raise LedgerError(
                f"position {position} was committed at {committed_nats:.9g} nats, but its row "
                f"says {row_nats:.9g}; they may differ by {self.row_tolerance_nats:g}"
            )
        self._account.worst_row_nats = max(self._account.worst_row_nats, error)


def score_events(
    ledger: Ledger,
    predictor: Predictor,
    events: Iterable[Event],
    description: str,
    gather: Gather = _alone,
) -> Score:
    """Return the score of a predictor: run the protocol from the first event to the closed account.

    If several ledgers share a text, `events` belong to this one and `gather` collects all parts.
    """
    with progress(description, ledger.remaining) as advance:
        for event in events:
            dist = predictor.predict(ledger.context(event))
            receipt = ledger.commit(event, dist)
            predictor.adapt(receipt)
            advance(len(receipt.targets))
    return ledger.finish(gather)


def _in_order(parts: list[Part], num_targets: int) -> list[float]:
    """Return the nats of all events; LedgerError unless each position is counted exactly once."""
    event_nats: list[float] = []
    position = 0
    for part in parts:
        if (part.first_event, part.first) != (len(event_nats), position):
            raise LedgerError(
                f"the account of event {part.first_event} at position {part.first} does not "
                f"follow event {len(event_nats)} at position {position}"
            )
        event_nats += part.event_nats
        position = part.end
    if position != num_targets:
        raise LedgerError(f"the parts account for {position} of {num_targets} positions")
    return event_nats


def _check_text(text: Text, num_targets: int) -> None:
    targets = len(text.ids) - 1
    if not 1 <= num_targets <= targets:
        raise LedgerError(f"{num_targets} targets were asked of a text that has {targets}")
    if len(text.target_bytes) != targets:
        raise LedgerError(f"{len(text.target_bytes)} byte counts for {targets} targets")
    smallest, largest = int(text.ids.min()), int(text.ids.max())
    if smallest < 0 or largest >= text.vocab_size:
        raise LedgerError(
            f"token ids run from {smallest} to {largest}, outside the vocabulary of "
            f"{text.vocab_size}; was the text encoded with another tokenizer?"
        )
    if text.target_bytes.min() < 0:
        raise LedgerError("a token has a negative number of bytes")
    total = int(np.sum(text.target_bytes, dtype=np.int64))
    if total != text.text_bytes:
        raise LedgerError(
            f"the tokens' bytes sum to {total}, but the text has {text.text_bytes}; "
            "without that proof there is no score"
        )


def _costs(log_probs: FloatArray, targets: IntArray, event: Event) -> FloatArray:
    if log_probs.dtype != np.float64 or log_probs.shape != targets.shape:
        raise LedgerError(
            f"event {event.index} returned {log_probs.dtype}{list(log_probs.shape)} "
            f"log-probabilities; it must be float64[{len(targets)}]"
        )
    nats = np.abs(log_probs)
    wrong = np.flatnonzero(~(np.isfinite(log_probs) & (log_probs <= 0.0)))
    if len(wrong):
        at = int(wrong[0])
        raise LedgerError(
            f"position {event.positions[at]} has log-probability {log_probs[at]:g}; "
            "it must be finite and at most 0"
        )
    nats.setflags(write=False)
    return nats
