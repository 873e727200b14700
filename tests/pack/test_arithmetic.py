"""The entropy coder against a plain reader made from docs/format.md, at every bound it has.

The reader writes down which bounds a stream meets, so that none stays untried.
"""

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import plain_cabac
import pytest
from numpy.typing import NDArray
from plain_cabac import MOVES, Moments, ex, lg, read_stream

from fairway.base.errors import UserError
from fairway.pack import arithmetic, cabac
from fairway.pack.arithmetic import AT, DECODE, ENCODE, FIT
from fairway.pack.cabac import Side, decode_codes, ending, new_coder
from fairway.pack.moments import Covariance

Codes = NDArray[np.int64]
Head = tuple[int, tuple[int, ...]]
NONE, MEANS, COVARIANCE = 0, 1, 2
GAUSSIAN = (29, 16, 0, 0, 0, 0, 0, 0)


@dataclass(frozen=True)
class Case:
    """Matrices with heads that no encoder would choose."""

    codes: Sequence[Codes]
    heads: Sequence[Head]
    predict: int
    trellis: int = 0

    @property
    def sides(self) -> list[Side]:
        return [
            Side(matrix.shape, np.arange(len(matrix)) * 331 % 5000 - 2500, self.trellis)
            for matrix in self.codes
        ]


def written(case: Case) -> bytes:
    """Return the stream of a case: what `encode_codes` writes, but for who chooses the heads."""
    cells, coder = cabac._gaussian_cells().copy(), new_coder()
    width = case.codes[0].shape[1] if case.predict == COVARIANCE else 0
    covariance, heads, parts = Covariance(width), b"", b""
    for codes_RC, (log_energy, powers), side in zip(
        case.codes, case.heads, case.sides, strict=True
    ):
        walk = cabac._Walk(side, cabac._Head(log_energy, powers, case.predict), covariance)
        heads += cabac._HEAD.pack(log_energy, *powers)
        buffer = np.zeros(side.shape[1] * 128, np.uint8)
        for codes_C in codes_RC:
            walk.go(ENCODE, codes_C[None], None, cells, coder, buffer)
            parts += buffer[: coder[AT]].tobytes()
            coder[AT] = 0
    return bytes([case.predict]) + heads + parts + ending(coder)


def extremes(seed: int, shape: tuple[int, int]) -> Codes:
    """Codes of every size, the largest included, in any order."""
    draw = np.random.RandomState(seed)
    sizes = np.array([0, 1, 2, 19, 20, 21, 22, 300, 4095, 4096, 32_767])
    codes = sizes[draw.randint(0, len(sizes), shape)] * draw.choice([-1, 1], shape)
    codes[0, 0] = -32_768
    return codes.astype(np.int64)


def uneven(seed: int, shape: tuple[int, int]) -> Codes:
    """Codes of rows and columns of several sizes, with means: nothing about them is at a bound."""
    draw = np.random.RandomState(seed)
    rows, columns = draw.randint(1, 9, (shape[0], 1)), draw.randint(1, 9, (1, shape[1]))
    around = draw.randint(-4, 5, (1, shape[1]))
    codes = (draw.randint(-20, 21, shape) * rows * columns >> 5) + around
    return codes.astype(np.int64)


def following(rows: int) -> Codes:
    """Columns that are others 400 times over, copies, or nothing: no trained one is so steep."""
    draw = np.random.RandomState(7)
    codes = np.zeros((rows, 6), np.int64)
    codes[:, 0] = draw.randint(-9, 10, rows)
    codes[:, 1] = 400 * codes[:, 0]
    codes[:, 2] = -450 * codes[:, 0] + draw.randint(-1, 2, rows)
    codes[:, 3] = codes[:, 1]
    codes[:, 5] = draw.randint(-400, 401, rows)
    # What the predictor learnt from small rows meets large ones.
    codes[-4:, 0] = 4095, -4095, 32_767, -32_768
    codes[-2:, 3] = 32_767
    return codes


