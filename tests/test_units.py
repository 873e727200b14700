import math

import pytest

from fairway.base import units


def test_a_uniform_byte_costs_eight_bits() -> None:
    assert units.nats_to_bits(math.log(256.0)) == pytest.approx(8.0, rel=1e-15)
    for count in (1, 100):
        assert units.bits_per_byte(count * math.log(256.0), count) == pytest.approx(8.0, rel=1e-15)


def test_a_file_has_eight_bits_in_a_byte() -> None:
    assert units.compression_bits_per_byte(25, 100) == pytest.approx(2.0, rel=1e-15)


@pytest.mark.parametrize("text_bytes", [0, -1])
def test_the_score_of_nothing_is_refused(text_bytes: int) -> None:
    with pytest.raises(ValueError, match=f"at least one byte, got {text_bytes}"):
        units.bits_per_byte(1.0, text_bytes)


def test_megabytes_are_decimal() -> None:
    assert units.megabytes(16_000_000) == "16.00 MB"
    assert units.megabytes(16 << 20) == "16.78 MB"
    assert units.megabytes(-1_234_567_890) == "-1234.57 MB"
    assert units.megabytes(9_999_990_000) == "9999.99 MB"
    assert units.megabytes(10**10) == "10.0 GB"


def test_small_numbers_of_gigabytes_have_three_places() -> None:
    assert units.gigabytes(19_840_000_000) == "19.8 GB"
    assert units.gigabytes(50_000_000) == "0.1 GB"
    assert units.gigabytes(49_900_000) == "0.050 GB"
    assert units.gigabytes(1_000_000) == "0.001 GB"


def test_things_are_counted_in_words() -> None:
    assert units.counted(1, "document") == "1 document"
    assert [units.counted(n, "run") for n in (0, 2, 1200)] == ["0 runs", "2 runs", "1,200 runs"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (8.25, "8.2 s"),
        (59.94, "59.9 s"),
        (59.95, "1 min 00 s"),
        (60.0, "1 min 00 s"),
        (61.4, "1 min 01 s"),
        (119.6, "2 min 00 s"),
        (200.0, "3 min 20 s"),
        (3599.4, "59 min 59 s"),
        (3599.7, "1 h 00 min"),
        (3900.0, "1 h 05 min"),
        (90_061.0, "25 h 01 min"),
    ],
)
def test_durations_for_people(seconds: float, text: str) -> None:
    assert units.duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (4_294_967_295, "4,294,967,295"),
        (0.0001, "0.0001"),
        (-2.0, "-2"),
        (1e300, "1e+300"),
        (10**21 - 1, "999,999,999,999,999,999,999"),
        (10**21, "a number of about 22 digits"),
        (-(10**21), "a number of about 22 digits"),
        (7 * 10**3999, "a number of about 4,000 digits"),
    ],
)
def test_numbers_as_people_write_them(value: float, text: str) -> None:
    assert units.written(value) == text
