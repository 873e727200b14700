"""A training watched while it goes on: what sinks get, what that costs, and that no bit changes."""

import importlib.util
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from damage import Cli

from fairway.base.errors import UserError
from fairway.base.files import digest_file
from fairway.base.names import WEIGHTS
from fairway.config.settings import Config
from fairway.pipeline import live, sink
from fairway.pipeline.folder import RunFolder
from fairway.pipeline.live import Watching
from fairway.pipeline.run import Pipeline
from fairway.train.steps import STEPS, read_steps

Tiny = Callable[..., Config]


class Heard:
    """A sink that keeps what it is told, or fails."""

    def __init__(self, fails: bool = False) -> None:
        self.fails, self.steps, self.texts, self.closed = fails, {}, {}, 0

    def numbers(self, values: dict[str, float], step: int) -> None:
        if self.fails:
            raise OSError("the disk is full\nand more")
        self.steps.setdefault(step, {}).update(values)

    def text(self, name: str, text: str, step: int) -> None:
        self.texts[step] = name, text

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Heard]]:
    """Put sinks that listen in the place of both, and let every step be sent."""
    sinks = {"tensorboard": Heard(), "wandb": Heard()}
    monkeypatch.setattr(live, "TensorBoard", lambda folder: sinks["tensorboard"])
    monkeypatch.setattr(live, "WeightsAndBiases", lambda *rest: sinks["wandb"])
    monkeypatch.setattr(live, "EVERY_S", 0.0)
    monkeypatch.setattr(live, "SAMPLE_TOKENS", 8)
    return sinks


def trained(
    config: Config, folder: Path, watching: Watching | None, until: str = "train"
) -> tuple[Pipeline, list[str]]:
    said: list[str] = []
    pipeline = Pipeline(config, RunFolder(folder), said.append, watching=watching)
    with pipeline.writing():
        if until == "train":
            pipeline.train()
        else:
            pipeline.screen(until)
    return pipeline, said


@pytest.mark.long
def test_sinks_get_every_step_the_scores_and_samples(
    tiny: Tiny, smoke_run: Path, tmp_path: Path, heard: dict[str, Heard]
) -> None:
    watching = Watching(("tensorboard", "wandb"), 1e-9, "The model")
    pipeline, said = trained(tiny(), tmp_path / "run", watching, "score")
    records = read_steps(tmp_path / "run" / STEPS)
    for one in heard.values():
        assert [one.steps[r["step"]]["train/loss"] for r in records] == [r["loss"] for r in records]
        first = one.steps[0]
        assert {f"train/{name}" for name in (*sink.SHOWN, "memory_gb")} == first.keys()
        assert first["train/memory_gb"] > 0.05
        scores = {n: v for n, v in one.steps[len(records)].items() if n.startswith("bpb/")}
        assert scores["bpb/sliding"] == pipeline.folder.all_facts()["score.sliding"]["bpb"]
        assert one.closed == 1 and len(one.texts) == len(records) - 1, "none at the very end"
        assert all(t.startswith("The model") and n == "sample" for n, t in one.texts.values())
    assert len([line for line in said if line.startswith("sample at step ")]) == len(records) - 1
    facts = pipeline.folder.all_facts()["train"]
    assert facts["live"]["samples"] == len(records) - 1 and facts["live"]["seconds"] > 0
    # What is sent and written changes no bit, and its seconds are the training's.
    assert digest_file(tmp_path / "run" / WEIGHTS) == digest_file(smoke_run / WEIGHTS)
    assert facts["seconds"] > facts["live"]["seconds"]
    rates = [r["tokens"] / (i + 1) / r["tokens_per_s"] for i, r in enumerate(records)]
    assert sum(rates) < facts["seconds"] - 0.5 * facts["live"]["seconds"], "steps are timed alone"


