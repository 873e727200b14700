"""The vocabulary as two trees of bytes, and the probability mass at every node.

A token stands for a string of bytes that depends on the previous token: after a boundary (BOS) its
leading space is dropped. So there are two trees, for `after` = 0 and 1. The valid tree is known
before the token. A node is a prefix of strings; tokens end at nodes, several at one if they share a
string (a byte piece and the character, or all control tokens at the root). Algorithms.md 6.3, 6.6.

Under a distribution over tokens, `ends` of a node is the mass of the tokens that end there, and
`inner` is the mass of all longer tokens below it. Both are summed upwards, child by child, so a
node's mass is the correct sum of its parts even if it is tiny.

Nodes of both trees are numbered together, first one tree, then the other, each level by level, so
that the children of a node follow one another.

Shapes: N positions, V vocabulary, Q nodes of one tree.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fairway.base.arrays import FloatArray, IntArray
from fairway.base.native import compiled
from fairway.data.tokens import Tokenizer


class Trie(NamedTuple):
    """Both trees, for compiled code; arrays over nodes unless said otherwise.

    node: int32[2, V], where a token ends. root: int64[2]. parent, first (child), size (number of
    children), ends (number of tokens that end there): int32. symbol: the last byte. mask:
    uint32[nodes, 8], the bytes of the children. depth: of the deepest node, int64[1].
    """

    node: NDArray[np.int32]
    root: IntArray
    parent: NDArray[np.int32]
    first: NDArray[np.int32]
    size: NDArray[np.int32]
    ends: NDArray[np.int32]
    symbol: NDArray[np.uint8]
    mask: NDArray[np.uint32]
    depth: IntArray


def token_strings(tokenizer: Tokenizer) -> tuple[list[bytes], list[bytes]]:
    """Return the bytes of every token: after a token that is no boundary, and after a boundary."""
    whole = tokenizer.piece_bytes
    leading = tokenizer.table.leading.tolist()
    return whole, [text[cut:] for text, cut in zip(whole, leading, strict=True)]


class Tries:
    """The trees of a vocabulary, and the masses of their nodes."""

    def __init__(self, strings: tuple[Sequence[bytes], Sequence[bytes]]) -> None:
        self.strings = strings
        trees = [_Tree(part) for part in strings]
        self.trees = trees
        self.offset = offset = len(trees[0].names)
        self.trie = Trie(
            np.array([trees[0].node, trees[1].node + offset], np.int32),
            np.array([0, offset]),
            np.concatenate([trees[0].parent, trees[1].parent + offset]).astype(np.int32),
            np.concatenate([trees[0].first, trees[1].first + offset]).astype(np.int32),
            np.concatenate([tree.size for tree in trees]),
            np.concatenate([tree.ends for tree in trees]),
            np.concatenate([tree.symbol for tree in trees]),
            np.concatenate([tree.mask for tree in trees]),
            np.array([max(len(text) for part in strings for text in part)]),
        )
        self._on: dict[torch.device, list[_Sums]] = {}

    def masses(self, probs_NV: Tensor, after: int) -> tuple[Tensor, Tensor]:
        """Return (ends, inner) of all nodes of one tree, [N, Q], by segmented sums in torch."""
        device = probs_NV.device
        if device not in self._on:
            self._on[device] = [_Sums(tree, device) for tree in self.trees]
        return self._on[device][after](probs_NV)

    def ask(
        self, probs_NV: Tensor, wanted: "Wanted"
    ) -> Callable[[], tuple[FloatArray, FloatArray]]:
        """Start to compute `ends` and `inner` of nodes; the returned function waits for them.

        probs_NV: float64. On a CPU one compiled loop per position replaces `masses`.
        """
        if probs_NV.device.type == "cpu":
            probs = probs_NV.contiguous().numpy()
            return lambda: _picked_on_cpu(self, probs, wanted)
        return self.ask_sums(probs_NV, wanted)

    def ask_sums(
        self, probs_NV: Tensor, wanted: "Wanted"
    ) -> Callable[[], tuple[FloatArray, FloatArray]]:
        """Do the same by `masses`, without waiting for the device."""
        device = probs_NV.device
        picked = torch.zeros(2, len(wanted.nodes), dtype=torch.float64, device=device)
        for after in (0, 1):
            positions = np.flatnonzero(wanted.after == after)
            if not len(positions):
                continue
            of_tree = wanted.after[wanted.rows] == after
            place = np.searchsorted(positions, wanted.rows[of_tree])
            nodes = wanted.nodes[of_tree] - self.trie.root[after]
            # Copies without waiting, because the device is still busy with earlier work.
            rows, columns, where, chosen = (
                torch.from_numpy(array).to(device, non_blocking=True)
                for array in (place, nodes, np.flatnonzero(of_tree), positions)
            )
            for n, values in enumerate(self.masses(probs_NV[chosen], after)):
                picked[n, where] = values[rows, columns]
        masses = arriving(picked)
        return lambda: (masses()[0], masses()[1])


@dataclass(frozen=True, slots=True, eq=False)
class Wanted:
    """Nodes whose masses are needed: `nodes[i]` at position `rows[i]`, rows rising.

    after: int64[N], which tree is valid at every position.
    """

    rows: IntArray
    nodes: IntArray
    after: IntArray


def arriving(values: Tensor) -> Callable[[], FloatArray]:
    """Start a copy from the device; the returned function waits only for this copy."""
    if values.device.type == "cpu":
        return lambda: np.asarray(values.numpy())
    kept = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    kept.copy_(values, non_blocking=True)
    there = torch.cuda.Event()  # type: ignore[no-untyped-call]
    there.record()

    def wait() -> FloatArray:
        there.synchronize()
        return np.asarray(kept.numpy())

    return wait


def _picked_on_cpu(
    tries: Tries, probs: FloatArray, wanted: Wanted
) -> tuple[FloatArray, FloatArray]:
    ends, inner = np.empty(len(wanted.nodes)), np.empty(len(wanted.nodes))
    trie = tries.trie
    work = np.empty((2, len(trie.parent)))
    bounds = np.searchsorted(wanted.rows, np.arange(len(probs) + 1))
    _pick(probs, wanted.after, bounds, wanted.nodes, trie.node, trie.root, trie.parent,
          work, ends, inner)  # fmt: skip
    return ends, inner


@compiled
def _pick(
    probs: FloatArray,
    after: IntArray,
    bounds: IntArray,
    nodes: IntArray,
    node: NDArray[np.int32],
    root: IntArray,
    parent: NDArray[np.int32],
    work: FloatArray,
    ends: FloatArray,
    inner: FloatArray,
) -> None:
    """Sum every position's tree upwards and select the needed nodes."""
    for row in range(probs.shape[0]):
        tree = after[row]
        first = root[tree]
        last = root[1] if tree == 0 else parent.size
        sum_tree(probs[row], node[tree], first, last, parent, work)
        for n in range(bounds[row], bounds[row + 1]):
            ends[n], inner[n] = work[0, nodes[n]], work[1, nodes[n]]


