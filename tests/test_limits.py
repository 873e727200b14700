"""What would stop a run after its training is told before it, in one sentence with its remedy."""

import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_run import FEW

from fairway.base.errors import UserError
from fairway.base.room import Room
from fairway.config.settings import Config
from fairway.data.folder import DataFolder
from fairway.data.shards import find_shards
from fairway.machine.plan import Plan
from fairway.pipeline import limits
from fairway.pipeline.folder import RunFolder
from fairway.pipeline.limits import (
    check_later_stages,
    check_learning_time,
    smallest_bytes,
    tell_of_shards,
)
from fairway.pipeline.run import Pipeline
from fairway.quantise.estimate import expected_bytes
from fairway.recipes import RECIPES
from fairway.score import ttt
from fairway.score.evaluation import ALONE
from fairway.train.steps import STEPS, read_steps

Tiny = Callable[..., Config]
CPU = Plan("cpu", "float32", "highest", 1, "plain", "plain")
FILL = ("quant.method=trellis", "quant.fit=true")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (["data.val_tokens=6"], "has 7 tokens and an audit needs 8; use more validation text"),
        (["data.val_tokens=1"], "has 2 tokens and an audit needs 8"),
        (["data.val_tokens=40", "score.truncate=true"], "has 41 tokens, but one window needs 65"),
        (
            ["pack.limit_bytes=1", "quant.fit=true"],
            "quant.fit=true cannot keep pack.limit_bytes 1",
        ),
        ([*FILL, "pack.limit_bytes=800"], "quant.fit=true cannot keep pack.limit_bytes 800:"),
        (["pack.code_bytes=90000", *FILL, "pack.limit_bytes=90000"], "90,000 bytes of code and at"),
        (
            ["score.seq_len=1048576", "score.stride=1048576", "ttt.method=off"],
            "scoring 1 windows of 1048576 tokens at a time takes .*; lower score.batch_win",
        ),
        (
            ["ttt.method=sgd", "ttt.epochs=100", "ttt.budget_s=1", "data.val_bytes=0"],
            "test-time training would take about .* s, and ttt.budget_s is 1; raise it",
        ),
    ],
)
def test_nothing_is_trained_for_what_cannot_end(
    tiny: Tiny, tmp_path: Path, changes: list[str], told: str
) -> None:
    sampled = ["data.val_bytes=0"] if "data.val_tokens" in changes[0] else []
    said: list[str] = []
    folder = RunFolder(tmp_path / "run")
    pipeline = Pipeline(tiny(*sampled, *changes), folder, said.append)
    with pytest.raises(UserError, match=told), pipeline.writing():
        pipeline.walk()
    assert not any(line.startswith("step") for line in said)
    assert "train" not in folder.memory["stages"]