def test_a_sink_or_sample_that_fails_is_told_of_once(
    tiny: Tiny,
    tmp_path: Path,
    heard: dict[str, Heard],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    heard["wandb"].fails = True
    monkeypatch.setattr(live, "write", lambda *rest, **more: 1 / 0)
    watching = Watching(("wandb", "tensorboard"), 1e-9)
    config = tiny("train.steps=4", "train.warmup_steps=0")
    pipeline, _ = trained(config, tmp_path / "run", watching)
    told = capsys.readouterr().err
    assert told.count("wandb failed (the disk is full): the run goes on without it") == 1
    assert told.count("the sample of text failed (division by zero)") == 1
    assert len(heard["tensorboard"].steps) == pipeline.folder.all_facts()["train"]["steps"]
    assert pipeline.folder.all_facts()["train"]["live"]["samples"] == 0


def test_many_short_steps_are_sent_now_and_then_with_the_last(
    tiny: Tiny, tmp_path: Path, heard: dict[str, Heard], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "EVERY_S", 1e9)
    config = tiny("train.steps=4", "train.warmup_steps=0")
    pipeline, said = trained(config, tmp_path / "run", Watching(("tensorboard",)))
    count = pipeline.folder.all_facts()["train"]["steps"]
    assert list(heard["tensorboard"].steps) == [0, count - 1]
    assert not [line for line in said if line.startswith("sample")]
    _, said = trained(config, tmp_path / "run", Watching(("tensorboard",)))
    assert [line for line in said if "was finished already" in line]


@pytest.mark.long
def test_tensorboard_can_be_read_back(tiny: Tiny, tmp_path: Path, monkeypatch: Any) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setattr(live, "EVERY_S", 0.0)
    monkeypatch.setattr(live, "SAMPLE_TOKENS", 8)
    out = tmp_path / "run"
    for _ in range(2):
        config = tiny("train.steps=3", "train.warmup_steps=0")
        trained(config, out, Watching(("tensorboard",), 1e-9), "pack")
        shutil.rmtree(out / "data", ignore_errors=True)
        (out / WEIGHTS).unlink()
    events = EventAccumulator(str(out / "live")).Reload()
    records = read_steps(out / STEPS)
    found = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert found == [(r["step"], pytest.approx(r["loss"], rel=1e-6)) for r in records]
    assert len(events.Scalars("bpb/quantised")) == 1
    assert events.Tags()["tensors"] == ["sample/text_summary"]


@pytest.mark.long
def test_weights_and_biases_offline_needs_no_account(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("HOME", str(tmp_path))
    config = tiny("train.steps=3", "train.warmup_steps=0")
    trained(config, tmp_path / "run", Watching(("wandb",), 1e-9))
    files = list((tmp_path / "run/live/wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 1
    # Its own process may still write when its `finish` has returned.
    until_s = time.monotonic() + 20.0
    while files[0].stat().st_size < 1000 and time.monotonic() < until_s:
        time.sleep(0.05)
    assert b"train/loss" in files[0].read_bytes()


def test_weights_and_biases_that_cannot_begin_is_one_sentence(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Settings:
        def __init__(self, **how: Any) -> None:
            pass

    def init(**how: Any) -> None:
        raise RuntimeError("api_key not configured\nmore")

    module = type("Module", (), {"Settings": Settings, "init": staticmethod(init)})
    monkeypatch.setattr(sink.importlib, "import_module", lambda name: module)
    with pytest.raises(UserError, match=r"\(api_key not configured\).*WANDB_MODE=offline"):
        trained(tiny(), tmp_path / "run", Watching(("wandb",)))
    assert not (tmp_path / "run" / STEPS).exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--live", "tensorbord"), "'tensorbord' is unknown; choose one of tensorboard, wandb"),
        (("--live", "tensorboard,,nothing"), "'nothing' is unknown; choose"),
        (("--live", ","), "--live is empty"),
        (("--live", "wandb"), "pip install 'fairway[wandb]'"),
        (("--sample-every", "-1"), "-1 is out of bounds"),
        (("--sample-every", "often"), "'often' is not a number"),
        (("--sample-prompt", "Once"), "has no effect without --sample-every"),
    ],
)
@pytest.mark.parametrize("verb", ["run", "train"])
def test_what_cannot_be_watched_is_told_before_anything_begins(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str, words: Any, told: str
) -> None:
    found = importlib.util.find_spec
    hidden = {"wandb": None}
    monkeypatch.setattr(
        sink.importlib.util, "find_spec", lambda name: hidden.get(name, found(name))
    )
    done = cli(verb, "smoke", "--out", str(tmp_path / "run"), *words)
    assert done.code == 2 and told in done.err and done.err.count("fairway: ") == 1, done
    assert not (tmp_path / "run").exists()
