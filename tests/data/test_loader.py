import contextlib
import itertools
import json
import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fairway.base.errors import UserError
from fairway.data.loader import Prefetcher, ShuffledLoader
from fairway.data.shuffled import Shuffled, document_starts


def shards(*lengths: int) -> list[np.ndarray]:
    """Shards whose tokens tell where they are: no two tokens are equal."""
    starts = np.cumsum((0, *lengths))
    return [np.arange(a, b, dtype=np.uint16) for a, b in itertools.pairwise(starts)]


def transcription(
    files: list[np.ndarray], length: int, rank: int, world: int
) -> Iterator[list[int]]:
    """Algorithms.md 1.3, word for word; yields the S+1 tokens of each row."""
    files = files[rank::world]
    rng = np.random.Generator(np.random.PCG64(rank))
    starts: list[list[int]] = [[] for _ in files]

    def reset(k: int) -> None:
        n_tokens = len(files[k])
        max_phase = min(length - 1, max(0, n_tokens - length - 1))
        phase = int(rng.integers(0, max_phase, endpoint=True)) if max_phase > 0 else 0
        n = (n_tokens - 1 - phase) // length
        starts[k] = [phase + length * int(o) for o in rng.permutation(n)]

    for k in range(len(files)):
        reset(k)
    while True:
        remaining = np.array([len(s) for s in starts], np.float64)
        if remaining.sum() == 0:
            for k in range(len(files)):
                reset(k)
            remaining = np.array([len(s) for s in starts], np.float64)
        k = int(rng.choice(len(files), p=remaining / remaining.sum()))
        start = starts[k].pop()
        yield files[k][start : start + length + 1].tolist()


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(9, 120), min_size=1, max_size=5),
    st.integers(1, 8),
    st.integers(0, 2),
    st.integers(1, 3),
)
def test_rows_follow_the_specification(
    lengths: list[int], seq_len: int, rank: int, world: int
) -> None:
    if world > len(lengths) or rank >= world:
        return
    loader = ShuffledLoader(shards(*lengths), seq_len, 3, rank, world)
    expected = transcription(shards(*lengths), seq_len, rank, world)
    for _ in range(25):
        x, y = loader.next_batch()
        assert x.dtype == y.dtype == np.int64 and x.shape == y.shape == (3, seq_len)
        for row_x, row_y in zip(x, y, strict=True):
            window = next(expected)
            assert row_x.tolist() == window[:-1] and row_y.tolist() == window[1:]


def test_the_order_of_the_data_is_pinned() -> None:
    loader = ShuffledLoader(shards(40, 33), 8, 2)
    first = [loader.next_batch()[0][:, 0].tolist() for _ in range(4)]
    assert first == [[50, 58], [30, 14], [6, 42], [22, 0]]


def starts(order_seed: int, rank: int = 0, world: int = 1, batches: int = 12) -> list[int]:
    """Return the first token of every sequence that a rank reads."""
    loader = ShuffledLoader(shards(400, 330, 410, 90), 8, 2, rank, world, order_seed)
    return [int(row[0]) for _ in range(batches) for row in loader.next_windows()]


def test_a_seed_of_the_order_gives_another_order_and_the_same_one_again() -> None:
    orders = {seed: starts(seed) for seed in (0, 1, 2, 2**32 - 1)}
    assert len({tuple(order) for order in orders.values()}) == 4
    assert all(starts(seed) == order for seed, order in orders.items())


@pytest.mark.parametrize("seed", [0, 1, 7, 2**32 - 1])
def test_ranks_share_the_shards_out_and__of_a_seed(seed: int) -> None:
    bounds = [0, 400, 730, 1140, 1230]
    read = [
        {next(n for n in range(4) if at < bounds[n + 1]) for at in starts(seed, rank, 2, 60)}
        for rank in range(2)
    ]
    assert not read[0] & read[1] and read[0] | read[1] == {0, 1, 2, 3}


