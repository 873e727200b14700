"""Two ways to predict and learn with the adapters of documents: plain formulas, and GPU kernels.

Both give log-probabilities of a chunk of windows and then, if asked, take one step on it. The
kernels round the number of rows and the length of windows up to a few sizes and record the launches
of each size as a CUDA graph: at 64 rows of 144 positions the launches took 67 ms and the work 18 ms
(H100). The results of the added rows and positions are discarded.

Shapes: B rows in use, P rows after rounding, T positions of a window, C of a chunk, D width,
V vocabulary.
"""

import importlib
import weakref
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from fairway.base.graphs import recording, rounded_rows
from fairway.model.adapters import Adapters
from fairway.model.gpt import GPT
from fairway.model.modes import mode
from fairway.model.need import document_bytes, way_of
from fairway.model.operations import Rope
from fairway.score.adam import AdamW

# Memory for a recording in addition to the planned memory, since its pieces leave gaps.
_PIECES = 1.25


def adapting(model: GPT) -> AbstractContextManager[None]:
    """A context in which a model takes adapters, with frozen weights, deterministically."""
    return mode(model, frozen=True, in_order=True)


def chunk_nats(log_probs_BCV: Tensor, targets_BC: Tensor) -> Tensor:
    """Return the costs of targets, [B, C]."""
    return -log_probs_BCV.gather(2, targets_BC[:, :, None])[:, :, 0]


def row_bytes(adapters: Adapters, length: int, chunk: int) -> float:
    """Return a function of the length of window and chunk that gives the memory of a document."""
    model, targets = adapters.model, " ".join(adapters.targets)
    return document_bytes(
        model.config, way_of(model), model.looping, targets, adapters.rank, length, chunk
    )


@dataclass(frozen=True, slots=True)
class Size:
    """The size of a step's computation: rows, length of windows, length of chunks."""

    rows: int
    length: int
    chunk: int


class Way(Protocol):
    """How predictions and steps are computed, for some rows at a time.

    Windows take the first slots of a `room`; slots beyond it are not touched.
    """

    def size(self, rows: int, most: int, first: int, end: int, seq_len: int) -> Size:
        """Return the computed size for rows in a room of `most`, scored from `first` to `end`."""

    def renew(self) -> None:
        """Update copies after values were set or the model may have changed."""

    def move(self, source: int, target: int) -> None:
        """Update copies after a row has moved into the slot of another."""

    def log_probs(self, room: range, ids_BT: Tensor, rope: Rope, first: int) -> Tensor:
        """Return log-probabilities of the positions from `first` on, [B, C, V]."""

    def learn(self, targets_BC: Tensor, share_B: Tensor) -> None:
        """Step on the last chunk's mean cost, by shares of rows.

        The step must be counted before. If memory does not suffice, nothing has been learned.
        """

    def forget(self) -> None:
        """Drop the graph of the last chunk, and the states that it keeps."""

    def release(self) -> bool:
        """Drop recordings that only save time; return whether there were any."""


class Plain:
    """The model's own operations, hooks for adapters, gradients by autograd."""

    def __init__(self, adapters: Adapters, adam: AdamW) -> None:
        self.adapters, self.adam = adapters, adam
        self._at = 0
        self._leaves: list[Tensor] = []
        self._log_probs_BCV = torch.empty(0)

    def size(self, rows: int, most: int, first: int, end: int, seq_len: int) -> Size:
        """Return the requested size without rounding."""
        return Size(rows, end, end - first)

    def renew(self) -> None:
        """There are no copies to make."""

    def move(self, source: int, target: int) -> None:
        """There are no copies to move."""

    def log_probs(self, room: range, ids_BT: Tensor, rope: Rope, first: int) -> Tensor:
        """Return log-probabilities of the positions from `first` on, [B, C, V]."""
        (B, T), self._at = ids_BT.shape, room.start
        self._leaves = [value.detach().requires_grad_() for value in self.adam.rows(self._at, B)]
        here = rope[0][:T], rope[1][:T]
        states_BCD = self.adapters.states(self._leaves, ids_BT, here)[:, first:]
        extra = self.adapters.head(states_BCD)
        self._log_probs_BCV = self.adapters.logits(states_BCD, extra).log_softmax(-1)
        return self._log_probs_BCV.detach()

    def learn(self, targets_BC: Tensor, share_B: Tensor) -> None:
        """Step on the last chunk's mean cost, by shares of rows."""
        nats_BC = chunk_nats(self._log_probs_BCV, targets_BC)
        (nats_BC.mean(1) * share_B).sum().backward()  # type: ignore[no-untyped-call]
        grads = [leaf.grad for leaf in self._leaves if leaf.grad is not None]
        assert len(grads) == len(self._leaves), "an adapter received no gradient"
        self.forget()
        self.adam.step(grads, self._at)

    def forget(self) -> None:
        """Drop the graph of the last chunk."""
        self._leaves, self._log_probs_BCV = [], torch.empty(0)

    def release(self) -> bool:
        """Nothing is recorded here."""
        return False


