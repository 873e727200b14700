"""Scoring with the frozen model: side-by-side windows or a sliding one (#1493).

Shapes: B windows of an event, T = seq_len, N scored positions, D width, V vocabulary.
"""

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from fairway.base.arrays import FloatArray, IntArray
from fairway.base.errors import LedgerError
from fairway.base.floats import double
from fairway.base.memory import free_bytes
from fairway.data.tokens import ByteTable, Ids, token_bytes
from fairway.model.block import Walk
from fairway.model.gpt import GPT
from fairway.model.modes import mode
from fairway.model.need import passing_bytes, together, way_of
from fairway.model.operations import Rope
from fairway.score.evaluation import Evaluation
from fairway.score.ledger import Score, Span, Text, score_events
from fairway.score.predictor import Context, Receipt
from fairway.score.share import gathering, share
from fairway.score.windows import Event, Window, events, sliding_windows

# Logits are formed for this many positions at a time: 1,024 x 8,192 in float32 is 34 MB.
_ROWS_AT_ONCE = 1024

# The largest difference allowed between the cost of a position in a batch and the cost in its own
# window or document alone: kernels of another size may add in another order. Seen on GPUs since
# logits are float32: 0.035 in documents side by side; before, up to 0.27 (docs/scoring.md).
ROW_TOLERANCE_NATS = {torch.float32: 0.02, torch.bfloat16: 0.25}

# By device, the most tokens of an event whose row is computed in a batch of the event's size, so
# that the kernels are the same. They depend on the size only if it is small, as in an audit; a
# large batch would cost as much for every row as all its windows.
_SAME_SIZE_TOKENS = {"cuda": 4096}


class FrozenPredictor:
    """A model that does not learn: `predict` runs it, `adapt` does nothing.

    Every window is padded on the right with id 0 to `seq_len`, so that the rotary base, which may
    depend on the length, is the same in all of them; causality keeps the padding unseen. A `rope`
    takes the place of the model's own table. Windows of an event may be predicted in groups
    (`separable`).
    """

    separable = True

    def __init__(self, model: GPT, seq_len: int, rope: Rope | None = None) -> None:
        self.model = model
        self.seq_len = seq_len
        self.device = model.tok_emb.weight.device
        self._rope = rope

    def predict(self, context: Context) -> "FrozenDistribution":
        """Return the distributions of an event's scored positions."""
        return FrozenDistribution(self, context)

    def adapt(self, receipt: Receipt) -> None:
        """Learn nothing."""

    def state(self) -> int:
        """Return a number that grows whenever a weight is changed."""
        return sum(weight._version for weight in self.model.parameters())

    def at_once(self) -> int:
        """Return how many windows the free memory of a GPU takes together."""
        model, T = self.model, self.seq_len
        each = T * passing_bytes(model.config, way_of(model), model.looping, T)
        return together(each, free_bytes(self.device))

    @torch.no_grad()
    def hidden(self, rows: list[IntArray]) -> Tensor:
        """Return the final states [B, T, D] of some inputs, each padded to seq_len.

        As many inputs run together as fit into memory, since rows are independent.
        """
        ids_BT = np.zeros((len(rows), self.seq_len), dtype=np.int64)
        for row, ids in enumerate(rows):
            ids_BT[row, : len(ids)] = ids
        whole_BT = torch.from_numpy(ids_BT).to(self.device)
        parts = torch.split(whole_BT, self.at_once())
        return torch.cat([self._states(part_BT) for part_BT in parts])

    def _states(self, ids_BT: Tensor) -> Tensor:
        if self._rope is None:
            return self.model.hidden(ids_BT)
        return self.model.states(self.model.embedded(ids_BT), Walk(self._rope))

    @torch.no_grad()
    def log_prob(self, x_ND: Tensor, targets_N: Tensor) -> Tensor:
        """Return log p(target) [N] in float32 without keeping more than a slice of the logits."""
        parts = []
        for first in range(0, len(x_ND), _ROWS_AT_ONCE):
            logits = self.model.logits(x_ND[first : first + _ROWS_AT_ONCE]).float()
            picked = logits.gather(1, targets_N[first : first + _ROWS_AT_ONCE, None])[:, 0]
            parts.append(picked - logits.logsumexp(1))
        return torch.cat(parts)


