"""A model and byte-level experts as one distribution over tokens: the loops (see `mixture`).

The bytes of a token are a path in a tree (`trie`). At every node of the path, either one of the
children's bytes follows, or the token ends. The model gives the probability of each: `ends` and
`inner` over their sum. PPM gives the probability of each child's byte. The node's mixture is

    variant A:  stop:  s                          byte b:  w c(b) + (1 - w) (1 - s) r(b)
    variant B:  stop:  w s + (1 - w) u            byte b:  w c(b) + (1 - w) (1 - u) r(b)

with c, s the model's shares, r the expert's share among the children, u the share of tokens that
ended at this node after reaching it. A current repeat then changes the share of the one byte that
it predicts, by logistic mixing in the stretch domain; the other children keep their proportions.
The probability of a token is the product over its nodes, times its share among the tokens that end
at the same node. These sum to one for every w that does not depend on the outcome (algorithms.md
6.3).

All state is frozen while a token is scored; learning happens after its last byte.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fairway.base.arrays import ByteArray, FloatArray, IntArray
from fairway.base.native import compiled, int64
from fairway.score.experts.ppm import EXCLUSION, Words, allows, ask, learn, pushed, share_of, shares
from fairway.score.experts.trie import Trie

# Indices of the settings in `how`.
VARIANT_B, PPM, MATCH, MIN_MATCH = range(4)
# Indices of the settings in `rates`.
WEIGHT, SWITCH, MATCH_RATE = range(3)
# Buckets of learned weights: depth in the token, order of the expert's context, confidence.
_DEPTHS, _ORDERS, _LEVELS = 3, 10, 12
BUCKETS = _DEPTHS * _ORDERS * _LEVELS
# Buckets of repeats, by length.
LENGTHS = 16
# Longer repeats count as of this length.
_LONGEST = 400
# Prior counts of the end of a token at a node that was never reached: nearly a guess; at the root,
# where only control tokens end, rare.
_STOP_PRIOR, _ROOT_PRIOR, _PRIOR_COUNT = 0.5, 0.01, 2.0
# Tokens between the prefetch and its use.
_AHEAD = 2
# If the model is this certain of a repeat's byte, rounding would exceed the rest.
SURE = 1.0 - 1e-6


class Experts(NamedTuple):
    """The state of the experts; arrays that the loops change.

    words: PPM's tables. past: int64[3], the last eight bytes and their number. weights:
    float64[BUCKETS], of the model. stops: float64[nodes, 2], tokens that ended and that continued.
    text: the bytes so far; heads: int32[2^k], the last place after each hash of bytes. follow:
    int64[4], bytes of text, place and length of the repeat, rolling hash. hits: float64[LENGTHS,
    2], repeats broken and kept; gains: float64[LENGTHS, 2], weights of the model's and the repeat's
    stretch.
    """

    how: IntArray
    rates: FloatArray
    words: Words
    past: IntArray
    weights: FloatArray
    stops: FloatArray
    text: ByteArray
    heads: NDArray[np.int32]
    follow: IntArray
    hits: FloatArray
    gains: FloatArray


class Hints(NamedTuple):
    """The tilt of the model's distribution at every position: a token (-1: none) and its gain.

    gain: e^beta - 1, by which the token's probability is multiplied and added.
    """

    token: IntArray
    gain: FloatArray


# ---------------------------------------------------------------------------------------------
# Repeats


@compiled
def heard(e: Experts, symbol: int) -> None:
    """Add a byte to the text; continue the repeat, or look for one."""
    used, place, length, mixed = e.follow[0], e.follow[1], e.follow[2], e.follow[3]
    shortest, bits = e.how[MIN_MATCH], e.heads.size - 1
    if length > 0 and e.text[place] == symbol:
        place, length = place + 1, min(length + 1, _LONGEST)
    else:
        length = 0
    e.text[used] = symbol
    used += 1
    # After `shortest` steps a byte has left the hash, because its bits are shifted out.
    shift = (22 + shortest - 1) // shortest
    mixed = (mixed * (5 << shift) + symbol + 1) & 0x3FFFFF
    at = (mixed * 0x9E3779B1 >> 8) & bits
    if length == 0 and used >= shortest:
        place = int64(e.heads[at])
        while (
            length < 32
            and length < place
            and e.text[place - 1 - length] == e.text[used - 1 - length]
        ):
            length += 1
        if length < shortest:
            length = 0
    e.heads[at] = used
    e.follow[0], e.follow[1], e.follow[2], e.follow[3] = used, place, length, mixed


@compiled
def _path(trie: Trie, node: int, out: IntArray) -> int:
    """Write the nodes from the root to a node; return the number of bytes of its path."""
    depth, at = 0, node
    while trie.parent[at] != at:
        depth += 1
        at = int64(trie.parent[at])
    at = node
    for n in range(depth, -1, -1):
        out[n] = at
        at = int64(trie.parent[at])
    return depth


@compiled
def child_of(trie: Trie, node: int, symbol: int) -> int:
    """Return the child for a byte, or -1."""
    if not allows(trie.mask, node, symbol):
        return -1
    at = int64(trie.first[node])
    while trie.symbol[at] != symbol:
        at += 1
    return at


@compiled
def plan(
    e: Experts,
    trie: Trie,
    tokens: IntArray,
    after: IntArray,
    nodes: IntArray,
    starts: IntArray,
    depths: IntArray,
    follow: IntArray,
) -> int:
    """Write the nodes that each token needs, and the repeat before it; return the nodes' number.

    nodes: those of the token's path; then at most one, where the repeat leaves the path. starts:
    int64[N + 1], the first node of each token. depths: int64[N], bytes of the token. follow:
    int64[N, 3], bytes of text, place and length.
    """
    path = np.empty(trie.depth[0] + 1, np.int64)
    count = 0
    for n in range(tokens.size):
        starts[n] = count
        depth = _path(trie, int64(trie.node[after[n], tokens[n]]), path)
        depths[n] = depth
        # One by one: for slices numba compiles texts of errors, too, which takes two seconds.
        for i in range(3):
            follow[n, i] = e.follow[i]
        for i in range(depth + 1):
            nodes[count + i] = path[i]
        count += depth + 1
        if e.how[MATCH] == 0:
            continue
        used, place, length = e.follow[0], e.follow[1], e.follow[2]
        for i in range(depth if length > 0 else 0):
            if place + i >= used:
                break
            expected = int64(e.text[place + i])
            if expected != trie.symbol[path[i + 1]]:
                other = child_of(trie, path[i], expected)
                if other >= 0:
                    nodes[count] = other
                    count += 1
                break
        for i in range(depth):
            heard(e, int64(trie.symbol[path[i + 1]]))
    starts[tokens.size] = count
    return count


@compiled
def _stretch(share: float) -> float:
    share = min(max(share, 1e-6), 1.0 - 1e-6)
    return math.log(share / (1.0 - share))


@compiled
def kept_share(e: Experts, bucket: int, model: float) -> float:
    """Return the share of a repeat's byte if the token continues; `model`: without the repeat."""
    own = (e.hits[bucket, 1] + 0.5) / (e.hits[bucket, 0] + e.hits[bucket, 1] + 1.0)
    sum_ = e.gains[bucket, 0] * _stretch(model) + e.gains[bucket, 1] * _stretch(own)
    return 1.0 / (1.0 + math.exp(-min(max(sum_, -30.0), 30.0)))


