"""Frequencies in a device's own operations are those of the compiled coder."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fairway.prove import shares
from fairway.prove.coder import TOTAL_BITS, frequencies
from fairway.prove.shares import device_frequencies, shares_of

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.sampled_from([1, 2, 5, 33]),
    size=st.sampled_from([2, 3, 7, 255, 1023, 8192]),
    spread=st.sampled_from([0.0, 1e-9, 3.0, 30.0, 1000.0]),
    device=st.sampled_from(DEVICES),
)
def test_they_are_exact_on_any_device(
    seed: int, rows: int, size: int, spread: float, device: str
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, size, generator=generator, dtype=torch.float64) * spread
    logits[0, : size // 2] = -1e4
    log_probs = logits.to(device).log_softmax(-1)
    counts, sound = device_frequencies(log_probs)
    assert bool(sound) and counts.dtype == torch.int64
    assert (counts.sum(-1) == 1 << TOTAL_BITS).all() and int(counts.min()) >= 1
    plain = frequencies(log_probs.cpu().numpy())
    if device == "cpu":
        assert np.array_equal(counts.numpy(), plain)
    # Elsewhere an exponential may end in another bit; then a share moves by one.
    others = np.sort(np.abs(counts.cpu().numpy() - plain), -1)
    assert others[:, :-1].max(initial=0) <= 1 and others[:, -1].max() <= size
    again, _ = device_frequencies(log_probs)
    assert torch.equal(again, counts)


@pytest.mark.parametrize("device", DEVICES)
def test_the_likeliest_takes_what_is_left(device: str) -> None:
    even = torch.full((2, 3), 1 / 3, dtype=torch.float64, device=device).log()
    counts, _ = device_frequencies(even)
    third, rest = divmod((1 << TOTAL_BITS) - 3, 3)
    assert counts.tolist() == [[third + 1 + rest, third + 1, third + 1]] * 2
    sure = torch.tensor([[-np.inf, 0.0, -np.inf]], dtype=torch.float64, device=device)
    assert device_frequencies(sure)[0].tolist() == [[1, (1 << TOTAL_BITS) - 2, 1]]


def test_shares_lie_end_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    log_probs = torch.randn(4, 300, dtype=torch.float64).log_softmax(-1)
    ids = torch.tensor([0, 299, 7, 7])
    found = shares_of(log_probs)
    starts, widths = found.taken(ids)
    for row, token in enumerate(ids.tolist()):
        counts = found.counts_SV[row]
        assert int(starts[row]) == int(counts[:token].sum())
        assert int(widths[row]) == int(counts[token])
    bits = found.starts_bits().numpy().view(np.uint32)
    assert np.array_equal(bits, found.starts_SV.numpy()) and int(bits.max()) > 2**31


@pytest.mark.parametrize("row", [[0.0, 0.0], [-np.inf, -np.inf], [0.0, np.nan]])
def test_what_is_no_distribution(row: list[float]) -> None:
    good = [np.log(0.5)] * 2
    log_probs = torch.tensor([good, row, good], dtype=torch.float64)
    with pytest.raises(ValueError, match="sum to 1"):
        shares_of(log_probs)
    assert not bool(device_frequencies(log_probs)[1])
    assert bool(device_frequencies(log_probs[:1])[1])
    assert shares.TOTAL_BITS == 32
