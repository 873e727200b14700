import hashlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from plain_cabac import read_stream

import fairway
from fairway.base.errors import UserError
from fairway.pack import cabac
from fairway.pack.cabac import Side, decode_codes, encode_codes
from fairway.pack.lines import decode_lines, encode_lines
from fairway.pack.moments import Covariance
from fairway.quantise.trellis import GRIDS, TRELLIS

Codes = NDArray[np.int16]


def side(codes: Codes, trellis: int = 0) -> Side:
    R, C = codes.shape
    return Side((R, C), np.arange(R, dtype=np.int64) * 37 % 512, trellis)


def whole(seed: int, shape: tuple[int, int], spread: int) -> Codes:
    """Roughly Gaussian numbers that are the same on every machine: sums of twelve."""
    sums = np.random.RandomState(seed).randint(0, 1 << 16, (12, *shape)).sum(0) - 6 * 65_535
    return np.clip(sums * spread >> 16, -32_768, 32_767).astype(np.int16)


def samples() -> list[tuple[list[Codes], list[Side]]]:
    """Streams of every kind of code, small enough for the plain path."""
    found = []
    for trellis in (0, 4, 8):
        for spread in (0, 1, 6, 300, 9000):
            codes = [whole(spread, (5, 13), spread), whole(spread + 1, (9, 13), spread)]
            found.append((codes, [side(matrix, trellis) for matrix in codes]))
    for value in (0, 1, -32_768, 32_767):
        found += [([matrix], [side(matrix)]) for matrix in (np.full((3, 5), value, np.int16),)]
    extremes = np.where(whole(1, (8, 9), 9) > 0, 32_767, -32_768).astype(np.int16)
    found += [([extremes], [side(extremes, trellis)]) for trellis in (0, 8)]
    # Columns that follow from one another, and columns with a mean.
    factors, loads = whole(2, (270, 2), 9), whole(3, (2, 10), 2)
    alike = (factors @ loads + whole(4, (270, 10), 1)).astype(np.int16)
    shifted = (whole(5, (30, 9), 2) + whole(6, (1, 9), 5)).astype(np.int16)
    return [*found, ([alike], [side(alike)]), ([shifted], [side(shifted)])]


def digests() -> list[str]:
    return [hashlib.sha256(encode_codes(*sample)).hexdigest()[:12] for sample in samples()]


def equal(found: list[Codes], codes: list[Codes]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(found, codes, strict=True))


def test_every_kind_of_code_comes_back() -> None:
    for codes, sides in samples():
        assert equal(decode_codes(encode_codes(codes, sides), sides), codes)


def test_what_the_encoder_writes_is_read_from_the_page_alone() -> None:
    for codes, sides in samples()[::3]:
        data = encode_codes(codes, sides)
        found = read_stream(
            data,
            [side.shape for side in sides],
            [side.step_logs.tolist() for side in sides],
            sides[0].trellis,
        )
        assert found == [matrix.tolist() for matrix in codes]


def test_all_ways_to_predict_are_used() -> None:
    assert {encode_codes(*sample)[0] for sample in samples()} == {0, 1, 2}


@pytest.mark.parametrize("related", [False, True])
def test_a_covariance_is_followed_only_where_it_gains(related: bool) -> None:
    loads = whole(3, (2, 10), 3 if related else 0)
    codes = [
        (whole(2 * n, (1300, 2), 9) @ loads + whole(2 * n + 1, (1300, 10), 4)).astype(np.int16)
        for n in range(4)
    ]
    sides = [side(matrix) for matrix in codes]
    fits = {way: [cabac._Fit(m.astype(np.int64), s, way) for m, s in zip(codes, sides, strict=True)]
            for way in (0, 2)}  # fmt: skip
    covariance = Covariance(10)
    for fit in fits[0]:
        fit.observe(covariance)
    cabac._observe_all(fits[2], covariance, [fits[0]], [])
    # Two matrices have more rows than the prior weighs.
    assert [math.isinf(fit.cost) for fit in fits[2]] == [False, False, not related, not related]
    data = encode_codes(codes, sides)
    assert (data[0] == 2) is related
    assert equal(decode_codes(data, sides), codes)