@compiled
def _learn_repeat(e: Experts, bucket: int, model: float, hit: int) -> None:
    """Move the weights of a repeat's length against the gradient of the cost."""
    own = (e.hits[bucket, 1] + 0.5) / (e.hits[bucket, 0] + e.hits[bucket, 1] + 1.0)
    error = e.rates[MATCH_RATE] * (hit - kept_share(e, bucket, model))
    e.gains[bucket, 0] += error * _stretch(model)
    e.gains[bucket, 1] += error * _stretch(own)
    e.hits[bucket, hit] += 1.0


@compiled
def length_bucket(e: Experts, length: int) -> int:
    """Return the bucket of a repeat's length: one per length, then increasingly coarse."""
    more = length - e.how[MIN_MATCH]
    if more < 4:
        return more
    return min(LENGTHS - 1, 2 + int64(2.0 * math.log2(np.float64(more) / 2.0)))


# ---------------------------------------------------------------------------------------------
# One node


@compiled
def ppm_share(
    e: Experts, trie: Trie, node: int, past: IntArray, symbol: int, row: FloatArray
) -> tuple[float, float, int]:
    """Return the share of a child's byte among the children, the confidence, and the order."""
    size = int64(trie.size[node])
    if size == 1:
        return 1.0, 1.0, -1
    share, confidence, order = share_of(
        e.words, trie.mask, node, size, past[0], past[1], past[2], symbol
    )
    if e.words[EXCLUSION] == 0:
        # Without exclusion the children's shares do not sum to one.
        shares(e.words, trie.mask, node, size, past[0], past[1], past[2], row)
        total, first = 0.0, int64(trie.first[node])
        for child in range(first, first + size):
            total += row[trie.symbol[child]]
        share = row[symbol] / total
    return share, confidence, order


