"""The codec `cabac` once more, read from docs/format.md alone: plain whole numbers, no arrays.

Slow, and shares no code with the package.
"""

import functools
from collections.abc import Sequence
from decimal import Decimal, localcontext

MOVES = {
    0: [(0, 0, 0)],
    4: [(0, 1, 0), (2, 3, 1), (1, 0, 0), (3, 2, 1)],
    8: [(0, 2, 0), (5, 7, 1), (1, 3, 0), (4, 6, 1), (2, 0, 0), (7, 5, 1), (3, 1, 0), (6, 4, 1)],
}


def nearest(value: Decimal) -> int:
    return int(value.to_integral_value())


with localcontext() as digits:
    digits.prec = 40
    TWO = Decimal(2).ln()
    LOG = [nearest(256 * (1 + Decimal(m) / 256).ln() / TWO) for m in range(256)]
    EXP = [nearest(65_536 * (TWO * m / 256).exp()) for m in range(256)]


def lg(x: int) -> int:
    e = x.bit_length() - 1
    return 256 * e + LOG[((x << 8) >> e) & 255]


def ex(v: int) -> int:
    return (EXP[v % 256] << (v // 256)) >> 16


# The bounds that were met: (name, which end).
MET: set[tuple[str, str]] = set()


def within(value: int, low: int, high: int, name: str = "") -> int:
    if value < low or value > high:
        MET.add((name, "low" if value < low else "high"))
    return min(max(value, low), high)


@functools.cache
def rate(n: int) -> int:
    return nearest(2**24 / (n + Decimal("1.6")))


@functools.cache
def weights(level: int) -> list[float]:
    with localcontext() as digits:
        digits.prec = 20
        octave = Decimal(level * 32 - 1536) / 256
        r = float((-1 / (128 * Decimal(2) ** octave)).exp())
    found, a = [1.0], r
    for _ in range(3204):
        found.append(found[-1] * a)
        a *= r * r
    return found


@functools.cache
def shares(offset: int, level: int) -> dict[int, float]:
    """Return the shares of a fresh context's cells that are not 1/2."""
    w = weights(level)

    def sums(side: int) -> list[float]:
        places = list(range(8 + side * offset, 3201, 8))
        found = [0.0]
        for t in reversed(places):
            found.append(found[-1] + w[t])
        return found[:0:-1][:21]

    def share(part: float, of: float) -> float:
        return part / of if of > 1e-250 else 0.5

    behind, ahead = sums(1), sums(-1)
    both = ahead[0] + behind[0]
    found = {0: w[offset] / (w[offset] + both), 1: share(ahead[0], both)}
    for n in range(1, 21):
        found[1 + n] = share(behind[n], behind[n - 1])
        found[21 + n] = share(ahead[n], ahead[n - 1])
    return found


class Reader:
    """Bits out of bytes, and the cells that learn from them."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 4
        self.low, self.high = 0, 2**32 - 1
        self.window = int.from_bytes(data[:4].ljust(4, b"\0"), "big")
        self.cells: dict[tuple[int, int, int], list[int]] = {}

    def bit(self, p: int) -> int:
        span = self.high - self.low
        middle = self.low + (span >> 16) * p + (((span % 65_536) * p) >> 16)
        bit = int(self.window <= middle)
        if bit:
            self.high = middle
        else:
            self.low = middle + 1
        while self.low >> 24 == self.high >> 24:
            self.low = (self.low << 8) % 2**32
            self.high = (self.high << 8) % 2**32 + 255
            byte = self.data[self.at] if self.at < len(self.data) else 0
            self.window = (self.window << 8) % 2**32 + byte
            self.at += 1
        return bit

    def learnt(self, offset: int, level: int, slot: int) -> int:
        key = offset, level, slot
        if key not in self.cells:
            unit = within(round(4096 * shares(offset, level).get(slot, 0.5)), 1, 4095, "fresh")
            self.cells[key] = [unit << 16, 24]
        q, n = self.cells[key]
        bit = self.bit(within(q >> 12, 16, 65_520, "margin"))
        self.cells[key] = [q + (((bit << 28) - q) * rate(n) >> 24), within(n + 1, 0, 4095, "uses")]
        return bit

    def ended_well(self) -> bool:
        tail = self.low.to_bytes(4, "big")
        for count in range(4):
            unit = 2 ** (32 - 8 * count)
            first = -(-self.low // unit) * unit
            if first <= self.high:
                tail = first.to_bytes(5, "big")[1:][:count]
                break
        return self.data[self.at - 4 :] == tail


def read_code(reader: Reader, mean: int, variance: int, grid: int, trellis: int) -> int:
    if not trellis:
        near = (mean + 32) >> 6
        off = mean - 64 * near
    else:
        near = (mean + 64 * grid + 64) >> 7
        off = (mean + 64 * grid - 128 * near) >> 1
    level = within((variance - (512 if trellis else 0) - 1520) >> 5, 0, 191, "level")
    where = (abs(off) + 4) >> 3, level
    up = 1 if off >= 0 else -1
    if reader.learnt(*where, 0):
        return near
    ahead = reader.learnt(*where, 1)
    step = up if ahead else -up
    for n in range(1, 21):
        if not reader.learnt(*where, 1 + 20 * ahead + n):
            return near + n * step
    i = 0
    while i < 17 and reader.learnt(*where, 42 + i):
        i += 1
    x = 1
    for place in range(i):
        if place == 0:
            x = 2 * x + reader.learnt(*where, 60 + 3 * i)
        elif place == 1:
            x = 2 * x + reader.learnt(*where, 60 + 3 * i + 1 + x % 2)
        else:
            x = 2 * x + reader.bit(32_768)
    return near + (x + 20) * step


class Moments:
    """What P = 2 predicts means by."""

    def __init__(self, count: int) -> None:
        self.sums = [[0] * count for _ in range(count)]
        self.factor = [[0] * count for _ in range(count)]
        self.rows: list[list[int]] = []
        self.known = self.next = 0

    def add(self, row: list[int]) -> None:
        self.rows.append(row)
        if self.known + len(self.rows) < self.next + max(128, self.next // 8):
            return
        places = range(len(row))
        for i in places:
            for j in places:
                self.sums[i][j] += sum(row[i] * row[j] for row in self.rows)
        self.known += len(self.rows)
        self.rows, self.next = [], self.known
        largest = float(max(self.sums[i][i] for i in places))
        if not largest:
            return
        trust = self.known / (self.known + 2400)
        scaled = [[self.sums[i][j] * (trust if i != j else 1.0) for j in places] for i in places]
        self.factorise([[round(value / largest * 2.0**40) for value in row] for row in scaled])

    def factorise(self, moments: list[list[int]]) -> None:
        pivots: list[int] = []
        scaled = [[0] * len(moments) for _ in moments]
        for i, row in enumerate(moments):
            for j in range(i):
                rest = row[j] - sum(self.factor[i][k] * scaled[j][k] for k in range(j))
                rest = within(rest, -(2**44), 2**44, "rest")
                scaled[i][j] = rest >> 16
                self.factor[i][j] = within((rest << 16) // pivots[j], -(2**18), 2**18, "steep")
            rest = row[i] - sum(self.factor[i][k] * scaled[i][k] for k in range(i))
            pivots.append(within(rest, 2**24, 2**44, "pivot"))


def read_matrix(
    reader: Reader, shape: tuple[int, int], head: tuple[int, ...], predict: int,
    logs: Sequence[int], trellis: int, moments: Moments,
) -> list[list[int]]:  # fmt: skip
    """Return the codes of a matrix, columns in the order they are coded in."""
    h, powers = head[0], head[1:]
    R, C = shape
    e, mean_log, soft = ex(h), sum(logs) // R, 20_000
    S, T, near, far = [0] * C, [0] * C, [65_536] * C, [65_536] * C
    doubt = 2 * e + 4096 * C // 6
    found = []
    for r in range(R):
        L = [within(lg(S[c] + 40 * e) - lg(r + 40), 0, 2**14, "column") for c in range(C)]
        M = [ex(value) for value in L]
        met, expected, left, state = 0, 0, 65_536, 0
        f = [0] * 8
        x: list[int] = []
        multiples, codes = [], []
        for c in range(C):
            f[0] = L[c] - h
            if c % 8 == 0:
                f[1] = lg(within(C * e - met, 0, 2**62, "row") + doubt) - lg(
                    sum(M) - expected + doubt
                )
                f[2] = lg(met + 64 * e) - lg(expected + 64 * e)
            f[3] = lg(left + soft) - lg(65_536 + soft)
            f[4] = lg(near[c] + soft) - lg(65_536 + soft)
            f[5] = lg(far[c] + soft) - lg(65_536 + soft)
            f[6], f[7] = 2 * (logs[r] - mean_log), 256
            total = sum(p * feature for p, feature in zip(powers, f, strict=True))
            variance = within(h + total // 32, 0, 10_240, "variance")
            mean = 0
            if predict == 1:
                mean = 64 * T[c] // (r + 64)
            elif predict == 2:
                mean = (sum(moments.factor[c][j] * x[j] for j in range(c)) + 32_768) >> 16
                mean = within(mean, -262_080, 262_080, "mean")
            even, odd, grid = MOVES[trellis][state]
            k = read_code(reader, mean, variance, grid, trellis)
            codes.append(k)
            m = 2 * k - grid if trellis else k
            m = within(m, -4095, 4095, "multiple")
            multiples.append(m)
            x.append(within(64 * m - mean, -262_080, 262_080, "left over"))
            E = x[c] ** 2
            relative = within((E << 16) // M[c], 0, 2**22, "relative")
            left += (relative - left) >> 4
            near[c] += (relative - near[c]) >> 4
            far[c] += (relative - far[c]) >> 6
            S[c] += E
            T[c] += m
            met += E
            expected += M[c]
            state = odd if k % 2 else even
        found.append(codes)
        if predict == 2:
            moments.add(multiples)
    return found


def read_stream(
    data: bytes,
    shapes: Sequence[tuple[int, int]],
    logs: Sequence[Sequence[int]],
    trellis: int = 0,
) -> list[list[list[int]]]:
    """Return the matrices of a stream; fails if it does not end as its writer would end it."""
    predict, first = data[0], 1 + 10 * len(shapes)
    reader = Reader(data[first:])
    moments = Moments(shapes[0][1] if predict == 2 else 0)
    found = []
    for number, shape in enumerate(shapes):
        entry = data[1 + 10 * number : 11 + 10 * number]
        powers = [byte - 256 if byte > 127 else byte for byte in entry[2:]]
        head = (int.from_bytes(entry[:2], "little"), *powers)
        rows = read_matrix(reader, shape, head, predict, logs[number], trellis, moments)
        found.append(rows)
    assert reader.ended_well()
    return found
