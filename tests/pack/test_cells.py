"""The entropy coder's numbers: logarithms, tables, and cells that learn how likely a bit is."""

from decimal import Decimal, localcontext

import numpy as np
import pytest
from plain_cabac import ex, lg

from fairway.pack import arithmetic
from fairway.pack.arithmetic import ENCODE
from fairway.pack.cabac import new_coder


def test_logarithms_and_powers_are_those_of_the_page() -> None:
    numbers = {1, 2, 3, 255, 256, 257, 511, 513, 65_535, 2**24, 2**31 - 1, 2**40 + 1, 2**63 - 1}
    for top in range(1, 62):
        numbers |= {2**top - 1, 2**top, 2**top + 1, 3 * 2**top // 2}
    for x in sorted(numbers):
        assert arithmetic.log2_256(x) == lg(x), x
        with localcontext() as digits:
            digits.prec = 40
            exact = 256 * Decimal(x).ln() / Decimal(2).ln()
        # Cut after eight bits, and each of them rounded: within 1.5 of 1/256 octave.
        assert -2 < Decimal(lg(x)) - exact < Decimal("0.6")
    for v in (*range(0, 257), *range(257, 46 * 256, 97), 46 * 256 - 1):
        assert arithmetic.exp2_256(v) == ex(v)
        assert abs(ex(v) - 2.0 ** (v / 256)) < 1 + 2.0 ** (v / 256) * 2**-16


def test_tables_are_rounded_from_thirty_digits() -> None:
    digits = []

    def of(i: Decimal) -> Decimal:
        digits.append(len(str(1 / (i + 3))) - 2)
        return i * i / 2

    table = arithmetic._table(of, 5)
    # Ties go to the even number.
    assert table.tolist() == [0, 0, 2, 4, 8] and table.dtype == np.int64
    assert digits[0] == 30


def test_a_cell_learns_at_the_rate_of_its_uses_and_no_slower_than_4095() -> None:
    for uses in (0, 1, 2, 24, 4093, 4094, 4095):
        for q in (0, 1, 1 << 27, (1 << 28) - 1):
            for bit in (0, 1):
                cells = np.array([7, q << 12 | uses, 7], np.int64)
                arithmetic.adapt(cells, 1, bit)
                moved = q + (((bit << 28) - q) * round(2**24 / (uses + 1.6)) >> 24)
                assert cells.tolist() == [7, moved << 12 | min(uses + 1, 4095), 7]


@pytest.mark.parametrize(
    ("unit", "p"), [(0, 16), (15, 16), (17, 17), (65_519, 65_519), (65_535, 65_520)]
)
def test_a_cell_is_never_sure(unit: int, p: int) -> None:
    for bit in (0, 1):
        found = []
        for through_cell in (True, False):
            coder, buffer = new_coder(), np.zeros(9, np.uint8)
            if through_cell:
                cells = np.array([unit << 24 | 5], np.int64)
                assert arithmetic.code_bit(coder, buffer, ENCODE, bit, cells, 0) == bit
            else:
                assert arithmetic.narrow(coder, buffer, ENCODE, bit, p) == bit
            found.append([*coder.tolist(), buffer.tolist()])
        assert found[0] == found[1]