@compiled
def weight_bucket(depth: int, order: int, confidence: float) -> int:
    """Return the bucket of a node by its depth, the order of the context, and its confidence."""
    level = min(_LEVELS - 1, int64(confidence * _LEVELS))
    return (min(depth, _DEPTHS - 1) * _ORDERS + order + 1) * _LEVELS + level


@compiled
def _learn_weight(e: Experts, bucket: int, model: float, expert: float) -> None:
    """Update the weights of model and expert by their probabilities of the outcome, then switch a
    little between them."""
    weight = e.weights[bucket]
    total = weight * model + (1.0 - weight) * expert
    weight = weight * model / total
    switch = e.rates[SWITCH]
    e.weights[bucket] = (1.0 - switch) * weight + switch * e.rates[WEIGHT]


@compiled
def ends_here(e: Experts, trie: Trie, node: int) -> float:
    """Return the share of tokens that ended at a node after reaching it: the expert's u."""
    if trie.ends[node] == 0:
        return 0.0
    if trie.size[node] == 0:
        return 1.0
    prior = _ROOT_PRIOR if trie.parent[node] == node else _STOP_PRIOR
    ended, went_on = e.stops[node, 0], e.stops[node, 1]
    return (ended + _PRIOR_COUNT * prior) / (ended + went_on + _PRIOR_COUNT)


# ---------------------------------------------------------------------------------------------
# Tokens in their order


class Planned(NamedTuple):
    """The results of `plan` for some tokens, with the masses of the nodes: float64."""

    nodes: IntArray
    starts: IntArray
    depths: IntArray
    follow: IntArray
    ends: FloatArray
    inner: FloatArray


@compiled
def mix(
    e: Experts,
    trie: Trie,
    tokens: IntArray,
    after: IntArray,
    own: FloatArray,
    hints: Hints,
    hinted: FloatArray,
    p: Planned,
    nats: FloatArray,
) -> None:
    """Write the cost of every token, each before it is learned.

    own, hinted: the model's probability of the token and of the hint.
    """
    deepest = trie.depth[0] + 2
    hint_path, past, row = np.empty(deepest, np.int64), np.empty(3, np.int64), np.empty(256)
    notes = np.empty((deepest, 4))
    ends, inner = np.empty(deepest), np.empty(deepest)
    low, high = e.past[0], e.past[1]
    for n in range(min(_AHEAD, tokens.size)):
        low, high = _ask_for(e, trie, p, n, low, high)
    for n in range(tokens.size):
        if n + _AHEAD < tokens.size:
            low, high = _ask_for(e, trie, p, n + _AHEAD, low, high)
        first, depth = p.starts[n], p.depths[n]
        path, extra = p.nodes[first : first + depth + 1], first + depth + 1
        aside, aside_node = 0.0, int64(-1)
        if extra < p.starts[n + 1]:
            aside, aside_node = p.ends[extra] + p.inner[extra], p.nodes[extra]
        for i in range(depth + 1):
            ends[i], inner[i] = p.ends[first + i], p.inner[first + i]
        mine = own[n]
        if hints.token[n] >= 0:
            added = hinted[n] * hints.gain[n]
            mine += added if hints.token[n] == tokens[n] else 0.0
            hint_depth = _path(trie, int64(trie.node[after[n], hints.token[n]]), hint_path)
            aside += _tilt(hint_path, hint_depth, path, depth, aside_node, added, ends, inner)
        for i in range(3):
            past[i] = e.past[i]
        log_share = _token(e, trie, path, depth, ends, inner, aside, p.follow[n], past, row, notes)
        nats[n] = -log_share - math.log(mine / ends[depth])
        _learn_token(e, trie, path, depth, notes)


@compiled
def _tilt(
    hint_path: IntArray,
    hint_depth: int,
    path: IntArray,
    depth: int,
    aside_node: int,
    added: float,
    ends: FloatArray,
    inner: FloatArray,
) -> float:
    """Add the gain of the hint to the common nodes of both paths; return it for `aside_node`."""
    aside = 0.0
    for i in range(min(depth, hint_depth) + 1):
        if hint_path[i] != path[i]:
            break
        if i == hint_depth:
            ends[i] += added
        else:
            inner[i] += added
            if hint_path[i + 1] == aside_node:
                aside = added
    return aside


@compiled
def _ask_for(e: Experts, trie: Trie, p: Planned, n: int, low: int, high: int) -> tuple[int, int]:
    """Prefetch the contexts within a later token; return the last bytes after it."""
    for i in range(p.starts[n] + 1, p.starts[n] + p.depths[n] + 1):
        low, high = pushed(low, high, int64(trie.symbol[p.nodes[i]]))
        if e.how[PPM] == 1:
            ask(e.words, low, high)
    return low, high