@functools.cache
def cases() -> dict[str, Case]:
    found = {}
    for trellis in (0, 4, 8):
        for predict in (NONE, MEANS, COVARIANCE):
            codes = [
                extremes(trellis + predict, (5, 9)),
                extremes(9, (3, 9)),
                np.random.RandomState(1).randint(-3, 4, (7, 9)),
            ]
            heads = [
                (0, (127,) * 8),
                (10_240, (-128, 127, -128, 127, -128, 127, -128, 127)),
                (3000, GAUSSIAN),
            ]
            matrices = [matrix.astype(np.int64) for matrix in codes]
            found[f"extremes {trellis} {predict}"] = Case(matrices, heads, predict, trellis)
            # Every feature counts, and none for much.
            even = [uneven(2, (9, 19)), uneven(3, (14, 19))]
            heads = [(3600, (25, 14, 6, 5, 4, 3, 2, 1)), (3500, (20, -9, 11, 7, -5, 9, -3, -2))]
            found[f"even {trellis} {predict}"] = Case(even, heads, predict, trellis)
    constant = (2048, (0,) * 8)
    found["zeros"] = Case([np.zeros((150, 60), np.int64)], [(0, GAUSSIAN)], NONE)
    # Columns at their least, where a step of the logarithm shows.
    least = (0, (127, 0, 0, 0, 0, 0, 40, 127))
    found["least"] = Case([np.zeros((60, 12), np.int64)], [least], NONE)
    found["ones"] = Case([np.ones((130, 120), np.int64)], [constant], NONE)
    found["following"] = Case([following(140), following(20)], [(9000, GAUSSIAN)] * 2, COVARIANCE)
    return found


def plainly(case: Case, data: bytes) -> list[list[list[int]]]:
    shapes = [side.shape for side in case.sides]
    return read_stream(data, shapes, [side.step_logs.tolist() for side in case.sides], case.trellis)


PINNED = "311c1bafd188096d"


@pytest.mark.parametrize("name", cases())
def test_streams_that_meet_the_bounds_are_read_alike(name: str) -> None:
    case = cases()[name]
    data = written(case)
    wanted = [matrix.tolist() for matrix in case.codes]
    assert plainly(case, data) == wanted
    assert [matrix.tolist() for matrix in decode_codes(data, case.sides)] == wanted
    for damaged in (data + b"\0", data + b"\1"):
        with pytest.raises(UserError, match="a cabac stream is damaged"):
            decode_codes(damaged, case.sides)


def test_their_bytes_are_pinned() -> None:
    data = b"".join(written(case) for case in cases().values())
    assert hashlib.sha256(data).hexdigest()[:16] == PINNED


def test_the_heads_that_the_encoder_chooses_are_pinned() -> None:
    """A worse fit would be read as well: what it costs is for a digest to say."""
    streams = []
    for trellis in (0, 4, 8):
        case = cases()[f"extremes {trellis} 0"]
        streams.append(cabac.encode_codes(case.codes, case.sides))
    case = cases()["following"]
    streams.append(cabac.encode_codes([case.codes[1]], [case.sides[1]]))
    assert hashlib.sha256(b"".join(streams)).hexdigest()[:16] == "1da352a262c12ddc"


def test_those_streams_meet_every_bound() -> None:
    plain_cabac.MET.clear()
    for case in cases().values():
        plainly(case, written(case))
    both = {"margin", "level", "variance", "mean", "multiple", "left over", "steep"}
    assert {
        *((name, end) for name in both for end in ("low", "high")),
        *((name, "high") for name in ("fresh", "relative", "uses")),
        *((name, "low") for name in ("fresh", "pivot", "row", "column")),
    } == plain_cabac.MET


@pytest.mark.parametrize("code", [32_767, -32_768, 32_768, -32_769, 200_000])
def test_codes_beyond_16_bits_are_damage(code: int) -> None:
    codes = np.zeros((2, 3), np.int64)
    codes[1, 1] = code
    case = Case([codes], [(4000, GAUSSIAN)], NONE)
    data = written(case)
    assert plainly(case, data) == [codes.tolist()]
    if -32_768 <= code <= 32_767:
        assert decode_codes(data, case.sides)[0].tolist() == codes.tolist()
    else:
        with pytest.raises(UserError, match="a cabac stream is damaged"):
            decode_codes(data, case.sides)


def test_a_mean_energy_ends_at_2_to_the_40th() -> None:
    for log_energy in (10_240, 10_241):
        case = Case([np.zeros((2, 2), np.int64)], [(10_240, GAUSSIAN)], NONE)
        data = written(case)
        data = data[:1] + log_energy.to_bytes(2, "little") + data[3:]
        if log_energy == 10_240:
            decode_codes(data, case.sides)
        else:
            with pytest.raises(UserError, match="a cabac stream is damaged"):
                decode_codes(data, case.sides)


# ---------------------------------------------------------------------------------------------
# Its parts


