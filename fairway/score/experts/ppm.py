"""Prediction by partial matching: counts of the bytes that followed the same few bytes before.

Contexts of order k are the last k bytes, k = 0 to 8. The longest known context predicts. Bytes that
never followed it share its escape mass, which the next shorter context divides in the same way;
after the shortest one all bytes have equal shares. Method C (Moffat, 1990): a byte seen c times out
of N, among q different ones, gets c / (N + q), the escape q / (N + q). Method D (Howard and Vitter,
1992): (2c - 1) / 2N and q / 2N. With *exclusion* a byte that a longer context has counted is left
out of the shorter ones, so the shares of all bytes sum to one. Without it (as in the published
code) they sum to less. `allowed` restricts a prediction to some bytes, as inside a token: with
exclusion all others are excluded from the start.

**Memory.** A context of order 2 to 8 is one line of 64 bytes: one cache miss per order and byte,
and the line is prefetched some bytes before. It has room for eight different followers; a ninth
moves them to a block of 256. Orders 0 and 1 have blocks at fixed places. Lines and blocks are
allocated once. When seven eighths of the lines are in use, no new contexts are added; when all
blocks are in use, no ninth followers are. Known contexts and followers are still counted.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fairway.base.arrays import ByteArray, FloatArray, IntArray, Zeros
from fairway.base.native import compiled, fetch, int64

# The longest context that there can be, and that of the experts, in bytes.
MAX_ORDER, ORDER = 8, 5
# One array of 32-bit words has everything, so that compiled functions pass only one array: settings
# and counters, a mark for every byte, the last line found of every order, lines, blocks.
_LIMIT, _TWICE, EXCLUSION, _LINES, _LINES_USED, _BLOCKS, _BLOCKS_USED, _FORGONE, _NOW = range(9)
_MARKS, _LAST, _LINES_AT = 16, 272, 320
# Words of a line: the last four bytes, the four before, the order (0: free), different followers,
# all occurrences, those of the commonest; two words of 4 followers each, then their counts. If the
# followers of a line have moved, its first count is the number of their block.
_LINE, _INLINE = 16, 8
_HIGH, _ORDER, _DISTINCT, _TOTAL, _TOP, _FOLLOWERS, _COUNTS = 1, 2, 3, 4, 5, 6, 8
# Words of a block: the same three facts, then the followers in order of occurrence, then 256
# counts.
_BLOCK = 336
_BLOCK_FACTS, _BLOCK_FOLLOWERS, _BLOCK_COUNTS = 0, 16, 80
# The first blocks of orders 0 and 1, and the first of all others.
_FIXED = (0, 1, 257)
# Bytes between the prefetch and its use.
AHEAD = 10

Words = NDArray[np.uint32]


def tables(
    order: int,
    method: str,
    exclusion: bool,
    lines: int = 1 << 16,
    blocks: int = 1 << 12,
    zeros: Zeros = np.zeros,
) -> Words:
    """Return empty tables of `lines` (a power of two) lines and `blocks` blocks beyond order 1."""
    if not 0 <= order <= MAX_ORDER or method not in ("C", "D") or lines & (lines - 1):
        raise ValueError(f"no PPM of order {order}, method {method!r} and {lines} lines")
    fixed = _FIXED[min(order, 1) + 1]
    count = fixed + (blocks if order > 1 else 0)
    size = _LINES_AT + lines * _LINE + count * _BLOCK
    # Lines must be aligned to cache lines.
    raw = zeros(size + _LINE, np.uint32)
    shift = -(raw.ctypes.data // 4) % _LINE
    words = raw[shift : shift + size]
    words[_LIMIT], words[_TWICE], words[EXCLUSION] = order, 1 if method == "C" else 2, exclusion
    words[_LINES], words[_BLOCKS], words[_BLOCKS_USED] = lines, count, fixed
    return words


class Room(NamedTuple):
    """How full tables are; `forgone` counts contexts and followers without room."""

    lines: int
    lines_used: int
    blocks: int
    blocks_used: int
    forgone: int
    bytes: int


def room(words: Words) -> Room:
    """Return how full tables are."""
    fixed = _FIXED[min(int(words[_LIMIT]), 1) + 1]
    lines, used, blocks, blocks_used, forgone = map(int, words[_LINES : _FORGONE + 1])
    return Room(lines, used, blocks - fixed, blocks_used - fixed, forgone, words.nbytes)


def room_for(text_bytes: int, order: int, memory_bytes: int) -> tuple[int, int]:
    """Return lines and blocks for a text of this many bytes, within a limit on memory.

    English of 1, 8 and 151 MB has 0.26, 0.86 and 4.0 million contexts of orders 3 to 5, and about
    0.42 million at 1 MB for each order above; a twentieth has more than eight followers. Of order 2
    there are some thousands.
    """
    contexts = 204.0 * text_bytes**0.525 + max(0, order - 5) * 9.0 * text_bytes**0.78
    if order == 2:
        contexts = min(contexts, 65_536)
    lines = 1 << 10
    while order > 1 and lines < 1.6 * contexts and 2 * lines * _LINE * 4 <= memory_bytes // 2:
        lines *= 2
    most = min(text_bytes, memory_bytes // 2 // (4 * _BLOCK))
    return lines, max(64, min(int(0.08 * contexts) + 1024, most))


def table_bytes(text_bytes: int, order: int, memory_bytes: int) -> int:
    """Return the bytes of the tables for a text of this many bytes, within a limit on memory."""
    lines, blocks = room_for(text_bytes, order, memory_bytes)
    return 4 * (lines * _LINE + (_FIXED[min(order, 1) + 1] + blocks) * _BLOCK)


# ---------------------------------------------------------------------------------------------
# Finding a context


@compiled
def _home(order: int, low: int, high: int, lines: int) -> int:
    """Return the line where the search for a context begins."""
    mixed = (low * 0x2545F491) ^ (high * 0x1F123BB5) ^ (order * 0x3C6EF372FE94)
    mixed ^= mixed >> 31
    mixed = (mixed & 0xFFFFFFFF) * 0x27D4EB2F
    return (mixed ^ (mixed >> 29)) & (lines - 1)


@compiled
def _low_part(order: int, low: int) -> int:
    return low if order >= 4 else low & ((1 << (8 * order)) - 1)


@compiled
def _high_part(order: int, high: int) -> int:
    return high & ((1 << (8 * (order - 4))) - 1) if order > 4 else 0


@compiled
def pushed(low: int, high: int, symbol: int) -> tuple[int, int]:
    """Return the last eight bytes after one more: the last four and the four before."""
    return ((low << 8) | symbol) & 0xFFFFFFFF, ((high << 8) | (low >> 24)) & 0xFFFFFFFF


@compiled
def _line_of(m: Words, order: int, low: int, high: int) -> int:
    """Return the start of the line of a context of order 2 or more, negative if it is new."""
    lines = int64(m[_LINES])
    low, high = _low_part(order, low), _high_part(order, high)
    # The context of a prediction is learned next, so its line is not searched again.
    last = int64(m[_LAST + order])
    if last and m[last] == low and m[last + _HIGH] == high:
        return last
    at = _home(order, low, high, lines)
    while True:
        base = _LINES_AT + at * _LINE
        found = int64(m[base + _ORDER])
        if found == order and m[base] == low and m[base + _HIGH] == high:
            m[_LAST + order] = base
            return base
        if found == 0:
            return -base
        at = (at + 1) & (lines - 1)


@compiled
def _block_at(m: Words, block: int) -> int:
    return _LINES_AT + int64(m[_LINES]) * _LINE + block * _BLOCK


@compiled
def _fixed_block(m: Words, order: int, low: int) -> int:
    """Return the start of the block of a context of order 0 or 1."""
    return _block_at(m, 0 if order == 0 else 1 + (low & 255))


@compiled
def ask(m: Words, low: int, high: int) -> None:
    """Prefetch the contexts that end in these bytes."""
    limit, lines = int64(m[_LIMIT]), int64(m[_LINES])
    for order in range(2, limit + 1):
        at = _home(order, _low_part(order, low), _high_part(order, high), lines)
        fetch(m, _LINES_AT + at * _LINE)


# ---------------------------------------------------------------------------------------------
# Predicting


@compiled
def _place(m: Words, order: int, low: int, high: int) -> tuple[int, int, int]:
    """Return the places of facts, followers and counts of a context; (0, 0, 0) if it is new.

    The place of followers is negative in a block.
    """
    if order <= 1:
        at = _fixed_block(m, order, low)
        return at, -(at + _BLOCK_FOLLOWERS), at + _BLOCK_COUNTS
    at = _line_of(m, order, low, high)
    if at < 0:
        return 0, 0, 0
    if m[at + _DISTINCT] > _INLINE:
        block = _block_at(m, int64(m[at + _COUNTS]))
        return at + _DISTINCT, -(block + _BLOCK_FOLLOWERS), block + _BLOCK_COUNTS
    return at + _DISTINCT, at + _FOLLOWERS, at + _COUNTS


@compiled
def _symbol(m: Words, followers: int, n: int) -> int:
    return (int64(m[abs(followers) + (n >> 2)]) >> ((n & 3) << 3)) & 255


@compiled
def _nth_count(m: Words, followers: int, counts: int, n: int, symbol: int) -> int:
    return int64(m[counts + (symbol if followers < 0 else n)])


@compiled
def _count_of(m: Words, followers: int, counts: int, distinct: int, symbol: int) -> int:
    """Return how often a byte followed a context."""
    if followers < 0:
        return int64(m[counts + symbol])
    for n in range(distinct):
        if _symbol(m, followers, n) == symbol:
            return int64(m[counts + n])
    return 0


@compiled
def allows(mask: Words, row: int, symbol: int) -> bool:
    """Return whether a row of masks, 8 words of 32 bytes each, has a byte."""
    return (int64(mask[row, symbol >> 5]) >> (symbol & 31)) & 1 == 1


@compiled
def _fresh_mark(m: Words) -> int:
    """Return a mark that no byte has yet."""
    now = int64(m[_NOW]) + 1
    if now == 1 << 32:
        now = 1
        m[_MARKS : _MARKS + 256] = 0
    m[_NOW] = now
    return now


@compiled
def share_of(
    m: Words, mask: Words, row: int, size: int, low: int, high: int, length: int, symbol: int
) -> tuple[float, float, int]:
    """Return the share of an allowed byte, the confidence, and the order of the context behind it.

    `mask[row]` are the `size` allowed bytes; `length` bytes of history exist. The confidence is the
    share of the commonest follower in the longest context with an allowed follower; it does not
    depend on `symbol`. Without exclusion the mask is not used.
    """
    twice, exclusion = int64(m[_TWICE]), m[EXCLUSION] == 1
    now = _fresh_mark(m)
    share, confidence, deepest, left = 1.0, 0.0, -1, size
    for order in range(min(int64(m[_LIMIT]), length), -1, -1):
        facts, followers, counts = _place(m, order, low, high)
        if facts == 0 or m[facts] == 0:
            continue
        distinct, weight = int64(m[facts]), 0
        if not exclusion or left == 256:
            # Every follower takes part, so the sums over all followers can be used.
            summed = twice * int64(m[facts + 1]) - (twice - 1) * distinct
            novel, best = distinct, twice * int64(m[facts + 2]) - (twice - 1)
            count = _count_of(m, followers, counts, distinct, symbol)
            if count:
                weight = twice * count - (twice - 1)
        else:
            summed, novel, best = 0, 0, 0
            for n in range(distinct):
                follower = _symbol(m, followers, n)
                if m[_MARKS + follower] == now or not allows(mask, row, follower):
                    continue
                part = twice * _nth_count(m, followers, counts, n, follower) - (twice - 1)
                summed += part
                novel += 1
                best = max(best, part)
                if follower == symbol:
                    weight = part
            if novel == 0:
                continue
        # If no other byte is left, there is no escape.
        whole = summed if exclusion and novel == left else summed + novel
        if deepest < 0:
            deepest, confidence = order, best / whole
        if weight:
            return share * (weight / whole), confidence, deepest
        share *= novel / whole
        if exclusion:
            left -= novel
            for n in range(distinct):
                m[_MARKS + _symbol(m, followers, n)] = now
    return share / (left if exclusion else 256), confidence, deepest


@compiled
def shares(
    m: Words, mask: Words, row: int, size: int, low: int, high: int, length: int, out: FloatArray
) -> None:
    """Write the shares of all allowed bytes to out[256]; the others keep what they had there.

    This is one walk down the orders; `share_of` walks for a single byte.
    """
    twice, exclusion = int64(m[_TWICE]), m[EXCLUSION] == 1
    now = _fresh_mark(m)
    share, left = 1.0, size if exclusion else 256
    for order in range(min(int64(m[_LIMIT]), length), -1, -1):
        facts, followers, counts = _place(m, order, low, high)
        distinct, summed, novel = int64(m[facts]) if facts else 0, 0, 0
        for n in range(distinct):
            follower = _symbol(m, followers, n)
            if exclusion and (m[_MARKS + follower] == now or not allows(mask, row, follower)):
                continue
            summed += twice * _nth_count(m, followers, counts, n, follower) - (twice - 1)
            novel += 1
        if novel == 0:
            continue
        whole = summed if exclusion and novel == left else summed + novel
        for n in range(distinct):
            follower = _symbol(m, followers, n)
            if m[_MARKS + follower] != now:
                m[_MARKS + follower] = now
                if allows(mask, row, follower):
                    part = twice * _nth_count(m, followers, counts, n, follower) - (twice - 1)
                    out[follower] = share * (part / whole)
        share *= novel / whole
        left -= novel
    for symbol in range(256):
        if m[_MARKS + symbol] != now and allows(mask, row, symbol):
            out[symbol] = share / (left if exclusion else 256)


# ---------------------------------------------------------------------------------------------
# Learning


@compiled
def _set_symbol(m: Words, followers: int, n: int, symbol: int) -> None:
    """Write a follower into a place that was zero."""
    m[followers + (n >> 2)] |= np.uint32(symbol << ((n & 3) << 3))


@compiled
def _count_in_block(m: Words, block: int, facts: int, symbol: int) -> None:
    """Count a follower in a block; the facts are in the block or in a line."""
    at = block + _BLOCK_COUNTS + symbol
    count = int64(m[at]) + 1
    m[at] = count
    if count == 1:
        distinct = int64(m[facts])
        _set_symbol(m, block + _BLOCK_FOLLOWERS, distinct, symbol)
        m[facts] = distinct + 1
    m[facts + 1] += np.uint32(1)
    if count > m[facts + 2]:
        m[facts + 2] = count


@compiled
def _moved(m: Words, line: int) -> int:
    """Move a line's followers to a new block and return its place; 0 if there is none."""
    number = int64(m[_BLOCKS_USED])
    if number == m[_BLOCKS]:
        return 0
    m[_BLOCKS_USED] = number + 1
    block = _block_at(m, number)
    for n in range(_INLINE):
        symbol = _symbol(m, line + _FOLLOWERS, n)
        _set_symbol(m, block + _BLOCK_FOLLOWERS, n, symbol)
        m[block + _BLOCK_COUNTS + symbol] = m[line + _COUNTS + n]
    m[line + _COUNTS] = number
    return block


