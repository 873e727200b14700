import json
import math
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fairway
from fairway.api import LanguageModel, load
from fairway.config import RuntimeConfig
from fairway.data.build import DataFolder
from fairway.data.tokens import train_tokenizer
from fairway.errors import UserError
from fairway.files import read_json
from fairway.run import open_run

# The arithmetic of the fixture's run.
RUNTIME = RuntimeConfig(threads=1, dtype="float32", matmul="highest")
TEXT = "The model predicts a small token.\nIt was the text that every byte is in."

# A process that has the artifact and the documents, and nothing else of the run.
FRESH = """
import json, pathlib
import fairway
from fairway.config import RuntimeConfig
runtime = RuntimeConfig(threads=1, dtype="float32", matmul="highest")
model = fairway.load("artifact.fwy", runtime=runtime)
documents = json.loads(pathlib.Path("documents.json").read_text())
print(json.dumps({"bpb": model.bits_per_byte(documents), "text": model.generate("The", seed=3)}))
"""


@pytest.fixture(scope="module")
def model(smoke_run: Path) -> LanguageModel:
    return load(smoke_run / "artifact.fwy", runtime=RUNTIME)


@pytest.fixture(scope="module")
def documents(data_folder: Path) -> list[str]:
    return DataFolder.open(data_folder).sample_validation(1500).documents


