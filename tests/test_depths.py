"""Blocks that join a model while it trains: which ones work, what they begin as, what resumes."""

import itertools
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_train import assert_same, losses, run
from tiny import TINY, alive
from torch import Tensor

from fairway.base.errors import InterruptedRun, UserError
from fairway.config.settings import Config
from fairway.model.gpt import GPT, visits, working
from fairway.train.loop import Training

Tiny = Callable[..., Config]
DEEP = replace(TINY, num_layers=7, parallel_from=5, loop_last=2, loop_extra=0, xsa_layers=7)


def test_working_blocks_are_spread_evenly_and_the_loop_keeps_its_place() -> None:
    assert [working(DEEP, depth) for depth in (0, 1, 2, 3, 6, 7)] == [
        [*range(7)], [0], [0, 3], [0, 2, 4], [0, 1, 2, 3, 4, 5], [*range(7)],
    ]  # fmt: skip
    looping = replace(DEEP, loop_first=2, loop_last=3, loop_extra=2)
    assert visits(looping, True, 3) == ([0, 2], [2, 2, 4])
    assert visits(looping, False, 3) == ([0], [2, 4])


def test_a_model_of_working_blocks_is_a_model_of_those_alone() -> None:
    model = alive(DEEP)
    model.set_depth(3)
    few = GPT(replace(DEEP, num_layers=3, parallel_from=3, xsa_layers=3))
    few.set_looping(False)
    wanted = dict(few.named_parameters())
    with torch.no_grad():
        for name, weight in model.named_parameters():
            first, _, rest = name.partition(".")
            if first == "blocks":
                layer, _, rest = rest.partition(".")
                if int(layer) in (0, 2, 4):
                    wanted[f"blocks.{int(layer) // 2}.{rest}"].copy_(weight)
            else:
                wanted[name].copy_(weight[: len(wanted[name])])
    for here, there in zip(few.blocks, (0, 2, 4), strict=True):
        here.scale = model.blocks[there].scale
    ids_BT = torch.arange(22).view(2, 11)
    loss, alone = model(ids_BT, ids_BT + 1), few(ids_BT, ids_BT + 1)
    assert loss.item() == alone.item()
    loss.backward()
    given = [name for name, w in model.named_parameters() if w.grad is not None]
    assert {name.split(".")[1] for name in given if name.startswith("blocks")} == {"0", "2", "4"}


@pytest.mark.parametrize("more", [(), ("model.reads=1", "optim.row_beta=0.9")])
def test_blocks_join_as_copies(
    tiny: Tiny, data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    more: tuple[str, ...],
) -> None:  # fmt: skip
    grow = Training._grow
    seen: list[tuple[int, list[Tensor]]] = []

    def noted(self: Training, depth: int) -> None:
        before = self.model.depth
        grow(self, depth)
        if before and not depth and self.step:
            layers = [dict(block.named_parameters()) for block in self.model.blocks]
            both = layers[0].keys() & layers[1].keys()
            assert all(torch.equal(layers[0][name], layers[1][name]) for name in both)
            seen.append((self.step, [layers[1][name].clone() for name in sorted(both)]))

    monkeypatch.setattr(Training, "_grow", noted)
    config = tiny("model.num_layers=2", "model.loop_extra=0", "train.depths=1@0.5", *more)
    training = run(config, data_folder, tmp_path)
    assert [step for step, _ in seen] == [6]
    assert training.model.depth == 0 and all(w.requires_grad for w in training.model.parameters())
    # What joined has learned something of its own since.
    other = dict(training.model.blocks[1].named_parameters())["mlp.fc.weight"]
    assert not torch.equal(
        other, dict(training.model.blocks[0].named_parameters())["mlp.fc.weight"]
    )
    assert all(torch.isfinite(weight).all() for weight in training.model.parameters())
    assert losses(tmp_path)[-1] < losses(tmp_path)[5]


@pytest.mark.parametrize("stop_at", [2, 6, 7])
def test_resume_continues_bit_for_bit(
    tiny: Tiny, data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int
) -> None:
    config = tiny("model.num_layers=3", "train.depths=1@0.25 2@0.5", "train.warmup_steps=1")
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
    assert_same(whole, resumed)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("train.depths=5", "train.depths is '5'; write numbers of blocks with the growing shares"),
        ("train.depths=0@0.5", "such as '5@0.35'"),
        ("train.depths=99@0.5", "its numbers of blocks must grow, up to model.num_layers"),
        ("train.depths=2@0.2 1@0.4", "its numbers of blocks must grow"),
        ("train.depths=1@1", "all blocks must work at the end"),
    ],
)
def test_what_cannot_grow_is_refused(tiny: Tiny, change: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        tiny(change)