@compiled
def _count_in_line(m: Words, line: int, symbol: int) -> None:
    """Count a follower of a context in its line, or in its block."""
    distinct, facts = int64(m[line + _DISTINCT]), line + _DISTINCT
    if distinct > _INLINE:
        _count_in_block(m, _block_at(m, int64(m[line + _COUNTS])), facts, symbol)
        return
    at = 0
    while at < distinct and _symbol(m, line + _FOLLOWERS, at) != symbol:
        at += 1
    if at == _INLINE:
        block = _moved(m, line)
        if block:
            _count_in_block(m, block, facts, symbol)
        else:
            m[_FORGONE] += np.uint32(1)
        return
    if at == distinct:
        _set_symbol(m, line + _FOLLOWERS, at, symbol)
        m[facts] = distinct + 1
    count = int64(m[line + _COUNTS + at]) + 1
    m[line + _COUNTS + at] = count
    m[facts + 1] += np.uint32(1)
    if count > m[facts + 2]:
        m[facts + 2] = count


@compiled
def learn(m: Words, low: int, high: int, length: int, symbol: int) -> None:
    """Count a byte in all contexts that end just before it."""
    for order in range(min(int64(m[_LIMIT]), length) + 1):
        if order <= 1:
            block = _fixed_block(m, order, low)
            _count_in_block(m, block, block, symbol)
            continue
        line = _line_of(m, order, low, high)
        if line < 0:
            lines, used = int64(m[_LINES]), int64(m[_LINES_USED])
            if used >= lines - (lines >> 3):
                m[_FORGONE] += np.uint32(1)
                continue
            m[_LINES_USED] = used + 1
            line = -line
            m[line], m[line + _HIGH] = _low_part(order, low), _high_part(order, high)
            m[line + _ORDER] = order
        _count_in_line(m, line, symbol)


