"""Processes under `torchrun`: two hosts, stopping and resuming, and failures that end them all.

The hosts are two addresses of this machine. Every launch costs seconds of imports, so that each is
made to answer several questions.
"""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from shared import forking
from small_run import FEW, SLOW

import fairway
from fairway.api import load
from fairway.base.files import read_json
from fairway.base.names import ARTIFACT, CHECKPOINT
from fairway.config.overrides import override
from fairway.config.settings import Config
from fairway.data.build import build_data
from fairway.data.documents import Document
from fairway.data.folder import DataFolder
from fairway.pipeline.folder import RunFolder
from fairway.pipeline.run import Pipeline
from fairway.recipes import recipe
from fairway.score.evaluation import Evaluation
from fairway.score.sliding import evaluate_frozen, text_of
from fairway.train.checkpoint import load_checkpoint
from fairway.train.steps import STEPS, read_steps

STEPS_RUN = 8
# What starts the processes, without the seconds that its imports take.
TORCHRUN = "from torch.distributed.run import main; main()"
# Told first, on the way: which process that is.
NAMED = "import os; print('torchrun', os.getpid(), flush=True); " + TORCHRUN
Ended = tuple[int, str, str]


@pytest.fixture(scope="module")
def data(data_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a data folder with more shards than processes."""
    texts = list(DataFolder.open(data_folder).last_train_documents())[::-1]
    out = tmp_path_factory.mktemp("shards") / "data"
    documents = [Document(f"doc-{n}", text) for n, text in enumerate(texts)]
    build_data(documents, out, vocab_size=300, val_share=0.1, shard_tokens=6000)
    return out


@pytest.fixture(scope="module")
def sets(settings: list[str], data: Path) -> list[str]:
    short = (f"train.steps={STEPS_RUN}", "train.warmup_steps=0", "score.batch_windows=2")
    short += (*FEW, "data.val_bytes=700")
    # An audit without probes: of trails, which two processes have written.
    short += ("prove.bytes=0", "audit.budget_s=0")
    return [*settings, *short, f"data.source={data}"]


def launcher(*options: str, program: str = "", run: str = TORCHRUN) -> list[str]:
    """Return the words that start torchrun as a fork."""
    start = [*forking(), *(["-c", program] if program else [])]
    return [*forking(), "-c", run, *options, "--no-python", *start]


def on_host(rank: int, port: int) -> list[str]:
    """Return one of two launchers with one process each, at two addresses of this machine."""
    meeting = ("--rdzv-backend=c10d", "--rdzv-id=1", f"--rdzv-endpoint=127.0.0.1:{port}")
    # torchrun ranks the hosts by address.
    address = f"--local-addr=127.0.0.{1 + rank}"
    return launcher("--nnodes=2", "--nproc-per-node=1", address, *meeting)


def started(launch: list[str], out: Path, sets: list[str], *more: str) -> subprocess.Popen[str]:
    overrides = [word for setting in sets for word in ("--set", setting)]
    words = [*launch, "run", "smoke", "--out", str(out), *overrides, *more]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(*processes: subprocess.Popen[str]) -> list[Ended]:
    """Return (exit code, output, errors) of launchers that must end within 60 s."""
    try:
        said = [process.communicate(timeout=60) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(p.returncode, *words) for p, words in zip(processes, said, strict=True)]


@pytest.fixture(scope="module")
def two_hosts(sets: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run by two launchers, which share it."""
    out = tmp_path_factory.mktemp("two") / "run"
    port = free_port()
    first, second = ended(*(started(on_host(rank, port), out, sets) for rank in (0, 1)))
    assert (first[0], second[0]) == (0, 0), first[2] + second[2]
    # One process speaks and writes.
    assert first[1].count("\nstep ") >= 1 and second[1] == ""
    return out


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.long
def test_every_world_size_gets_the_same_score(two_hosts: Path, sets: list[str]) -> None:
    config: Config = override(recipe("smoke"), sets)
    pipeline = Pipeline(config, RunFolder(two_hosts), lambda text: None)
    source = pipeline.data()
    validation = source.sample_validation(config.data.val_bytes)
    text = text_of(validation.ids, source.tokenizer.table, validation.bytes)
    model = load(two_hosts / ARTIFACT, plan=pipeline.plan()).model
    found = read_json(two_hosts / "results.json")["stages"]
    for name, slides in (("quantised", False), ("sliding", True)):
        alone = evaluate_frozen(
            model,
            Evaluation(text, config.score, seed=config.seed, description=name),
            sliding=slides,
        )
        assert found[name]["nats"] == alone.nats
        assert found[name]["events"] == alone.events > 2
        assert found[name]["checked_positions"] == config.score.check_positions
        assert len(found[name]["trail"]) == 2
    # One process audits what both did: their trails must fit together.
    audit = read_json(two_hosts / "results.json")["audit"]
    assert (audit["passed"], audit["verdict"]) == (True, "valid")


@pytest.mark.long
def test_a_job_stopped_and_resumed_on_one_host_ends_like_two_hosts(
    two_hosts: Path, sets: list[str], tmp_path: Path
) -> None:
    slow = launcher("--standalone", "--nproc-per-node=2", program=SLOW)
    process = started(slow, tmp_path / "run", sets)
    assert process.stdout
    if any(line.startswith("step ") for line in process.stdout):
        process.send_signal(signal.SIGTERM)
    (code, _, errors), *_ = ended(process)
    told = re.findall(r"fairway: stopped after step (\d+); --resume continues\n", errors)
    assert code != 0 and len(told) == 1 and int(told[0]) < STEPS_RUN, errors
    assert load_checkpoint(tmp_path / "run" / CHECKPOINT)[1]["step"] == int(told[0])

    both = launcher("--standalone", "--nproc-per-node=2")
    (code, output, errors), *_ = ended(started(both, tmp_path / "run", sets, "--resume"))
    assert code == 0, errors
    assert output.count(f"resumed at step {told[0]},") == 1
    records = [
        [r["loss"] for r in read_steps(out / STEPS)] for out in (two_hosts, tmp_path / "run")
    ]
    assert records[0] == records[1] and len(records[0]) == STEPS_RUN
    first, second = (read_json(out / "results.json") for out in (two_hosts, tmp_path / "run"))
    assert first["train"]["tokens"] == second["train"]["tokens"] == 1024 * STEPS_RUN
    assert first["artifact"]["digest"] == second["artifact"]["digest"]
    for name, stage in first["stages"].items():
        assert second["stages"][name]["nats"] == stage["nats"]


@pytest.mark.long
def test_a_host_with_damaged_data_ends_the_others(
    sets: list[str], data: Path, tmp_path: Path
) -> None:
    damaged = tmp_path / "data"
    damaged.mkdir()
    for file in data.iterdir():
        (damaged / file.name).write_bytes(file.read_bytes())
    shard = damaged / "fairway_train_000001.bin"
    shard.write_bytes(shard.read_bytes()[:-100])
    port = free_port()
    bad = [*sets, f"data.source={damaged}"]
    start_s = time.monotonic()
    good_host = started(on_host(0, port), tmp_path / "run", sets)
    bad_host = started(on_host(1, port), tmp_path / "run", bad)
    (good_code, _, good), (bad_code, _, words) = ended(good_host, bad_host)
    assert time.monotonic() - start_s < 30
    assert good_code != 0 and bad_code != 0
    assert f"fairway: {shard} announces " in words
    assert (good + words).count("fairway: ") == 1
    # What torchrun adds: which process was the first, and its exit code.
    assert re.search(r"rank +: 1 .*\n +exitcode +: 2 ", words)
    assert not (tmp_path / "run" / ARTIFACT).exists()


# Nothing but the end of its process wakes rank 0, as inside a collective of a GPU.
DEAF = """
import os, time
from fairway.cli import main as cli
from fairway.base.errors import UserError
from fairway.model.gpt import GPT

def forward(*_):
    if os.environ["RANK"] == "1":
        raise UserError("the cat sat on the GPU")
    while True:
        time.sleep(600)

GPT.forward = forward
cli.main()
"""


def test_a_process_that_fails_ends_one_that_hears_nothing(sets: list[str], tmp_path: Path) -> None:
    launch = launcher("--standalone", "--nproc-per-node=2", program=DEAF)
    start_s = time.monotonic()
    (code, _, errors), *_ = ended(started(launch, tmp_path / "run", sets))
    # Of the time before the failure, seconds; after it, torchrun alone would wait 30 for rank 0.
    assert time.monotonic() - start_s < 30 and code != 0
    assert errors.count("fairway: the cat sat on the GPU\n") == errors.count("fairway: ") == 1
    assert errors.count("Traceback") == 1, "that of torchrun"


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_killed_by_the_kernel_is_one_sentence(
    sets: list[str], tmp_path: Path, rank: int
) -> None:
    long = [*sets, "train.steps=2000"]
    named = launcher("--standalone", "--nproc-per-node=2", run=NAMED)
    process = started(named, tmp_path / "run", long)
    assert process.stdout
    _, pid = process.stdout.readline().split()
    assert any(line.startswith("step ") for line in process.stdout)
    os.kill(ranks_of(int(pid))[rank], signal.SIGKILL)
    start_s = time.monotonic()
    (code, _, errors), *_ = ended(process)
    assert code != 0 and time.monotonic() - start_s < 30
    assert errors.count("fairway: another process of this run ended without a message") == 1, errors
    assert errors.count("fairway: ") == 1
    # torchrun and PyTorch's own processes may print tracebacks, Fairway does not.
    assert str(Path(fairway.__file__).parent) not in errors, errors


LATE = """
import os, signal
from types import SimpleNamespace
from fairway.machine import peers

class Group(peers.Peers):
    def watch(self):
        pass
    def fail(self, sentence, code):
        os.kill(os.getpid(), signal.SIGTERM)
        super().fail(sentence, code)

store = SimpleNamespace(add=lambda key, amount: 1, set=lambda key, value: None)
peers.peers = lambda: Group(0, store)
peers.end_together(lambda: ("fairway: the reason", 2))
"""


def test_the_signal_of_torchrun_does_not_end_a_process_before_its_sentence() -> None:
    command = [sys.executable, "-c", LATE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "fairway: the reason\n")


def ranks_of(launcher: int) -> list[int]:
    """Return the processes of torchrun by rank; the end of one ends the fork that it started."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    ranks = {}
    for child in children:
        told = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        ranks |= {int(x[5:]): int(child) for x in told if x.startswith(b"RANK=")}
    return [ranks[rank] for rank in sorted(ranks)]
