"""Runs on a cluster: submitit's own executors stand for one."""

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from damage import Cli, Outcome

from fairway.studies.lines import LINES, read_lines

pytest.importorskip("submitit")
ARM = "--arm quick:optim.matrix_lr=0.04 --pairs 1"


@pytest.fixture
def ablate(cli: Cli, settings: list[str], tmp_path: Path) -> Callable[[str], Outcome]:
    sets = [word for text in (*settings, "train.steps=2") for word in ("--set", text)]
    return lambda line: cli("ablate", "smoke", *sets, "--out", tmp_path, *shlex.split(line))


@pytest.mark.long
@pytest.mark.parametrize("kind", ["debug", pytest.param("local", marks=pytest.mark.slow)])
def test_runs_of_a_pair_go_through_submitit(
    kind: str, ablate: Callable[[str], Outcome], tmp_path: Path
) -> None:
    done = ablate(f"{ARM} --cluster {kind} --cluster-set timeout_min=9 --json")
    assert done.code == 0, done.err
    assert {line.arm for line in read_lines(tmp_path / LINES)} == {"base", "quick"}
    assert json.loads(done.out)["arms"][0]["n"] == 1
    assert list((tmp_path / "jobs").glob("*")) and list((tmp_path / "runs").glob("*.log"))


def test_a_run_that_fails_there_is_told_by_its_own_last_word(
    ablate: Callable[[str], Outcome], tmp_path: Path
) -> None:
    absent = "mps" if torch.cuda.is_available() else "cuda"
    done = ablate(f"{ARM} --cluster debug --set runtime.device={absent}")
    assert done.code == 1
    assert all("fairway: " in line.failed for line in read_lines(tmp_path / LINES))


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("--cluster moon", "none of slurm, local, debug"),
        ("--cluster local --cluster-set what=3", "does not take these settings"),
        ("--cluster local --cluster-set timeout_min=soon", "does not take these settings"),
        ("--cluster local --cluster-set 3", "write NAME=VALUE"),
        ("--cluster-set timeout_min=3", "name the cluster"),
        pytest.param(
            "--cluster slurm",
            "the cluster 'slurm'",
            marks=pytest.mark.skipif(bool(shutil.which("srun")), reason="there is a Slurm"),
        ),
    ],
)
def test_mistakes_are_one_sentence(line: str, told: str, ablate: Callable[[str], Outcome]) -> None:
    done = ablate(f"{ARM} {line}")
    assert done.code == 2 and told in done.err and len(done.err.strip().splitlines()) == 1


def test_without_submitit_the_command_says_how_to_get_it(
    ablate: Callable[[str], Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "submitit", None)
    assert "pip install 'fairway[cluster]'" in ablate(f"{ARM} --cluster local").err
