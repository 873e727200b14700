"""Seeds: run, resumed, failed; a failed one counts and is told, and none outlives its caller."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from shared import forking

from fairway.base.errors import UserError
from fairway.base.files import read_json
from fairway.pipeline.folder import locked
from fairway.submission.seeds import SUMMARY, Plan, run_seeds, seed_folder


class Runner:
    """Takes the place of a process per seed: copies a finished run, or fails."""

    def __init__(self, finished: Path, failing: dict[int, str]) -> None:
        self.finished, self.failing = finished, failing
        self.commands: list[list[str]] = []
        self.processes: list[int] = []
        self.gpus: list[str | None] = []
        self.threads: list[str | None] = []

    def __call__(
        self, words: list[str], processes: int, **options: Any
    ) -> "subprocess.Popen[bytes]":
        self.commands.append(words)
        self.processes.append(processes)
        self.gpus.append(options["env"].get("CUDA_VISIBLE_DEVICES"))
        self.threads.append(options["env"].get("OMP_NUM_THREADS"))
        seed = int(words[-1 - ("--resume" in words)].removeprefix("seed="))
        out = Path(words[words.index("--out") + 1])
        if seed not in self.failing:
            shutil.copytree(self.finished, out, dirs_exist_ok=True)
        program = self.failing.get(seed, "")
        command = [sys.executable, "-c", program]
        return subprocess.Popen(command, stdin=subprocess.PIPE, **options)


def use(monkeypatch: pytest.MonkeyPatch, finished: Path, **failing: str) -> Runner:
    runner = Runner(finished, {int(seed[1:]): program for seed, program in failing.items()})
    monkeypatch.setattr("fairway.base.children.begin", runner)
    monkeypatch.setattr("fairway.pipeline.jobs._LOOK_S", 0.01)
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
    assert runner.gpus == runner.threads == [None, None, None]


TOLD = "import sys; print('step 1'); print('fairway: the loss became nan'); sys.exit(2)"
TORCHRUN = "import sys; print('fairway: no GPU'); print('E1126 torchrun\\n====='); sys.exit(1)"
KILLED = "import os; print('step 9', flush=True); os.kill(os.getpid(), 9)"
TRACED = "print('step 1', flush=True); 1 / 0"
SILENT = "raise SystemExit(3)"


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        (TOLD, "fairway: the loss became nan"),
        (TORCHRUN, "fairway: no GPU"),
        (KILLED, "killed by signal 9 (SIGKILL)"),
        (TRACED, "ZeroDivisionError: division by zero"),
        (SILENT, "exit code 3"),
    ],
)
def test_a_failed_seed_is_told_by_its_own_last_word_and_leaves_the_others(
    smoke_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, reason: str
) -> None:
    (tmp_path / "seed-314.log").write_text("fairway: a word of an earlier call\n")
    use(monkeypatch, smoke_run, s314=program)
    summary = run_seeds(Plan("smoke", (), (42, 314, 999)), tmp_path, quiet)
    assert summary["failed"] == 1
    assert summary["seeds"]["314"] == {"failed": reason}
    assert summary["bpb"]["ttt"]["n"] == 2


def test_an_unfinished_seed_is_resumed_and_seeds_share_out_gpus_and_cores(
    smoke_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = use(monkeypatch, smoke_run)
    seed_folder(tmp_path, 2).mkdir()
    (seed_folder(tmp_path, 2) / "checkpoint.safetensors").touch()
    monkeypatch.setattr("fairway.pipeline.jobs.usable_cores", lambda: 64)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS")
    run_seeds(Plan("smoke", (), (1, 2), at_once=2, processes=4), tmp_path, quiet)
    assert {c[c.index("--set") + 1]: "--resume" in c for c in runner.commands} == {
        "seed=1": False,
        "seed=2": True,
    }
    assert runner.processes == [4, 4]
    assert set(runner.gpus) == {"0,1,2,3", "4,5,6,7"}
    assert runner.threads == ["8", "8"]


@pytest.mark.parametrize(("gpus", "overrides"), [(0, ()), (1, ("runtime.device=cpu",))])
def test_seeds_at_once_without_gpus_get_none(
    smoke_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpus: int, overrides: Any
) -> None:
    runner = use(monkeypatch, smoke_run)
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    run_seeds(Plan("smoke", overrides, (1, 2), at_once=2), tmp_path, quiet)
    assert set(runner.gpus) == {None}


@pytest.mark.parametrize(("gpus", "at_once", "processes"), [(1, 2, 1), (3, 4, 1), (3, 2, 2)])
def test_more_seeds_at_once_than_gpus_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpus: int, at_once: int, processes: int
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    with pytest.raises(UserError, match=f"torch sees {gpus} GPUs; lower it"):
        run_seeds(Plan("smoke", (), (1, 2), at_once, processes), tmp_path, quiet)


@pytest.mark.parametrize("seeds", [(), (1, 1)])
def test_each_seed_is_named_once(seeds: tuple[int, ...], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="name each seed once"):
        run_seeds(Plan("smoke", (), seeds), tmp_path, quiet)


def test_a_second_call_on_a_folder_is_refused(smoke_run: Path, tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(UserError, match="is being written by another process"):
        run_seeds(Plan("smoke", (), (1,)), tmp_path, quiet)


def test_what_a_kill_left_is_swept(
    smoke_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, smoke_run)
    (tmp_path / ".seeds.json.abcd1234.part").touch()
    (tmp_path / ".notes.txt.abcd1234.part").touch()
    run_seeds(Plan("smoke", (), (1,)), tmp_path, quiet)
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix == ".part") == [
        ".notes.txt.abcd1234.part"
    ]


# A call whose seed writes its process number, and says how it was ended.
CALL = """
import sys
from pathlib import Path
from fairway.base import children; from fairway.cli import main as cli