@pytest.fixture(scope="module")
def bare(smoke_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the same run, packed without its tokenizer."""
    folder = tmp_path_factory.mktemp("bare") / "run"
    shutil.copytree(smoke_run, folder)
    pipeline = open_run(folder, ["pack.with_tokenizer=false"], lambda text: None)
    with pipeline.writing():
        pipeline.pack()
    return folder


def test_a_fresh_process_scores_what_the_run_did(
    smoke_run: Path, model: LanguageModel, documents: list[str], tmp_path: Path
) -> None:
    shutil.copy(smoke_run / "artifact.fwy", tmp_path)
    (tmp_path / "documents.json").write_text(json.dumps(documents))
    ended = subprocess.run(
        [sys.executable, "-c", FRESH], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    found = json.loads(ended.stdout)
    results: dict[str, Any] = read_json(smoke_run / "results.json")
    assert found["bpb"] == results["stages"]["sliding"]["bpb"] == model.bits_per_byte(documents)
    assert found["text"] == model.generate("The", seed=3)


def test_the_package_offers_the_interface_and_nothing_else() -> None:
    assert fairway.load is load
    assert fairway.LanguageModel is LanguageModel
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        fairway.lode  # noqa: B018


def test_a_run_folder_is_as_good_as_its_artifact(smoke_run: Path, model: LanguageModel) -> None:
    assert load(smoke_run, runtime=RUNTIME).bits_per_byte(TEXT) == model.bits_per_byte(TEXT)


def test_logprobs_sum_to_the_score(model: LanguageModel, documents: list[str]) -> None:
    score = model.score(documents[0])
    logprobs = model.logprobs(documents[0])
    assert logprobs.dtype == np.float64
    assert len(logprobs) == score.tokens == len(model.tokenizer.encode(documents[0]))
    assert -math.fsum(logprobs) == pytest.approx(score.nats, rel=1e-13)
    assert score.tokens > model.score_config.seq_len  # more than one window


def test_logprobs_are_those_of_the_plain_forward_pass(model: LanguageModel) -> None:
    ids = [model.tokenizer.bos_id, *model.tokenizer.encode("A small text.")]
    with torch.no_grad():
        hidden = model.model.hidden(torch.tensor([ids[:-1]]))
        table = model.model.logits(hidden)[0].double().log_softmax(1)
    expected = table[torch.arange(len(ids) - 1), torch.tensor(ids[1:])]
    assert model.logprobs("A small text.") == pytest.approx(expected.numpy(), abs=1e-5)


def test_a_score_counts_the_bytes_of_all_documents_without_blank_ends(
    model: LanguageModel,
) -> None:
    score = model.score([TEXT, "  Naïve – it was.\n"])
    assert score.bytes == len(TEXT.encode()) + len("Naïve – it was.".encode())
    assert score.checked_positions > 0
    assert score.nats != model.score([TEXT, "  Naïve – it was.\n"], sliding=False).nats


def test_the_artifacts_own_truncation_does_not_drop_text(model: LanguageModel) -> None:
    assert model.score("a").tokens >= 1


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "the text is empty"),
        (" \n\t", "the text is empty"),
        ([], "the text is empty"),
        (["", "  "], "the text is empty"),
        ("a \u2581 b", "document 0 cannot be represented"),
        (["a", "\u2581"], "document 1 cannot be represented"),
        ("a\ud800", "document 0 has half a character"),
    ],
)
def test_text_that_cannot_be_scored(model: LanguageModel, text: str | list[str], told: str) -> None:
    with pytest.raises(UserError, match=told):
        model.score(text)


@pytest.mark.parametrize("text", ["\x00", "😀", "a\r\nb", "\x1b[31m", "a" * 5000])
def test_odd_text_can_be_scored(model: LanguageModel, text: str) -> None:
    assert model.score(text).bytes == len(text.encode())


def test_one_seed_gives_one_continuation(model: LanguageModel) -> None:
    first = model.generate("The model", seed=1)
    assert first == model.generate("The model", seed=1)
    assert first != model.generate("The model", seed=2)


def test_a_continuation_is_as_long_as_asked(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = model.tokenizer.encode("The model")[None]
    decoded: list[int] = []
    decode = model.tokenizer.decode

    def counting(tokens: np.ndarray) -> str:
        decoded.append(len(tokens))
        return decode(tokens)

    monkeypatch.setattr(model.tokenizer, "decode", counting)
    for count in (0, 1, 7):
        model.generate_batch(ids, count, 100.0, 50, 5)
        assert max(decoded) == ids.shape[1] + count


def test_temperature_zero_takes_the_likeliest_token(model: LanguageModel) -> None:
    ids = [model.tokenizer.bos_id, *(int(i) for i in model.tokenizer.encode("The model"))]
    start = len(ids)
    with torch.no_grad():
        for _ in range(12):
            logits = model.model.logits(model.model.hidden(torch.tensor([ids]))[:, -1])
            ids.append(int(logits.argmax()))
    expected = model.tokenizer.decode(ids)[len(model.tokenizer.decode(ids[:start])) :]
    greedy = {model.generate("The model", max_tokens=12, temperature=0, seed=n) for n in range(3)}
    assert greedy == {expected}
    assert model.generate("The model", max_tokens=12, temperature=1.0, top_k=1) == expected


def test_a_prompt_longer_than_the_context_is_cut(
    model: LanguageModel, documents: list[str]
) -> None:
    length = model.score_config.seq_len
    ids = model.tokenizer.encode(documents[0])
    assert len(ids) > length
    with torch.no_grad():
        hidden = model.model.hidden(torch.from_numpy(ids[None, -length:]))
        likeliest = int(model.model.logits(hidden[:, -1]).argmax())
    found = model.generate(documents[0], max_tokens=1, temperature=0)
    assert found == model.tokenizer.decode([*ids, likeliest])[len(documents[0]) :]


@pytest.mark.parametrize("stride", [16, 64])
def test_a_full_window_moves_on(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch, stride: int
) -> None:
    length = model.score_config.seq_len
    monkeypatch.setattr(model, "score_config", replace(model.score_config, stride=stride))
    never_ends = model.model.logits
    ends = torch.zeros(300).index_fill(0, torch.tensor([model.tokenizer.bos_id]), math.inf)
    monkeypatch.setattr(model.model, "logits", lambda x: never_ends(x) - ends)
    ids, first = model._prompt("The model")[0].tolist(), 0
    start = len(ids)
    with torch.no_grad():
        for _ in range(2 * length):
            if len(ids) - first > length:
                first = len(ids) - length + min(stride, length // 2)
            states = model.model.hidden(torch.tensor([ids[first:]]))[:, -1]
            ids.append(int(model.model.logits(states).argmax()))
    expected = model.tokenizer.decode(ids)[len(model.tokenizer.decode(ids[:start])) :]
    assert model.generate("The model", max_tokens=2 * length, temperature=0) == expected


@pytest.mark.parametrize("seed", range(4))
def test_what_is_streamed_is_what_is_generated(model: LanguageModel, seed: int) -> None:
    # Hot enough for bytes that are no characters.
    settings: dict[str, Any] = {"max_tokens": 40, "temperature": 100.0, "top_k": 300, "seed": seed}
    parts = list(model.stream("The na\u00efve model", **settings))
    assert "".join(parts) == model.generate("The na\u00efve model", **settings)
    assert len([part for part in parts if part]) > 10


def test_a_streamed_character_is_whole(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = iter([*model.tokenizer.byte_ids[list("\u20ac".encode())], model.tokenizer.bos_id])

    def logits(hidden: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.one_hot(torch.tensor([int(next(ids))]), 300).float()

    monkeypatch.setattr(model.model, "logits", logits)
    parts = [part for part in model.stream("The", temperature=0) if part]
    assert parts == ["\u20ac"]


@pytest.mark.parametrize("prompt", ["", " \n"])
def test_no_prompt_starts_a_document(model: LanguageModel, prompt: str) -> None:
    start = np.array([[model.tokenizer.bos_id]], np.int64)
    # Hot enough for a hardly trained model to say anything.
    expected = model.generate_batch(start, 9, 100.0, 50, 5)[0]
    assert expected
    assert model.generate(prompt, max_tokens=9, temperature=100.0, seed=5) == expected


def test_a_continuation_ends_with_its_document(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    word = int(model.tokenizer.encode("it")[0])
    wanted = iter([word, model.tokenizer.bos_id, word])

    def logits(hidden: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.one_hot(torch.tensor([next(wanted)]), 300).float()

    monkeypatch.setattr(model.model, "logits", logits)
    assert model.generate("The", temperature=0) == model.tokenizer.decode([word])
    assert next(wanted) == word


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_tokens": -1},
        {"temperature": -0.1},
        {"temperature": math.nan},
        {"top_k": 0},
        {"seed": -1},
        {"seed": 2**70},
    ],
)
def test_what_generate_cannot_do(model: LanguageModel, wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="generate needs"):
        model.generate("The", **wrong)


def test_an_artifact_without_tokenizer_takes_the_one_beside_it(
    bare: Path, model: LanguageModel, tmp_path: Path
) -> None:
    assert load(bare, runtime=RUNTIME).bits_per_byte(TEXT) == model.bits_per_byte(TEXT)
    alone = Path(shutil.copy(bare / "artifact.fwy", tmp_path))
    with pytest.raises(UserError, match="carries no tokenizer"):
        load(alone, runtime=RUNTIME)
    named = load(alone, tokenizer=bare / "tokenizer.model", runtime=RUNTIME)
    assert named.bits_per_byte(TEXT) == model.bits_per_byte(TEXT)


def test_another_tokenizer_is_refused(
    bare: Path, smoke_run: Path, documents: list[str], tmp_path: Path
) -> None:
    other = tmp_path / "other.model"
    other.write_bytes(train_tokenizer(documents, 295))
    for artifact in (bare, smoke_run):
        with pytest.raises(UserError, match=r"is not the one .* was made with"):
            load(artifact, tokenizer=other, runtime=RUNTIME)


def test_a_missing_artifact_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the artifact .*artifact\.fwy does not exist"):
        load(tmp_path, runtime=RUNTIME)
