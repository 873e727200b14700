"""Bad run folders, checkpoints, replays and disks: one sentence, exit code 2, nothing lost."""

import errno
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from damage import ARTIFACT, Call, Damage, Place, flip, halve, refused, remove, rewrite, untouched
from small_run import sample_little
from torch import Tensor

from fairway.base.room import Room
from fairway.data.documents import Document
from fairway.data.folder import DataFolder
from fairway.model.gpt import GPT
from fairway.pipeline import folder as stages
from fairway.pipeline.folder import MEMORY, RunFolder
from fairway.train import loop as train
from fairway.train import preflight
from fairway.train.checkpoint import load_checkpoint, save_checkpoint
from fairway.train.muon import Optimisers
from fairway.train.steps import STEPS, read_steps

pytestmark = pytest.mark.usefixtures("evidence_at_once")


@pytest.fixture(autouse=True)
def _samples(monkeypatch: pytest.MonkeyPatch) -> None:
    sample_little(monkeypatch)


# ---------------------------------------------------------------------------------------------
# Run folders


def edit_memory(place: Place) -> None:
    """Improve a score by hand."""
    rewrite(f"run/{MEMORY}", lambda data: data.replace(b'"bpb": ', b'"bpb": 1', 1))(place)


RUNS = [
    (rewrite(f"run/{MEMORY}", halve), "score run", "run.json is not valid JSON"),
    (rewrite(f"run/{MEMORY}", lambda data: b"{}"), "score run", "run.json has schema None"),
    (rewrite(f"run/{MEMORY}", flip(0.5)), "report run", "run.json"),
    (edit_memory, "report run", "run.json is damaged"),
    (remove("run/weights.safetensors"), "pack run", "weights.safetensors does not exist"),
    (remove(ARTIFACT), "score run", "artifact.fwy does not exist; run `fairway pack`"),
    (remove("run/steps.jsonl"), "report run", "run"),
    (rewrite("run/weights.safetensors", halve), "pack run", "run `fairway run smoke --out run"),
    (rewrite("run/weights.safetensors", flip(0.9)), "pack run", "run `fairway run smoke --out run"),
    (rewrite(ARTIFACT, flip(0.5)), "score run", "run `fairway pack run`"),
    (lambda place: shutil.rmtree(place / "data"), "score run", "there is no data folder data"),
]


@pytest.mark.parametrize(("damage", "line", "told"), RUNS)
def test_damaged_runs(
    place: Place, call: Call, data_folder: Path, damage: Damage, line: str, told: str
) -> None:
    # The fixture's run remembers where its data was; here it is beside it.
    folder = RunFolder(place / "run")
    config = folder.memory["config"]
    folder.remember("config", {**config, "data": {**config["data"], "source": "data"}})
    damage(place)
    untouched(place, call, line, told)


STALE = [
    ("pack run --set model.dim=128", "run `fairway train`"),
    ("pack run --set train.steps=99", "run `fairway train`"),
    ("score run --set seed=7", "run `fairway train`"),
    ("score run --set quant.matrix_bits=5", "run `fairway pack`"),
    ("score run --set score.stride=32", "run `fairway pack`"),
]


@pytest.mark.parametrize(("line", "told"), STALE)
def test_settings_that_an_earlier_stage_was_not_made_with(
    place: Place, call: Call, line: str, told: str
) -> None:
    untouched(place, call, line, told)


def test_another_machine_plan_is_refused_like_any_setting(place: Place, call: Call) -> None:
    untouched(place, call, "pack run --set runtime.attention=sdpa", "run `fairway train`")


