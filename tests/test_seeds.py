"""Seeds: run, resumed, failed; a failed one counts and is told."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from fairway.errors import UserError
from fairway.files import read_json
from fairway.seeds import SUMMARY, Plan, run_seeds, seed_folder


class Runner:
    """Takes the place of a process per seed: copies a finished run, or fails."""

    def __init__(self, finished: Path, failing: set[int]) -> None:
        self.finished, self.failing = finished, failing
        self.commands: list[list[str]] = []
        self.gpus: list[str | None] = []

    def __call__(self, command: list[str], **options: Any) -> subprocess.CompletedProcess[bytes]:
        self.commands.append(command)
        self.gpus.append(options["env"].get("CUDA_VISIBLE_DEVICES"))
        seed = int(command[-1 - ("--resume" in command)].removeprefix("seed="))
        if seed in self.failing:
            options["stdout"].write(b"step 1\nfairway: the loss became nan\n")
            return subprocess.CompletedProcess(command, 2)
        out = Path(command[command.index("--out") + 1])
        shutil.copytree(self.finished, out, dirs_exist_ok=True)
        return subprocess.CompletedProcess(command, 0)


def use(monkeypatch: pytest.MonkeyPatch, finished: Path, *failing: int) -> Runner:
    runner = Runner(finished, set(failing))
    monkeypatch.setattr("fairway.seeds.subprocess.run", runner)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return runner


def quiet(text: str) -> None:
    pass


def test_figures_of_all_seeds(
    smoke_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = use(monkeypatch, smoke_run)
    summary = run_seeds(Plan("smoke", ("train.steps=3",), (42, 314, 999)), tmp_path, quiet)
    results = read_json(smoke_run / "results.json")
    assert summary["failed"] == 0 and read_json(tmp_path / SUMMARY) == summary
    sliding = summary["bpb"]["sliding"]
    assert sliding["n"] == 3 and sliding["sd"] == pytest.approx(0.0, abs=1e-12)
    assert sliding["mean"] == pytest.approx(results["stages"]["sliding"]["bpb"])
    assert summary["worst"]["artifact_bytes"] == results["artifact"]["bytes"]
    assert runner.commands[0][-4:] == ["--set", "train.steps=3", "--set", "seed=42"]
    assert runner.gpus == [None, None, None]


def test_a_failed_seed_is_told_and_leaves_the_others(
    smoke_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, smoke_run, 314)
    summary = run_seeds(Plan("smoke", (), (42, 314, 999)), tmp_path, quiet)
    assert summary["failed"] == 1
    assert summary["seeds"]["314"] == {"failed": "fairway: the loss became nan"}
    assert summary["bpb"]["ttt"]["n"] == 2


def test_an_unfinished_seed_is_resumed_and_seeds_share_out_the_gpus(
    smoke_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = use(monkeypatch, smoke_run)
    seed_folder(tmp_path, 2).mkdir()
    (seed_folder(tmp_path, 2) / "checkpoint.safetensors").touch()
    run_seeds(Plan("smoke", (), (1, 2), at_once=2, processes=4), tmp_path, quiet)
    assert {c[c.index("--set") + 1]: "--resume" in c for c in runner.commands} == {
        "seed=1": False,
        "seed=2": True,
    }
    assert all("--nproc-per-node=4" in command for command in runner.commands)
    assert set(runner.gpus) <= {"0,1,2,3", "4,5,6,7"}


@pytest.mark.parametrize("seeds", [(), (1, 1)])
def test_each_seed_is_named_once(seeds: tuple[int, ...], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="name each once"):
        run_seeds(Plan("smoke", (), seeds), tmp_path, quiet)
