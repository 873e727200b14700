"""A model and byte-level experts as one predictor in the ledger's protocol.

It mixes two *distributions*. The base predictor must give whole tables of log-probabilities, from
which the masses of the nodes are computed (`trie`). PPM, repeats and the token tilt (`mixing`,
`tilt`) have read the recorded text. The ledger shows the targets piece by piece
(`ledger.Stepwise`), and the loops process the tokens of a piece one by one. A GPU computes the
tables and masses of the next piece while the processor mixes this one.

Shapes: N positions, V vocabulary.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol, cast

import numpy as np
import torch
from torch import Tensor

from fairway.base.arrays import FloatArray, IntArray, Zeros
from fairway.base.errors import LedgerError
from fairway.config.settings import MixtureConfig
from fairway.data.tokens import Tokenizer
from fairway.score.experts import mixing, ppm
from fairway.score.experts.tilt import Tilt, runs
from fairway.score.experts.trie import Tries, Wanted, arriving, token_strings
from fairway.score.experts.whole import enumerate_tokens
from fairway.score.predictor import Context, Distribution, Predictor, Receipt
from fairway.score.windows import Event, Window

# Positions whose tables are made at a time: 512 x 8,192 in float64 is 34 MB.
_AT_ONCE = 512
# The number of bytes of a document that are read again when its scoring continues.
_TAIL_BYTES = 32
# More bytes per token than text has on average.
_BYTES_PER_TOKEN = 5
# The smallest probability in use, so that masses can be divided.
_LEAST = 1e-300


@dataclass(frozen=True, slots=True)
class Tuning:
    """Constants of the experts with one good value (docs/experts.md has the cost of other values).

    weight: the model's weight at the start. switch: the part of a learned weight that returns to
    its start per step. order: bytes of PPM's longest context, up to 8. escapes: PPM's method, C or
    D. exclusion: PPM leaves out bytes that a longer context knows. match_min: bytes of the shortest
    repeat that is followed, 4 to 32. match_rate: the learning rate of its gains. A hint multiplies
    a probability by exp(tilt_beta x confidence); there are at most 2 to `tilt_bits` places for the
    contexts of hints.
    """

    weight: float = 0.9
    switch: float = 0.002
    order: int = ppm.ORDER
    escapes: str = "D"
    exclusion: bool = True
    match_min: int = 12
    match_rate: float = 0.02
    tilt_beta: float = 2.0
    tilt_bits: int = 22


TUNING = Tuning()


class Tabular(Distribution, Protocol):
    """A distribution that gives whole tables."""

    def tables(self, first: int, end: int) -> Tensor:
        """Return log p of all tokens at the scored positions first..end-1, [N, V] in float64."""


def names(config: MixtureConfig) -> list[str]:
    """Return the experts of a mixture."""
    return config.experts.split()


class Helpers:
    """The experts with their learned state; several predictors of one text may share them.

    `tokens` is the length of the text; it determines the size of the tables, equally for a scorer
    and a decoder, and `zeros` makes them. `tries` are the tokenizer's, if several helpers share
    them. `own_nats` sums the costs of the tokens by the model alone, from the same tables.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        config: MixtureConfig,
        tokens: int,
        tries: Tries | None = None,
        zeros: Zeros = np.zeros,
    ) -> None:
        self.config, self.table = config, tokenizer.table
        self.tries = tries or Tries(token_strings(tokenizer))
        self.next_position = 0
        self.own_nats = 0.0
        chosen = names(config)
        self.tilt: Tilt | None = None
        if "tilt" in chosen:
            self.tilt = Tilt(TUNING.tilt_beta, runs(tokens, TUNING.tilt_bits, zeros))
        self.by_bytes = "ppm" in chosen or "match" in chosen
        nodes = len(self.tries.trie.parent)
        self._state = experts_of(config, nodes, _BYTES_PER_TOKEN * tokens, zeros)

    @property
    def room(self) -> ppm.Room:
        """Return how full PPM's tables are."""
        return ppm.room(self._state.words)

    def beside(self, predictor: Predictor) -> "Mixture":
        """Return a predictor with these experts beside it."""
        return Mixture(predictor, self)

    def begin(self, ids: IntArray) -> None:
        """Continue at another place of the text, after some tokens; their bytes are the history."""
        e = self._state
        e.past[:], e.follow[2:] = 0, 0
        tail = b"".join(self._bytes(ids[-_TAIL_BYTES:]))[-_TAIL_BYTES:]
        self._make_room(len(tail))
        for symbol in tail:
            e.past[0], e.past[1] = ppm.pushed(int(e.past[0]), int(e.past[1]), symbol)
            e.past[2] = min(e.past[2] + 1, 8)
            if e.how[mixing.MATCH]:
                mixing.heard(e, symbol)
        if self.tilt is not None:
            self.tilt.begin(ids)

    def _bytes(self, ids: IntArray) -> Iterator[bytes]:
        after = np.concatenate([[1], self.table.boundary[ids[:-1]]]) if len(ids) else ids
        for token, which in zip(ids.tolist(), after.tolist(), strict=True):
            yield self.tries.strings[int(which)][token]

    def _make_room(self, count: int) -> None:
        """Make room for a longer text, one byte per byte."""
        e = self._state
        if e.follow[0] + count > len(e.text):
            longer = np.zeros(2 * (int(e.follow[0]) + count), np.uint8)
            longer[: len(e.text)] = e.text
            self._state = e._replace(text=longer)

    def after(self, previous: IntArray) -> IntArray:
        """Return which tree is valid after each token, int64[N]."""
        return self.table.boundary[previous].astype(np.int64)

    def start(
        self, log_probs_NV: Tensor, tokens: IntArray, previous: IntArray
    ) -> Callable[[], FloatArray]:
        """Read tokens in their order and start the model's part of their costs.

        The returned function completes the work and returns the nats of every token, each fixed
        before the token was learned. Calls must be completed in the order in which they were
        started.
        """
        count, trie = len(tokens), self.tries.trie
        # Loops would be compiled again for arrays that can be written.
        tokens = tokens.view()
        tokens.flags.writeable = False
        after = self.after(previous)
        probs_NV = log_probs_NV.exp().clamp_min_(_LEAST)
        hints = mixing.Hints(np.full(count, -1), np.zeros(count))
        if self.tilt is not None:
            hints = self.tilt.read(tokens)
        self._make_room(count * int(trie.depth[0]))
        planned = planned_for(count, int(trie.depth[0]))
        wanted = mixing.plan(
            self._state, trie, tokens, after,
            planned.nodes, planned.starts, planned.depths, planned.follow,
        )  # fmt: skip
        picked = _pick(probs_NV, tokens, hints.token)
        if not self.by_bytes:
            return lambda: self._tilted(picked(), tokens, hints)
        nodes = planned.nodes[:wanted]
        rows = np.repeat(np.arange(count), np.diff(planned.starts))
        masses = self.tries.ask(probs_NV, Wanted(rows, nodes, after))

        def finish() -> FloatArray:
            ends, inner = masses()
            own, hinted = picked().T.copy()
            self.own_nats -= float(np.log(own).sum())
            nats = np.empty(count)
            whole = planned._replace(ends=ends, inner=inner)
            mixing.mix(self._state, trie, tokens, after, own, hints, hinted, whole, nats)
            return nats

        return finish

    def _tilted(self, picked: FloatArray, tokens: IntArray, hints: mixing.Hints) -> FloatArray:
        """Return the cost of tokens under the tilted model alone."""
        own, hinted = picked.T
        self.own_nats -= float(np.log(own).sum())
        added = np.where(hints.token >= 0, hinted * hints.gain, 0.0)
        tilted = own + np.where(hints.token == tokens, added, 0.0)
        return np.asarray(-np.log(tilted / (1.0 + added)))

    def row(self, log_probs_V: FloatArray, previous: int) -> FloatArray:
        """Return log p of all tokens at the next position: the whole vocabulary, node by node."""
        probs = np.maximum(np.exp(log_probs_V), _LEAST)
        token, gain = self.tilt.hint() if self.tilt is not None else (-1, 0.0)
        if not self.by_bytes:
            probs[token] += probs[token] * gain if token >= 0 else 0.0
            return np.asarray(np.log(probs / probs.sum()))
        out = np.empty(len(probs))
        after = int(self.table.boundary[previous])
        enumerate_tokens(self._state, self.tries.trie, after, probs, token, gain, out)
        return np.asarray(np.log(out))