def test_seeds_of_the_order_deal_shards_to_other_ranks() -> None:
    dealt = {tuple(sorted({at // 420 for at in starts(seed, 0, 2, 60)})) for seed in range(1, 9)}
    assert len(dealt) > 1


@pytest.mark.parametrize("seed", [0, 5])
def test_an_order_by_a_seed_is_resumed(seed: int) -> None:
    files = shards(41, 33, 77)
    one, two = (ShuffledLoader(files, 8, 2, order_seed=seed) for _ in range(2))
    for _ in range(13):
        one.next_windows()
    two.restore(json.loads(json.dumps(one.state())))
    for _ in range(20):
        assert one.next_windows().tolist() == two.next_windows().tolist()


def test_one_pass_gives_every_sequence_once() -> None:
    loader = ShuffledLoader(shards(41, 33), 8, 1)
    starts = [int(loader.next_batch()[0][0, 0]) for _ in range(sum(loader.state()["remaining"]))]
    assert len(set(starts)) == len(starts)
    assert not any(loader.state()["remaining"])


@pytest.mark.parametrize("batches", [0, 1, 3, 4, 11])
def test_a_restored_loader_continues_exactly(batches: int) -> None:
    loader = ShuffledLoader(shards(90, 50, 61), 8, 5)
    for _ in range(batches):
        loader.next_batch()
    state = json.loads(json.dumps(loader.state()))
    other = ShuffledLoader(shards(90, 50, 61), 8, 5)
    other.next_batch()
    other.restore(state)
    for _ in range(12):
        for mine, theirs in zip(loader.next_batch(), other.next_batch(), strict=True):
            assert np.array_equal(mine, theirs)
    assert other.state() == loader.state()


def test_the_state_does_not_grow_with_the_shards() -> None:
    loader = ShuffledLoader([np.zeros(1_000_000, np.uint16)], 8, 1)
    assert len(json.dumps(loader.state())) < 1000


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state.update(remaining=[1, 2, 3]),
        lambda state: state.update(remaining=[10**6, 1]),
        lambda state: state.update(remaining=[-1, 1]),
        lambda state: state.pop("rng"),
        lambda state: state.update(rng={"bit_generator": "MT19937"}),
        lambda state: state.update(epoch_rng=3),
    ],
)
def test_a_state_of_other_data_is_refused(change) -> None:  # type: ignore[no-untyped-def]
    loader = ShuffledLoader(shards(40, 33), 8, 2)
    state = loader.state()
    change(state)
    with pytest.raises(UserError, match="does not fit this data"):
        loader.restore(state)


def test_short_shards_and_too_many_ranks_are_refused() -> None:
    with pytest.raises(UserError, match="has 8 tokens, but one sequence needs 9"):
        ShuffledLoader(shards(40, 8), 8, 2)
    with pytest.raises(UserError, match="2 training shards cannot feed 3 ranks"):
        ShuffledLoader(shards(40, 33), 8, 2, 0, 3)


# ---------------------------------------------------------------------------------------------
# Ahead of the device


@contextlib.contextmanager
def prefetched(loader: ShuffledLoader, device: str = "cpu") -> Iterator[Prefetcher]:
    before = threading.active_count()
    index = torch.cuda.current_device() if device == "cuda" else None
    batches = Prefetcher(loader, torch.device(device, index))
    try:
        yield batches
    finally:
        batches.close()
    assert threading.active_count() == before


@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
        ),
    ],
)
def test_prefetched_batches_are_the_loaders(device: str) -> None:
    loader = ShuffledLoader(shards(90, 50, 61), 8, 5)
    with prefetched(ShuffledLoader(shards(90, 50, 61), 8, 5), device) as batches:
        for _ in range(12):
            for wanted, got in zip(loader.next_batch(), batches.next_batch(), strict=True):
                assert got.dtype == torch.int64 and got.is_contiguous()
                assert np.array_equal(wanted, got.cpu().numpy())


@pytest.mark.parametrize("count", [0, 1, 3, 7])
def test_the_state_is_that_of_the_batch_last_handed_out(count: int) -> None:
    loader = ShuffledLoader(shards(90, 50, 61), 8, 5)
    with prefetched(ShuffledLoader(shards(90, 50, 61), 8, 5)) as batches:
        for _ in range(count):
            loader.next_batch()
            batches.next_batch()
        assert batches.state() == loader.state()


