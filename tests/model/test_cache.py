"""Reading a few tokens at a time gives what reading all of them at once does."""

import gc
import weakref
from dataclasses import replace

import pytest
import torch
from features import ALL, FEATURES
from torch import Tensor

from fairway.config.settings import ModelConfig
from fairway.model.cache import Cache, Recorded
from fairway.model.gpt import GPT, build
from fairway.model.need import cached_bytes, way_of
from fairway.model.paths import prepare

SMALL = ModelConfig(
    vocab_size=300,
    num_layers=5,
    dim=48,
    num_heads=6,
    num_kv_heads=3,
    mlp_dim=80,
    rope_dims=4,
    rope_train_len=16,
    parallel_from=3,
    loop_first=1,
    loop_last=2,
    loop_extra=2,
    embed_bf16=False,
)
ODD = replace(SMALL, num_layers=3, dim=21, num_heads=3, num_kv_heads=1, rope_dims=2)
LENGTH = 23  # beyond rope_train_len, so that the base depends on it


def random_model(config: ModelConfig, looping: bool = False) -> GPT:
    model = build(config, seed=3)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator) * 0.2)
    model.set_looping(looping)
    return model.eval()


def tokens(rows: int, count: int = LENGTH) -> Tensor:
    return torch.randint(0, 300, (rows, count), generator=torch.Generator().manual_seed(5))


def piecewise(cache: Cache, ids_ST: Tensor, sizes: list[int]) -> Tensor:
    cache.clear()
    return torch.cat([cache.read(piece) for piece in ids_ST.split(sizes, 1)], 1)


VARIED = [SMALL, ODD, replace(SMALL, smear=True), *(replace(SMALL, **f) for f in FEATURES.values())]


@pytest.mark.parametrize("config", VARIED)
@pytest.mark.parametrize("sizes", [[1] * LENGTH, [7, 1, 1, 1, 1, 12], [1, 1, 20, 1]])
@torch.no_grad()
def test_tokens_read_by_launches_for_any_position_equal_the_whole(
    config: ModelConfig, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Recorded, "STRETCH", 8)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, ids = random_model(config, True).to(device), tokens(3).to(device)
    cache = Cache(model, 3, LENGTH, steady=True)
    cache.recorded = cache.recorded or Recorded(cache)
    whole = model.hidden(ids)
    # What an earlier walk left behind must not be seen; on a GPU once more, to have recordings run.
    for _ in range(3 if device == "cuda" else 2):
        found = piecewise(cache, ids, sizes)
        torch.testing.assert_close(found, whole, atol=1e-5, rtol=0)
        ids, whole = ids.flip(0), whole.flip(0)


@pytest.mark.parametrize("looping", [False, True])
@pytest.mark.parametrize("config", VARIED)
@pytest.mark.parametrize("sizes", [[LENGTH], [1] * 9 + [LENGTH - 9], [7, 1, 1, 5, 9], [1, 22]])
@torch.no_grad()
def test_pieces_equal_the_whole(config: ModelConfig, looping: bool, sizes: list[int]) -> None:
    model, ids = random_model(config, looping), tokens(3)
    found = piecewise(Cache(model, 3, LENGTH), ids, sizes)
    torch.testing.assert_close(found, model.hidden(ids), atol=1e-5, rtol=0)