def multiple(k: int, grid: int) -> int:
    return 2 * k - grid


@pytest.mark.parametrize("grid", [0, 1])
def test_the_centre_is_the_nearest_code_and_its_distance_in_spacings(grid: int) -> None:
    for mean in (*range(-700, 701), 262_080, -262_080):
        k, off = arithmetic._centre(mean, grid, 1)
        distances = {j: abs(mean - 64 * multiple(j, grid)) for j in range(k - 3, k + 4)}
        assert distances[k] == min(distances.values())
        # Half of what lies between, since a spacing is two steps.
        rest = mean - 64 * multiple(k, grid)
        assert off == rest >> 1 and -32 <= off < 32
        plain, beside = arithmetic._centre(mean, 0, 0)
        assert (plain, beside) == ((mean + 32) >> 6, mean - 64 * plain) and -32 <= beside < 32


def test_numbers_far_away_come_back_up_to_18_bits() -> None:
    numbers = [
        0,
        1,
        2,
        3,
        4,
        6,
        7,
        8,
        62,
        63,
        64,
        2**16 - 2,
        2**16 - 1,
        2**17 - 2,
        2**17 - 1,
        2**18 - 2,
    ]
    cells = np.full(arithmetic.SLOTS + 3, 1 << 27 << 12 | 24, np.int64)
    coder, buffer = new_coder(), np.zeros(4000, np.uint8)
    for x in numbers:
        assert arithmetic._far(ENCODE, x, 3, cells, coder, buffer) == x
    learnt = hashlib.sha256(cells.tobytes()).hexdigest()
    assert (cells[: 3 + arithmetic.EXPONENT] == 1 << 27 << 12 | 24).all()
    data = buffer[: coder[AT]].tobytes() + ending(coder)
    cells[:] = 1 << 27 << 12 | 24
    coder, buffer = new_coder(data), np.frombuffer(bytearray(data), np.uint8)
    assert [arithmetic._far(DECODE, 0, 3, cells, coder, buffer) for _ in numbers] == numbers
    assert hashlib.sha256(cells.tobytes()).hexdigest() == learnt
    assert cabac.read_to_the_end(coder, data)


def test_a_factor_is_the_plain_one_whatever_the_covariance() -> None:
    draw = np.random.RandomState(1)
    plain_cabac.MET.clear()
    for size, scale in ((1, 1), (2, 64), (5, 1), (12, 1), (12, 64)):
        for _ in range(4):
            raw = draw.randint(-(2**40), 2**40, (size, size)).astype(np.int64) * scale
            symmetric = np.tril(raw) + np.tril(raw, -1).T
            for covariance in (symmetric, raw @ np.eye(size, dtype=np.int64)):
                factor = np.zeros((size, size), np.int32)
                arithmetic.factorise(covariance, factor, np.zeros_like(factor))
                plain = Moments(size)
                plain.factorise(covariance.tolist())
                assert factor.tolist() == plain.factor
    assert {end for end in plain_cabac.MET if end[0] in ("rest", "steep", "pivot")} == {
        (name, end) for name in ("rest", "steep", "pivot") for end in ("low", "high")
    }