@compiled
def score_bytes(
    m: Words,
    data: ByteArray,
    mask: Words,
    history: IntArray,
    share: FloatArray,
    confidence: FloatArray,
) -> None:
    """Write share and confidence of every byte of a text, each before it is learned.

    history: int64[3], the last eight bytes and their number; updated. mask: all bytes.
    """
    low, high, length = history[0], history[1], history[2]
    root, all_bytes = int64(0), int64(256)
    ahead_low, ahead_high = low, high
    for n in range(min(AHEAD, data.size)):
        ahead_low, ahead_high = pushed(ahead_low, ahead_high, int64(data[n]))
    for n in range(data.size):
        if n + AHEAD < data.size:
            ahead_low, ahead_high = pushed(ahead_low, ahead_high, int64(data[n + AHEAD]))
            ask(m, ahead_low, ahead_high)
        symbol = int64(data[n])
        share[n], confidence[n], _ = share_of(m, mask, root, all_bytes, low, high, length, symbol)
        learn(m, low, high, length, symbol)
        low, high = pushed(low, high, symbol)
        length = min(length + 1, 8)
    history[0], history[1], history[2] = low, high, length


ALL_BYTES = np.full((1, 8), 0xFFFFFFFF, np.uint32)


# ---------------------------------------------------------------------------------------------
# The reference


