"""The range coder: exact at every size and shape of distribution, and no longer than the ideal."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairway.prove.coder import Decoder, Encoder, cost_bits, frequencies, spare_of

TOTAL_BITS = 32


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


# ---------------------------------------------------------------------------------------------
# Every figure again, from plain whole numbers of any size


def plain_bytes(shares: list[tuple[int, int, int]]) -> bytes:
    """Return the fewest bytes inside the interval of some (start, width, total bits).

    All but 16 of them are written, be they zeros or not.
    """
    low, width, count = 0, 2**64 - 1, 8
    for start, part, total_bits in shares:
        unit = width // 2**total_bits
        low, width = low + unit * start, unit * part
        while width < 2**56:
            low, width, count = low * 256, width * 256, count + 1
    for free in range(8, -1, -1):
        step = 256**free
        if (found := -(-low // step) * step) < low + width:
            return found.to_bytes(count, "big").rstrip(b"\0").ljust(count - 16, b"\0")
    raise AssertionError


def plain_symbols(data: bytes, rows: list[list[int]], total_bits: int) -> tuple[list[int], int]:
    """Return the symbols that any bytes stand for, and how many bytes were looked at."""
    at, width = 8, 2**64 - 1
    offset = int.from_bytes(data[:8].ljust(8, b"\0"), "big")
    found = []
    for counts in rows:
        unit = width >> total_bits
        target, symbol = min(offset // unit, 2**total_bits - 1), 0
        while target >= counts[symbol]:
            target -= counts[symbol]
            symbol += 1
        found.append(symbol)
        offset -= unit * sum(counts[:symbol])
        width = unit * counts[symbol]
        while width < 2**56:
            byte = data[at] if at < len(data) else 0
            offset, width, at = (offset * 256 + byte) % 2**64, width * 256, at + 1
    return found, at


def shares_at(total_bits: int, seed: int) -> list[tuple[int, int, int]]:
    """Shares of every width, at the edges and in the middle."""
    draw, most, found = np.random.default_rng(seed), 2**total_bits, []
    for _ in range(60):
        width = min(most, 1 << int(draw.integers(0, total_bits + 1)))
        start = [0, most - width, int(draw.integers(0, most - width + 1))][draw.integers(3)]
        found.append((start, width, total_bits))
    return found


@pytest.mark.parametrize("total_bits", [1, 8, 24, 32, 40, 48])
def test_the_bytes_are_the_shortest_number_in_the_interval(total_bits: int) -> None:
    for seed in range(20):
        shares = shares_at(total_bits, seed)
        for count in (0, 1, 2, 3, 60):
            encoder = Encoder()
            for start, width, bits in shares[:count]:
                encoder.encode(start, width, bits)
            assert encoder.finish() == plain_bytes(shares[:count])


def test_compiled_bytes_are_the_shortest_number_in_the_interval() -> None:
    narrow = [(2**32 - 1, 1, 32)] * 40
    for shares in (narrow, *(shares_at(32, seed) for seed in range(20))):
        for count in (0, 1, 2, 3, 40):
            encoder = Encoder()
            starts, widths, _ = np.array(shares[:count], np.int64).reshape(-1, 3).T
            encoder.encode_all(starts, widths)
            assert encoder.finish() == plain_bytes(shares[:count])


@pytest.mark.parametrize("total_bits", [8, 24, 32, 40])
def test_any_bytes_stand_for_the_same_symbols(total_bits: int) -> None:
    draw = np.random.default_rng(3)
    for size in (0, 1, 7, 8, 9, 40):
        for data in (b"\0" * size, b"\xff" * size, draw.bytes(size)):
            rows = []
            for _ in range(12):
                counts = frequencies(log_softmax(draw.standard_normal(5) * 20), total_bits)
                rows.append(counts.tolist())
            decoder = Decoder(data)
            assert decoder.exhausted == (size <= 8)
            ends = [plain_symbols(data, rows[: count + 1], total_bits) for count in range(12)]
            for row, (symbols, at) in zip(rows, ends, strict=True):
                assert decoder.decode(np.array(row), total_bits) == symbols[-1]
                assert decoder.exhausted == (at >= size)
                assert decoder.beyond == (at > size + 16)
            if total_bits == 32:
                starts = (np.cumsum(rows, 1) - np.array(rows)).astype(np.uint32)
                many, found = Decoder(data), np.zeros(12, np.int64)
                for part in (np.arange(5), np.arange(5, 12)):
                    many.decode_rows(starts, part, found)
                assert found.tolist() == ends[-1][0]
                assert (many._offset, many._range, many._next) == (
                    decoder._offset, decoder._range, decoder._next
                )  # fmt: skip


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 8, 9])
def test_tables_of_every_size_and_order_have_a_last_share_that_begins_in_time(size: int) -> None:
    """What a search by halves finds, whatever the table; and its share is as wide as it goes on."""
    for seed in range(40):
        draw = np.random.default_rng(seed)
        table = draw.integers(0, 2**32, (3, size), np.uint32)
        table[:2].sort(1)
        table[0, 0] = 0
        data = draw.bytes(30)
        decoder, found = Decoder(data), np.zeros(3, np.int64)
        offset, width = int.from_bytes(data[:8], "big"), 2**64 - 1
        at = 8
        for row in range(3):
            decoder.decode_rows(table, np.array([row]), found)
            starts = [0, *table[row, 1:].tolist(), 2**32]
            target = min(offset // (width >> 32), 2**32 - 1)
            symbol, after = 0, size
            while after - symbol > 1:
                middle = (symbol + after) // 2
                symbol, after = (middle, after) if starts[middle] <= target else (symbol, middle)
            assert found[row] == symbol
            offset = (offset - (width >> 32) * starts[symbol]) % 2**64
            width = (width >> 32) * (starts[after] - starts[symbol]) % 2**64
            while width < 2**56:
                byte = data[at] if at < len(data) else 0
                offset, width, at = (offset * 256 + byte) % 2**64, width * 256 % 2**64, at + 1
        assert (decoder._offset, decoder._range, decoder._next) == (offset, width, at)


@pytest.mark.parametrize(
    ("probs", "counts"),
    [
        # Each has 1 of 256; shares of the rest are cut, and the likeliest gets what is left.
        ([0.5, 0.25, 0.25], [128, 64, 64]),
        ([0.25, 0.5, 0.25], [64, 128, 64]),
        ([1 / 3, 1 / 3, 1 / 3], [86, 85, 85]),
        ([0.0, 1.0, 0.0], [1, 254, 1]),
        ([0.3, 0.3, 0.2, 0.2], [77 + 1, 76, 51, 51]),
        ([1.0], [256]),
        # Likelier by one part alone.
        ([0.498, 0.502], [127, 129]),
    ],
)
def test_frequencies_of_eight_bits(probs: list[float], counts: list[int]) -> None:
    assert sum(counts) == 256
    with np.errstate(divide="ignore"):
        logs = np.log(np.array([[probs], [probs]]))
    found = frequencies(logs, 8)
    assert found.shape == logs.shape and found.tolist() == [[counts], [counts]]


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("place", [0, 1])
def test_a_sum_may_be_off_by_a_billionth_to_either_side(sign: int, place: int) -> None:
    for off, fine in ((9e-10, True), (1.1e-9, False)):
        probs = np.full((2, 4), 0.25)
        probs[place, 2] += sign * off
        if fine:
            assert (frequencies(np.log(probs)).sum(1) == 2**32).all()
        else:
            with pytest.raises(ValueError, match="the probabilities of a row do not sum to 1"):
                frequencies(np.log(probs))


def test_symbols_fit_half_of_the_total_and_totals_48_bits() -> None:
    assert spare_of(128, 8) == 128 and spare_of(1, 48) == 2**48 - 1 and spare_of(1, 1) == 1
    told = r"129 symbols do not fit frequencies that sum to 2\^8"
    with pytest.raises(ValueError, match=told):
        spare_of(129, 8)
    with pytest.raises(ValueError, match=r"1 symbols do not fit frequencies that sum to 2\^49"):
        spare_of(1, 49)
    assert frequencies(log_softmax(np.zeros(128)), 8).tolist() == [2] * 128


def test_what_coding_costs() -> None:
    assert cost_bits(np.array([2**32, 2**31, 1])).tolist() == [0.0, 1.0, 32.0]
    assert cost_bits(np.array([2**24, 3]), 24).tolist() == [0.0, 24 - math.log2(3)]


@pytest.mark.parametrize(
    ("start", "width", "total_bits", "fine"),
    [
        (0, 2**32, 32, True), (2**32 - 1, 1, 32, True), (0, 1, 32, True), (0, 2**32 + 1, 32, False),
        (2**32, 1, 32, False), (-1, 1, 32, False), (1, 2**32, 32, False), (1, 0, 32, False),
        (255, 1, 8, True), (255, 2, 8, False),
    ],
)  # fmt: skip
def test_the_first_and_the_last_share_are_within_the_total(
    start: int, width: int, total_bits: int, fine: bool
) -> None:
    def one() -> None:
        Encoder().encode(start, width, total_bits)

    def many() -> None:
        Encoder().encode_all(np.array([0, start]), np.array([1, width]))

    for call in (one, many) if total_bits == 32 else (one,):
        if fine:
            call()
        else:
            with pytest.raises(ValueError, match=rf"share.* is not within 2\^{total_bits}$"):
                call()
    if not fine:
        with pytest.raises(ValueError, match=rf"^share {start} \+ {width} is not"):
            one()


@pytest.mark.parametrize("k", [1, 2**31, 2**32 - 1])
def test_a_share_begins_at_its_first_number_exactly(k: int) -> None:
    """Numbers of 64 bits, of which a float would keep 53."""
    counts = np.array([k, 2**32 - k])
    starts = np.array([[0, k]], np.uint32)
    for number, symbol in ((k * (2**32 - 1) - 1, 0), (k * (2**32 - 1), 1)):
        data, found = number.to_bytes(8, "big"), np.zeros(1, np.int64)
        assert Decoder(data).decode(counts) == symbol
        Decoder(data).decode_rows(starts, np.arange(1), found)
        assert found[0] == symbol


@pytest.mark.parametrize(
    ("low", "width", "start", "part", "wanted"),
    [
        # A sum of 2^64 - 1 carries nothing, one of 2^64 does.
        (2**64 - 1 - 5 * 2**28, 2**60, 5, 2**31, (2**64 - 1, 2**59, b"\x07")),
        (2**64 - 5 * 2**28, 2**60, 5, 2**31, (0, 2**59, b"\x08")),
        # A range of 2^56 stays, one below it grows.
        (3 << 40, 2**60, 0, 2**28, (3 << 40, 2**56, b"\x07")),
        (3 << 40, 2**60, 0, 2**28 - 1, (3 << 48, 2**64 - 2**36, b"\x07\x00")),
    ],
)
def test_an_interval_at_the_edges_of_its_numbers(
    low: int, width: int, start: int, part: int, wanted: tuple[int, int, bytes]
) -> None:
    for compiled in (False, True):
        encoder = Encoder()
        encoder._low, encoder._range, encoder._written = low, width, bytearray(b"\x07")
        if compiled:
            encoder.encode_all(np.array([start]), np.array([part]))
        else:
            encoder.encode(start, part)
        assert (encoder._low, encoder._range, bytes(encoder._written)) == wanted
        decoder = Decoder(bytes(8) + b"\x63")
        decoder._offset, decoder._range = (width >> 32) * start, width
        if compiled:
            edges = np.array([[0, start, start + part]] if start else [[0, part, part]], np.uint32)
            decoder.decode_rows(edges, np.arange(1), np.zeros(1, np.int64))
        else:
            decoder.decode(np.array([start, part, 2**32 - start - part]))
        grown = wanted[1] > 2**60
        assert (decoder._offset, decoder._range) == (0x63 if grown else 0, wanted[1])
        assert decoder._next == (9 if grown else 8)


def test_a_carry_runs_through_the_first_byte_of_a_call() -> None:
    # The first share writes 255; the second carries through it into the byte of an earlier call.
    shares = np.array([(0, 2**20), (2**31, 2**31)])
    for compiled in (False, True):
        encoder = Encoder()
        encoder._low, encoder._range, encoder._written = 2**64 - 1, 2**60, bytearray(b"\x07")
        if compiled:
            encoder.encode_all(*shares.T)
        else:
            for start, width in shares.tolist():
                encoder.encode(start, width)
        assert bytes(encoder._written) == b"\x08\x00\x00"
        assert (encoder._low, encoder._range) == (2**63 - 2**16, 2**63)


@pytest.mark.parametrize(
    ("low", "width", "wanted"),
    [(0, 2**60, b"\x07"), (1, 2**60, b"\x07\x01"), (2**56, 2**56, b"\x07\x01"),
     (2**56 + 1, 2**56, b"\x07\x02"), (1, 2**64 - 1, b"\x07\x01"), (2, 2**64 - 1, b"\x08")],
)  # fmt: skip
def test_the_last_number_is_the_roundest_within_the_interval(
    low: int, width: int, wanted: bytes
) -> None:
    encoder = Encoder()
    encoder._low, encoder._range, encoder._written = low, width, bytearray(b"\x07")
    assert encoder.finish() == wanted