@pytest.mark.long
def test_the_plain_path_writes_and_reads_the_same_bytes() -> None:
    program = (
        "import json, test_cabac as t\n"
        "for codes, sides in t.samples()[::4]:\n"
        "    assert t.equal(t.decode_codes(t.encode_codes(codes, sides), sides), codes)\n"
        "print(json.dumps(t.digests()))"
    )
    here = Path(__file__).parent
    paths = [str(here), str(here.parent), str(Path(fairway.__file__).parents[1])]
    environment = os.environ | {"NUMBA_DISABLE_JIT": "1", "PYTHONPATH": os.pathsep.join(paths)}
    plain = subprocess.run(
        [sys.executable, "-W", "error::RuntimeWarning", "-c", program],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(plain.stdout) == digests()


def test_pinned_bits() -> None:
    """A change here changes the format: raise its version."""
    codes = [whole(7, (4, 6), 3)]
    assert (
        encode_codes(codes, [side(codes[0])]).hex()
        == "003f0f1d1000fe0000f0ff968a20512a976e921d42a1"
    )
    assert encode_lines([np.array([3, 7, 5], np.int16)]).hex() == "050000006a0d1d10000000000000b7"
    assert hashlib.sha256("".join(digests()).encode()).hexdigest()[:16] == "ec935c0823032334"


@settings(deadline=None, max_examples=60)
@given(
    st.tuples(st.integers(1, 20), st.integers(1, 20)),
    st.sampled_from([0, 4, 8]),
    st.sampled_from([1, 2, 40, 900, 32_767]),
    st.integers(0, 2**31 - 1),
)
def test_round_trip(shape: tuple[int, int], trellis: int, most: int, seed: int) -> None:
    codes = np.random.default_rng(seed).integers(-most, most + 1, shape).astype(np.int16)
    sides = [side(codes, trellis)]
    assert equal(decode_codes(encode_codes([codes], sides), sides), [codes])


def test_gaussians_cost_their_entropy() -> None:
    codes = whole(8, (256, 256), 3)
    shares = np.bincount(codes.ravel() + 64) / codes.size
    entropy_bytes = -sum(p * np.log2(p) for p in shares if p) * codes.size / 8
    assert len(encode_codes([codes], [side(codes)])) < 1.005 * entropy_bytes + 40


def test_what_the_steps_say_is_used() -> None:
    # Rows whose codes are as large as their steps are small.
    octaves = np.arange(64) * 5 % 4
    codes = (whole(9, (64, 64), 60) >> octaves[:, None]).astype(np.int16)
    known, unknown = Side((64, 64), 256 * octaves.astype(np.int64)), Side((64, 64), octaves * 0)
    saved = len(encode_codes([codes], [unknown])) - len(encode_codes([codes], [known]))
    assert saved > 32  # half a byte per row


def test_the_grid_is_context() -> None:
    # 0 or 1 on the first grid, -1 or -2 on the second: one bit for who knows the grid, else two.
    codes = np.random.RandomState(0).randint(0, 2, (40, 200)).astype(np.int16)
    for row in codes:
        state = 0
        for c in range(len(row)):
            row[c] = -1 - row[c] if GRIDS[8][state] else row[c]
            state = TRELLIS[8][state, row[c] & 1]
    known, unknown = (Side((40, 200), np.zeros(40, np.int64), states) for states in (8, 0))
    bits = [8 * len(encode_codes([codes], [side])) / codes.size for side in (known, unknown)]
    assert bits[0] < bits[1] - 0.25, bits


def test_damaged_streams_end_as_one_sentence() -> None:
    codes = [whole(11, (12, 12), 6)]
    sides = [side(codes[0])]
    data = encode_codes(codes, sides)
    for damaged in (
        b"",
        data[:10],
        data + b"\0",
        b"\3" + data[1:],
        b"\0\xff\xff" + data[3:],
    ):
        with pytest.raises(UserError, match="a cabac stream is damaged"):
            decode_codes(damaged, sides)
    wide = [Side((1, 2000), np.zeros(1, np.int64))]
    with pytest.raises(UserError, match="a cabac stream is damaged"):
        decode_codes(b"\2" + bytes(400), wide)


@settings(deadline=None, max_examples=150)
@given(st.binary(min_size=11, max_size=80), st.sampled_from([0, 4, 8]))
def test_any_bytes_decode_or_end_as_one_sentence(data: bytes, trellis: int) -> None:
    empty = np.zeros((6, 7), np.int16)
    try:
        [found] = decode_codes(data, [side(empty, trellis)])
    except UserError:
        return
    assert found.shape == (6, 7)


# ---------------------------------------------------------------------------------------------
# Steps


@settings(deadline=None, max_examples=40)
@given(st.lists(st.lists(st.integers(-16_000, 16_000), min_size=1, max_size=9), max_size=4))
def test_lines_come_back(values: list[list[int]]) -> None:
    lines = [np.array(line, np.int16) for line in values]
    found = decode_lines(encode_lines(lines), [len(line) for line in lines])
    assert all(np.array_equal(a, b) for a, b in zip(found, lines, strict=True))


def test_lines_of_a_trend_cost_little() -> None:
    walk = whole(12, (1, 4000), 3)[0].cumsum().astype(np.int16)
    apart = np.random.RandomState(0).permutation(walk)
    assert len(encode_lines([walk])) < 0.6 * len(encode_lines([apart]))


def test_damaged_lines_end_as_one_sentence() -> None:
    data = encode_lines([np.array([4, 5, 9], np.int16)])
    for damaged in (b"", data[:2], data[:2] + b"\7" + data[3:], b"\xff\x7f" + data[2:]):
        with pytest.raises(UserError, match="a cabac stream is damaged"):
            decode_lines(damaged, [3])
