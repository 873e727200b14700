"""PPM against its dictionaries, bit for bit; what is frozen, what is bounded."""

import numpy as np
import pytest

from fairway.score.experts import ppm

TEXT = ("The model predicts a byte, and the byte that it predicts is learned. " * 3).encode()
DRAW = np.random.default_rng(0)
INPUTS = {
    "text": TEXT,
    "random": DRAW.integers(0, 256, 400, np.uint8).tobytes(),
    # A context with more than eight followers, then with all 256.
    "all": bytes(range(256)) * 2 + b"aab" * 20,
    "two": DRAW.choice([0, 255], 300).astype(np.uint8).tobytes(),
    "one": b"\0",
}


def plain(data: bytes, order: int, method: str, exclusion: bool) -> tuple[list[float], list[float]]:
    reference = ppm.PlainPpm(order, method, exclusion)
    share, confidence = [], []
    for n, symbol in enumerate(data):
        history = data[max(0, n - 8) : n]
        shares, sure = reference.predict(history)
        share.append(shares[symbol])
        confidence.append(sure)
        reference.learn(history, symbol)
    return share, confidence


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("method", ["C", "D"])
@pytest.mark.parametrize("exclusion", [False, True])
def test_equals_the_reference_to_the_bit(name: str, method: str, exclusion: bool) -> None:
    data = np.frombuffer(INPUTS[name], np.uint8)
    for order in (0, 1, 2, 3, 5, 8):
        share, confidence = np.empty(len(data)), np.empty(len(data))
        past, words = np.zeros(3, np.int64), ppm.tables(order, method, exclusion, 1 << 13, 600)
        # In two parts: what is kept between calls is all there is.
        for part in (slice(0, 7), slice(7, None)):
            ppm.score_bytes(words, data[part], ppm.ALL_BYTES, past, share[part], confidence[part])
        expected = plain(INPUTS[name], order, method, exclusion)
        assert share.tolist() == expected[0] and confidence.tolist() == expected[1], order
        assert ppm.room(words).forgone == 0


def learned(method: str, exclusion: bool, data: bytes = TEXT) -> tuple[ppm.Words, np.ndarray]:
    words, past = ppm.tables(4, method, exclusion, 1 << 12, 100), np.zeros(3, np.int64)
    size = len(data)
    ppm.score_bytes(
        words, np.frombuffer(data, np.uint8), ppm.ALL_BYTES, past, np.empty(size), np.empty(size)
    )
    return words, past


@pytest.mark.parametrize("method", ["C", "D"])
@pytest.mark.parametrize("allowed", [range(256), b"abcdefxyz\0", b"e"])
def test_all_bytes_at_once_are_the_bytes_one_by_one(method: str, allowed: bytes) -> None:
    mask = np.zeros((1, 8), np.uint32)
    for symbol in allowed:
        mask[0, symbol >> 5] |= np.uint32(1 << (symbol & 31))
    chosen = frozenset(allowed)
    for exclusion in (True, False):
        words, past = learned(method, exclusion)
        row = np.zeros(256)
        ppm.shares(words, mask, 0, len(chosen), *past, row)
        single = [ppm.share_of(words, mask, 0, len(chosen), *past, b)[0] for b in sorted(chosen)]
        assert row[sorted(chosen)].tolist() == single
        reference = ppm.PlainPpm(4, method, exclusion)
        for n, symbol in enumerate(TEXT):
            reference.learn(TEXT[max(0, n - 8) : n], symbol)
        expected = reference.predict(TEXT[-8:], chosen)[0]
        assert [expected[b] for b in sorted(chosen)] == single
        if exclusion:
            assert sum(single) == pytest.approx(1.0, abs=1e-14)
        elif len(chosen) == 256:
            assert sum(single) < 0.999


def test_the_byte_that_comes_changes_no_table_before_it_is_scored() -> None:
    row = np.empty((2, 256))
    for n, last in enumerate((b"a", b"z")):
        words, past = learned("D", True)
        before = words.copy()
        ppm.shares(words, ppm.ALL_BYTES, 0, 256, *past, row[n])
        symbol = np.frombuffer(last, np.uint8)
        share = np.empty(1)
        ppm.score_bytes(words, symbol, ppm.ALL_BYTES, past, share, np.empty(1))
        assert share[0] == row[n, symbol[0]]
        # Afterwards it is counted.
        assert (words[320:] != before[320:]).any()
    assert row[0].tolist() == row[1].tolist()


def test_full_tables_learn_nothing_new_and_go_on_counting() -> None:
    data = np.frombuffer(INPUTS["random"] + TEXT * 4, np.uint8)
    words, past = ppm.tables(5, "D", True, 64, 3), np.zeros(3, np.int64)
    share = np.empty(len(data))
    ppm.score_bytes(words, data, ppm.ALL_BYTES, past, share, np.empty(len(data)))
    found = ppm.room(words)
    assert found.lines_used == 56 and found.forgone > 100 and found.blocks_used <= 3
    row = np.empty(256)
    ppm.shares(words, ppm.ALL_BYTES, 0, 256, *past, row)
    assert row.sum() == pytest.approx(1.0, abs=1e-12)
    assert -np.log2(share[-len(TEXT) :]).mean() < 3.0


def test_a_ninth_follower_without_room_is_not_learned() -> None:
    data = b"".join(b"xyz" + bytes([n]) for n in range(20))
    words, past = ppm.tables(3, "C", True, 1 << 12, 0), np.zeros(3, np.int64)
    size = len(data)
    ppm.score_bytes(
        words, np.frombuffer(data, np.uint8), ppm.ALL_BYTES, past, np.empty(size), np.empty(size)
    )
    # Of order 3 and of order 2.
    assert ppm.room(words).forgone == 12 + 12


def test_room_follows_the_text_within_its_limit() -> None:
    small, large = ppm.room_for(1_000_000, 5, 10**10), ppm.room_for(151_000_000, 5, 10**10)
    assert small[0] > 1.5 * 262_222 and small[1] > 6_779
    assert large[0] > 1.5 * 4_015_546 and large[1] > 215_136
    lines, blocks = ppm.room_for(151_000_000, 8, 100_000_000)
    assert lines * 64 <= 50_000_000 and blocks * 1344 <= 50_000_000


@pytest.mark.parametrize("bad", [(9, "C", 64), (5, "A", 64), (5, "C", 60)])
def test_impossible_tables_are_refused(bad: tuple[int, str, int]) -> None:
    with pytest.raises(ValueError, match="no PPM of order"):
        ppm.tables(bad[0], bad[1], True, bad[2])
