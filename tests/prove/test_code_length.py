"""A coded file ends where its last symbol does: bytes behind it are noticed."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from prove.test_coder import coded, log_softmax

from fairway.prove.coder import Decoder, frequencies


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.sampled_from([2, 256, 8192]),
    spread=st.sampled_from([0.0, 30.0, 1000.0]),
    count=st.integers(0, 60),
    least=st.sampled_from([0, 1, 70]),
)
def test_a_code_is_whole_and_none_with_other_bytes_behind_it_is(
    seed: int, size: int, spread: float, count: int, least: int
) -> None:
    draw = np.random.default_rng(seed)
    log_probs = log_softmax(draw.standard_normal((count, size)) * spread)
    rows = list(frequencies(log_probs)) if count else []
    code = coded(rows, [int(row.argmax()) for row in rows]).ljust(least, b"\0")

    def is_whole(data: bytes) -> bool:
        decoder = Decoder(data)
        for counts in rows:
            decoder.decode(counts)
        return decoder.is_whole(least)

    assert is_whole(code)
    for more in (b"\0", b"\1", bytes(20), b"\1" * 20, bytes(9) + b"\1"):
        # One byte may take the place of the zeros that are left out at the end.
        assert not is_whole(code + more) or (len(more) == 1 and more != b"\0")