@pytest.mark.long
@pytest.mark.skipif(torch.cuda.is_available(), reason="in float32, which kernels on a GPU refuse")
@pytest.mark.parametrize(
    "config",
    [
        # Its steps are those of test_operations, one by one; Triton's interpreter takes seconds.
        pytest.param(SMALL, marks=pytest.mark.slow, id="plain"),
        pytest.param(replace(SMALL, **ALL), id="every feature"),
    ],
)
@torch.no_grad()
def test_kernels_read_what_plain_formulas_read(
    config: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By windows and by single tokens, as `compress` reads on a GPU."""
    monkeypatch.setattr(Recorded, "STRETCH", 8)
    model, ids = random_model(config, True), tokens(3)
    wanted = model.hidden(ids)
    prepare(model, torch.float32, "plain", "fused")
    assert model.operations.fused
    cache = Cache(model, 3, LENGTH, steady=True)
    cache.recorded = Recorded(cache)
    for _ in range(2):
        found = piecewise(cache, ids, [7, 1, 1, 13, 1])
        torch.testing.assert_close(found, wanted, atol=2e-5, rtol=0)


@torch.no_grad()
def test_rows_end_and_others_take_their_places() -> None:
    model, ids = random_model(replace(SMALL, smear=True), True), tokens(4)
    whole = model.hidden(ids)
    for recorded in (False, True):
        cache = Cache(model, 6, LENGTH, steady=True)
        cache.recorded = Recorded(cache) if recorded else None
        cache.read(ids[:, :7])
        cache.move(3, 1)
        now = ids[[0, 3, 2]]
        # With recordings 4 of 6 rows are computed for 3, and later 2 for 2.
        for rows, first, end in ((3, 7, 12), (3, 12, 13), (2, 13, LENGTH)):
            found = cache.read(now[:rows, first:end])
            wanted = whole[[0, 3, 2][:rows], first:end]
            torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


@torch.no_grad()
def test_some_rows_at_a_time_are_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = random_model(replace(SMALL, smear=True), True), tokens(5)
    whole = model.hidden(ids)
    # Two rows of seven tokens, one of nine, then all rows of one.
    monkeypatch.setattr("fairway.model.cache.AT_ONCE", 15)
    cache = Cache(model, 5, LENGTH, room=18, steady=True)
    for first, end in ((0, 7), (7, 8), (8, 17), (17, 18)):
        found = cache.last(ids[:, first:end])
        torch.testing.assert_close(found, whole[:, end - 1], atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="5 rows of 18"):
        cache.read(ids[:, :1])


def test_a_cache_is_freed_with_its_last_name() -> None:
    cache = Cache(random_model(SMALL), 2, LENGTH, steady=True)
    cache.recorded = cache.recorded or Recorded(cache)
    cache.read(tokens(2, 3)), cache.read(tokens(2, 1))
    kept = weakref.ref(cache)
    gc.disable()
    try:
        del cache
        assert kept() is None
    finally:
        gc.enable()


def test_what_a_row_takes() -> None:
    model = random_model(SMALL, True)
    kept = Cache(model, 3, LENGTH, room=9)._kept_2VSGLK
    each_bytes = cached_bytes(SMALL, way_of(model), True, 9)
    assert each_bytes * 3 == kept.numel() * kept.itemsize


@torch.no_grad()
def test_half_precision_is_as_near_as_it_can_be() -> None:
    model, ids = random_model(SMALL, True), tokens(2)
    exact = model.hidden(ids)
    model.set_compute(torch.bfloat16, "plain")
    whole = (model.hidden(ids).float() - exact).abs().max()
    found = piecewise(Cache(model, 2, LENGTH), ids, [9, *[1] * (LENGTH - 9)])
    assert found.dtype == torch.bfloat16
    assert (found.float() - exact).abs().max() < 2 * whole


@torch.no_grad()
def test_a_short_row_is_one_padded_on_the_right() -> None:
    model, ids = random_model(SMALL), tokens(2)
    found = piecewise(Cache(model, 2, LENGTH), ids[:, :6], [4, 1, 1])
    padded = torch.cat((ids[:, :6], torch.zeros(2, LENGTH - 6, dtype=torch.long)), 1)
    torch.testing.assert_close(found, model.hidden(padded)[:, :6], atol=1e-5, rtol=0)
    assert not torch.allclose(found, model.hidden(ids[:, :6]), atol=1e-3)


@torch.no_grad()
def test_a_cache_can_be_used_again_and_follows_the_weights() -> None:
    model, ids = random_model(SMALL, True), tokens(2)
    cache = Cache(model, 2, LENGTH)
    first = piecewise(cache, ids, [20, 1, 2])
    assert torch.equal(piecewise(cache, ids, [20, 1, 2]), first)
    model.blocks[0].mlp.fc.weight.mul_(2.0)  # type: ignore[union-attr,operator]
    torch.testing.assert_close(piecewise(cache, ids, [20, 3]), model.hidden(ids), atol=1e-5, rtol=0)


def test_the_model_is_as_it_was_even_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model(SMALL)
    own = [block.attn.attend for block in model.blocks]
    cache = Cache(model, 2, LENGTH)
    cache.read(tokens(2, 3))
    assert [block.attn.attend for block in model.blocks] == own
    monkeypatch.setattr(model.blocks[1].mlp, "fc", None)
    with pytest.raises(TypeError):
        cache.read(tokens(2, 3))
    assert [block.attn.attend for block in model.blocks] == own


@pytest.mark.parametrize(("rows", "count"), [(3, 1), (2, 0), (2, LENGTH)])
def test_what_there_is_no_room_for(rows: int, count: int) -> None:
    cache = Cache(random_model(SMALL), 2, LENGTH)
    cache.read(tokens(2, 3))
    with pytest.raises(ValueError, match="the cache has 2 rows of 23"):
        cache.read(tokens(rows, count))