def experts_of(
    config: MixtureConfig, nodes: int, text_bytes: int, zeros: Zeros = np.zeros
) -> mixing.Experts:
    """Return fresh experts for trees of this many nodes and a text of that size."""
    chosen = names(config)
    how = np.zeros(4, np.int64)
    how[mixing.VARIANT_B], how[mixing.MIN_MATCH] = config.variant == "B", TUNING.match_min
    how[mixing.PPM], how[mixing.MATCH] = "ppm" in chosen, "match" in chosen
    lines, blocks = (16, 0)
    if "ppm" in chosen:
        lines, blocks = ppm.room_for(text_bytes, TUNING.order, config.memory_mb * 1_000_000)
    order = TUNING.order if "ppm" in chosen else 0
    heads = 1 << (max(16, min(22, text_bytes.bit_length())) if "match" in chosen else 1)
    gains = np.array([[1.0, 0.25]] * mixing.LENGTHS)
    return mixing.Experts(
        how=how,
        rates=np.array([TUNING.weight, TUNING.switch, TUNING.match_rate]),
        words=ppm.tables(order, TUNING.escapes, TUNING.exclusion, lines, blocks, zeros),
        past=np.zeros(3, np.int64),
        weights=np.full(mixing.BUCKETS, TUNING.weight),
        stops=zeros((nodes, 2), np.float64),
        text=zeros(text_bytes + 64 if "match" in chosen else 1, np.uint8),
        heads=zeros(heads, np.int32),
        follow=np.zeros(4, np.int64),
        hits=np.zeros((mixing.LENGTHS, 2)),
        gains=gains,
    )


