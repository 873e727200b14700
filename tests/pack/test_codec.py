import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairway.base.errors import UserError
from fairway.pack.codec import CODECS, compress, decompress, shuffle, unshuffle

# Bytes with some structure: the codes of a matrix, in small.
SAMPLE = np.random.default_rng(0).normal(0, 2.4, 3000).round().astype(np.int8).tobytes()


def plain_shuffle(data: bytes, stride: int) -> bytes:
    return bytes(
        data[i] for plane in range(stride) for i in range(len(data)) if i % stride == plane
    )


@given(st.binary(max_size=70), st.integers(1, 16))
def test_shuffle_equals_its_definition_and_comes_back(data: bytes, stride: int) -> None:
    assert shuffle(data, stride) == plain_shuffle(data, stride)
    assert unshuffle(shuffle(data, stride), stride) == data


def test_gold_shuffle() -> None:
    assert shuffle(b"abcdefg", 1) == b"abcdefg"
    assert shuffle(b"abcdefg", 2) == b"acegbdf"
    assert shuffle(b"abcdefg", 3) == b"adgbecf"


@settings(deadline=None, max_examples=50)
@given(st.binary(max_size=400), st.sampled_from(CODECS), st.integers(1, 16))
def test_round_trip(data: bytes, codec: str, stride: int) -> None:
    stored = compress(data, codec, stride)
    assert decompress(stored, codec, stride, len(data)) == data
    assert compress(data, codec, stride) == stored


@pytest.mark.parametrize("count", [32_751, 32_752, 32_753, 98_304, 100_001])
@pytest.mark.parametrize("codec", CODECS)
def test_round_trip_across_the_decoders_pieces(codec: str, count: int) -> None:
    for data in (bytes(count), np.random.default_rng(1).bytes(count)):
        assert decompress(compress(data, codec, 2), codec, 2, count) == data


@pytest.mark.parametrize("codec", ["brotli", "lzma"])
def test_codes_shrink(codec: str) -> None:
    assert len(compress(SAMPLE, codec, 1)) < 0.55 * len(SAMPLE)


def test_shuffling_helps_numbers_of_two_bytes() -> None:
    # Like the scales of trained matrices: neighbours are alike, so the upper bytes say little.
    noise = np.random.default_rng(0).normal(1, 0.03, 4000)
    halves = (np.geomspace(0.01, 0.1, 4000) * noise).astype(np.float16).tobytes()
    assert len(compress(halves, "brotli", 2)) < 0.97 * len(compress(halves, "brotli", 1))


def test_pinned_bits() -> None:
    text, stride_2 = b"fairway" * 9, plain_shuffle(b"fairway" * 9, 2)
    assert compress(text, "raw", 2) == stride_2
    lzma_stream = bytes.fromhex("e0003e000d00003319534ea5af8982fad90d000000")
    assert compress(text, "lzma", 1) == lzma_stream
    assert decompress(lzma_stream, "lzma", 1, 63) == text
    # Brotli's encoder may change with its version; what it once wrote must be read for ever.
    brotli_stream = bytes.fromhex("1b3e00f88d946edeb40c33bbcb34b9bcb8271228d106")
    assert decompress(brotli_stream, "brotli", 1, 63) == text


@pytest.mark.parametrize("codec", CODECS)
def test_another_length_than_expected_is_refused(codec: str) -> None:
    stored = compress(SAMPLE, codec, 2)
    for expected in (0, 1, len(SAMPLE) - 1, len(SAMPLE) + 1, 10**12):
        with pytest.raises(UserError, match=f"{codec} stream"):
            decompress(stored, codec, 2, expected)


@pytest.mark.parametrize("codec", ["brotli", "lzma"])
def test_cut_and_longer_streams_are_refused(codec: str) -> None:
    stored = compress(SAMPLE, codec, 1)
    for damaged in (stored[:-1], stored[: len(stored) // 2], b"", stored + b"\0", stored + stored):
        with pytest.raises(UserError, match=f"{codec} stream"):
            decompress(damaged, codec, 1, len(SAMPLE))


# LZMA's decoder allocates its dictionary of 4 MiB whatever it decodes.
@pytest.mark.parametrize(("codec", "most_bytes"), [("brotli", 300_000), ("lzma", 4_500_000)])
def test_a_bomb_costs_what_was_expected_of_it(codec: str, most_bytes: int) -> None:
    bomb = compress(bytes(20_000_000), codec, 1)
    assert len(bomb) < 10_000
    tracemalloc.start()
    with pytest.raises(UserError, match=f"{codec} stream"):
        decompress(bomb, codec, 1, 1000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < most_bytes


def test_bad_arguments_are_refused() -> None:
    for stride in (0, 17, -1):
        with pytest.raises(UserError, match=f"stride {stride} must be between 1 and 16"):
            compress(b"", "raw", stride)
        with pytest.raises(UserError, match="stride"):
            decompress(b"", "raw", stride, 0)
    with pytest.raises(UserError, match="unknown codec 'zip'; choose one of brotli, lzma, raw"):
        compress(b"", "zip", 1)
    with pytest.raises(UserError, match="unknown codec 'zip'"):
        decompress(b"", "zip", 1, 0)