def test_packing_never_builds_the_text_anew(
    place: Place, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = list(DataFolder.open(place / "data").last_train_documents())[::-1]
    documents = [Document(str(number), text) for number, text in enumerate(texts)]
    monkeypatch.setattr("fairway.pipeline.text.embedded_documents", lambda: documents)
    embedded = "--set data.source=embedded --set train.steps=1"
    assert call(f"train smoke --out new SMOKE {embedded}") == (0, "")
    untouched(place, call, "pack new --set model.vocab_size=295", "run `fairway train`")


@pytest.mark.long
def test_scores_of_another_artifact_are_not_reported(place: Place, call: Call) -> None:
    assert call("pack run --set quant.matrix_bits=5") == (0, "")
    untouched(place, call, "report run", "run `fairway score run` first")
    assert call("score run") == (0, "")
    assert call("report run") == (0, "")


def test_a_folder_that_another_process_writes(place: Place, call: Call) -> None:
    told = "run is being written by another process"
    with RunFolder(place / "run").locked():
        for line in ("run smoke --out run SMOKE", "pack run", "score run", "report run"):
            untouched(place, call, line, told)


@contextmanager
def stop_at_once() -> Iterator[threading.Event]:
    """Stand in for a signal that comes during the first step."""
    event = threading.Event()
    event.set()
    yield event


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return where the first `stopped` leaves its folder for the others."""
    return tmp_path_factory.mktemp("stopped") / "new"


@pytest.fixture
def stopped(place: Place, call: Call, kept: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of a training that was stopped after its first step."""
    if not kept.exists():
        with monkeypatch.context() as patch:
            patch.setattr(train, "stop_requested", stop_at_once)
            code, errors = call("train smoke --out new SMOKE")
        assert (code, errors) == (130, "fairway: stopped after step 1; --resume continues\n")
        (place / "new").rename(kept)
    return Path(shutil.copytree(kept, place / "new"))


def test_an_unfinished_training(place: Place, call: Call, stopped: Path) -> None:
    told = "new holds an unfinished training; add --resume to continue it or --restart"
    refused(call, "train smoke --out new SMOKE", told)
    refused(call, "run smoke --out new SMOKE", told)
    for line in ("pack new", "score new", "audit new", "report new"):
        refused(call, line, "the training of new is unfinished; run `fairway run smoke --out new ")
    other = "train smoke --out new SMOKE --set optim.matrix_lr=0.01 --resume"
    refused(call, other, "belongs to another configuration")
    assert call("train smoke --out new SMOKE --resume") == (0, "")


def test_starting_over(place: Place, call: Call, stopped: Path) -> None:
    assert call("train smoke --out new SMOKE --restart") == (0, "")
    assert not (stopped / train.CHECKPOINT).exists()


def test_resuming_with_what_changes_no_result(place: Place, call: Call, stopped: Path) -> None:
    quiet = "--set train.checkpoint_every_s=9 --set quant.matrix_bits=5"
    assert call(f"train smoke --out new SMOKE --resume {quiet}") == (0, "")


def test_what_is_discarded_cannot_be_resumed(
    place: Place, call: Call, stopped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(
            GPT, "forward", lambda model, *_: torch.nan * sum(w.sum() for w in model.parameters())
        )
        refused(call, "train smoke --out new SMOKE --restart", "the loss became nan at step 0")
    assert call("train smoke --out new SMOKE --resume") == (0, "")
    assert len(read_steps(stopped / STEPS)) == 2


def without(key: str) -> Damage:
    """Return a damage: a checkpoint that is sound, but is not one of a training."""

    def damage(place: Place) -> None:
        tensors, facts = load_checkpoint(place / "new" / train.CHECKPOINT)
        facts.pop(key)
        save_checkpoint(place / "new" / train.CHECKPOINT, tensors, facts)

    return damage


def without_tensors(place: Place) -> None:
    _, facts = load_checkpoint(place / "new" / train.CHECKPOINT)
    save_checkpoint(place / "new" / train.CHECKPOINT, {"x": torch.zeros(1)}, facts)


CHECKPOINTS = [
    rewrite(f"new/{train.CHECKPOINT}", halve),
    rewrite(f"new/{train.CHECKPOINT}", lambda data: b"\xff" * 64),
    rewrite(f"new/{train.CHECKPOINT}", lambda data: b""),
    without("config"),
    without("loader"),
    without_tensors,
]


@pytest.mark.parametrize("damage", CHECKPOINTS)
def test_a_damaged_checkpoint(place: Place, call: Call, stopped: Path, damage: Damage) -> None:
    damage(place)
    refused(call, "train smoke --out new SMOKE --resume", "is a damaged checkpoint")


def test_step_records_that_a_crash_cut_short_are_no_obstacle(
    place: Place, call: Call, stopped: Path
) -> None:
    with (stopped / "steps.jsonl").open("a") as stream:
        stream.write('{"step": 1, "prog')
    assert call("train smoke --out new SMOKE --resume") == (0, "")


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (remove("run/steps.jsonl"), "has no recorded training to replay"),
        (rewrite("run/steps.jsonl", lambda data: b""), "steps.jsonl is not what was written"),
        (rewrite("run/steps.jsonl", lambda data: b"{}\n"), "steps.jsonl is not what was written"),
        (rewrite("run/steps.jsonl", flip(0.5)), "steps.jsonl is not what was written"),
        (remove("run/run.json"), "run has no finished stage yet"),
        (remove("run/run.json", "run/.lock"), "run is not a run folder"),
    ],
)
def test_nothing_to_replay(place: Place, call: Call, damage: Damage, told: str) -> None:
    damage(place)
    replay = "--set train.clock=replay --set train.replay=run"
    refused(call, f"train smoke --out new SMOKE {replay}", told)


