"""The run index: differences from the recipe, scores, and what cannot be read."""

import csv
import errno
import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from damage import Cli

from fairway.base.errors import UserError
from fairway.base.files import read_json
from fairway.base.names import ARTIFACT, WEIGHTS
from fairway.config.settings import Config
from fairway.pipeline.folder import RunFolder
from fairway.pipeline.index import as_csv, present_scores, runs
from fairway.pipeline.record import differences
from fairway.pipeline.run import open_run
from fairway.pipeline.sink import send, sink_named
from fairway.recipes import recipe
from fairway.submission.compare import side

Tiny = Callable[..., Config]


@pytest.fixture
def folder(smoke_run: Path, tmp_path: Path) -> Path:
    shutil.copytree(smoke_run, tmp_path / "runs/a")
    (tmp_path / "runs/b").mkdir()
    (tmp_path / "runs/b/run.json").write_text("{")
    return tmp_path / "runs"


def test_runs_are_listed_with_what_sets_them_apart(folder: Path, smoke_run: Path) -> None:
    good, bad = runs(folder)
    results = read_json(smoke_run / "results.json")
    assert good["name"] == "a" and good["state"] == "scored" and good["seed"] == 42
    assert good["bytes"] == results["artifact"]["bytes"]
    assert good["scores"]["ttt"] == results["stages"]["ttt"]["bpb"]
    assert "model.vocab_size=300" in good["differences"]
    assert not [text for text in good["differences"] if text.startswith("runtime.")]
    assert bad["name"] == "b" and "not valid JSON" in bad["state"] and bad["scores"] == {}


def made_again(path: Path, stage: str, file: str) -> None:
    """Let a run remember that a stage wrote its file again, with other bytes."""
    folder = RunFolder(path)
    stages = json.loads(json.dumps(folder.memory["stages"]))
    stages[stage]["files"][file] = "0" * 64
    folder.remember("stages", stages)


def shown(folder: Path) -> tuple[str, set[str], bool]:
    """Return the state of the first run, the stages whose scores are shown, and if bytes are."""
    run = runs(folder)[0]
    return run["state"], set(run["scores"]), run["bytes"] is not None


WEIGHTS_ONLY = {"raw", "ema"}


def test_scores_of_a_former_artifact_are_not_shown(folder: Path) -> None:
    before = shown(folder)
    assert before[1] > WEIGHTS_ONLY
    made_again(folder / "a", "pack", ARTIFACT)
    assert shown(folder) == ("packed again; score it", WEIGHTS_ONLY, True)
    rows = list(csv.DictReader(io.StringIO(as_csv(runs(folder)))))
    assert rows[0]["bpb_raw"] and "bpb_sliding" not in rows[0]


def test_an_artifact_of_former_weights_is_not_shown(folder: Path) -> None:
    made_again(folder / "a", "train", WEIGHTS)
    assert shown(folder) == ("trained again; pack it", set(), False)


def test_scores_of_former_weights_are_not_shown_beside_a_new_artifact(folder: Path) -> None:
    made_again(folder / "a", "train", WEIGHTS)
    stages = json.loads(json.dumps(RunFolder(folder / "a").memory["stages"]))
    stages["pack"]["reads"][WEIGHTS] = "0" * 64
    RunFolder(folder / "a").remember("stages", stages)
    state, scores, packed = shown(folder)
    # The artifact has the same bytes, so its own scores stay.
    assert state == "packed again; score it" and not scores & WEIGHTS_ONLY and packed
    assert "sliding" in scores


def test_weights_that_are_gone_change_nothing_while_their_training_is_remembered(
    folder: Path,
) -> None:
    before = shown(folder)
    (folder / "a" / WEIGHTS).unlink()
    assert shown(folder) == before and before[0] == "scored"
    forgotten = RunFolder(folder / "a")
    forgotten.forget("train")
    assert shown(folder) == ("begun", set(), False)