@compiled
def sum_tree(
    probs: FloatArray,
    node: NDArray[np.int32],
    first: int,
    last: int,
    parent: NDArray[np.int32],
    work: FloatArray,
) -> None:
    """Write `ends` and `inner` of the nodes first..last-1 to work[0] and work[1]."""
    for at in range(first, last):
        work[0, at], work[1, at] = 0.0, 0.0
    for token in range(probs.size):
        work[0, node[token]] += probs[token]
    # Children come after their parents.
    for at in range(last - 1, first, -1):
        work[1, parent[at]] += work[0, at] + work[1, at]


class _Tree:
    """One tree in NumPy, its nodes level by level and in the order of their strings."""

    def __init__(self, strings: Sequence[bytes]) -> None:
        found = {text[:n] for text in strings for n in range(len(text) + 1)} | {b""}
        self.names = sorted(found, key=lambda text: (len(text), text))
        place = {name: n for n, name in enumerate(self.names)}
        self.node = np.array([place[text] for text in strings], np.int32)
        count = len(self.names)
        self.parent = np.array([place[name[:-1]] for name in self.names], np.int32)
        self.symbol = np.array([name[-1] if name else 0 for name in self.names], np.uint8)
        self.ends = np.bincount(self.node, minlength=count).astype(np.int32)
        self.size = np.bincount(self.parent[1:], minlength=count).astype(np.int32)
        self.first = np.zeros(count, np.int32)
        # Backwards, so that the first child is written last.
        self.first[self.parent[:0:-1]] = np.arange(count - 1, 0, -1)
        self.mask = np.zeros((count, 8), np.uint32)
        bits = np.uint32(1) << (self.symbol & 31).astype(np.uint32)
        np.bitwise_or.at(self.mask, (self.parent[1:], self.symbol[1:] >> 5), bits[1:])
        lengths = np.array([len(name) for name in self.names])
        starts = np.searchsorted(lengths, np.arange(lengths[-1] + 2)).tolist()
        self.levels = list(itertools.pairwise(starts))


class _Sums:
    """The sums over one tree on a device, without atomics, so that the bits repeat."""

    def __init__(self, tree: _Tree, device: torch.device) -> None:
        self._order_V = torch.from_numpy(np.argsort(tree.node, kind="stable")).to(device)
        self._ends_Q = torch.from_numpy(tree.ends.astype(np.int64)).to(device)
        sizes = torch.from_numpy(tree.size.astype(np.int64)).to(device)
        self._sizes = [(first, end, sizes[first:end]) for first, end in tree.levels]

    def __call__(self, probs_NV: Tensor) -> tuple[Tensor, Tensor]:
        # Columns are positions, so a segment is a sum of rows.
        sorted_VN = probs_NV.T.index_select(0, self._order_V)
        ends_QN = _sums(sorted_VN, self._ends_Q)
        inner_QN = torch.zeros_like(ends_QN)
        above = reversed(self._sizes[:-1])
        for (first, end, sizes), (below, last, _) in zip(
            above, reversed(self._sizes[1:]), strict=True
        ):
            inner_QN[first:end] = _sums(ends_QN[below:last] + inner_QN[below:last], sizes)
        return ends_QN.T, inner_QN.T


def _sums(values: Tensor, lengths: Tensor) -> Tensor:
    """Return the sums of consecutive rows, this many each; 0 for none."""
    return torch.segment_reduce(values, "sum", lengths=lengths, axis=0, initial=0.0, unsafe=True)
