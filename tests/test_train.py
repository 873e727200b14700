"""The loop: a golden loss list, resume, replay, and what stops a run."""

import importlib.util
import itertools
import json
import math
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_run import FEW
from torch import Tensor

from fairway.base.endings import stop_requested
from fairway.base.errors import InterruptedRun, UserError
from fairway.base.names import CHECKPOINT
from fairway.base.room import Room
from fairway.config.settings import Config, OptimConfig
from fairway.data.folder import DataFolder
from fairway.machine.plan import Plan, make_plan, own_device
from fairway.machine.ranks import Ranks
from fairway.model.gpt import GPT
from fairway.train import steps
from fairway.train.checkpoint import load_checkpoint
from fairway.train.loop import Training, TrainingText, train
from fairway.train.preflight import preflight, require_packages
from fairway.train.schedule import lr_multiplier
from fairway.train.steps import STEPS, StepLine, StepLog, read_steps

CPU = Plan("cpu", "float32", "highest", 1, "plain")

# Losses of the smoke run on the tests' text, float32, one thread, recorded on 2026-11-22 with torch
# 2.13.0. Orthogonalising in bfloat16 makes later steps differ between processors by about 1e-4.
GOLDEN = [
    5.699801, 4.676319, 3.333326, 2.935989, 2.71055, 2.545438,
    2.430015, 2.309735, 2.183966, 2.056905, 1.973017, 1.950524,
]  # fmt: skip


def text_of(folder: Path) -> TrainingText:
    source = DataFolder.open(folder)
    return TrainingText(source.train_shards(), source.bytes_per_token)


def run(
    config: Config, data: Path, folder: Path, resume: bool = False, said: list[str] | None = None
) -> Training:
    folder.mkdir(exist_ok=True)
    say = (lambda text: None) if said is None else said.append
    plan = make_plan(config.runtime)
    plan.apply()
    return train(config, plan, Ranks(), text_of(data), folder, lambda model: 1000, say, resume)


def losses(folder: Path) -> list[float]:
    return [record["loss"] for record in read_steps(folder / STEPS)]


def weights(training: Training) -> dict[str, Tensor]:
    live = dict(training.model.named_parameters())
    return {**live, **{f"ema.{n}": w for n, w in training.average.average.items()}}


def assert_same(a: Training, b: Training) -> None:
    for name, value in weights(a).items():
        assert torch.equal(value, weights(b)[name]), name


Whole = tuple[Training, list[float], list[str]]


@pytest.fixture(scope="module")
def few(tiny: Callable[..., Config]) -> Callable[..., Config]:
    """Return a function: the config of a model of few blocks with further overrides."""
    return lambda *more: tiny(*FEW, *more)


@pytest.fixture(scope="module")
def whole(
    few: Callable[..., Config], data_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Whole:
    """Return a training that nothing interrupted, its losses, and what it said."""
    folder, said = tmp_path_factory.mktemp("whole") / "run", []
    return run(few(), data_folder, folder, said=said), losses(folder), said


def test_golden_losses(smoke_run: Path) -> None:
    assert losses(smoke_run) == pytest.approx(GOLDEN, abs=2e-3)


def test_the_last_line_says_that_nothing_is_left(whole: Whole) -> None:
    said = whole[2]
    assert "step 00012 100% " in said[-1] and said[-1].endswith(" 0:00 left  0.00 MB")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_golden_losses_on_a_gpu(
    tiny: Callable[..., Config], data_folder: Path, tmp_path: Path
) -> None:
    run(tiny("runtime.device=cuda", "runtime.attention=plain"), data_folder, tmp_path / "whole")
    assert losses(tmp_path / "whole") == pytest.approx(GOLDEN, abs=2e-2)
    seconds = [record["seconds"] for record in read_steps(tmp_path / "whole" / STEPS)]
    assert all(a < b for a, b in itertools.pairwise(seconds))


@pytest.mark.parametrize(
    ("seen", "local", "told"),
    [
        (0, 0, "1 processes or more of this host need a GPU each, but torch sees no GPU; start"),
        (1, 1, "2 processes .* torch sees 1 GPU; start at most --nproc-per-node=1"),
        (8, 99, "100 processes .* torch sees 8 GPUs; start at most --nproc-per-node=8"),
    ],
)
def test_a_process_without_a_gpu_is_told(
    seen: int, local: int, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: seen > 0)
    monkeypatch.setattr("torch.cuda.device_count", lambda: seen)
    ranks, gpu = Ranks(local, 100, local), replace(CPU, device="cuda")
    with pytest.raises(UserError, match=told):
        own_device(gpu, ranks)
    assert own_device(CPU, ranks) == torch.device("cpu")
    if seen:
        assert own_device(gpu, Ranks(0, 100, seen - 1)) == torch.device("cuda", seen - 1)


def test_step_records(few: Callable[..., Config], data_folder: Path, tmp_path: Path) -> None:
    run(few("train.loop_from=0.5"), data_folder, tmp_path)
    records = read_steps(tmp_path / STEPS)
    assert [r["step"] for r in records] == list(range(12))
    assert [r["looping"] for r in records] == [False] * 6 + [True] * 6
    assert [r["tokens"] for r in records] == [1024 * (n + 1) for n in range(12)]
    for before, after in itertools.pairwise(records):
        assert before["progress_after"] == after["progress"]
        assert before["seconds"] < after["seconds"]
    assert records[-1]["progress_after"] == 1.0
    assert records[-1]["lr"] == pytest.approx((1 - 11 / 12) / 0.72)


def stopped_and_resumed(
    config: Config, data: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int
) -> Training:
    """Return a training that a signal stopped after so many steps, and that went on."""
    step, calls = Training._advance, itertools.count(1)

    def interrupted(self: Training, *given: Any) -> tuple[Tensor, Tensor]:
        if next(calls) == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "_advance", interrupted)
        with pytest.raises(InterruptedRun, match=f"after step {stop_at}; --resume"):
            run(config, data, folder)
    # A record beyond the checkpoint, as a crash leaves it, must not stay.
    with (folder / STEPS).open("a") as log:
        log.write(json.dumps({"step": stop_at, "loss": 0.0}) + "\n")
    return run(config, data, folder, resume=True)


