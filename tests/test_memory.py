"""Memory is planned: what a GPU lacks lets less go together, with the same sums, and is told."""

import mmap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import tiny as small
import torch
from damage import Cli
from small_run import FEW
from torch import Tensor

from fairway.base import memory as base_memory
from fairway.base.files import read_json
from fairway.base.memory import begin_peak, peak_bytes
from fairway.config.settings import Config, ScoreConfig, TttConfig
from fairway.data.folder import DataFolder
from fairway.machine.plan import Plan
from fairway.machine.ranks import Ranks
from fairway.model import need
from fairway.model.gpt import GPT
from fairway.pipeline import memory
from fairway.pipeline.memory import Watch, longest_windows, plan_lines, planned
from fairway.quantise import calibrate
from fairway.quantise.calibrate import collect_hessians
from fairway.recipes import recipe
from fairway.score import halving, sgd, sliding
from fairway.score.adapting import Size, rounded
from fairway.score.documents import batches, documents
from fairway.score.evaluation import Evaluation
from fairway.score.halving import Halving
from fairway.score.ledger import Score, Text
from fairway.score.sgd import evaluate_sgd
from fairway.score.sliding import evaluate_frozen
from fairway.train import loop
from fairway.train.loop import TrainingText, train
from fairway.train.micro import divisors, micro_batch, training_need
from fairway.train.steps import STEPS, read_steps

CPU = Plan("cpu", "float32", "highest", 1, "plain")
GPU = Plan("cuda", "bfloat16", "high", 1, "flash", "fused")
SCORE = ScoreConfig(seq_len=16, stride=4, batch_windows=6, check_positions=10, truncate=False)
Tiny = Callable[..., Config]


# ---------------------------------------------------------------------------------------------
# Training


def losses(config: Config, data: Path, folder: Path) -> tuple[int, list[float], list[str]]:
    folder.mkdir()
    source, said = DataFolder.open(data), list[str]()
    text = TrainingText(source.train_shards(), source.bytes_per_token)
    done = train(config, CPU, Ranks(), text, folder, lambda model: 1000, said.append)
    return done.rows, [record["loss"] for record in read_steps(folder / STEPS)], said