@pytest.mark.long
def test_a_run_that_is_packed_again_says_so_until_it_is_scored(folder: Path) -> None:
    pipeline = open_run(folder / "a", ["quant.matrix_bits=5"], lambda text: None)
    with pipeline.writing():
        pipeline.pack()
    assert shown(folder) == ("packed again; score it", WEIGHTS_ONLY, True)
    # Sinks get no others either.
    assert present_scores(RunFolder(folder / "a").memory["stages"]).keys() == WEIGHTS_ONLY
    with pipeline.writing():
        pipeline.score()
    assert shown(folder)[0] == "scored" and shown(folder)[1] > WEIGHTS_ONLY


def test_a_table_for_spreadsheets(folder: Path) -> None:
    found = runs(folder)
    rows = list(csv.DictReader(io.StringIO(as_csv(found))))
    assert [row["name"] for row in rows] == ["a", "b"]
    assert float(rows[0]["bpb_sliding"]) == found[0]["scores"]["sliding"]
    assert rows[1]["bpb_sliding"] == "" and rows[1]["differences"] == ""


def test_a_recipe_as_it_is_differs_in_nothing(tiny: Tiny) -> None:
    assert differences(recipe("pr1858"), None, lambda name: False) == []
    assert "score.stride=32" in differences(tiny("score.stride=32"), None, lambda name: False)


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    told = (
        r"no runs: the folder \S+none does not exist; make a run with `fairway run demo`, or name"
    )
    with pytest.raises(UserError, match=told):
        runs(tmp_path / "none")
    (tmp_path / "link").symlink_to(tmp_path / "none")
    with pytest.raises(UserError, match="link is a link that leads nowhere; make a run"):
        runs(tmp_path / "link")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file is a file, not a folder; name the folder"):
        runs(tmp_path / "file")


@pytest.mark.parametrize("words", [(), ("--export", "tensorboard")])
def test_a_folder_without_runs_is_told(tmp_path: Path, cli: Cli, words: tuple[str, ...]) -> None:
    done = cli("runs", tmp_path, *words)
    assert done.code == 0 and done.out.startswith(f"there are no runs in {tmp_path}; make a run")
    assert cli("runs", tmp_path, "--json").out.strip() == "[]"


def test_a_folder_that_may_not_be_read_is_not_called_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "below").mkdir()
    scan, closed = os.scandir, {str(tmp_path / "below")}

    def guarded(path: str) -> Any:
        # The tests may run as one who may read everything.
        if str(path) in closed:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr("os.scandir", guarded)
    assert runs(tmp_path) == []
    with pytest.raises(UserError, match="cannot read .*below: Permission denied"):
        runs(tmp_path / "below")


def test_runs_are_compared_by_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    assert side("a").figures == side("runs/a").figures


class Memory:
    def __init__(self) -> None:
        self.told: dict[int, dict[str, float]] = {}
        self.closed = False

    def numbers(self, values: dict[str, float], step: int) -> None:
        self.told.setdefault(step, {}).update(values)

    def text(self, name: str, text: str, step: int) -> None:
        raise AssertionError("nothing wrote a text")

    def close(self) -> None:
        self.closed = True


def test_a_sink_gets_all_that_was_recorded(smoke_run: Path) -> None:
    sink, results = Memory(), read_json(smoke_run / "results.json")
    run = RunFolder(smoke_run)
    scores = present_scores(run.memory["stages"])
    assert scores == {name: one["bpb"] for name, one in results["stages"].items()}
    assert send(run, sink, scores) == results["train"]["steps"] == 12
    assert [step for step, told in sink.told.items() if "train/loss" in told] == list(range(12))
    assert sink.told[12]["bpb/ttt"] == results["stages"]["ttt"]["bpb"]
    assert sink.closed


@pytest.mark.parametrize(
    ("kind", "says"), [("tensorboard", "not installed"), ("wandb", "not installed"), ("x", "csv")]
)
def test_a_missing_package_or_kind_is_told(
    kind: str, says: str, smoke_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fairway.pipeline.sink.importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=says):
        sink_named(kind, RunFolder(smoke_run), tmp_path)
