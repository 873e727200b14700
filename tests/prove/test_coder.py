"""The range coder: exact at every size and shape of distribution, and no longer than the ideal."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairway.prove.coder import TOTAL_BITS, Decoder, Encoder, cost_bits, frequencies


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)))


def coded(rows: list[np.ndarray], symbols: list[int], total_bits: int = TOTAL_BITS) -> bytes:
    encoder = Encoder()
    for counts, symbol in zip(rows, symbols, strict=True):
        encoder.encode(int(counts[:symbol].sum()), int(counts[symbol]), total_bits)
    return encoder.finish()


def decoded(rows: list[np.ndarray], data: bytes, total_bits: int = TOTAL_BITS) -> list[int]:
    decoder = Decoder(data)
    symbols = [decoder.decode(counts, total_bits) for counts in rows]
    assert decoder.exhausted
    return symbols


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.sampled_from([2, 3, 5, 256, 8192]),
    spread=st.sampled_from([0.0, 1.0, 30.0, 1000.0]),
    count=st.integers(0, 40),
    likely=st.booleans(),
    total_bits=st.sampled_from([24, 32, 40]),
)
def test_what_is_coded_comes_back(
    seed: int, size: int, spread: float, count: int, likely: bool, total_bits: int
) -> None:
    draw = np.random.default_rng(seed)
    log_probs = log_softmax(draw.standard_normal((count, size)) * spread)
    rows = list(frequencies(log_probs, total_bits)) if count else []
    uniform = draw.integers(0, size, count).tolist()
    symbols = [int(row.argmax()) for row in rows] if likely else uniform
    data = coded(rows, symbols, total_bits)
    assert decoded(rows, data, total_bits) == symbols
    widths = [int(row[symbol]) for row, symbol in zip(rows, symbols, strict=True)]
    bits = float(cost_bits(np.array(widths, np.int64), total_bits).sum())
    assert 8 * len(data) <= bits + 16


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.sampled_from([2, 7, 8192]),
    spread=st.sampled_from([0.0, 3.0, 700.0]),
)
def test_frequencies_are_exact(seed: int, size: int, spread: float) -> None:
    log_probs = log_softmax(np.random.default_rng(seed).standard_normal((3, size)) * spread)
    counts = frequencies(log_probs)
    assert counts.dtype == np.int64
    assert (counts.sum(1) == 1 << TOTAL_BITS).all() and counts.min() >= 1
    assert (counts == np.stack([frequencies(row) for row in log_probs])).all()
    assert np.abs(counts / 2**TOTAL_BITS - np.exp(log_probs)).max() < size / 2**TOTAL_BITS * 2


def test_carries_run_through_bytes_already_written() -> None:
    # The last of 2^24 shares leaves low just below a power of two, again and again.
    rows = [np.array([2**24 - 1, 1])] * 40 + [np.array([1, 2**24 - 1])] * 40
    symbols = [1] * 40 + [0, 1] * 20
    data = coded(rows, symbols, 24)
    assert decoded(rows, data, 24) == symbols
    half = [np.array([2**23, 2**23])] * 300
    ones = [1] * 299 + [0]
    assert decoded(half, coded(half, ones, 24), 24) == ones


def test_the_bytes_are_pinned() -> None:
    counts = np.array([1, 2, 3, 10]) * 2**28
    assert coded([counts] * 12, [3, 0, 1, 2, 3, 3, 3, 2, 1, 0, 0, 3]).hex() == "610c4533"


def test_a_long_text_costs_its_information_and_a_few_bytes() -> None:
    draw = np.random.default_rng(1)
    log_probs = log_softmax(draw.standard_normal((2000, 512)) * 3)
    symbols = [int(draw.choice(512, p=np.exp(row))) for row in log_probs]
    ideal = -sum(row[s] for row, s in zip(log_probs, symbols, strict=True)) / math.log(2)
    data = coded(list(frequencies(log_probs)), symbols)
    assert 8 * len(data) <= ideal * 1.001 + 32
    assert 8 * len(data) >= ideal - 1


def test_bytes_that_nobody_wrote_give_symbols_too() -> None:
    row = frequencies(log_softmax(np.arange(300.0) / 10))
    decoder = Decoder(b"\xff" * 5 + bytes(range(256)))
    assert all(0 <= decoder.decode(row) < 300 for _ in range(500))


@pytest.mark.parametrize(("start", "width"), [(0, 0), (-1, 2), (2**32 - 1, 2), (3, -1)])
def test_shares_outside_the_total_are_refused(start: int, width: int) -> None:
    with pytest.raises(ValueError, match="is not within"):
        Encoder().encode(start, width)


def test_what_is_no_distribution_is_refused() -> None:
    for row in (np.zeros(4), np.full(4, -np.inf), np.array([0.0, np.nan])):
        with pytest.raises(ValueError, match="sum to 1"):
            frequencies(row)
    with pytest.raises(ValueError, match="do not fit"):
        frequencies(log_softmax(np.zeros(300)), 8)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.sampled_from([2, 3, 257, 8192]),
    spread=st.sampled_from([0.0, 2.0, 1000.0]),
    parts=st.lists(st.integers(0, 9), max_size=5),
    likely=st.booleans(),
)
def test_many_symbols_at_once_are_coded_as_one_by_one(
    seed: int, size: int, spread: float, parts: list[int], likely: bool
) -> None:
    draw = np.random.default_rng(seed)
    plain, fast = Encoder(), Encoder()
    steps = []
    for count in parts:
        log_probs = log_softmax(draw.standard_normal((count, size)) * spread)
        counts = frequencies(log_probs) if count else np.zeros((0, size), np.int64)
        symbols = counts.argmax(1) if likely else draw.integers(0, size, count)
        starts, picked = counts.cumsum(1) - counts, (np.arange(count), symbols)
        for start, width in zip(starts[picked], counts[picked], strict=True):
            plain.encode(int(start), int(width))
        fast.encode_all(starts[picked], counts[picked])
        steps.append((counts, starts, symbols))
    data = plain.finish()
    assert fast.finish() == data
    one, many = Decoder(data), Decoder(data)
    for counts, starts, symbols in steps:
        assert [one.decode(row) for row in counts] == symbols.tolist()
        found = np.full(len(symbols) + 2, -1)
        # Rows in any order, among others that are left alone.
        table = np.zeros((len(symbols) + 2, size), np.uint32)
        order = draw.permutation(len(symbols) + 2)[: len(symbols)]
        table[order] = starts
        many.decode_rows(table, order, found)
        assert found[order].tolist() == symbols.tolist() and (found == -1).sum() == 2
    assert many.exhausted


def test_compiled_carries_run_through_bytes_of_earlier_calls() -> None:
    shares = [(2**31, 2**31)] * 70 + [(2**32 - 1, 1), (0, 2**31), (1, 2**32 - 1)] * 9
    for size in (1, 2, 5, len(shares)):
        plain, fast = Encoder(), Encoder()
        for at in range(0, len(shares), size):
            part = shares[at : at + size]
            for start, width in part:
                plain.encode(start, width)
            fast.encode_all(*np.array(part, np.int64).T)
        assert fast.finish() == plain.finish()


def test_bytes_that_nobody_wrote_give_the_same_symbols_compiled() -> None:
    counts = frequencies(log_softmax(np.arange(300.0) / 10))
    starts = np.tile((counts.cumsum() - counts).astype(np.uint32), (500, 1))
    data = b"\xff" * 5 + bytes(range(256))
    one, many, found = Decoder(data), Decoder(data), np.zeros(500, np.int64)
    many.decode_rows(starts, np.arange(500), found)
    assert found.tolist() == [one.decode(counts) for _ in range(500)]


@pytest.mark.parametrize(("start", "width"), [(0, 0), (-1, 2), (2**32 - 1, 2), (3, -1)])
def test_shares_outside_the_total_are_refused_compiled(start: int, width: int) -> None:
    with pytest.raises(ValueError, match="not within"):
        Encoder().encode_all(np.array([0, start]), np.array([5, width]))


def test_tables_that_are_none_give_symbols_too() -> None:
    decoder, found = Decoder(bytes(range(256))), np.zeros(1, np.int64)
    for seed in range(300):
        table = np.random.default_rng(seed).integers(0, 2**32, (1, 9), np.uint32)
        decoder.decode_rows(table, np.arange(1), found)
        assert 0 <= found[0] < 9


def test_a_decoder_knows_when_it_is_beyond_its_bytes() -> None:
    counts_V = frequencies(np.log(np.full(256, 1 / 256)))
    encoder = Encoder()
    for symbol in range(100, 140):
        encoder.encode(int(counts_V[:symbol].sum()), int(counts_V[symbol]))
    decoder = Decoder(encoder.finish())
    assert [decoder.decode(counts_V) for _ in range(40)] == list(range(100, 140))
    assert not decoder.beyond
    assert sum(1 for _ in range(30) if decoder.decode(counts_V) >= 0 and not decoder.beyond) == 8


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 50])
def test_zeros_at_the_end_are_written_where_many_would_be_missing(count: int) -> None:
    # The first symbol of all leaves the number at zero, however often it comes.
    counts_V = frequencies(np.log(np.full(256, 1 / 256)))
    encoder = Encoder()
    encoder.encode_all(np.zeros(count, np.int64), np.full(count, counts_V[0]))
    data = encoder.finish()
    assert data == bytes(max(0, count - 1 - 8)) or data == bytes(max(0, count - 8))
    decoder = Decoder(data)
    assert [decoder.decode(counts_V) for _ in range(count)] == [0] * count
    assert not decoder.beyond