def planned_for(count: int, depth: int) -> mixing.Planned:
    """Return arrays for the results of `plan` for `count` tokens of up to `depth` bytes."""
    empty = np.zeros(0)
    return mixing.Planned(
        np.empty(count * (depth + 2), np.int64),
        np.empty(count + 1, np.int64),
        np.empty(count, np.int64),
        np.empty((count, 3), np.int64),
        empty,
        empty,
    )


def _pick(probs_NV: Tensor, tokens: IntArray, hints: IntArray) -> Callable[[], FloatArray]:
    """Start to select the probabilities of tokens and hints, [N, 2]; arbitrary without a hint."""
    both = torch.from_numpy(np.stack([tokens, np.maximum(hints, 0)], 1))
    return arriving(probs_NV.gather(1, both.to(probs_NV.device, non_blocking=True)))


# ---------------------------------------------------------------------------------------------
# The protocol


class Mixture:
    """A predictor with experts beside it."""

    def __init__(self, base: Predictor, helpers: Helpers) -> None:
        self.base, self.helpers = base, helpers

    def predict(self, context: Context) -> "MixedDistribution":
        """Return the mixture for an event, with the present state of the experts."""
        return MixedDistribution(self.base, self.helpers, context)

    def adapt(self, receipt: Receipt) -> None:
        """Let the base learn; the experts have learned token by token."""
        self.base.adapt(receipt)


class MixedDistribution:
    """The mixture for one event, which advances as its targets are committed."""

    def __init__(self, base: Predictor, helpers: Helpers, context: Context) -> None:
        self._base, self._helpers, self._context = base, helpers, context
        self._positions = context.event.positions
        self._previous = np.concatenate(
            [context.inputs(w)[w.score_from - w.start :] for w in context.event.windows]
        )
        self._pieces = _pieces(context, getattr(base, "separable", False))
        self._made: dict[int, Tabular] = {}
        self._at = 0

    def advance(self, targets: IntArray) -> FloatArray:
        """Return log p of the next targets, each fixed before the following one is read.

        While the loops process one run of positions, the device computes the next.
        """
        nats: list[FloatArray] = []
        waiting: list[Callable[[], FloatArray]] = []
        begun, end = self._at, self._at + len(targets)
        while self._at < end:
            if self._positions[self._at] != self._helpers.next_position:
                # The experts move to another place after they have finished the last one.
                nats += [finish() for finish in waiting]
                waiting = []
                self._turn()
            first, last = self._at, min(self._run_end(), end)
            waiting.append(self._start(first, last, targets[first - begun : last - begun]))
            if len(waiting) > 1:
                nats.append(waiting.pop(0)())
            self._at = last
            self._helpers.next_position += last - first
        return -np.concatenate([*nats, *(finish() for finish in waiting)])

    def _turn(self) -> None:
        position = int(self._positions[self._at])
        window = self._context.event.window_of(position)
        self._helpers.begin(self._context.inputs(window, position + 1))
        self._helpers.next_position = position

    def _run_end(self) -> int:
        """Return the end of the consecutive positions from here on, or of their piece."""
        limit = min(self._at + _AT_ONCE, self._piece(self._at)[1].stop)
        ahead = self._positions[self._at : limit] - self._positions[self._at]
        return self._at + int(np.count_nonzero(ahead == np.arange(len(ahead))))

    def _piece(self, place: int) -> tuple[Context, range]:
        return next((piece, own) for piece, own in self._pieces if place in own)

    def _predicted(self, place: int) -> tuple[Tabular, int]:
        """Return the base's distribution of a piece, and the beginning of the piece."""
        context, own = self._piece(place)
        if own.start not in self._made:
            self._made[own.start] = cast(Tabular, self._base.predict(context))
        return self._made[own.start], own.start

    def _start(self, first: int, last: int, tokens: IntArray) -> Callable[[], FloatArray]:
        base, offset = self._predicted(first)
        table_NV = base.tables(first - offset, last - offset)
        return self._helpers.start(table_NV, tokens, self._previous[first:last])

    def row(self, position: int) -> FloatArray:
        """Return log p of all tokens at the next position, by the whole vocabulary's nodes."""
        if position != self._positions[self._at]:
            raise LedgerError(
                f"the mixture stands at position {self._positions[self._at]}; it has no row of "
                f"{position} any more, or not yet"
            )
        if position != self._helpers.next_position:
            self._turn()
        base, _ = self._predicted(self._at)
        return self._helpers.row(base.row(position), int(self._previous[self._at]))


def _pieces(context: Context, separable: bool) -> list[tuple[Context, range]]:
    """Return the windows of an event in groups that may be predicted one after another."""
    windows = context.event.windows
    sizes = [window.end - window.score_from for window in windows]
    if not separable:
        return [(context, range(sum(sizes)))]
    pieces: list[tuple[Context, range]] = []
    group: list[Window] = []
    first = end = 0
    for window, size in zip(windows, sizes, strict=True):
        group.append(window)
        end += size
        if end - first >= _AT_ONCE or window is windows[-1]:
            part = Event(context.event.index, tuple(group))
            pieces.append((Context(part, {w: context.ids[w] for w in group}), range(first, end)))
            group, first = [], end
    return pieces
