"""What a query may see: documents from token ids, windows, first positions, without the device."""

import pytest
import torch
from attending import DOCUMENTS, KINDS, seen_keys, seen_of, token_ids

from fairway.config.settings import BOS_ID
from fairway.model.flex import block_mask
from fairway.model.seen import ALL, Seen, documents_of


def test_documents_begin_at_bos_and_at_rows() -> None:
    other = BOS_ID + 1
    ids_BT = torch.tensor([[other, BOS_ID, BOS_ID, other], [BOS_ID, other, other, BOS_ID]])
    documents = documents_of(ids_BT)
    assert documents.of_BT.tolist() == [[0, 1, 2, 2], [3, 3, 3, 4]]
    assert documents.first_BT.tolist() == [[0, 1, 2, 2], [0, 0, 0, 3]]
    assert documents.starts.tolist() == [0, 1, 2, 4, 7, 8] and documents.longest == 3
    assert {z.dtype for z in (documents.of_BT, documents.first_BT, documents.starts)} == {
        torch.int32
    }


@pytest.mark.parametrize("documents", DOCUMENTS[1:])
@pytest.mark.parametrize(("B", "T"), [(1, 1), (2, 1), (3, 13)])
def test_starts_are_those_of_a_flat_batch(documents: str, B: int, T: int) -> None:
    ids_BT = token_ids(documents, B, T)
    begins = [
        row * T + at for row in range(B) for at in range(T) if not at or ids_BT[row, at] == BOS_ID
    ]
    found = documents_of(ids_BT)
    assert found.starts.tolist() == [*begins, B * T]
    assert found.longest == max(b - a for a, b in zip(begins, [*begins[1:], B * T], strict=True))


@pytest.mark.parametrize(("window", "documents"), KINDS)
def test_hidden_is_what_is_not_in_the_list_of_keys(window: int, documents: str) -> None:
    B, T = 3, 13
    seen = seen_of(window, documents, B, T)
    hidden_BTT = seen.hidden(T, torch.device("cpu")).expand(B, T, T)
    first_BT = seen.first(T, torch.device("cpu")).expand(B, T)
    for row, ids in enumerate(token_ids(documents or "first", B, T).tolist()):
        for query in range(T):
            keys = sorted(seen_keys(query, window, ids if documents else None))
            assert (~hidden_BTT[row, query]).nonzero().flatten().tolist() == keys
            assert first_BT[row, query] == keys[0]


def test_no_device_is_waited_for() -> None:
    # Tensors without values: whoever looked at one would fail.
    documents = documents_of(torch.zeros(2, 300, dtype=torch.long, device="meta"))
    for seen in (ALL, Seen(7), Seen(0, documents), Seen(7, documents)):
        assert seen.hidden(300, torch.device("meta")).shape[1:] == (300, 300)
        block_mask(seen, 300, torch.device("meta"))


def test_a_window_that_hides_nothing_is_none() -> None:
    assert Seen(5).within(2, 5) == ALL and Seen(4).within(2, 5) == Seen(4)
    documents = documents_of(torch.zeros(2, 5, dtype=torch.long))
    assert Seen(9, documents).within(2, 5) == Seen(0, documents)


def test_documents_of_another_batch_and_windows_below_0_are_refused() -> None:
    documents = documents_of(torch.zeros(2, 5, dtype=torch.long))
    with pytest.raises(ValueError, match=r"batch \[2, 5\] cannot hide positions of \[2, 4\]"):
        Seen(0, documents).within(2, 4)
    with pytest.raises(ValueError, match="0 or more positions, not -1"):
        Seen(-1)