@compiled
def _with_repeat(
    e: Experts, length: int, before: float, hit: bool, gone_on: float, mixed: float
) -> tuple[float, float]:
    """Return a child's share after the effect of the repeat, and the note for learning.

    before, gone_on: the share of the repeat's byte among the children, and that of all of them.
    """
    if before >= SURE:
        return mixed, -1.0
    kept = kept_share(e, length, before)
    if hit:
        return gone_on * kept, before + 2.0
    return mixed * (1.0 - kept) / (1.0 - before), before


@compiled
def _token(
    e: Experts,
    trie: Trie,
    path: IntArray,
    depth: int,
    ends: FloatArray,
    inner: FloatArray,
    aside: float,
    follow: IntArray,
    past: IntArray,
    row: FloatArray,
    notes: FloatArray,
) -> float:
    """Return log of the product over a token's nodes; note the facts for learning at each.

    notes: bucket (-1: none), the shares by the model and by PPM, and the model's share of the
    repeat's byte, negative if there is none.
    """
    log_share = 0.0
    both, ppm = e.how[VARIANT_B] == 1, e.how[PPM] == 1
    aligned = e.how[MATCH] == 1 and follow[2] > 0
    length = length_bucket(e, follow[2]) if aligned else 0
    for i in range(depth + 1):
        node, total = path[i], ends[i] + inner[i]
        size = int64(trie.size[node])
        stop, on = ends[i] / total, inner[i] / total
        notes[i, 0], notes[i, 3] = -1.0, -1.0
        symbol = int64(trie.symbol[path[i + 1]]) if i < depth else int64(0)
        share, weight, until = 1.0, 1.0, on
        if ppm and size > 0 and (both or size > 1) and (both or i < depth):
            asked = symbol if i < depth else int64(trie.symbol[trie.first[node]])
            share, confidence, order = ppm_share(e, trie, node, past, asked, row)
            bucket = weight_bucket(i, order, confidence)
            weight = e.weights[bucket]
            until = 1.0 - ends_here(e, trie, node) if both else on
            notes[i, 0] = bucket
        if i == depth:
            ended = weight * stop + (1.0 - weight) * (1.0 - until) if both else stop
            log_share += math.log(ended)
            notes[i, 1], notes[i, 2] = stop, 1.0 - until
            break
        model = (ends[i + 1] + inner[i + 1]) / total
        mixed = weight * model + (1.0 - weight) * until * share
        notes[i, 1], notes[i, 2] = model, until * share
        if aligned and follow[1] + i < follow[0]:
            expected = int64(e.text[follow[1] + i])
            if size > 1 and allows(trie.mask, node, expected):
                gone_on, theirs = weight * on + (1.0 - weight) * until, mixed
                hit = expected == symbol
                if not hit:
                    other = ppm_share(e, trie, node, past, expected, row)[0] if weight < 1 else 1.0
                    theirs = weight * (aside / total) + (1.0 - weight) * until * other
                mixed, notes[i, 3] = _with_repeat(e, length, theirs / gone_on, hit, gone_on, mixed)
            aligned = expected == symbol
        log_share += math.log(mixed)
        past[0], past[1] = pushed(past[0], past[1], symbol)
        past[2] = min(past[2] + 1, 8)
    # The bucket of the repeat, for learning.
    notes[depth + 1, 0] = length
    return log_share


@compiled
def _learn_token(e: Experts, trie: Trie, path: IntArray, depth: int, notes: FloatArray) -> None:
    """Learn a token after its cost is recorded: weights, ends, repeats, then its bytes."""
    for i in range(depth + 1):
        if notes[i, 0] >= 0.0:
            _learn_weight(e, int64(notes[i, 0]), notes[i, 1], notes[i, 2])
        if notes[i, 3] >= 0.0:
            hit = 1 if notes[i, 3] >= 2.0 else 0
            _learn_repeat(e, int64(notes[depth + 1, 0]), notes[i, 3] - 2.0 * hit, hit)
        if e.how[VARIANT_B] == 1:
            e.stops[path[i], 0 if i == depth else 1] += 1.0
    for i in range(depth):
        symbol = int64(trie.symbol[path[i + 1]])
        if e.how[PPM] == 1:
            learn(e.words, e.past[0], e.past[1], e.past[2], symbol)
        e.past[0], e.past[1] = pushed(e.past[0], e.past[1], symbol)
        e.past[2] = min(e.past[2] + 1, 8)