def test_a_loss_that_is_not_a_number(
    place: Place, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward, calls = GPT.forward, iter(range(100))

    def failing(model: GPT, *batch: Tensor) -> Tensor:
        loss: Tensor = forward(model, *batch)
        # Two micro-steps make a step: the third step fails.
        return loss * (torch.nan if next(calls) >= 4 else 1.0)

    monkeypatch.setattr(GPT, "forward", failing)
    told = "the loss became nan at step 2 (20.0% of the run"
    # Nothing else computes a loss before it.
    sets = "--set train.steps=10 --set ttt.method=off"
    refused(call, f"train smoke --out new SMOKE {sets}", told)
    assert not (place / "new" / "weights.safetensors").exists()


def test_a_last_step_that_ruins_the_weights(
    place: Place, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody computes a loss after the last step, so the weights themselves must be looked at."""
    step = Optimisers.step

    def ruining(optimisers: Optimisers, multiplier: float, number: int) -> Tensor:
        norm = step(optimisers, multiplier, number)
        for weight in optimisers.parameters if number == 1 else []:
            weight.data.fill_(torch.nan)
        return norm

    monkeypatch.setattr(Optimisers, "step", ruining)
    refused(call, "run smoke --out new SMOKE", "not finite")
    assert not (place / "new" / "artifact.fwy").exists()


# ---------------------------------------------------------------------------------------------
# Disks


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("line", "file"),
    [
        ("train smoke --out new SMOKE", "new/run.json"),
        ("pack run --set quant.matrix_bits=5", "run/tokenizer.model"),
        ("report run", "run/results.json"),
    ],
)
def test_a_full_disk(
    place: Place, call: Call, monkeypatch: pytest.MonkeyPatch, line: str, file: str
) -> None:
    monkeypatch.setattr(os, "fsync", full)
    untouched(place, call, line, f"the disk is full ({file}); free some space")


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (errno.EDQUOT, "the disk is full (run/results.json); free some space and run the same"),
        (errno.EFBIG, "may write (run/results.json); raise the limit (ulimit -f) and run the same"),
        (errno.EROFS, "Read-only file system (run/results.json); name another place with --out"),
        (errno.EIO, "Input/output error (run/results.json)"),
    ],
)
def test_other_reasons_not_to_write(
    place: Place, call: Call, monkeypatch: pytest.MonkeyPatch, number: int, told: str
) -> None:
    def failing(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", failing)
    untouched(place, call, "report run", told)


@pytest.mark.parametrize("name", ["checkpoint.safetensors", "weights.safetensors"])
def test_a_disk_that_fills_up_during_training(
    place: Place, call: Call, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    save = save_checkpoint

    def fill(path: Path, *more: Any) -> None:
        if path.name == name:
            monkeypatch.setattr(os, "fsync", full)
        save(path, *more)

    for module in ("fairway.train.loop", "fairway.pipeline.making"):
        monkeypatch.setattr(f"{module}.save_checkpoint", fill)
    refused(call, "train smoke --out new SMOKE", f"the disk is full (new/{name})")
    assert not (place / "new" / name).exists()
    assert not list((place / "new").glob("*.part")) + list((place / "new").glob(".*.part"))


def test_a_full_disk_while_building_data(
    place: Place, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "".join(f"One word and number {n * n} makes text. " for n in range(300))
    (place / "text.txt").write_text(text)
    (place / "other.txt").write_text("".join(reversed(text)))
    monkeypatch.setattr(os, "fsync", full)
    line = "data build text.txt --validation other.txt --vocab-size 300 --out new"
    untouched(place, call, line, "cannot write the data folder new: the disk is full; free")


def test_a_disk_too_small_for_the_run(
    place: Place, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1_000_000))
    refused(call, "train smoke --out new SMOKE", "has 1.00 MB free and checkpoints need")
    assert not (place / "new" / "steps.jsonl").exists()


def test_a_training_that_cannot_be_recorded_is_not_lost(
    place: Place, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = stages.write_json

    def fill(path: Path, value: Any) -> None:
        if "train" in value["stages"]:
            full()
        write(path, value)

    with monkeypatch.context() as patch:
        patch.setattr(stages, "write_json", fill)
        refused(call, "train smoke --out new SMOKE", "the disk is full")
    with monkeypatch.context() as patch:
        patch.setattr(train.Training, "_advance", full)
        assert call("train smoke --out new SMOKE --resume") == (0, "")


def test_a_model_too_large_for_the_memory(
    place: Place, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    def built(*_: object) -> GPT:
        raise AssertionError("too late")

    monkeypatch.setattr(preflight, "host_room", lambda: Room(1_000_000))
    monkeypatch.setattr(train, "build", built)
    # A GPU's memory has another bound.
    on_cpu = "train smoke --out new SMOKE --set runtime.device=cpu"
    refused(call, on_cpu, "1.00 MB are free; lower train.micro_tokens")
