"""The mixture's probability of every token of the vocabulary at once, node by node from the root.

`mixing` computes along the path of one token. This module computes the same for all nodes of the
tree, with other code and in another order. So rows check the scorer, and a decoder needs them.
"""

import numpy as np

from fairway.base.arrays import FloatArray, IntArray
from fairway.base.native import compiled, int64
from fairway.score.experts.mixing import (
    MATCH,
    PPM,
    SURE,
    VARIANT_B,
    Experts,
    child_of,
    ends_here,
    kept_share,
    length_bucket,
    ppm_share,
    weight_bucket,
)
from fairway.score.experts.ppm import EXCLUSION, pushed, shares
from fairway.score.experts.trie import Trie, sum_tree


@compiled
def enumerate_tokens(
    e: Experts, trie: Trie, after: int, probs: FloatArray, hint: int, gain: float, out: FloatArray
) -> None:
    """Write the mixture's probability of every token at the next position: all nodes, top down.

    probs: float64[V], the model's. Nothing is learned.
    """
    first = trie.root[after]
    last = trie.root[1] if after == 0 else trie.parent.size
    tilted = probs.copy()
    if hint >= 0:
        tilted[hint] += probs[hint] * gain
    mass = np.empty((2, trie.parent.size))
    sum_tree(tilted, trie.node[after], first, last, trie.parent, mass)
    reach, stops = np.zeros(trie.parent.size), np.zeros(trie.parent.size)
    pasts, depths = np.empty((trie.parent.size, 3), np.int64), np.zeros(trie.parent.size, np.int64)
    matched = np.zeros(trie.parent.size, np.bool_)
    row = np.empty(256)
    reach[first], pasts[first], matched[first] = 1.0, e.past, e.follow[2] > 0
    for node in range(first, last):
        size = int64(trie.size[node])
        _children(e, trie, node, depths[node], mass, pasts[node], matched[node], reach, stops, row)
        for child in range(trie.first[node], trie.first[node] + size):
            symbol = int64(trie.symbol[child])
            low, high = pushed(pasts[node, 0], pasts[node, 1], symbol)
            pasts[child, 0], pasts[child, 1] = low, high
            pasts[child, 2] = min(pasts[node, 2] + 1, 8)
            depths[child] = depths[node] + 1
            place = e.follow[1] + depths[node]
            matched[child] = matched[node] and place < e.follow[0] and e.text[place] == symbol
    for token in range(probs.size):
        node = int64(trie.node[after, token])
        out[token] = stops[node] * (tilted[token] / mass[0, node])


@compiled
def _children(
    e: Experts,
    trie: Trie,
    node: int,
    depth: int,
    mass: FloatArray,
    past: IntArray,
    matched: bool,
    reach: FloatArray,
    stops: FloatArray,
    row: FloatArray,
) -> None:
    """Divide the probability of reaching a node among the end of the token and its children."""
    size, first = int64(trie.size[node]), int64(trie.first[node])
    total, both = mass[0, node] + mass[1, node], e.how[VARIANT_B] == 1
    stop, on, weight, until = mass[0, node] / total, mass[1, node] / total, 1.0, 1.0
    if size == 0:
        stops[node] = reach[node]
        return
    until, summed = on, 1.0
    if e.how[PPM] == 1 and (both or size > 1):
        _, confidence, order = ppm_share(e, trie, node, past, int64(trie.symbol[first]), row)
        weight = e.weights[weight_bucket(depth, order, confidence)]
        until = 1.0 - ends_here(e, trie, node) if both else on
        row[trie.symbol[first]] = 1.0
        if size > 1:
            shares(e.words, trie.mask, node, size, past[0], past[1], past[2], row)
            summed = 0.0
            for child in range(first, first + size):
                summed += row[trie.symbol[child]]
            if e.words[EXCLUSION] == 1:
                summed = 1.0
    stops[node] = reach[node] * (weight * stop + (1.0 - weight) * (1.0 - until) if both else stop)
    expected, scale, kept_mass = -1, 1.0, 0.0
    gone_on = weight * on + (1.0 - weight) * until
    place = e.follow[1] + depth
    if e.how[MATCH] == 1 and matched and size > 1 and place < e.follow[0]:
        child = child_of(trie, node, int64(e.text[place]))
        if child >= 0:
            before = weight * ((mass[0, child] + mass[1, child]) / total)
            if weight < 1.0:
                before += (1.0 - weight) * until * (row[trie.symbol[child]] / summed)
            before /= gone_on
            if before < SURE:
                kept = kept_share(e, length_bucket(e, e.follow[2]), before)
                expected, scale, kept_mass = child, (1.0 - kept) / (1.0 - before), gone_on * kept
    for child in range(first, first + size):
        share = weight * ((mass[0, child] + mass[1, child]) / total)
        if weight < 1.0:
            share += (1.0 - weight) * until * (row[trie.symbol[child]] / summed)
        reach[child] = reach[node] * (kept_mass if child == expected else share * scale)