class FrozenDistribution:
    """The predictions of one event by a model, valid until its weights change."""

    def __init__(self, predictor: FrozenPredictor, context: Context) -> None:
        self._predictor, self._state = predictor, predictor.state()
        self._context = context
        windows = context.event.windows
        x_BTD = predictor.hidden([context.inputs(window) for window in windows])
        scored = [
            x_TD[window.score_from - window.start : window.end - window.start]
            for window, x_TD in zip(windows, x_BTD, strict=True)
        ]
        self._x_ND = torch.cat(scored)

    def log_prob(self, targets: IntArray) -> FloatArray:
        """Return the natural log-probability of the target of every scored position."""
        self._require_unchanged()
        targets_N = torch.tensor(targets, device=self._x_ND.device)
        log_probs = self._predictor.log_prob(self._x_ND, targets_N)
        # In float32 the difference above can round to just over 0 when p is 1.
        capped: FloatArray = np.minimum(double(log_probs).cpu().numpy(), 0.0)
        return capped

    @torch.no_grad()
    def tables(self, first: int, end: int) -> Tensor:
        """Return log p of all V tokens at the scored positions first..end-1, in float64."""
        self._require_unchanged()
        logits = self._predictor.model.logits(self._x_ND[first:end])
        return double(logits).log_softmax(-1)

    @torch.no_grad()
    def row(self, position: int) -> FloatArray:
        """Return log p of all V tokens at a position, computed independently of `log_prob`.

        The position's own window runs alone or beside empty ones, cut right after the position
        (what follows is padding), and the softmax is taken by NumPy in float64.
        """
        self._require_unchanged()
        predictor, windows = self._predictor, self._context.event.windows
        window = self._context.event.window_of(position)
        inputs, place, count = self._context.inputs(window, position + 1), 0, 1
        most = _SAME_SIZE_TOKENS.get(predictor.device.type, 0)
        if len(windows) * predictor.seq_len <= most:
            place, count = windows.index(window), len(windows)
        rows = [inputs if number == place else inputs[:0] for number in range(count)]
        x_D = predictor.hidden(rows)[place, len(inputs) - 1]
        return whole_row(predictor.model.logits(x_D))

    def _require_unchanged(self) -> None:
        if self._predictor.state() != self._state:
            raise LedgerError("the model's weights have changed since this prediction was made")


def whole_row(logits_V: Tensor) -> FloatArray:
    """Return log p of all V tokens, the softmax taken by NumPy in float64."""
    wide_V: FloatArray = double(logits_V).cpu().numpy()
    shifted_V = wide_V - wide_V.max()
    row_V: FloatArray = shifted_V - np.log(np.exp(shifted_V).sum())
    return row_V


def text_of(ids: Ids, table: ByteTable, text_bytes: int) -> Text:
    """Return tokens with the bytes of every target, ready for a ledger."""
    ids = np.asarray(ids)
    return Text(ids, token_bytes(ids[1:], ids[:-1], table), text_bytes, len(table.base_bytes))


def evaluate_frozen(model: GPT, asked: Evaluation, *, sliding: bool) -> Score:
    """Return the score of a frozen model on a text, in its present looping state.

    `sliding` scores score.stride positions per window of score.seq_len; otherwise windows lie side
    by side. Each rank scores a share of the events. The events do not depend on the number of
    ranks, so the score does not either: it is equal to the bit if the kernels are the same. Raises
    UserError if the text is truncated to whole windows and shorter than one, LedgerError if the
    account is not consistent.
    """
    config = asked.score
    stride = config.stride if sliding else config.seq_len
    return evaluate_windows(
        FrozenPredictor(model, config.seq_len),
        asked,
        lambda: sliding_windows(asked.targets, config.seq_len, stride),
    )


def evaluate_windows(
    frozen: FrozenPredictor, asked: Evaluation, windows: Callable[[], Iterator[Window]]
) -> Score:
    """Return the score of a frozen model in windows that cover the text, none beyond its own."""
    config, ranks, targets, model = asked.score, asked.ranks, asked.targets, frozen.model

    def planned() -> Iterator[Event]:
        return events(windows(), config.batch_windows)

    starts = [*(event.first for event in planned()), targets]
    count = len(starts) - 1
    own = share(count, ranks)
    spans = [Span(own.start, range(starts[own.start], starts[own.stop]))]
    ledger = asked.ledger(ROW_TOLERANCE_NATS, model.compute_dtype, spans)
    with mode(model):
        predictor = asked.helped(frozen)
        mine = itertools.islice(planned(), own.start, own.stop)
        gather = gathering(ranks, [ranks.rank], ranks.world, count)
        return score_events(ledger, predictor, mine, asked.description, gather)