class PlainPpm:
    """The same by dictionaries of unbounded size; `predict` returns the shares of all bytes."""

    def __init__(self, order: int, method: str, exclusion: bool) -> None:
        self.order, self.twice, self.exclusion = order, 1 if method == "C" else 2, exclusion
        self.contexts: dict[bytes, dict[int, int]] = {}

    def suffixes(self, history: bytes) -> list[bytes]:
        """Return the last bytes of a history, longest first."""
        return [history[len(history) - n :] for n in range(min(self.order, len(history)), -1, -1)]

    def predict(
        self, history: bytes, allowed: frozenset[int] = frozenset(range(256))
    ) -> tuple[dict[int, float], float]:
        """Return the share of every allowed byte after a history, and the confidence."""
        found: dict[int, float] = {}
        share, confidence, left = 1.0, 0.0, set(allowed if self.exclusion else range(256))
        for context in self.suffixes(history):
            seen = self.contexts.get(context, {})
            parts = {b: self.twice * c - (self.twice - 1) for b, c in seen.items()}
            if self.exclusion:
                parts = {b: part for b, part in parts.items() if b in left}
            if not parts:
                continue
            nothing_left = self.exclusion and len(parts) == len(left)
            whole = sum(parts.values()) + (0 if nothing_left else len(parts))
            confidence = confidence or max(parts.values()) / whole
            found |= {b: share * (n / whole) for b, n in parts.items() if b in left}
            left -= parts.keys()
            share *= len(parts) / whole
        rest = (len(left) or 1) if self.exclusion else 256
        return found | dict.fromkeys(left, share / rest), confidence

    def learn(self, history: bytes, symbol: int) -> None:
        """Count a byte in all contexts that end just before it."""
        for context in self.suffixes(history):
            seen = self.contexts.setdefault(context, {})
            seen[symbol] = seen.get(symbol, 0) + 1
