"""Runs that end early (`fairway run --until`), and the order of their training text."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from damage import Cli
from small_run import FEW

from fairway.base.errors import InterruptedRun
from fairway.base.files import digest_file
from fairway.config.settings import Config
from fairway.data.folder import DataFolder
from fairway.pack.model import _Calibration
from fairway.pipeline.folder import RunFolder
from fairway.pipeline.run import Pipeline, open_run
from fairway.train.loop import Training
from fairway.train.saved import what_trains

SHORT = (*FEW, "train.steps=3", "train.warmup_steps=0")


def walk(config: Config, folder: Path, until: str = "train", **how: bool) -> dict[str, Any]:
    pipeline = Pipeline(config, RunFolder(folder), lambda text: None)
    with pipeline.writing():
        return pipeline.screen(until, **how)


def test_a_run_ends_after_the_verb_and_goes_on_from_there(
    tiny: Callable[..., Config], tmp_path: Path
) -> None:
    config = tiny(*SHORT, "ttt.chunk_tokens=512")
    seen = [list(walk(config, tmp_path, until)) for until in ("train", "pack", "score")]
    assert seen[0] == ["train", "score.raw", "score.ema"]
    assert set(seen[1]) - set(seen[0]) == {"pack", "score.quantised"}
    assert set(seen[2]) - set(seen[1]) == {"score.sliding", "score.ttt"}
    memory = RunFolder(tmp_path).memory
    assert memory["device"] and memory["config"]["recipe"] == "smoke"
    # It is an ordinary run, and any verb goes on with it.
    said: list[str] = []
    with (pipeline := open_run(tmp_path, [], said.append)).writing():
        pipeline.pack()
    assert said == ["pack: unchanged, kept"]


def test_the_command_ends_after_the_verb(cli: Cli, settings: list[str], tmp_path: Path) -> None:
    sets = [word for text in (*settings, *SHORT) for word in ("--set", text)]
    done = cli("run", "smoke", *sets, "--out", tmp_path, "--until", "train", "--json")
    assert done.code == 0 and list(json.loads(done.out)) == ["train", "score.raw", "score.ema"]
    wrong = cli("run", "smoke", "--until", "audit")
    assert wrong.code == 2 and "none of train, pack, score" in wrong.err


@pytest.mark.long
def test_the_order_of_the_text_is_a_setting_of_its_own(
    tiny: Callable[..., Config], tmp_path: Path
) -> None:
    def weights(*order: str) -> str:
        folder = tmp_path / "-".join(order)
        walk(tiny(*SHORT, *order), folder)
        return digest_file(folder / "weights.safetensors")

    plain, one = weights("data.order_seed=0"), weights("data.order_seed=1")
    two = weights("data.order_seed=2")
    assert len({plain, one, two}) == 3
    # The seed of the initial weights is another thing, unless it is asked for.
    assert weights("data.order_seed=seed", "seed=2") == weights("data.order_seed=2", "seed=2")
    assert weights("data.order_seed=0", "seed=2") != weights("data.order_seed=2", "seed=2")


def test_calibration_reads_in_the_order_of_the_training(
    tiny: Callable[..., Config], data_folder: Path
) -> None:
    source, device = DataFolder.open(data_folder), torch.device("cpu")
    first = [
        next(_Calibration(tiny(f"data.order_seed={order}"), source, device).batches(1)).tolist()
        for order in (0, 0, 3)
    ]
    assert first[0] == first[1] != first[2]


@pytest.mark.parametrize("stop_at", [1, 2])
def test_a_run_in_another_order_is_resumed_to_the_same_bits(
    tiny: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int
) -> None:
    config, step, calls = tiny(*SHORT, "data.order_seed=5"), Training._advance, []
    walk(config, tmp_path / "whole")

    def interrupted(self: Training, *args: Any) -> Any:
        calls.append(1)
        if len(calls) == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *args)

    monkeypatch.setattr(Training, "_advance", interrupted)
    with pytest.raises(InterruptedRun):
        walk(config, tmp_path / "parts")
    walk(config, tmp_path / "parts", resume=True)
    digests = [digest_file(tmp_path / n / "weights.safetensors") for n in ("whole", "parts")]
    assert digests[0] == digests[1]


def test_another_order_is_another_configuration_to_a_checkpoint(
    tiny: Callable[..., Config],
) -> None:
    orders = [what_trains(tiny(f"data.order_seed={order}")) for order in (0, 1, "seed", 42)]
    assert orders[0] != orders[1] and orders[2] == orders[3] != orders[1]