SEED = '''
import signal, sys, time
from fairway.base import endings
endings.interrupt_by_signals()
endings.end_with_parent()
try:
    print(__import__("os").getpid(), flush=True)
    time.sleep(600)
except KeyboardInterrupt:
    time.sleep(0.2)
    print("saved", flush=True)
    sys.exit(130)
'''
popen = children.subprocess.Popen
children.subprocess.Popen = lambda command, **more: popen([command[0], "-c", SEED], **more)
cli.main()
"""


def seeds_of(tmp_path: Path) -> tuple["subprocess.Popen[str]", int]:
    """Start `fairway seeds` with a seed that only waits; return both, once it does."""
    words = [*forking(), "-c", CALL, "seeds", "smoke", "--seeds", "7", "--out", str(tmp_path)]
    call = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    log, end_s = tmp_path / "seed-7.log", time.monotonic() + 60
    while not (log.exists() and log.read_text().endswith("\n")):
        assert time.monotonic() < end_s and call.poll() is None
        time.sleep(0.05)
    return call, int(log.read_text())


def ended(process: int, within_s: float) -> bool:
    end_s = time.monotonic() + within_s
    while time.monotonic() < end_s:
        state = Path(f"/proc/{process}/stat")
        try:
            if state.read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_reaches_the_seed_which_saves_before_the_call_ends(
    tmp_path: Path, number: signal.Signals
) -> None:
    call, seed = seeds_of(tmp_path)
    call.send_signal(number)
    _, errors = call.communicate(timeout=20)
    assert call.returncode == 130
    assert errors.splitlines()[-1] == ("fairway: interrupted; the same command continues the seeds")
    assert (tmp_path / "seed-7.log").read_text() == f"{seed}\nsaved\n"
    assert ended(seed, 0.1)


def test_a_seed_ends_with_a_call_that_is_killed(tmp_path: Path) -> None:
    call, seed = seeds_of(tmp_path)
    os.kill(call.pid, signal.SIGKILL)
    call.communicate(timeout=20)
    assert ended(seed, 20)
    assert (tmp_path / "seed-7.log").read_text() == f"{seed}\nsaved\n"