@pytest.mark.parametrize("stop_at", [1, 7])
def test_resume_continues_bit_for_bit(
    whole: Whole,
    few: Callable[..., Config],
    data_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stop_at: int,
) -> None:
    resumed = stopped_and_resumed(few(), data_folder, tmp_path / "parts", monkeypatch, stop_at)
    assert losses(tmp_path / "parts") == whole[1]
    assert_same(whole[0], resumed)


@pytest.mark.long
def test_replay_follows_a_wall_clock_run(
    few: Callable[..., Config], data_folder: Path, tmp_path: Path
) -> None:
    wall = few("train.clock=wall", "train.budget_s=0.9", "train.reserve_s=0.4")
    first = run(wall, data_folder, tmp_path / "wall")
    seconds = read_steps(tmp_path / "wall" / STEPS)[-1]["seconds"]
    assert 0.2 <= seconds < 1.0
    replay = few("train.clock=replay", f"train.replay={tmp_path / 'wall'}")
    second = run(replay, data_folder, tmp_path / "replay")
    assert losses(tmp_path / "replay") == losses(tmp_path / "wall")
    assert_same(first, second)


def test_warm_up_leaves_no_trace(
    few: Callable[..., Config], data_folder: Path, tmp_path: Path
) -> None:
    steps = "train.steps=3"
    warm = run(few(steps, "train.warmup_steps=3"), data_folder, tmp_path / "warm")
    cold = run(few(steps, "train.warmup_steps=0"), data_folder, tmp_path / "cold")
    assert_same(warm, cold)


