"""Runs that go on where they were: what optimisers remember, and the place in the data."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from small_run import FEW
from test_train import assert_same, losses, run, stopped_and_resumed, text_of

from fairway.base.errors import UserError
from fairway.base.names import CHECKPOINT
from fairway.config.settings import Config
from fairway.machine.ranks import Ranks
from fairway.train.feed import Feed


@pytest.mark.long
def test_what_optimisers_remember_is_resumed(
    tiny: Callable[..., Config], data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(
        *FEW, "optim.row_beta=0.9", "optim.cautious=true",
        "optim.momentum_buffers=3", "train.windows=8@0.3",
    )  # fmt: skip
    whole = run(config, data_folder, tmp_path / "whole")
    for stop_at in (2, 8):
        parts = tmp_path / f"stopped at {stop_at}"
        resumed = stopped_and_resumed(config, data_folder, parts, monkeypatch, stop_at)
        assert losses(parts) == losses(tmp_path / "whole")
        assert_same(whole, resumed)


@pytest.mark.parametrize("rank", [0, 1])
def test_every_process_goes_on_where_it_was(rank: int, data_folder: Path) -> None:
    """Rank 0 by its loader's state, others by drawing again."""
    shards, cpu = text_of(data_folder).shards, torch.device("cpu")
    first, second = (Feed(shards, 64, 3, Ranks(rank, 2), cpu, (7, False)) for _ in range(2))
    try:
        for _ in range(4):
            first.next_batch()
        second.go_on(first.state(), 12)
        for _ in range(2):
            assert torch.equal(first.next_batch()[0], second.next_batch()[0])
    finally:
        first.close(), second.close()


def test_damaged_checkpoint_is_refused(
    tiny: Callable[..., Config], data_folder: Path, tmp_path: Path
) -> None:
    config = tiny(*FEW, "train.steps=1")
    run(config, data_folder, tmp_path)
    path = tmp_path / CHECKPOINT
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="is a damaged checkpoint"):
        run(config, data_folder, tmp_path, resume=True)
