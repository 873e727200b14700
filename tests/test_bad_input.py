"""Bad input from the command line: one sentence, exit code 2, nothing half-written.

Every case is a row: what is damaged, the command, and what its sentence must say.
"""

import errno
import os
import shutil
import signal
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from fairway import cli, preflight, stages, train
from fairway.checkpoint import load_checkpoint, save_checkpoint
from fairway.data.documents import Document
from fairway.data.folder import DataFolder
from fairway.model.gpt import GPT
from fairway.optim.muon import Optimisers
from fairway.stages import MEMORY, RunFolder

FIXED = "--set runtime.threads=1 --set runtime.dtype=float32 --set runtime.matmul=highest"
SHORT = "--set train.steps=2 --set train.warmup_steps=0"


@dataclass(frozen=True)
class Place:
    """A folder with copies of everything a command reads, free to be damaged."""

    path: Path
    settings: str

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def words(self, line: str) -> list[str]:
        """Return the arguments of a line, `SMOKE` being the settings of the tests' smoke run."""
        return line.replace("SMOKE", f"{self.settings} {SHORT}").split()


@pytest.fixture
def place(
    tmp_path: Path, data_folder: Path, smoke_run: Path, monkeypatch: pytest.MonkeyPatch
) -> Place:
    shutil.copytree(data_folder, tmp_path / "data")
    shutil.copytree(smoke_run, tmp_path / "run")
    (tmp_path / "text.txt").write_text("The model predicts a token.")
    (tmp_path / "empty.txt").touch()
    monkeypatch.chdir(tmp_path)
    settings = "--set data.source=data --set model.vocab_size=300 --set data.val_bytes=1500"
    return Place(tmp_path, f"{settings} {FIXED}")


Call = Callable[[str], tuple[int, str]]


