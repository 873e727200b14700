"""The proof of a run: a fresh process restores the beginning of the validation text."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fairway.base.errors import UserError
from fairway.base.files import read_json
from fairway.config.settings import Config
from fairway.data.folder import DataFolder
from fairway.pipeline.folder import RunFolder
from fairway.pipeline.proving import prove_run
from fairway.pipeline.run import Pipeline
from fairway.prove.proof import restore

Tiny = Callable[..., Config]


def validation(data_folder: Path) -> list[str]:
    return DataFolder.open(data_folder).sample_validation(1500).documents


@pytest.mark.long
def test_a_run_is_proven(smoke_run: Path, data_folder: Path) -> None:
    facts: dict[str, Any] = read_json(smoke_run / "results.json")["proof"]
    assert (facts["method"], facts["streams"], facts["equal"]) == ("sliding", 8, True)
    assert facts["bytes"] == 400
    assert facts["bpb"] == 8 * facts["coded_bytes"] / 400
    assert facts["bpb"] == pytest.approx(
        facts["ledger_bpb"] * (1 + facts["difference_share"]), rel=1e-12
    )
    assert abs(facts["difference_share"]) < 0.02
    assert facts["file_bytes"] == (smoke_run / "proof.fwp").stat().st_size
    data, _ = restore(smoke_run / "proof.fwp", smoke_run, None)
    first = validation(data_folder)[0]
    text = data.decode()
    text = json.loads(text.splitlines()[0])["text"] if text.startswith("{") else text
    assert first.startswith(text)
    page = (smoke_run / "report.html").read_text()
    assert "Proof by decoding" in page and "byte for byte" in page


@pytest.fixture
def proving(
    tiny: Tiny, smoke_run: Path, data_folder: Path, tmp_path: Path
) -> Callable[..., dict[str, Any]]:
    """Return a function: the proof of the smoke run with other settings."""

    def work(*more: str) -> dict[str, Any]:
        config = tiny(*more)
        texts, out = validation(data_folder), tmp_path / "p"
        artifact = smoke_run / "artifact.fwy"
        return prove_run(config, config.runtime, artifact, texts, out)

    return work


@pytest.mark.long
def test_a_fresh_process_learns_whole_weights_too(
    proving: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The child must not take itself for one of many.
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    facts = proving("prove.method=sgd", "ttt.chunk_tokens=64", "prove.bytes=400")
    assert (facts["method"], facts["streams"], facts["equal"]) == ("sgd", 1, True)
    assert facts["tokens"] > 64


def test_a_text_that_does_not_come_back_is_an_error(
    proving: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def instead(program: str) -> None:
        def begin(words: list[str], **options: Any) -> "subprocess.Popen[bytes]":
            command = [sys.executable, "-c", program, words[-1]]
            return subprocess.Popen(command, stdin=subprocess.PIPE, **options)

        monkeypatch.setattr("fairway.base.children.begin", begin)

    instead("import sys, pathlib; pathlib.Path(sys.argv[1]).write_text('another text')")
    with pytest.raises(UserError, match="restored 12 bytes from .* not the text"):
        proving()
    instead("import sys; sys.exit('a warning\\nfairway: p: it is damaged')")
    with pytest.raises(UserError, match="could not restore the proof: p: it is damaged"):
        proving()


def test_what_cannot_be_proven_is_told_before_training(tiny: Tiny) -> None:
    for settings in (
        ("prove.method=sgd", "ttt.method=off", "ttt.chunk_tokens=100"),
        ("prove.method=lora", "ttt.lora_sort=true"),
    ):
        with pytest.raises(UserError, match="multiple of score.seq_len|lora_sort=false"):
            tiny(*settings)
        tiny(*settings, "prove.bytes=0")


def test_a_run_without_a_proof(tiny: Tiny, smoke_run: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(smoke_run, tmp_path / "run"))
    pipeline = Pipeline(tiny("prove.bytes=0"), RunFolder(folder), lambda text: None)
    with pipeline.writing():
        results = pipeline.walk()
    assert results["proof"] is None
    assert "Proof by decoding" not in (folder / "report.html").read_text()