@pytest.mark.parametrize(("energy", "variance"), [(0, 3000), (5000, 3000), (10**9, 3000), (77, 0)])
def test_the_normal_equations_of_a_weight(energy: int, variance: int) -> None:
    features = [500, -300, 20, 0, -7, 60, 1024, 256]
    row = np.zeros(arithmetic.PER_ROW, np.int64)
    gradient, curvature = np.full(8, 5, np.int64), np.full((8, 8), 7, np.int64)
    arithmetic.fit(np.array(features, np.int64), row, variance, energy, gradient, curvature)
    # 24 bits after the point; more than 25 times what was expected counts as 25 times.
    ratio = min((energy << 16) // ex(variance), 25 * 65_536)
    assert (
        row[arithmetic.NLL] == variance * 2**15 + 185 * ratio and row.sum() == row[arithmetic.NLL]
    )
    assert gradient.tolist() == [5 + (ratio - 65_536) * feature for feature in features]
    for i in range(8):
        for j in range(8):
            added = ((ratio * features[i]) >> 16) * features[j] if j <= i else 0
            assert curvature[i, j] == 7 + added


@pytest.mark.parametrize("trellis", [0, 4, 8])
def test_a_fit_meets_what_a_coder_meets(trellis: int) -> None:
    """The same rows leave the same statistics, and the fit adds up to a figure that is pinned."""
    codes = extremes(3, (6, 11))
    side = Side(codes.shape, np.arange(6) * 40, trellis)
    walks = [cabac._Walk(side, cabac._Head(3000, GAUSSIAN, MEANS), Covariance(0)) for _ in "ab"]
    cells, coder = cabac._gaussian_cells().copy(), new_coder()
    buffer = np.zeros(6 * 11 * 128, np.uint8)
    met = walks[0].go(ENCODE, codes.copy(), None, cells, coder, buffer)
    # Some rows at a time, or all at once.
    assert walks[1].go(FIT, codes[:2]) + walks[1].go(FIT, codes[2:]) == met > 0
    assert (walks[0]._columns == walks[1]._columns).all()
    same = walks[0].row == walks[1].row
    assert same[np.arange(len(same)) != arithmetic.NLL].all()
    assert not walks[0].gradient.any() and walks[1].gradient.any()
    multiples, state = np.zeros(11, int), 0
    for c, k in enumerate(codes[-1].tolist()):
        even, odd, grid = MOVES[trellis][state]
        m = multiple(k, grid) if trellis else k
        multiples[c] = max(-4095, min(4095, m))
        state = odd if k % 2 else even
    assert walks[1]._columns[arithmetic.MULTIPLE].tolist() == multiples.tolist()


def test_means_found_once_are_given_from_then_on() -> None:
    """A walk that is told the means learns what the walk did that found them."""
    codes = following(140)
    rows, width = codes.shape
    side = Side(codes.shape, np.arange(rows) * 40, 8)
    for predict in (MEANS, COVARIANCE):
        covariance = Covariance(width if predict == COVARIANCE else 0)
        means = np.zeros(codes.shape, np.int32)
        first = cabac._Walk(side, cabac._Head(3000, GAUSSIAN, predict), covariance)
        again = cabac._Walk(side, cabac._Head(3000, GAUSSIAN, arithmetic.GIVEN), Covariance(0))
        assert first.go(FIT, codes, means) == again.go(FIT, codes, means.copy())
        assert means.any()
        assert (first.gradient == again.gradient).all()
        assert (first.curvature == again.curvature).all()
        wrong = cabac._Walk(side, cabac._Head(3000, GAUSSIAN, arithmetic.GIVEN), Covariance(0))
        wrong.go(FIT, codes, means + 64)
        assert (first.gradient != wrong.gradient).any()


def numbers(**values: int) -> Codes:
    """Return a row's variables, those that are named; the others are 0."""
    row = np.zeros(arithmetic.PER_ROW, np.int64)
    for name, value in values.items():
        row[getattr(arithmetic, name)] = value
    return row


def per_column(count: int, **values: int | list[int]) -> Codes:
    columns = np.zeros((arithmetic.PER_COLUMN, count), np.int64)
    for name, value in values.items():
        columns[getattr(arithmetic, name)] = value
    return columns


def test_a_row_begins_with_its_columns_means() -> None:
    row = numbers(NUMBER=3, ENERGY=7, MET=5, EXPECTED=6, ALL=9, LEFT=4)
    columns = per_column(4, SUM=[0, 22, 23, 9000])
    arithmetic.begin_row(row, columns)
    logs = [max(lg(total + 280) - lg(43), 0) for total in (0, 22, 23, 9000)]
    assert columns[arithmetic.LOG].tolist() == logs
    assert columns[arithmetic.MEAN].tolist() == [ex(value) for value in logs]
    wanted = numbers(NUMBER=3, ENERGY=7, LEFT=65_536, ALL=sum(ex(value) for value in logs))
    assert row.tolist() == wanted.tolist()
    # The least mean of a column is one: its logarithm 0.
    row, columns = numbers(NUMBER=9, ENERGY=1), per_column(1)
    arithmetic.begin_row(row, columns)
    assert (columns[arithmetic.LOG, 0], columns[arithmetic.MEAN, 0]) == (0, 1)


@pytest.mark.parametrize("met", [0, 1, 2, 3, 900])
@pytest.mark.parametrize("place", [0, 1, 7, 8])
def test_what_is_observed_of_a_weight(met: int, place: int) -> None:
    # Two numbers beside each other whose logarithms differ: doubt is 2 + 9 * 4096 // 6 = 6146.
    soft = 20_000
    row = numbers(ENERGY=1, MET=met, ALL=4000, EXPECTED=300, LOG_ENERGY=77, LEFT=1234, STEP=-55)
    columns = per_column(9, LOG=500, NEAR=4321, FAR=99)
    features = np.arange(8) + 10_000
    arithmetic.observe(features, row, columns, place)
    first = (
        [
            lg(max(9 - met, 0) + 6146) - lg(4000 - 300 + 6146),
            lg(met + 64) - lg(300 + 64),
        ]
        if place % 8 == 0
        else [10_001, 10_002]
    )
    one = lg(65_536 + soft)
    near = [lg(value + soft) - one for value in (1234, 4321, 99)]
    assert features.tolist() == [500 - 77, *first, *near, -55, 256]


def test_what_is_left_of_a_row_is_never_below_nothing() -> None:
    # With 2 columns of energy 1 doubt is 1367, whose logarithm is not that of 1368.
    assert lg(1367) != lg(1368)
    for met in (1, 2, 3, 50):
        row = numbers(ENERGY=1, MET=met, ALL=2)
        features = np.zeros(8, np.int64)
        arithmetic.observe(features, row, per_column(2), 0)
        assert features[1] == lg(max(2 - met, 0) + 1367) - lg(2 + 1367)


@pytest.mark.parametrize(
    ("log_energy", "power", "feature", "variance"),
    [
        (100, 32, 11, 111), (100, 1, 31, 100), (100, 1, -1, 99), (100, 32, -100, 0),
        (100, 32, -99, 1), (100, 32, -101, 0), (10_000, 32, 240, 10_240), (10_000, 32, 241, 10_240),
        (10_000, 32, 239, 10_239),
    ],
)  # fmt: skip
def test_a_variance_is_within_0_and_10_240(
    log_energy: int, power: int, feature: int, variance: int
) -> None:
    for place in range(8):
        powers, features = np.zeros(8, np.int64), np.full(8, 7)
        powers[place], features[place] = power, feature
        found = arithmetic.log_variance(features, powers, numbers(LOG_ENERGY=log_energy))
        assert found == variance


def test_means_are_those_of_the_way_to_predict() -> None:
    factor = np.zeros((3, 3), np.int32)
    left_over = np.array([1, 1, 9], np.int32)
    columns = per_column(3, TOTAL=[0, 0, -100])

    def likely(predict: int) -> int:
        return arithmetic.likely(numbers(PREDICT=predict, NUMBER=6), columns, factor, left_over, 2)

    assert likely(NONE) == 0 and likely(MEANS) == -6400 // 70
    for product, mean in (
        (32_767, 0), (32_768, 1), (-32_768, 0), (-32_769, -1), (98_303, 1), (98_304, 2)
    ):  # fmt: skip
        factor[2] = product - 3, 3, 5
        assert likely(COVARIANCE) == mean
    for size, mean in ((262_080, 262_080), (262_081, 262_080), (262_079, 262_079)):
        for sign in (1, -1):
            factor[2], left_over[:2] = (65_536, 0, 5), (sign * size, 3)
            assert likely(COVARIANCE) == sign * mean


@pytest.mark.parametrize("multiple", [0, 3, -4095, 4095, 4096, -4096, 9000])
@pytest.mark.parametrize("mean", [0, 17, -262_080, 262_080])
@pytest.mark.parametrize("expected", [1, 700, 1 << 40])
def test_what_a_weight_teaches(multiple: int, mean: int, expected: int) -> None:
    row = numbers(LEFT=50, MET=7, EXPECTED=8)
    columns = per_column(2, MEAN=expected, NEAR=70, FAR=9000, SUM=3, TOTAL=-5, MULTIPLE=1)
    left_over = np.array([4, 4], np.int32)
    m = max(-4095, min(4095, multiple))
    x = max(-262_080, min(262_080, 64 * m - mean))
    relative = min((x * x << 16) // expected, 1 << 22)
    assert arithmetic.learn(row, columns, left_over, 1, multiple, mean) == x * x
    assert left_over.tolist() == [4, x]
    left = 50 + ((relative - 50) >> 4)
    assert row.tolist() == numbers(LEFT=left, MET=7 + x * x, EXPECTED=8 + expected).tolist()
    wanted = per_column(
        2, MEAN=expected, NEAR=[70, 70 + ((relative - 70) >> 4)],
        FAR=[9000, 9000 + ((relative - 9000) >> 6)], SUM=[3, 3 + x * x], TOTAL=[-5, m - 5],
        MULTIPLE=[1, m],
    )  # fmt: skip
    assert columns.tolist() == wanted.tolist()