def test_a_time_to_learn_is_refused_early_only_if_it_is_far_too_short(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a shared machine times scatter; on a GPU, and where nothing is learned, none is taken."""
    asked: list[float] = []

    def estimated(*_: object) -> float:
        asked.append(0.0)
        return 10.0

    monkeypatch.setattr(ttt, "estimate", estimated)
    ids = np.zeros(200, np.uint16)
    for budget, refused in ((5, False), (4.99, True), (20, False)):
        config = tiny("ttt.method=sgd", f"ttt.budget_s={budget}", "ttt.epochs=1")
        with pytest.raises(UserError, match="take about 10 s") if refused else nullcontext():
            check_learning_time(config, ids, CPU, ALONE)
    shrinking = tiny("ttt.method=sgd", "ttt.budget_s=1", "ttt.over_budget=shrink", "ttt.epochs=2")
    with pytest.raises(UserError, match="even at its smallest"):
        check_learning_time(shrinking, ids, CPU, ALONE)
    asked.clear()
    check_learning_time(tiny("ttt.method=off", "ttt.budget_s=1"), ids, CPU, ALONE)
    check_learning_time(config, ids, replace(CPU, device="cuda"), ALONE)
    assert asked == []


def test_a_recipe_knows_how_many_shards_its_run_reads() -> None:
    """As the logs of #1858, #1874 and #1493 say; what has no published run reads all there is."""
    known = {name: make().train.shards for name, make in RECIPES.items()}
    assert known.pop("pr1858") == known.pop("pr1874") == 80 and known.pop("pr1493") == 128
    assert set(known.values()) == {0}


def test_fewer_shards_than_a_recipe_reads_are_told(
    tiny: Tiny, data_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(data_folder, tmp_path / "my data")
    source, said = DataFolder.open(tmp_path / "my data"), []
    for shards in (0, 1, 3):
        tell_of_shards(tiny(f"train.shards={shards}"), source, said.append)
    assert said == []
    tell_of_shards(tiny("train.shards=4"), source, said.append)
    assert said == [
        "the data folder has 3 training shards and train.shards is 4: the run reads less text than "
        "that of smoke; take data of more shards, and train.shards=0 reads what there is"
    ]
    (source.path / "fetch.json").write_text("{}")
    tell_of_shards(tiny("train.shards=128"), source, said.append)
    remedy = f"`fairway data fetch --out '{tmp_path}/my data' --shards 128` adds them"
    assert remedy in said[1] and "train.shards is 128" in said[1]


def test_a_run_reads_the_first_shards_only(tiny: Tiny, data_folder: Path, tmp_path: Path) -> None:
    """With train.shards=1, as from a folder that has no more; fewer than asked for are enough."""
    bare = tmp_path / "bare"
    bare.mkdir()
    first = find_shards(data_folder, "train")[0]
    for path in (first, *find_shards(data_folder, "val"), data_folder / "tokenizer.model"):
        shutil.copy(path, bare)
    made, told = [], []
    for number, changes in enumerate(
        (["train.shards=1"], [f"data.source={bare}"], [f"data.source={bare}", "train.shards=2"])
    ):
        pipeline = Pipeline(
            tiny(*FEW, "train.steps=3", *changes),
            RunFolder(tmp_path / f"run {number}"),
            told.append,
        )
        with pipeline.writing():
            pipeline.train()
            weights = pipeline.pack()["weights"]
        losses = [step["loss"] for step in read_steps(pipeline.folder.file(STEPS))]
        made.append((losses, weights))
    assert made[0] == made[1] == made[2]
    assert len([line for line in told if "training shards and train.shards is 2" in line]) == 1


def test_what_a_switch_turns_off_needs_no_text(tiny: Tiny) -> None:
    said: list[str] = []
    check_later_stages(tiny("audit.budget_s=0"), 2, 0, CPU, said.append)
    check_later_stages(tiny(), 8, 0, CPU, said.append)
    assert said == []


def test_memory_of_scoring_counts_all_windows_of_a_pass(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny("score.batch_windows=16")
    score, model = config.score, config.model
    # By hand: states of 16 windows, scores and their softmax of all heads, the mask.
    states = 16 * score.seq_len * (14 * model.dim + 2 * model.mlp_dim)
    need = 4 * (states + 33 * model.num_heads * score.seq_len**2)
    for free, refused in ((need, False), (need - 1, True)):
        monkeypatch.setattr(limits, "host_room", lambda free=free: Room(free))
        if refused:
            with pytest.raises(UserError, match="scoring 16 windows of 64 tokens"):
                check_later_stages(config, 1000, 0, CPU, pytest.fail)
        else:
            check_later_stages(config, 1000, 0, CPU, pytest.fail)
    # Other kernels keep no table of scores.
    check_later_stages(config, 1000, 0, replace(CPU, attention="sdpa"), pytest.fail)


def test_a_size_above_the_limit_is_told_where_nothing_is_fitted(tiny: Tiny) -> None:
    size = expected_bytes(tiny(), 0) + 500
    for limit, told in ((size, 0), (size - 1, 1)):
        said: list[str] = []
        check_later_stages(tiny(f"pack.limit_bytes={limit}"), 1000, 500, CPU, said.append)
        assert len(said) == told
    assert f"about {size:,} bytes" in said[0] and "--set quant.fit=true" in said[0]


def test_no_packing_is_smaller_than_the_smallest(smoke_run: Path, tiny: Tiny) -> None:
    real = (smoke_run / "artifact.fwy").stat().st_size
    assert 1000 < smallest_bytes(tiny(*FILL)) < smallest_bytes(tiny("quant.fit=true")) < real / 2