def test_large_ids_survive_the_way() -> None:
    with prefetched(ShuffledLoader([np.full(9, 65_534, np.uint16)], 8, 1)) as batches:
        assert batches.next_batch()[1].unique().tolist() == [65_534]


def test_what_the_thread_meets_is_raised_again_and_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loader = ShuffledLoader(shards(90), 8, 2)
    windows, calls = loader.next_windows, itertools.count()

    def failing() -> np.ndarray:
        if next(calls) == 2:
            raise OSError(5, "Input/output error")
        return windows()

    monkeypatch.setattr(loader, "next_windows", failing)
    with prefetched(loader) as batches:
        batches.next_batch()
        batches.next_batch()
        for _ in range(2):
            with pytest.raises(OSError, match="Input/output error"):
                batches.next_batch()


# --- Documents in a new order at each pass -----------------------------------------------------


def documents(*lengths: int, first: int = 2) -> np.ndarray:
    """A shard of documents, each after its BOS, whose tokens tell where they are."""
    parts, token = [], first
    for length in lengths:
        parts.append(np.array([1, *range(token, token + length - 1)], np.uint16))
        token += length - 1
    return np.concatenate(parts)


def text_of(shard: Shuffled, pieces: list[int]) -> list[int]:
    """Return a shard's tokens, read in pieces of such lengths, over and over."""
    found: list[int] = []
    for length in itertools.cycle(pieces):
        if len(found) == len(shard):
            return found
        found += shard.read(len(found), min(length, len(shard) - len(found))).tolist()
    return found


@pytest.mark.parametrize("pieces", [[1], [3, 7, 1], [1000]])
def test_a_shuffled_shard_has_all_documents_whole(pieces: list[int]) -> None:
    # What a cut left of a document stands in front; one has nothing but its BOS.
    cut = np.arange(900, 907, dtype=np.uint16)
    tokens = np.concatenate([cut, documents(5, 1, 30, 2, 9)])
    starts = document_starts(tokens)
    assert starts.tolist() == [0, 7, 12, 13, 43, 45]
    rng = np.random.default_rng(0)
    texts = set()
    for _ in range(8):
        found = text_of(Shuffled(tokens, starts, rng), pieces)
        whole = [part.tolist() for part in np.split(tokens, starts[1:])]
        assert sorted(found) == sorted(tokens.tolist())
        for part in whole:
            at = next(n for n in range(len(found)) if found[n : n + len(part)] == part)
            assert at >= 0
        texts.add(tuple(found))
    assert len(texts) > 4


def test_starts_are_found_across_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = documents(4, 4, 1, 3)
    monkeypatch.setattr("fairway.data.shuffled._AT_ONCE", 3)
    assert document_starts(tokens).tolist() == [0, 4, 8, 9]
    assert document_starts(np.array([7, 8], np.uint16)).tolist() == [0]


def neighbours(tokens: np.ndarray) -> set[tuple[int, int]]:
    """Return (the last token of a document, the first of the next) of all that meet."""
    ids = tokens.tolist()
    return {(ids[n - 1], ids[n + 1]) for n in range(1, len(ids) - 1) if ids[n] == 1}


def test_every_pass_has_other_neighbours_and_resumes() -> None:
    files = [documents(*[11] * 20), documents(*[13] * 20, first=500)]
    lying = {pair for file in files for pair in neighbours(file)}
    loader, plain = (ShuffledLoader(files, 8, 1, shuffle=shuffle) for shuffle in (True, False))
    found = [
        set().union(*(neighbours(made.next_windows()[0]) for _ in range(60)))
        for made in (plain, loader, loader)
    ]
    assert found[0] <= lying and not found[1] <= lying and not found[2] <= found[1] | lying
    state = json.loads(json.dumps(loader.state()))
    ahead = [loader.next_windows().tolist() for _ in range(30)]
    other = ShuffledLoader(files, 8, 1, shuffle=True)
    other.restore(state)
    assert [other.next_windows().tolist() for _ in range(30)] == ahead