def test_training_takes_the_largest_micro_batch_that_fits(
    tiny: Tiny, data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A divisor of the step's sequences, found before any memory is short; the same sums."""
    config = tiny(*FEW, "train.batch_tokens=1536", "train.micro_tokens=768", "train.steps=3")
    wanted = training_need(config, CPU)
    free = (wanted.fixed + 5.5 * wanted.each) / 0.92
    monkeypatch.setattr(loop, "free_bytes", lambda device: free)
    rows, found, said = losses(config, data_folder, tmp_path / "short")
    assert rows == 4 and not [text for text in said if "out of memory" in text]
    monkeypatch.undo()
    few = replace(config, train=replace(config.train, micro_tokens=4 * 64))
    assert (rows, found) == losses(few, data_folder, tmp_path / "few")[:2]
    rows, ample, _ = losses(config, data_folder, tmp_path / "ample")
    assert rows == 12 and ample == pytest.approx(found, rel=1e-4)


def test_the_narrowest_device_decides(tiny: Tiny) -> None:
    """Every rank asks in the same order, and takes what all of them can."""
    config = tiny("train.batch_tokens=3072", "train.micro_tokens=1536")
    wanted = training_need(config, CPU, 2)
    other = 3
    ranks = SimpleNamespace(world=2, any=lambda flag: (asked() > other) or flag)
    counts = iter(divisors(24, 24))

    def asked() -> int:
        return next(counts)

    free = (wanted.fixed + 7 * wanted.each) / 0.92
    assert micro_batch(config, CPU, cast(Ranks, ranks), free) == (24, 3)
    assert divisors(24, 12) == [12, 8, 6, 4, 3, 2, 1] and divisors(7, 5) == [1]


# ---------------------------------------------------------------------------------------------
# Scoring and packing


def text(tokens: int = 91) -> Text:
    ids = np.random.default_rng(0).integers(2, 260, tokens)
    return Text(ids, np.ones(tokens - 1, np.int64), tokens - 1, 260)


def alive() -> GPT:
    model = small.alive()
    model.set_compute(torch.float32, "plain")
    return model


class Batches:
    """Hears how many rows a model is given."""

    def __init__(self, model: GPT, name: str) -> None:
        self.rows: list[int] = []
        given = getattr(model, name)

        def heard(ids_BT: Tensor, *rest: Tensor) -> Any:
            self.rows.append(len(ids_BT))
            return given(ids_BT, *rest)

        setattr(model, name, heard)


def short(model: GPT, rows: float, T: int, learn: bool = False) -> float:
    """Return memory that so many rows of a model's own take, as it is planned."""
    sums = need.learning_bytes if learn else need.passing_bytes
    return rows * T * sums(model.config, need.way_of(model), model.looping, T) / 0.92


@pytest.mark.parametrize("slides", [True, False])
@pytest.mark.parametrize("rows", [0.2, 1.5, 4.1])
def test_windows_go_in_parts_with_the_same_account(
    rows: float, slides: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Events stay what they are: the ledger's account does not tell of the parts."""

    def scored(free: float) -> tuple[list[int], Score]:
        model = alive()
        limit = free and short(model, free, 16)
        monkeypatch.setattr(sliding, "free_bytes", lambda device: limit or float("inf"))
        heard = Batches(model, "hidden")
        return heard.rows, evaluate_frozen(model, Evaluation(text(), SCORE), sliding=slides)

    (whole, ample), (parts, found) = scored(0.0), scored(rows)
    assert max(whole) == 6 and max(parts) == max(1, int(rows))
    assert found.nats == pytest.approx(ample.nats, rel=1e-6)
    assert (found.events, found.windows) == (ample.events, ample.windows)


def test_sequences_learn_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient of a step is the same sum; a coder's is never divided."""
    ttt = TttConfig(method="sgd", chunk_tokens=64, lr=0.01, epochs=1)

    def scored(free: float) -> tuple[list[int], float]:
        model = alive()
        limit = short(model, free, 16, learn=True) + need.weight_bytes(model.config)
        monkeypatch.setattr(sgd, "free_bytes", lambda device: limit)
        heard = Batches(model, "forward")
        return heard.rows, evaluate_sgd(model, Evaluation(text(200), SCORE, ttt)).nats

    (whole, ample), (parts, found) = scored(99.0), scored(1.5)
    assert max(whole) == 4 and max(parts) == 1
    assert found == pytest.approx(ample, rel=1e-5)
    model = alive()
    learner = sgd.Sgd(model, ttt, 16, fixed=True)
    assert learner._at_once() == sgd.ROWS_AT_ONCE


def test_documents_are_divided_before_memory_is_short(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By what a row takes twice over: as it is, and as it is recorded; the first chunk included."""
    given: list[int] = []

    def log_probs(room: range, ids_BT: Tensor, *rest: object) -> Tensor:
        given.append(len(ids_BT))
        return ids_BT[:, :, None].double()

    nothing = SimpleNamespace(
        log_probs=log_probs, forget=lambda: None, release=lambda: False,
        size=lambda rows, most, first, end, seq_len: Size(rows, end, end - first),
    )  # fmt: skip
    monkeypatch.setattr(halving, "free_bytes", lambda device: 2 * 10.0 * 6 * 3 * 1.2 / 0.92)
    way = Halving(cast(Any, nothing), 8, torch.device("cpu"), False, lambda T, C: 10.0 * T)
    ids_BT = torch.zeros(8, 6, dtype=torch.long)
    way.log_probs(ids_BT, (torch.empty(0), torch.empty(0)), 0)
    # 8, 4, 2: what fits is three, and rows are halved.
    assert given == [2, 2, 2, 2]
    assert "for 8 documents at a time: continuing with 4" in capsys.readouterr().err


def test_sizes_that_kernels_round_up_are_chosen_by(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Seven rows of 70 are computed as eight of 80: no fewer are asked of the memory."""
    asked: list[tuple[int, int]] = []

    def row_bytes(length: int, chunk: int) -> float:
        asked.append((length, chunk))
        return 1.0

    way = cast(Any, SimpleNamespace(size=rounded, release=lambda: False))
    choice = Halving(way, 12, torch.device("cpu"), False, row_bytes)
    choice._ids_BT = torch.zeros(7, 70, dtype=torch.long)
    choice._rope, choice._first = (torch.empty(256), torch.empty(256)), 62
    told = [2 * 1.125 * count / 0.92 * 1.001 for count in (8, 7)]
    for free, at_once in zip(told, (12, 6), strict=True):
        monkeypatch.setattr(halving, "free_bytes", lambda device, free=free: free)
        choice.begin()
        choice._choose()
        assert choice.at_once == at_once
    assert asked == [(80, 16), (80, 16)]
    assert "12 documents at a time: continuing with 6" in capsys.readouterr().err


def test_calibration_goes_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = torch.randint(0, 260, (7, 16), generator=torch.Generator().manual_seed(0))
    model, names = alive(), ["blocks.1.mlp.fc.weight", "tok_emb.weight"]
    whole = collect_hessians(model, [ids], names)
    limit = short(model, 2.5, 16)
    monkeypatch.setattr(calibrate, "free_bytes", lambda device: limit)
    heard = Batches(model, "hidden")
    parts = collect_hessians(model, [ids], names)
    assert heard.rows == [2, 2, 2, 1]
    for name in names:
        torch.testing.assert_close(parts[name], whole[name], rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------------------------------------
# What is told


@pytest.mark.parametrize("free_gb", [79.2, 23.8, 11.0])
@pytest.mark.parametrize("name", ["best", "best_8", "pr1858", "pr1493"])
def test_published_recipes_fit_cards(name: str, free_gb: float) -> None:
    """Every stage on 80 GB and on 24, and on 12 with less at a time; a line each."""
    config = recipe(name)
    for stage, plan in planned(config, GPU, free_gb * 1e9).items():
        lora = stage == "score.ttt" and config.ttt.method == "lora"
        if not (lora and free_gb < 20):
            assert plan.need.at(plan.count) <= free_gb * 1e9, stage
    lines = plan_lines(config, GPU, free_gb * 1e9)
    assert len(lines) == 4
    few = "24" if name == "best" else "16"
    training = {79.2: "48 sequences", 23.8: "48", 11.0: f"{few} sequences at a time instead"}
    assert lines[0].startswith("training needs about") and training[free_gb] in lines[0]


def test_the_model_beside_adapters_keeps_keys_and_values() -> None:
    """In scoring for every document, and in a proof for every stream."""
    base = recipe("best")
    alone = replace(base, ttt=replace(base.ttt, lora_frozen_share=0.0))
    alone = replace(alone, prove=replace(alone.prove, method="lora", bytes=1000))
    both = replace(alone, ttt=replace(alone.ttt, lora_frozen_share=0.4))
    kept = need.cached_bytes(base.model, GPU.way(), True, base.score.seq_len)
    without, beside = (planned(config, GPU) for config in (alone, both))
    rows = base.ttt.lora_documents
    assert beside["score.ttt"].need.fixed == without["score.ttt"].need.fixed + rows * kept
    proofs = [stages["proof"].need for stages in (without, beside)]
    assert proofs[1].each == proofs[0].each + kept
    for name in without.keys() - {"score.ttt", "proof"}:
        assert beside[name].need == without[name].need


def test_the_recipe_for_small_cards_leaves_half_of_one_free() -> None:
    plans = planned(recipe("small"), GPU, 23.8e9)
    for stage, plan in plans.items():
        assert plan.need.at(plan.count) < 12.5e9, stage
    assert plans["train"].count * 2048 == recipe("small").train.micro_tokens


@pytest.mark.parametrize("seed", range(4))
def test_the_widest_step_of_documents(seed: int) -> None:
    """Beside the steps that the scorer takes."""
    draw = np.random.default_rng(seed)
    ids = draw.integers(2, 260, 700)
    ids[draw.choice(700, 12, replace=False)] = 1
    ttt = TttConfig(method="lora", lora_documents=4, lora_chunks="16")
    steps = [
        len(step.rows) * min(step.end, 64)
        for batch in batches(documents(ids, 699), ttt, 64)
        for step in batch.steps
    ]
    found = longest_windows(ttt, 64, ids)
    assert max(steps) <= 4 * found < max(steps) + 4
    # Kernels compute 4 of 3 rows never more than 4, and 96 of 65 positions.
    rounds = [
        size.rows * size.length
        for batch in batches(documents(ids, 699), ttt, 256)
        for step in batch.steps
        for size in [rounded(len(step.rows), 4, max(0, step.end - 16), min(step.end, 256), 256)]
    ]
    wide = longest_windows(ttt, 256, ids, fused=True)
    assert max(rounds) <= 4 * wide < max(rounds) + 4


def test_a_stage_on_a_gpu_tells_what_it_needs(
    tiny: Tiny, smoke_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    for name, value in (("free_now", 8e9), ("begin_peak", None), ("peak_bytes", 123)):
        monkeypatch.setattr(memory, name, lambda device, value=value: value)
    run = SimpleNamespace(plan=GPU, ranks=Ranks(), say=said.append, validation=None)
    watch = Watch(tiny("ttt.method=sgd"), "cuda")
    assert watch.done("train", cast(Any, run), lambda: {"a": 1}) == {"a": 1}
    assert len(said) == 1 and said[0].startswith("training needs about 0.0")
    assert said[0].endswith("GB of 8.0 GB: 8 sequences at a time")
    assert watch.facts["peak_bytes"] == 123 and (watch.facts["need_bytes"] or 0) > 1e5
    # What runs no model of chosen amounts has a peak alone.
    watch.done("baselines", cast(Any, run), lambda: {})
    assert len(said) == 1 and watch.facts == {"need_bytes": None, "peak_bytes": 123}


def test_results_tell_what_stages_took(smoke_run: Path) -> None:
    found = read_json(smoke_run / "results.json")["memory"]
    assert {"train", "pack", "score.sliding", "proof", "audit"} <= found.keys()
    for name, took in found.items():
        assert took["peak_bytes"] > 50e6, name
    assert found["train"]["need_bytes"] > found["score.sliding"]["need_bytes"] > 0
    assert found["baselines"]["need_bytes"] is None


def test_a_dry_run_tells_the_plan(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fairway.bundle.build.bundle_bytes", lambda config: 20_000)
    told = cli("run", "smoke", "--dry-run", "--set", "runtime.device=cpu", "--json").json
    assert told["memory"][0].startswith("training needs about")
    assert told["memory"][0].endswith("GB: 8 sequences at a time")
    assert len(told["memory"]) == 5


def test_a_peak_is_seen_and_begins_anew() -> None:
    begin_peak("cpu")
    before = peak_bytes("cpu")
    # Large beside what a process full of other tests takes meanwhile: 100 MB were seen.
    with mmap.mmap(-1, 600_000_000) as block:
        for _ in range(600):
            block.write(bytes(1_000_000))
        assert 450e6 < peak_bytes("cpu") - before < 1200e6
    if base_memory._STATUS.exists():
        begin_peak("cpu")
        assert peak_bytes("cpu") < before + 300e6