@pytest.fixture
def call(place: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Call:
    """Return a function: run a command line, return its exit code and what it said on stderr."""

    def run(line: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["fairway", *place.words(line)])
        handler = signal.getsignal(signal.SIGTERM)
        capsys.readouterr()
        try:
            cli.main()
            code: Any = 0
        except SystemExit as ending:
            code = ending.code or 0
        finally:
            signal.signal(signal.SIGTERM, handler)
        return code, capsys.readouterr().err

    return run


def contents(folder: Path) -> dict[str, bytes]:
    """Return the bytes of every file below a folder but the locks, which mean nothing."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def refused(call: Call, line: str, told: str) -> None:
    """Assert that a command is refused in one sentence with exit code 2."""
    code, errors = call(line)
    assert code == 2, errors
    assert errors.startswith("fairway: ") and errors.endswith("\n"), errors
    assert errors.count("\n") == 1, errors
    assert told in errors


def untouched(place: Place, call: Call, line: str, told: str) -> None:
    """Assert that a command is refused and leaves every file as it was, and no new one."""
    before = contents(place.path)
    refused(call, line, told)
    assert contents(place.path) == before


# ---------------------------------------------------------------------------------------------
# Recipes, settings and options: refused before anything is made

WRONG_WORDS = [
    ("run smokey SMOKE", "unknown recipe 'smokey'; did you mean 'smoke'?"),
    ("run smoke --set train.step=3", "did you mean 'train.steps'?"),
    ("run smoke --set qk_gain=3", "did you mean 'model.qk_gain'?"),
    ("run smoke --set train.steps", "has no '='; write section.field=value"),
    ("run smoke --set train.steps=many", "train.steps must be a whole number, got 'many'"),
    ("run smoke --set train.steps=1.5", "train.steps must be a whole number"),
    ("run smoke --set optim.matrix_lr=nan", "optim.matrix_lr is not a number"),
    ("run smoke --set model.skips=maybe", "model.skips must be true or false"),
    ("run smoke --set train.steps=0", "train.steps is 0; it must be at least 1"),
    ("run smoke --set model.vocab_size=70000", "must be between 260 and 65535"),
    ("run smoke --set train.clock=sun", "choose one of wall, steps, replay"),
    ("run smoke --set model.num_heads=3", "does not divide into model.num_heads 3"),
    ("run smoke --set model.num_kv_heads=3", "not a multiple of model.num_kv_heads 3"),
    ("run smoke --set model.rope_dims=7", "model.rope_dims 7 must be even"),
    ("run smoke --set model.rope_dims=64", "at most the head width 32"),
    ("run smoke --set model.loop_last=9", "the recurrence runs over blocks 1 to 9"),
    ("run smoke --set score.stride=65", "score.stride 65 is longer than score.seq_len 64"),
    ("run smoke --set train.batch_tokens=1000", "not a multiple of train.seq_len 64"),
    ("run smoke --set train.micro_tokens=384", "not a multiple of train.micro_tokens 384"),
    ("run smoke --set train.clock=replay", "go together"),
    ("run smoke --set optim.ema_decay=0.9", "set exactly one of"),
    ("run demo --set train.reserve_s=200", "leaves nothing of train.budget_s"),
    ("run smoke --resume --restart", "choose one"),
    ("train smoke --resume --restart", "choose one"),
    ("run smoke --dry-run --set model.dim=63", "does not divide"),
    ("run smoke --out text.txt SMOKE", "text.txt is a file; name a folder with --out"),
    ("pack nowhere", "nowhere is not a run folder"),
    ("report data", "data is not a run folder"),
    ("score nowhere", "nowhere does not exist"),
    ("score data", "data is not a run folder"),
    ("score run text.txt", "run is a run folder, which has its own text"),
    ("score run/artifact.fwy", "name at least one text file"),
    ("score run/artifact.fwy text.txt --set score.stride=8", "only those of runtime can be set"),
    ("sample nowhere", "cannot read the artifact nowhere: No such file"),
    ("sample run --temperature -1", "generate needs"),
    ("sample run --tokens -1", "generate needs"),
    ("data build", "name text files to build from, or pass --embedded, but not both"),
    ("data build text.txt --embedded", "but not both"),
    ("data build text.txt --vocab-size 9", "model.vocab_size is 9; it must be between 260"),
    ("data build text.txt --val-share 0.9", "data.val_share is 0.9; it must be between"),
    ("data build text.txt --shard-tokens 0", "data.shard_tokens is 0; it must be at least 1000"),
    ("data show nowhere", "there is no data folder nowhere"),
    ("data show run", "no train shards"),
    ("data fetch --out run", "run holds something else than fetched data"),
]


@pytest.mark.parametrize(("line", "told"), WRONG_WORDS)
def test_wrong_words(place: Place, call: Call, line: str, told: str) -> None:
    line += f" {FIXED}" if line.startswith("sample") else ""
    untouched(place, call, line, told)


# ---------------------------------------------------------------------------------------------
# Text and data

Damage = Callable[[Place], object]


def rewrite(name: str, change: Callable[[bytes], bytes]) -> Damage:
    """Return a damage: the bytes of one file changed."""

    def damage(place: Place) -> None:
        (place / name).write_bytes(change((place / name).read_bytes()))

    return damage


def remove(*names: str) -> Damage:
    return lambda place: [(place / name).unlink() for name in names]


def both(*damages: Damage) -> Damage:
    return lambda place: [damage(place) for damage in damages]


def flip(at: float) -> Callable[[bytes], bytes]:
    """Return a change: one bit of the byte at a share of the length."""

    def change(data: bytes) -> bytes:
        index = min(int(at * len(data)), len(data) - 1)
        return data[:index] + bytes([data[index] ^ 1]) + data[index + 1 :]

    return change


def halve(data: bytes) -> bytes:
    return data[: len(data) // 2]


TRAIN, VAL = "data/fairway_train_000000.bin", "data/fairway_val_000000.bin"
TRAINS = [f"data/fairway_train_00000{n}.bin" for n in range(3)]
WITHOUT_RECORD = remove("data/manifest.json")
HOSTILE = b"\x0a\xff\xff\xff\xff\x0f" + b"x" * 64

DATA = [
    (remove(TRAIN), "is missing; build or fetch the data again"),
    (remove(*TRAINS), "no train shards"),
    (remove(VAL), "no val shards"),
    (remove("data/tokenizer.model"), "missing"),
    (rewrite(TRAIN, halve), "damaged or cut short"),
    (rewrite(TRAIN, lambda data: data[:100]), "a token shard has at least 1024"),
    (rewrite(TRAIN, lambda data: data + b"xx"), "damaged or cut short"),
    (rewrite(TRAIN, lambda data: b"GGUF" + data[4:]), "is not a token shard: its first word is"),
    (rewrite(TRAIN, lambda data: data[:4] + b"\2" + data[5:]), "is a token shard of version 2"),
    (rewrite(VAL, halve), "damaged or cut short"),
    (rewrite("data/manifest.json", halve), "manifest.json is not valid JSON"),
    (rewrite("data/manifest.json", lambda data: b"[]"), "manifest.json is damaged"),
    (rewrite("data/tokenizer.model", flip(0.5)), "tokenizer.model"),
    (rewrite("data/tokenizer.model", lambda data: HOSTILE), "not a usable SentencePiece model"),
    (
        both(WITHOUT_RECORD, rewrite("data/tokenizer.model", lambda data: HOSTILE)),
        "not a usable SentencePiece model",
    ),
    (both(remove(TRAIN), lambda place: (place / TRAIN).mkdir()), "Is a directory"),
]


@pytest.mark.parametrize(("damage", "told"), DATA)
def test_damaged_data(place: Place, call: Call, damage: Damage, told: str) -> None:
    damage(place)
    before = contents(place.path)
    refused(call, "run smoke --out new SMOKE", told)
    # The folder of the new run holds its settings, and no part of a result.
    after = contents(place.path)
    assert set(after) - set(before) <= {f"new/{MEMORY}", "new/steps.jsonl"}
    assert before.items() <= after.items()


def test_a_vocabulary_that_does_not_fit(place: Place, call: Call) -> None:
    told = "has 300 pieces, but model.vocab_size is 310; set model.vocab_size=300"
    refused(call, "train smoke --out new SMOKE --set model.vocab_size=310", told)


def foreign_ids(place: Place) -> None:
    """Put an id outside the vocabulary into each training shard, and forget the digests."""
    WITHOUT_RECORD(place)
    for name in TRAINS:
        rewrite(name, lambda data: data[:1024] + struct.pack("<H", 400) + data[1026:])(place)


@pytest.mark.parametrize(
    "line",
    [
        "data show data",
        "train smoke --out new SMOKE",
    ],
)
def test_ids_outside_the_vocabulary(place: Place, call: Call, line: str) -> None:
    foreign_ids(place)
    refused(call, line, "has token id 400, outside the vocabulary of 300")


def test_a_changed_shard_is_found_by_show(place: Place, call: Call) -> None:
    rewrite(TRAIN, flip(0.9))(place)
    untouched(place, call, "data show data", "is not the file that was recorded")


def test_validation_shorter_than_a_window(place: Place, call: Call) -> None:
    window = "--set score.truncate=true --set score.seq_len=4096"
    told = "but one window needs 4097; lower score.seq_len, set score.truncate=false"
    refused(call, f"run smoke --out new SMOKE {window}", told)
    assert not (place / "new" / "results.json").exists()


def test_validation_shorter_than_a_window_is_told_before_training(place: Place, call: Call) -> None:
    window = "--set score.truncate=true --set score.seq_len=8192 --set data.val_bytes=0"
    refused(call, f"run smoke --out new SMOKE {window}", "but one window needs 8193")
    assert not (place / "new" / "weights.safetensors").exists()


def test_training_text_shorter_than_a_step(place: Place, call: Call) -> None:
    longer = "--set train.batch_tokens=1048576 --set train.micro_tokens=1048576"
    refused(call, f"train smoke --out new SMOKE {longer}", "lower train.batch_tokens")


def test_a_sequence_longer_than_a_shard(place: Place, call: Call) -> None:
    longer = " ".join(f"--set train.{n}=16384" for n in ("seq_len", "batch_tokens", "micro_tokens"))
    refused(call, f"train smoke --out new SMOKE {longer}", "lower train.")


def lines(*texts: str) -> Damage:
    return lambda place: (place / "lines.jsonl").write_text("\n".join(texts))


def nothing(place: Place) -> None:
    """Damage nothing."""


CORPORA = [
    (nothing, "empty.txt", "there is no text"),
    (lines('{"text": " "}', '{"text": ""}'), "lines.jsonl", "there is no text"),
    (nothing, "text.txt", "cannot be split into training and validation"),
    (lambda place: (place / "folder").mkdir(), "folder", "no text in the folder folder"),
    (nothing, "nowhere.txt", "nowhere.txt does not exist"),
    (nothing, "run/artifact.fwy", "is of no known kind"),
    (rewrite("text.txt", lambda data: b"\xff\xfe" + data), "text.txt", "is not UTF-8"),
    (lines('{"text": "a"}', '{"text": '), "lines.jsonl", "lines.jsonl line 2 is not JSON"),
    (lines('{"words": "a"}'), "lines.jsonl", "has no text"),
    (nothing, "text.txt --tokenizer empty.txt", "not a usable SentencePiece model"),
    (nothing, "text.txt --tokenizer nowhere", "cannot read the tokenizer nowhere"),
    (nothing, "text.txt --validation text.txt", "overlap with the validation text"),
    (nothing, "text.txt --validation empty.txt", "no text in the validation documents"),
]


@pytest.mark.parametrize(("damage", "texts", "told"), CORPORA)
def test_text_that_nothing_can_be_built_from(
    place: Place, call: Call, damage: Damage, texts: str, told: str
) -> None:
    damage(place)
    untouched(place, call, f"data build {texts} --out new", told)


def test_a_folder_of_something_else_is_not_replaced(place: Place, call: Call) -> None:
    told = "run holds something else than Fairway data"
    untouched(place, call, "data build text.txt --out run", told)
    untouched(place, call, "data build text.txt --out text.txt", "text.txt is a file")


# ---------------------------------------------------------------------------------------------
# Artifacts

ARTIFACT = "run/artifact.fwy"


def claim_header(length: int) -> Callable[[bytes], bytes]:
    """Return a change: the header's length, which is the second word after the magic."""
    return lambda data: data[:12] + struct.pack("<I", length) + data[16:]


ARTIFACTS: list[tuple[Callable[[bytes], bytes], str]] = [
    *[(flip(at), "artifact.fwy: ") for at in (0.0, 0.0002, 0.001, 0.02, 0.5, 0.99, 1.0)],
    (lambda data: b"", "this is not a Fairway artifact"),
    (lambda data: data[:20], "the file ends after 20 bytes"),
    (halve, "its header speaks of"),
    (lambda data: data[:-1], "its header speaks of"),
    (lambda data: data + b"\0", "its header speaks of"),
    (claim_header(2**32 - 1), "the header claims 4294967295 bytes"),
    (claim_header(0), "the header is damaged"),
    (lambda data: data[:8] + b"\x09" + data[9:], "the format has version"),
]


@pytest.mark.parametrize(("change", "told"), ARTIFACTS)
def test_damaged_artifacts(
    place: Place, call: Call, change: Callable[[bytes], bytes], told: str
) -> None:
    rewrite(ARTIFACT, change)(place)
    untouched(place, call, f"score {ARTIFACT} text.txt {FIXED}", told)
    untouched(place, call, f"sample run {FIXED}", told)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (f"score {ARTIFACT} text.txt --tokenizer empty.txt", "not a usable SentencePiece model"),
        (f"score {ARTIFACT} text.txt --tokenizer nowhere", "cannot read the tokenizer nowhere"),
        (f"score {ARTIFACT} empty.txt", "the text is empty"),
        (f"score {ARTIFACT} nowhere.txt", "nowhere.txt does not exist"),
        (f"score {ARTIFACT} {ARTIFACT}", "is of no known kind"),
        ("score text.txt text.txt", "this is not a Fairway artifact"),
        ("sample run --prompt \u2581", "cannot be represented"),
        ("sample run --prompt \udcff", "half a character"),
    ],
)
def test_artifacts_with_other_files(place: Place, call: Call, line: str, told: str) -> None:
    untouched(place, call, f"{line} {FIXED}", told)


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
    (rewrite("run/weights.safetensors", halve), "pack run", "run `fairway train`"),
    (rewrite("run/weights.safetensors", flip(0.9)), "pack run", "run `fairway train`"),
    (rewrite(ARTIFACT, flip(0.5)), "score run", "run `fairway pack`"),
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
    texts = list(DataFolder.open(place / "data").train_documents())
    documents = [Document(str(number), text) for number, text in enumerate(texts)]
    monkeypatch.setattr("fairway.run.embedded_documents", lambda: documents)
    embedded = "--set data.source=embedded --set train.steps=1"
    assert call(f"train smoke --out new SMOKE {embedded}") == (0, "")
    untouched(place, call, "pack new --set model.vocab_size=295", "run `fairway train`")


