"""Shared fixtures: one thread, a tiny text, a data folder of it, and one finished smoke run."""

import functools
import os

import torch

if not torch.cuda.is_available():
    # Triton reads this when it is imported: without a GPU its interpreter runs our kernels.
    os.environ["TRITON_INTERPRET"] = "1"

import hashlib
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import interpreter
import pytest
import typer.main
import warm
from damage import FIXED as FIXED_OPTIONS
from damage import Call, Cli, Outcome, Place, run_command
from shared import forking, once

from fairway.base import children
from fairway.base.files import read_json
from fairway.config.overrides import override
from fairway.config.settings import Config
from fairway.data.build import build_data
from fairway.data.documents import Document
from fairway.recipes import recipe

if not torch.cuda.is_available():
    interpreter.quicken()

# What a probe would choose is not what a test may depend on.
FIXED = ["runtime.threads=1", "runtime.dtype=float32", "runtime.matmul=highest"]
WORDS = "the of a model text token learns predicts small every byte is and to in that"


def sentence(seed: int) -> str:
    """Return one pseudo-random English-like sentence."""
    words = WORDS.split()
    draw = hashlib.sha256(str(seed).encode()).digest()
    chosen = [words[b % len(words)] for b in draw[: 6 + draw[0] % 9]]
    return " ".join(chosen).capitalize() + "."


def documents(count: int = 60) -> list[Document]:
    """Return documents of a few paragraphs each; every one is different."""
    return [
        Document(f"doc-{n}", "\n".join(sentence(1000 * n + k) for k in range(20)))
        for n in range(count)
    ]


# ---------------------------------------------------------------------------------------------
# What the processes of a test session share


@pytest.fixture(scope="session")
def forked() -> list[str]:
    """Return the words that stand for `python -m fairway` without its start; see `warm`."""
    return forking()


@pytest.fixture(scope="session", autouse=True)
def warm_children() -> Iterator[None]:
    """Let the command lines that Fairway starts be forks, too."""

    def start(command: list[str], **options: Any) -> "subprocess.Popen[bytes]":
        _, *module = command[:3]
        if module == ["-m", "fairway.cli"]:
            command = [*forking(), *command[3:]]
            options["env"][warm.PLACE] = os.environ[warm.PLACE]
        return subprocess.Popen(command, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            children, "subprocess", SimpleNamespace(**vars(subprocess) | {"Popen": start})
        )
        yield


@pytest.fixture(scope="session", autouse=True)
def unprobed() -> Iterator[None]:
    """Let one thread and float32 be the fastest settings of a CPU: to measure takes two seconds."""

    def seconds(option: tuple[int, str, str], allowance_s: float) -> float:
        threads, dtype, _ = option
        return threads + 100.0 * (dtype != "float32")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fairway.machine.plan._probe_seconds", seconds)
        yield


@pytest.fixture(scope="session", autouse=True)
def verbs_once() -> Iterator[None]:
    """Let the tree of verbs be built once: each of a thousand command lines would build it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(typer.main, "get_command", functools.cache(typer.main.get_command))
        yield


@pytest.fixture(scope="session", autouse=True)
def figures_once() -> Iterator[None]:
    """Let every figure of a report be drawn once: many tests report the same run."""
    from fairway.report import sections

    def remembering(draw: Callable[..., str]) -> Callable[..., str]:
        drawn: dict[str, str] = {}

        def figure(*told: Any) -> str:
            if repr(told) not in drawn:
                drawn[repr(told)] = draw(*told)
            return drawn[repr(told)]

        return figure

    with pytest.MonkeyPatch.context() as patch:
        for name, value in list(vars(sections).items()):
            if name.endswith("_figure"):
                patch.setattr(sections, name, remembering(value))
        yield


@pytest.fixture(scope="session", autouse=True)
def compressed_once() -> Iterator[None]:
    """Let every compressor take each pair of texts once: most runs of tests have the same."""
    from fairway.score import baselines

    measured = functools.cache(baselines._measure)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(baselines, "_measure", lambda *asked: dict(measured(*asked)))
        yield


# ---------------------------------------------------------------------------------------------
# Text, data, and a run


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Return a data folder of pseudo-English with a vocabulary of 300."""
    options = {"vocab_size": 300, "val_share": 0.1, "shard_tokens": 20_000}
    return once("data", lambda out: build_data(documents(), out, **options))  # type: ignore[arg-type]