def limit_memory(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    """Let a forward pass of more than `rows` sequences run out of memory."""
    forward = GPT.forward

    def failing(self: GPT, ids_BT: Tensor, targets_BT: Tensor) -> Tensor:
        if len(ids_BT) > rows:
            raise torch.OutOfMemoryError("no room")
        return forward(self, ids_BT, targets_BT)

    monkeypatch.setattr(GPT, "forward", failing)


def test_a_micro_batch_too_large_for_memory_is_halved(
    few: Callable[..., Config],
    data_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Down to a divisor of the rank's sequences; the run is the one with small micro-batches."""
    batch = ["train.batch_tokens=1536", "train.micro_tokens=768", "train.steps=3"]
    small = few(*batch, "train.micro_tokens=192")
    run(small, data_folder, tmp_path / "small")
    limit_memory(monkeypatch, 5)
    said: list[str] = []
    with pytest.raises(InterruptedRun), monkeypatch.context() as patch:
        patch.setattr("fairway.train.loop.lr_multiplier", stopping_at(1))
        run(few(*batch), data_folder, tmp_path / "halved", said=said)
    told = "out of memory with {} sequences per micro-step: continuing with {} and {} micro-steps"
    assert told.format(12, 6, 4) in said[0] and told.format(6, 3, 8) in said[1]
    assert load_checkpoint(tmp_path / "halved" / CHECKPOINT)[1]["rows"] == 3
    # The rows are remembered: a resumed run does not have to find them again.
    said.clear()
    run(few(*batch), data_folder, tmp_path / "halved", resume=True, said=said)
    assert not [text for text in said if "out of memory" in text]
    assert losses(tmp_path / "halved") == losses(tmp_path / "small")


def stopping_at(count: int) -> Callable[..., float]:
    """Return a learning-rate rule that sends a signal in the step of this number."""
    calls = itertools.count(1)

    def rule(now: float, config: OptimConfig) -> float:
        if next(calls) == count:
            os.kill(os.getpid(), signal.SIGTERM)
        return lr_multiplier(now, config)

    return rule


def test_less_memory_than_one_sequence_needs_is_told(
    few: Callable[..., Config],
    data_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limit_memory(monkeypatch, 0)
    with pytest.raises(UserError, match="one sequence of 64 tokens per micro-step needs more"):
        run(few(), data_folder, tmp_path)
    with pytest.raises(UserError, match="memory ran out with 8 sequences per micro-step; lower"):
        run(few("train.warmup_steps=0"), data_folder, tmp_path)


def test_the_host_is_one_step_ahead_and_no_more(
    few: Callable[..., Config],
    data_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A record is written after the next step's launch, and before any weights are read."""
    events: list[str] = []

    def note(owner: type, name: str, text: str) -> None:
        plain = getattr(owner, name)

        def noted(self: Any, *args: Any) -> Any:
            events.append(text)
            return plain(self, *args)

        monkeypatch.setattr(owner, name, noted)

    note(Training, "_advance", "launch")
    note(StepLog, "write", "record")
    note(StepLine, "text", "line")
    note(Training, "save", "save")
    monkeypatch.setattr(steps, "_LOG_EVERY_S", 1000.0)
    small = ("train.batch_tokens=128", "train.micro_tokens=128")
    config = few("train.steps=25", "train.warmup_steps=0", *small)
    threads = threading.active_count()
    run(config, data_folder, tmp_path)
    ahead, most = 0, 0
    for before, event in itertools.pairwise(events):
        ahead += (event == "launch") - (event == "record")
        most = max(most, ahead + 1)
        if event == "line":
            assert before == "record" and ahead + 1 == 0
        if event == "save":
            assert ahead + 1 == 0
    assert most == 2 and events.count("line") == 11 and events[-1] == "save"
    assert threading.active_count() == threads


def test_micro_steps_add_up_to_the_batch(
    few: Callable[..., Config], data_folder: Path, tmp_path: Path
) -> None:
    short = ("train.steps=3", "train.warmup_steps=0")
    run(few("train.micro_tokens=1024", *short), data_folder, tmp_path / "one")
    run(few("train.micro_tokens=256", *short), data_folder, tmp_path / "four")
    assert losses(tmp_path / "one") == pytest.approx(losses(tmp_path / "four"), abs=2e-3)


# The warm-up leaves no trace.
SHORT = ("train.warmup_steps=0", "train.steps=4")
CHANGES = [
    "train.batch_tokens=2048", "train.seq_len=32", "train.loop_from=0.9", "train.steps=5",
    "optim.warmdown_share=0.1", "optim.min_lr=0.9", "seed=1",
    "optim.row_beta=0.9",
    "data.shuffle_documents=true",
]  # fmt: skip


@pytest.fixture(scope="module")
def short(
    few: Callable[..., Config], data_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[float]:
    """Return the losses of a few steps."""
    folder = tmp_path_factory.mktemp("short") / "run"
    run(few(*SHORT), data_folder, folder)
    return losses(folder)


@pytest.mark.parametrize("change", CHANGES)
def test_every_training_setting_has_an_effect(
    short: list[float], few: Callable[..., Config], data_folder: Path, tmp_path: Path, change: str
) -> None:
    run(few(*SHORT, change), data_folder, tmp_path)
    found = losses(tmp_path)
    # More steps must change those that both have.
    assert found[: len(short)] != short


@pytest.mark.parametrize(
    "change",
    [
        ["optim.ema_share=0.5"],
        ["optim.ema_share=none", "optim.ema_decay=0.5"],
    ],
)
def test_average_settings_have_an_effect(
    few: Callable[..., Config], data_folder: Path, tmp_path: Path, change: list[str]
) -> None:
    fast = ("train.warmup_steps=0", "train.steps=3")
    trained = run(few(*fast), data_folder, tmp_path / "base")
    base, other = (
        trained.average.average,
        run(few(*fast, *change), data_folder, tmp_path / "changed").average.average,
    )
    assert not torch.equal(base["tok_emb.weight"], other["tok_emb.weight"])


def test_checkpoints_are_written_on_the_way(
    few: Callable[..., Config],
    data_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    saves = []
    save = Training.save
    monkeypatch.setattr(
        Training, "save", lambda self, log: (saves.append(self.step), save(self, log))
    )
    config = few("train.checkpoint_every_s=0.000001", "train.steps=3")
    run(config, data_folder, tmp_path)
    assert saves == [1, 2, 3, 3]


def test_a_loss_that_is_not_finite_stops_the_run(
    few: Callable[..., Config],
    data_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = few("train.warmup_steps=0", "train.steps=200", "train.checkpoint_every_s=1e-6")
    step = Training._advance

    def poison(self: Training, multiplier: float, number: int) -> tuple[Tensor, Tensor]:
        if number == 3:
            with torch.no_grad():
                self.model.tok_emb.weight.fill_(math.nan)
        return step(self, multiplier, number)

    monkeypatch.setattr(Training, "_advance", poison)
    with pytest.raises(UserError, match=r"loss became nan at step 3 \(1.5% of the run.*lower"):
        run(config, data_folder, tmp_path)
    assert load_checkpoint(tmp_path / CHECKPOINT)[1]["step"] == 3
    assert len(losses(tmp_path)) == 3


def test_a_gradient_that_is_not_finite_stops_the_run(
    few: Callable[..., Config],
    data_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The loss of that step is sound, but its update would ruin the weights."""
    forward, calls = GPT.forward, itertools.count()

    def failing(self: GPT, ids_BT: Tensor, targets_BT: Tensor) -> Tensor:
        loss = forward(self, ids_BT, targets_BT)
        if next(calls) == 2:
            loss.register_hook(lambda grad: grad * math.inf)
        return loss

    monkeypatch.setattr(GPT, "forward", failing)
    config = few("train.warmup_steps=0", "train.micro_tokens=1024", "train.checkpoint_every_s=1e-6")
    with pytest.raises(UserError, match=r"gradient norm became (nan|inf) at step 2"):
        run(config, data_folder, tmp_path)
    assert load_checkpoint(tmp_path / CHECKPOINT)[1]["step"] == 2


def test_resume_refuses_another_configuration(
    few: Callable[..., Config], data_folder: Path, tmp_path: Path
) -> None:
    run(few("train.steps=2"), data_folder, tmp_path)
    with pytest.raises(UserError, match="another configuration"):
        run(few("train.steps=3"), data_folder, tmp_path, resume=True)


def test_packages_that_are_imported_after_training_are_asked_for_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    require_packages()
    found = importlib.util.find_spec
    absent = lambda name: None if name == "matplotlib" else found(name)  # noqa: E731
    monkeypatch.setattr("importlib.util.find_spec", absent)
    with pytest.raises(UserError, match="'matplotlib' is missing; install Fairway"):
        require_packages()


def test_preflight_counts_text_disk_and_memory(
    tiny: Callable[..., Config],
    data_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shards = text_of(data_folder).shards
    short = [shards[0][:500]]
    with pytest.raises(UserError, match=r"holds 7 sequences of 64 tokens and one\s+step needs 16"):
        preflight(tiny(), short, tmp_path, 1000, CPU)
    with pytest.raises(UserError, match="disk has .* free and checkpoints need"):
        preflight(tiny(), shards, tmp_path, 10**14, CPU)
    monkeypatch.setattr("fairway.train.preflight.host_room", lambda: Room(10**6))
    with pytest.raises(UserError, match="of memory are needed and 1.00 MB are free"):
        preflight(tiny(), shards, tmp_path, 1000, CPU)
    # A micro-batch too large for a GPU is halved, so that one sequence decides: 1.92 MB of
    # activations, where all sixteen would take 30.
    monkeypatch.setattr("fairway.train.preflight._device_memory", lambda: 2 * 10**6)
    gpu = replace(CPU, device="cuda")
    preflight(tiny("train.micro_tokens=1024"), shards, tmp_path, 1000, gpu)
    with pytest.raises(UserError, match="and 2.00 MB are free; take a smaller model"):
        preflight(tiny("train.micro_tokens=1024"), shards, tmp_path, 10**4, gpu)


def test_signals_are_given_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with stop_requested() as stop:
        signal.raise_signal(signal.SIGTERM)
        assert stop.is_set()
    assert signal.getsignal(signal.SIGTERM) is before