def test_scores_of_another_artifact_are_not_reported(place: Place, call: Call) -> None:
    assert call("pack run --set quant.matrix_bits=5") == (0, "")
    untouched(place, call, "report run", "run `fairway score`")
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


@pytest.fixture
def stopped(place: Place, call: Call, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of a training that was stopped after its first step."""
    with monkeypatch.context() as patch:
        patch.setattr(train, "stop_requested", stop_at_once)
        code, errors = call("train smoke --out new SMOKE")
    assert (code, errors) == (130, "fairway: stopped after step 1; --resume continues\n")
    return place / "new"


def test_an_unfinished_training(place: Place, call: Call, stopped: Path) -> None:
    told = "new holds an unfinished training; add --resume to continue it or --restart"
    refused(call, "train smoke --out new SMOKE", told)
    refused(call, "run smoke --out new SMOKE", told)
    refused(call, "pack new", "weights.safetensors does not exist; run `fairway train`")
    refused(call, "report new", "has no finished 'train' stage yet")
    other = "train smoke --out new SMOKE --set optim.matrix_lr=0.01 --resume"
    refused(call, other, "belongs to another configuration")
    assert call("train smoke --out new SMOKE --resume") == (0, "")


def test_starting_over(place: Place, call: Call, stopped: Path) -> None:
    assert call("train smoke --out new SMOKE --restart") == (0, "")
    assert not (stopped / train.CHECKPOINT).exists()


def test_resuming_with_what_changes_no_result(place: Place, call: Call, stopped: Path) -> None:
    quiet = "--set train.log_every_s=9 --set train.checkpoint_every_s=9 --set quant.matrix_bits=5"
    assert call(f"train smoke --out new SMOKE --resume {quiet}") == (0, "")


def test_what_is_discarded_cannot_be_resumed(
    place: Place, call: Call, stopped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(GPT, "forward", lambda model, x, y: model.tok_emb.weight.sum() * torch.nan)
        refused(call, "train smoke --out new SMOKE --restart", "the loss became nan at step 0")
    refused(call, "train smoke --out new SMOKE --resume", "there is nothing to resume from")


def test_nothing_to_resume(place: Place, call: Call) -> None:
    refused(call, "train smoke --out new SMOKE --resume", "there is nothing to resume from")


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
    refused(call, "train smoke --out new SMOKE --resume", "is not a whole Fairway checkpoint")


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
        (rewrite("run/steps.jsonl", lambda data: b""), "holds no step records to replay"),
        (rewrite("run/steps.jsonl", lambda data: b"{}\n"), "holds no step records to replay"),
        (rewrite("run/steps.jsonl", lambda data: data[:-9]), "cannot be read as step records"),
        (remove("run/run.json"), "run is not a run folder"),
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
    refused(call, "train smoke --out new SMOKE --set train.steps=10", told)
    assert not (place / "new" / "weights.safetensors").exists()


def test_a_last_step_that_ruins_the_weights(
    place: Place, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody computes a loss after the last step, so the weights themselves must be looked at."""
    step = Optimisers.step

    def ruining(optimisers: Optimisers, multiplier: float, number: int) -> float:
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
        ("pack run --set quant.matrix_bits=5", "run/run.json"),
        ("report run", "run/results.json"),
    ],
)
def test_a_full_disk(
    place: Place, call: Call, monkeypatch: pytest.MonkeyPatch, line: str, file: str
) -> None:
    monkeypatch.setattr(os, "fsync", full)
    untouched(place, call, line, f"the disk is full ({file}); free some space")


@pytest.mark.parametrize("name", ["checkpoint.safetensors", "weights.safetensors"])
def test_a_disk_that_fills_up_during_training(
    place: Place, call: Call, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    save = save_checkpoint

    def fill(path: Path, *more: Any) -> None:
        if path.name == name:
            monkeypatch.setattr(os, "fsync", full)
        save(path, *more)

    for module in ("fairway.train", "fairway.run"):
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
    untouched(place, call, line, "cannot write the data folder new: No space left")


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

    monkeypatch.setattr(preflight, "_available_memory", lambda: 1_000_000)
    monkeypatch.setattr(train, "build", built)
    refused(call, "train smoke --out new SMOKE", "1.00 MB are free; lower train.micro_tokens")