def tiny_settings(data: Path) -> list[str]:
    """Return the overrides that put the smoke recipe on a data folder with fixed arithmetic.

    Its bytes of code are declared: a bundle takes some seconds. It warms up by half as many steps,
    which are a quarter of its training.
    """
    text = [f"data.source={data}", "model.vocab_size=300", "data.val_bytes=1500"]
    return [*text, "pack.code_bytes=0", "train.warmup_steps=1", *FIXED]


@pytest.fixture(scope="session")
def settings(data_folder: Path) -> list[str]:
    """Return the overrides of the tests' smoke runs."""
    return tiny_settings(data_folder)


@pytest.fixture(scope="session")
def tiny(settings: list[str]) -> Callable[..., Config]:
    """Return a function: the tests' smoke config with further overrides."""
    return lambda *more: override(recipe("smoke"), [*settings, *more])


@pytest.fixture(scope="session")
def smoke_run(tiny: Callable[..., Config]) -> Path:
    """Return the folder of a finished smoke run, which nobody changes."""
    from fairway.pipeline.folder import RunFolder
    from fairway.pipeline.run import Pipeline

    def walk(folder: Path) -> None:
        pipeline = Pipeline(tiny(), RunFolder(folder), lambda text: None)
        with pipeline.writing():
            pipeline.walk()

    return once("smoke", walk)


@pytest.fixture(scope="session")
def smoke_bundle(tiny: Callable[..., Config]) -> Path:
    """Return the folder of that run's bundle, which nobody changes."""
    from fairway.bundle.build import write_bundle

    return once("bundle", lambda out: write_bundle(tiny(), out))


@pytest.fixture
def evidence_at_once(smoke_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let stages of this process that prove and audit take the smoke run's facts."""
    take_evidence(smoke_run, monkeypatch)


def take_evidence(smoke_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Do the same while a patch lasts: both have tests of their own, and each takes seconds."""
    results = read_json(smoke_run / "results.json")

    def prove(*inputs: Any) -> dict[str, Any]:
        inputs[-1].write_bytes(b"proof")
        return dict(results["proof"])

    monkeypatch.setattr("fairway.pipeline.evidence.prove_run", prove)
    monkeypatch.setattr(
        "fairway.pipeline.evidence.audit_run", lambda *inputs: dict(results["audit"])
    )


@pytest.fixture
def place(
    tmp_path: Path, data_folder: Path, smoke_run: Path, monkeypatch: pytest.MonkeyPatch
) -> Place:
    """Return a folder to spoil: a data folder, a finished run and two texts, with their options."""
    shutil.copytree(data_folder, tmp_path / "data")
    shutil.copytree(smoke_run, tmp_path / "run")
    (tmp_path / "text.txt").write_text("The model predicts a token.")
    (tmp_path / "empty.txt").touch()
    monkeypatch.chdir(tmp_path)
    settings = "--set data.source=data --set model.vocab_size=300 --set data.val_bytes=1500"
    settings += " --set pack.code_bytes=0"
    return Place(tmp_path, f"{settings} {FIXED_OPTIONS}")


@pytest.fixture
def call(place: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Call:
    """Return a function: run a command line, return its exit code and what it said on stderr."""

    def run(line: str) -> tuple[int, str]:
        code, _, errors = run_command(place.words(line), capsys, monkeypatch)
        return code, errors

    return run


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Return a function: the command line in this process."""

    def call(*args: object) -> Outcome:
        return Outcome(*run_command([str(arg) for arg in args], capsys, monkeypatch))

    return call