# ---------------------------------------------------------------------------------------------
# With GPU kernels


def rounded_length(length: int, seq_len: int) -> int:
    """Return the length of windows to compute: a quarter more at most beyond 64, by 16 to 256."""
    step = 16
    while length > 8 * step and step < 256:
        step *= 2
    return min(seq_len, -(-length // step) * step)


def rounded(rows: int, most: int, first: int, end: int, seq_len: int) -> Size:
    """Return the size at which kernels compute rows in a room of `most`, windows ending at `end`,
    whose positions from `first` on are asked for."""
    chunk = min(-(-(end - first) // 16) * 16, seq_len - first)
    return Size(rounded_rows(rows, most), rounded_length(first + chunk, seq_len), chunk)


class Fused:
    """GPU kernels; copies in the compute dtype, gradients written beside them."""

    def __init__(self, adapters: Adapters, adam: AdamW) -> None:
        # Imported here, because they need Triton, which only GPU builds of PyTorch include.
        gpu = importlib.import_module("fairway.model.gpu.adapters")
        self._fused_step = importlib.import_module("fairway.score.fused_adam").fused_step
        self.adam, self.adapters = adam, adapters
        self.bank = gpu.Bank(adapters, adam.values[0].shape[1])
        self._factors = self.bank.factors()
        self._versions: tuple[int, ...] = ()
        self._shapes: dict[tuple[int, Size], _Shape] = {}
        self._shape: _Shape | None = None
        self._room: tuple[Any, Any] | None = None
        self._out: dict[int, Tensor] = {}

    def size(self, rows: int, most: int, first: int, end: int, seq_len: int) -> Size:
        """Return the size, rounded up."""
        return rounded(rows, most, first, end, seq_len)

    @torch.no_grad()
    def renew(self) -> None:
        """Make the copies again; B is zero at first, and its copy too.

        Recordings contain addresses of tensors that are made from the model's weights, so these are
        computed again in place.
        """
        model = self.adapters.model
        versions = tuple(weight._version for weight in model.parameters())
        if versions != self._versions:
            self._versions = versions
            model.operations.renew()
            for kept, factor in zip(self._factors, self.bank.factors(), strict=True):
                if kept is not None and factor is not None:
                    kept.copy_(factor)
        for copy, value in zip(self.bank.copies, self.adam.values, strict=True):
            copy[:, : self.adam.count] = value[:, : self.adam.count]

    def move(self, source: int, target: int) -> None:
        """Update copies after a row has moved into the slot of another."""
        for copy in self.bank.copies:
            copy[:, target] = copy[:, source]

    def log_probs(self, room: range, ids_BT: Tensor, rope: Rope, first: int) -> Tensor:
        """Return log-probabilities of the positions from `first` on, [B, C, V]."""
        B, T = ids_BT.shape
        key = room.start, self.size(B, len(room), first, T, len(rope[0]))
        self.forget()
        if key not in self._shapes:
            self._shapes[key] = _Shape(self, *key, rope)
        self._shape = self._shapes[key]
        return self._shape.forward(ids_BT, first)[:, : T - first]

    def learn(self, targets_BC: Tensor, share_B: Tensor) -> None:
        """Step on the last chunk's mean cost, by shares of rows."""
        assert self._shape is not None, "nothing was predicted"
        self._shape.backward(targets_BC, share_B)

    def forget(self) -> None:
        """Drop the graph of the last chunk, and the states that it keeps."""
        if self._shape is not None:
            self._shape.forget()

    def release(self) -> bool:
        """Drop all recordings and their memory; return whether there were any."""
        recorded = any(shape.recorded for shape in self._shapes.values())
        self._shapes.clear()
        # The memory of dropped graphs must not be used for new recordings.
        self._shape = self._room = None
        return recorded

    def out(self, rows: int, chunk: int) -> Tensor:
        """Return memory for log-probabilities, [P, C, V]: the same for all numbers of rows."""
        if chunk not in self._out:
            like, most = self.adapters.model.tok_emb.weight, self.adam.values[0].shape[1]
            self._out[chunk] = like.new_empty(most, chunk, len(like), dtype=torch.float32)
        return self._out[chunk][:rows]

    # ----------------------------------------------------------------------------------------- The
    # recorded work

    def compute(self, rows: range, ids_PT: Tensor, places_C: Tensor, rope: Rope) -> Tensor:
        """Return log-probabilities of windows' positions, [P, C, V], with a graph for gradients."""
        self.bank.rows = rows
        states_PCD = self.bank.states(ids_PT, rope).index_select(1, places_C)
        logits_PCV = self.adapters.logits(states_PCD, self.bank.head(states_PCD))
        return logits_PCV.log_softmax(-1)

    def step(
        self, rows: range, log_probs_PCV: Tensor, targets_PC: Tensor, weights_PC: Tensor
    ) -> None:
        """Run the backward pass and update the values of the rows."""
        nats_PC = chunk_nats(log_probs_PCV, targets_PC)
        self.bank.rows = rows
        (nats_PC * weights_PC).sum().backward()  # type: ignore[no-untyped-call]
        self._fused_step(self.adam, rows, self.bank.grads, self.bank.copies, self._factors)

    def room(self) -> tuple[Any, Any]:
        """Return (stream, memory) of all recordings, which run one after another.

        Memory freed on one stream can be used only on that stream.
        """
        if self._room is None:
            stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            self._room = stream, torch.cuda.graph_pool_handle()
        return self._room


class _Shape:
    """The work on one size of batch, recorded before it runs.

    The first size of a way runs without a recording, since libraries prepare themselves then.
    Running every size once before its recording took 19.2 s instead of 18.6 (41 sizes, H100).
    """

    def __init__(self, way: Fused, at: int, size: Size, rope: Rope) -> None:
        device = way.adapters.model.tok_emb.weight.device
        rows, length, chunk = size.rows, size.length, size.chunk
        self._room_bytes = _PIECES * rows * row_bytes(way.adapters, length, chunk)
        # Only the shapes are kept; a reference cycle would keep gigabytes until garbage collection.
        self.way: Fused = weakref.proxy(way)
        self._rows = range(at, at + rows)
        self.rope = rope[0][:length], rope[1][:length]
        self._ids_PT = torch.zeros(rows, length, dtype=torch.long, device=device)
        self._places_C = torch.arange(chunk, device=device)
        self._chunk = torch.arange(chunk, device=device)
        self._targets_PC = torch.zeros(rows, chunk, dtype=torch.long, device=device)
        self._weights_PC = torch.zeros(rows, chunk, device=device)
        self._out_PCV = way.out(rows, chunk)
        self._graphs: list[Any] = []
        # Log-probabilities with their graph for gradients, if there is no recording.
        self._live_PCV: Tensor | None = None
        self._ready = bool(way._shapes)

    @property
    def recorded(self) -> bool:
        """Return whether there are graphs to replay."""
        return bool(self._graphs)

    def forward(self, ids_BT: Tensor, first: int) -> Tensor:
        """Return log-probabilities, [B, C, V], valid until the next call."""
        B, T = ids_BT.shape
        self._ids_PT[:B, :T] = ids_BT
        torch.add(self._chunk, first, out=self._places_C)
        if self._ready and ids_BT.is_cuda and not self._graphs:
            self._record()
        self._ready = True
        if self._graphs:
            self._graphs[0].replay()
        else:
            self._live_PCV = self._compute()
        return self._out_PCV[:B]

    def backward(self, targets_BC: Tensor, share_B: Tensor) -> None:
        """Step on the chunk; unused rows have share 0."""
        B, C = targets_BC.shape
        self._targets_PC[:B, :C] = targets_BC
        self._weights_PC.zero_()[:B, :C] = share_B[:, None] / C
        if self._graphs:
            self._graphs[1].replay()
            return
        live_PCV, self._live_PCV = self._live_PCV, None
        assert live_PCV is not None, "a chunk is learned once"
        self._step(live_PCV)

    def forget(self) -> None:
        """Drop the graph for gradients of a chunk that was not learned, and its states."""
        self._live_PCV = None

    def _compute(self) -> Tensor:
        log_probs_PCV = self.way.compute(self._rows, self._ids_PT, self._places_C, self.rope)
        self._out_PCV.copy_(log_probs_PCV.detach())
        return log_probs_PCV

    def _step(self, log_probs_PCV: Tensor) -> None:
        self.way.step(self._rows, log_probs_PCV, self._targets_PC, self._weights_PC)

    def _record(self) -> None:
        """Record both passes. The backward pass runs on the stream of the forward pass."""
        stream, memory = self.way.room()
        with recording(memory, stream, self._room_bytes) as forward:
            log_probs_PCV = self._compute()
        with recording(memory, stream, self._room_bytes) as backward:
            self._step(log_probs_PCV)
        self._graphs = [forward, backward]
