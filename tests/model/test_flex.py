"""The generated kernel's masks: which blocks, which formula, and what is added to a context."""

import pytest
import torch
from attending import differences, fused_views, off, seen_of, wanted
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from fairway.model import flex
from fairway.model.attention import plain
from fairway.model.seen import Seen


@pytest.mark.long
@pytest.mark.parametrize("shape", [(2, 4, 2, 7, 16), (1, 4, 1, 130, 16), (2, 4, 2, 128, 12)])
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_masks_and_groups_like_a_loop(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int, int, int, int]
) -> None:
    # The compiled kernel has no backward pass on a CPU; the formula it is compiled from runs.
    lengths = []

    def formula(q: torch.Tensor, *rest: torch.Tensor, **options: object) -> object:
        lengths.append(q.shape[2])
        return flex_attention(q, *rest, **options)

    monkeypatch.setattr(flex, "_compiled", lambda: formula)
    values = fused_views(shape)
    kinds = [(0, ""), (7, ""), (0, "two"), (7, "random")]
    if shape[3] < 20:
        kinds += [(1, ""), (2, "first"), (1000, "every"), (0, "last"), (1, "random")]
    for window, documents in kinds:
        found = flex.flex(*values, seen_of(window, documents, shape[0], shape[3]))
        assert off(found, wanted(shape, torch.float64, window, documents)[0]) < 1e-12
    # What the kernel gets is whole blocks: for fewer queries PyTorch would take another kernel.
    assert lengths[0] % 128 == 0 and lengths[0] - shape[3] < 128


@pytest.mark.parametrize("window", [0, 1, 2, 100, 128, 129, 130, 257, 300])
@pytest.mark.parametrize("documents", ["", "every", "two", "random", "first"])
@pytest.mark.parametrize("T", [100, 128, 700])
def test_blocks_are_those_that_pytorch_finds_in_the_whole_mask(
    window: int, documents: str, T: int
) -> None:
    seen = seen_of(window, documents, 2, T)
    ours = flex.block_mask(seen, T, torch.device("cpu"))
    length = -(-T // 128) * 128
    rows = 2 if documents else None
    theirs = create_block_mask(ours.mask_mod, rows, None, length, length, "cpu")
    assert ours.seq_lengths == theirs.seq_lengths
    for kind in ("kv", "full_kv", "q", "full_q"):
        count, found = getattr(ours, f"{kind}_num_blocks"), getattr(ours, f"{kind}_indices")
        assert torch.equal(count, getattr(theirs, f"{kind}_num_blocks"))
        # Behind the count stands what no kernel reads.
        read = torch.arange(found.shape[-1]) < count[..., None]
        assert torch.equal(found[read], getattr(theirs, f"{kind}_indices")[read])


def test_masks_are_made_once_for_a_batch_and_a_window() -> None:
    device, seen = torch.device("cpu"), seen_of(0, "two", 2, 300)
    windowed = Seen(5, seen.documents)
    assert flex._mask(seen, 300, device) is flex._mask(seen, 300, device)
    assert flex._mask(windowed, 300, device) is not flex._mask(seen, 300, device)
    assert flex._mask(Seen(5), 300, device) is flex._mask(Seen(5), 300, device)


@pytest.mark.parametrize("T", [7, 130])
def test_gradients_flow_through_the_blocks_that_flex_adds(
    monkeypatch: pytest.MonkeyPatch, T: int
) -> None:
    # On a CPU flex has no backward pass at all: the plain formula stands in for its kernel.
    monkeypatch.setattr(flex, "_compiled", lambda: lambda *qkv, **_: plain(*qkv))
    assert max(differences(flex.flex, (2, 4, 2, T, 16), [(0, "")])) < 1e-12
