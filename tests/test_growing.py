"""Steps that grow and sequences that lengthen on the way: what is read, when, at which rate."""

import itertools
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_train import assert_same, losses, run, text_of
from torch import Tensor

from fairway.base.errors import InterruptedRun, UserError
from fairway.config.settings import Config
from fairway.data.loader import ShuffledLoader
from fairway.machine.ranks import Ranks
from fairway.model.gpt import GPT
from fairway.train.feed import Feed
from fairway.train.loop import STEPS, Training
from fairway.train.micro import counts_of
from fairway.train.steps import read_steps

# 8, then 12 sequences, then 24; at most 16 at once: 8, 12, 12.
GROWING = (
    "train.batches=512@0.25 768@0.5", "train.batch_tokens=1536", "train.micro_tokens=768",
    "train.lengths=16@0.34 32@0.67",
)  # fmt: skip
Tiny = Callable[..., Config]


def test_steps_have_their_tokens_lengths_and_rates(
    tiny: Tiny, data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Tensor] = []
    forward = GPT.forward

    def noted(self: GPT, ids_BT: Tensor, targets_BT: Tensor) -> Tensor:
        assert torch.equal(ids_BT[:, 1:], targets_BT[:, :-1])
        seen.append(ids_BT)
        return forward(self, ids_BT, targets_BT)

    monkeypatch.setattr(GPT, "forward", noted)
    config = tiny(*GROWING, "train.warmup_steps=0", "optim.warmdown_share=0")
    run(config, data_folder, tmp_path)
    records = read_steps(tmp_path / STEPS)
    tokens = [512] * 3 + [768] * 3 + [1536] * 6
    assert [r["tokens"] for r in records] == list(itertools.accumulate(tokens))
    assert [r["lr"] for r in records] == pytest.approx([(n / 1536) ** 0.5 for n in tokens])
    shapes = [(32, 16)] * 3 + [(48, 16)] * 2 + [(24, 32)] + [(24, 32)] * 6 + [(12, 64)] * 6
    assert [tuple(ids.shape) for ids in seen] == shapes
    # What is read, one sequence after another, is what a loader draws one by one.
    loader = ShuffledLoader(text_of(data_folder).shards, 64, 1)
    drawn = [loader.next_batch()[0][0] for _ in range(sum(tokens) // 64)]
    assert torch.cat([ids.flatten() for ids in seen]).tolist() == [
        int(token) for sequence in drawn for token in sequence
    ]


@pytest.mark.parametrize("stop_at", [2, 5, 8])
def test_resume_continues_bit_for_bit(
    tiny: Tiny, data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int
) -> None:
    more = ["optim.momentum_end=0.5", "optim.row_beta=0.9", "optim.cautious=true"]
    more += ["optim.row_floor=1", "optim.grad_power=0.9", "optim.ema_blend=0.6"]
    config = tiny(*GROWING, *more)
    whole = run(config, data_folder, tmp_path / "whole")
    step, calls = Training._advance, itertools.count(1)

    def interrupted(self: Training, *how: Any) -> tuple[Tensor, Tensor]:
        if next(calls) == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *how)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "_advance", interrupted)
        with pytest.raises(InterruptedRun, match=f"after step {stop_at}; --resume"):
            run(config, data_folder, tmp_path / "parts")
    resumed = run(config, data_folder, tmp_path / "parts", resume=True)
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    names = ("tokens", "lr")
    first, second = (
        [[r[name] for name in names] for r in read_steps(tmp_path / part / STEPS)]
        for part in ("whole", "parts")
    )
    assert first == second
    assert_same(whole, resumed)


@pytest.mark.parametrize("rank", [0, 1])
def test_every_process_goes_on_where_it_was(rank: int, data_folder: Path) -> None:
    """Rank 0 by its loader's state, others by drawing again, with more or fewer at once."""
    ranks, cpu = Ranks(rank, 2), torch.device("cpu")
    shards = text_of(data_folder).shards
    feeds = [Feed(shards, 64, (6, 12), rows, ranks, cpu) for rows in (6, 4)]
    try:
        first, second = feeds
        assert (first.at_once(12), second.at_once(6), second.at_once(12)) == (6, 3, 4)
        for rows in (6, 6, 6):
            first.next_batch(rows, 64)
        second.go_on(first.state(), 18)
        wanted = [part for _ in range(2) for part in first.next_batch(6, 32)[0].split(2)]
        found = [part for _ in range(3) for part in second.next_batch(4, 32)[0].split(2)]
        assert torch.equal(torch.cat(found), torch.cat(wanted))
    finally:
        for feed in feeds:
            feed.close()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("train.batches=100@0.5", "train.batches has 100, which is not a multiple of"),
        ("train.batches=128", "train.batches is '128'; write numbers of tokens with the growing"),
        ("train.batches=128@0.5 256@0.4", "such as '49152@0.3 98304@0.6'"),
        ("train.batches=0@0.5", "write numbers of tokens"),
        ("train.lengths=48@0.5", "has 48; it must be at least 2 and divide train.seq_len 64"),
        ("train.lengths=1@0.5", "train.lengths has 1; it must be at least 2"),
        ("train.lengths=128@0.5", "train.lengths has 128; it must be at least 2 and divide"),
        ("train.lengths=16@1.5", "such as '1024@0.45'"),
        ("train.lengths=sixteen@0.5", "train.lengths is 'sixteen@0.5'"),
    ],
)  # fmt: skip
def test_what_does_not_divide_is_refused(tiny: Tiny, change: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        tiny(change)


def test_processes_that_cannot_share_a_step_are_told(tiny: Tiny) -> None:
    config = tiny("train.batches=192@0.5 128@0.6")
    assert counts_of(config, 1) == [3, 2, 16]
    with pytest.raises(UserError, match="train.batches 192 is 3 sequences, which 2 processes"):
        counts_of(config, 2)
