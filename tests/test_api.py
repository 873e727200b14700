import json
import math
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("starlette", reason="needs the extra `serve`")

from shared import forking
from small_run import small_run

import fairway
from fairway.api import LanguageModel, load
from fairway.base.errors import UserError
from fairway.base.files import read_json
from fairway.config.settings import Config, RuntimeConfig
from fairway.data.build import DataFolder
from fairway.data.tokens import train_tokenizer
from fairway.export.formats import export
from fairway.model.writing import Manner, Row, draw
from fairway.pipeline.run import open_run
from fairway.serve.models import open_desk

# The arithmetic of the fixture's run.
RUNTIME = RuntimeConfig(threads=1, dtype="float32", matmul="highest")
TEXT = "The model predicts a small token.\nIt was the text that every byte is in."

# A process that has the artifact and the documents, and nothing else of the run.
FRESH = """
import json, pathlib
import fairway
from fairway.config.settings import Config, RuntimeConfig
runtime = RuntimeConfig(threads=1, dtype="float32", matmul="highest")
model = fairway.load("artifact.fwy", runtime=runtime)
documents = json.loads(pathlib.Path("documents.json").read_text())
text = model.generate("The", max_tokens=40, seed=3)
print(json.dumps({"bpb": model.bits_per_byte(documents), "text": text}))
"""


def always(token: int | Iterator[int]) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return logits that make a token certain: always the same, or one after another."""

    def logits(hidden: torch.Tensor) -> torch.Tensor:
        now = token if isinstance(token, int) else int(next(token))
        return 1e4 * torch.nn.functional.one_hot(torch.tensor([now]), 300).float()

    return logits


@pytest.fixture(scope="module")
def smoke_model(smoke_run: Path) -> LanguageModel:
    return load(smoke_run / "artifact.fwy", runtime=RUNTIME)


@pytest.fixture(scope="module")
def model(tiny: Callable[..., Config]) -> LanguageModel:
    """Return a smaller model, to score and to write with many times."""
    return load(small_run(tiny) / "artifact.fwy", runtime=RUNTIME)


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


def test_the_process_keeps_its_own_threads_and_precision(
    smoke_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fairway.machine.plan._keep_freed_memory", lambda: pytest.fail("for good"))
    before = torch.get_num_threads(), torch.get_float32_matmul_precision()

    def own() -> tuple[int, str]:
        return torch.get_num_threads(), torch.get_float32_matmul_precision()

    def state() -> tuple[Any, ...]:
        return (*own(), torch.get_rng_state().tolist(), torch.is_grad_enabled())

    try:
        torch.set_num_threads(2)
        torch.set_float32_matmul_precision("high")
        kept = state()
        model = load(smoke_run / "artifact.fwy", runtime=RUNTIME)
        assert state() == kept
        used: list[tuple[int, str]] = []
        model.model.blocks[0].register_forward_pre_hook(lambda *_: used.append(own()))
        model.score(TEXT)
        model.logprobs(TEXT)
        assert state() == kept
        for _ in model.stream("The", max_tokens=3):
            assert state() == kept
        assert state() == kept and set(used) == {(1, "highest")}
    finally:
        torch.set_num_threads(before[0])
        torch.set_float32_matmul_precision(before[1])


def test_a_fresh_process_scores_what_the_run_did(
    smoke_run: Path, smoke_model: LanguageModel, documents: list[str], tmp_path: Path
) -> None:
    shutil.copy(smoke_run / "artifact.fwy", tmp_path)
    (tmp_path / "documents.json").write_text(json.dumps(documents))
    ended = subprocess.run(
        [*forking(), "-c", FRESH], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    found = json.loads(ended.stdout)
    results: dict[str, Any] = read_json(smoke_run / "results.json")
    assert (
        found["bpb"] == results["stages"]["sliding"]["bpb"] == smoke_model.bits_per_byte(documents)
    )
    assert found["text"] == smoke_model.generate("The", max_tokens=40, seed=3)


def test_the_package_offers_the_interface_and_nothing_else() -> None:
    assert fairway.load is load
    assert fairway.LanguageModel is LanguageModel
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        fairway.lode  # noqa: B018


def test_a_run_folder_is_as_good_as_its_artifact(
    smoke_run: Path, smoke_model: LanguageModel
) -> None:
    assert load(smoke_run, runtime=RUNTIME).bits_per_byte(TEXT) == smoke_model.bits_per_byte(TEXT)


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


def test_a_score_counts_every_byte_of_all_documents(model: LanguageModel) -> None:
    score = model.score([TEXT, "  Naïve – it was.\n"])
    assert score.bytes == len(TEXT.encode()) + len("  Naïve – it was.\n".encode())
    # What is counted is paid for: an end of blanks costs more than none.
    for blanks in ("\n", " ", "\r\n", "\t\n\n"):
        assert model.score(TEXT + blanks).nats > model.score(TEXT).nats
        assert model.score(TEXT + blanks).bytes == len(TEXT.encode()) + len(blanks)
    for odd in ("a \u2581 b", " \n\t", "\ufeffa", "e\u0301", "a\0b"):
        assert model.score(odd).bytes == len(odd.encode())
    assert score.checked_positions > 0
    assert score.nats != model.score([TEXT, "  Naïve – it was.\n"], sliding=False).nats


def test_the_artifacts_own_truncation_does_not_drop_text(model: LanguageModel) -> None:
    assert model.score("a").tokens >= 1


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "the text is empty"),
        ([], "the text is empty"),
        (["", ""], "the text is empty"),
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
    first = model.generate("The model", max_tokens=40, seed=1)
    assert first == model.generate("The model", max_tokens=40, seed=1)
    assert first != model.generate("The model", max_tokens=40, seed=2)


@pytest.mark.parametrize("count", [0, 1, 7])
def test_a_continuation_is_as_long_as_asked(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    word = int(model.tokenizer.encode("it")[0])
    monkeypatch.setattr(model.model, "logits", always(word))
    text = model.tokenizer.piece_bytes[word].decode()
    assert model.generate("The model", max_tokens=count, seed=5) == count * text
    assert "".join(model.stream("The model", max_tokens=count, seed=5)) == count * text


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
    ids, first = [model.tokenizer.bos_id, *model.tokenizer.encode("The model").tolist()], 0
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

    monkeypatch.setattr(model.model, "logits", always(ids))
    parts = [part for part in model.stream("The", temperature=0) if part]
    assert parts == ["\u20ac"]


def test_no_prompt_starts_a_document(model: LanguageModel) -> None:
    row = Row(model.packer, np.array([model.tokenizer.bos_id]), 9, seed=5)
    # Hot enough for a hardly trained model to say anything.
    model.write([row], Manner(temperature=100.0))
    expected = row.text.decode(errors="replace")
    assert expected
    assert model.generate("", max_tokens=9, temperature=100.0, seed=5) == expected


def test_a_continuation_ends_with_its_document(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    word = int(model.tokenizer.encode("it")[0])
    wanted = iter([word, model.tokenizer.bos_id, word])

    monkeypatch.setattr(model.model, "logits", always(wanted))
    assert model.generate("The", temperature=0) == model.tokenizer.decode([word])
    assert next(wanted) == word


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"max_tokens": -1}, "max_tokens is -1; it must be a whole number of 0 or more"),
        ({"max_tokens": 1.5}, "max_tokens is 1.5; it must be a whole number of 0 or more"),
        ({"temperature": -0.1}, "temperature is -0.1; it must be a number of 0 or more"),
        ({"temperature": math.nan}, "temperature is nan; it must be a number of 0 or more"),
        ({"temperature": math.inf}, "temperature is inf; it must be a number of 0 or more"),
        ({"temperature": "hot"}, "temperature is 'hot'; it must be a number of 0 or more"),
        ({"top_k": 0}, "top_k is 0; it must be a whole number of 1 or more"),
        ({"top_p": 1.5}, "top_p is 1.5; it must be a number from 0 to 1"),
        ({"seed": -1}, "seed is -1; it must be a whole number from 0 to 9,223,372,036,854,775,807"),
        ({"seed": 2**63}, "seed is 9,223,372,036,854,775,808; it must be a whole number from 0"),
        ({"seed": 10**5000}, "seed is a number of about 5,001 digits; it must be a whole number"),
    ],
)
def test_what_generate_cannot_do(model: LanguageModel, wrong: dict[str, Any], told: str) -> None:
    for written in (model.generate, model.stream):
        with pytest.raises(UserError) as caught:
            "".join(written("The", **wrong))
        assert str(caught.value).startswith(told)


@pytest.mark.parametrize("temperature", [1e-5, 1e-38, 1e-45, 1e-300, 5e-324])
def test_a_temperature_near_zero_is_nearly_greedy(model: LanguageModel, temperature: float) -> None:
    greedy = model.generate("The model", max_tokens=9, temperature=0)
    assert model.generate("The model", max_tokens=9, temperature=temperature, seed=3) == greedy


def test_a_boundless_temperature_draws_evenly() -> None:
    generator = torch.Generator().manual_seed(0)
    logits_V = torch.tensor([50.0, 0.0, -50.0])
    drawn = [draw(logits_V, Manner(1e308, 2), generator) for _ in range(200)]
    assert sorted(set(drawn)) == [0, 1] and 60 < drawn.count(1) < 140


def test_top_p_keeps_the_fewest_tokens_that_hold_so_much() -> None:
    logits_V = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    for top_p, kept in (
        (0.0, [0]),
        (0.5, [0]),
        (0.51, [0, 1]),
        (0.9, [0, 1, 2]),
        (1.0, [0, 1, 2, 3]),
    ):
        generator = torch.Generator().manual_seed(0)
        drawn = {draw(logits_V, Manner(1.0, 50, top_p), generator) for _ in range(300)}
        assert sorted(drawn) == kept


# What a prompt ends in, and what its tokenizer would drop or change.
CONTINUED = [
    *("The model ", "The model  ", "The\nmodel ", " The model ", " ", "  ", "\n", "The model\n"),
    *("The model\r\n", "\tThe ", "The\u2581model", "The\u00a0", "The model\u3000 "),
]


@pytest.mark.parametrize("prompt", CONTINUED)
def test_a_prompt_is_continued_as_it_stands(model: LanguageModel, prompt: str) -> None:
    owed = prompt.endswith(" ")
    stem = prompt.removesuffix(" ")
    ids = [model.tokenizer.bos_id, *model.packer.document(stem).tolist()]
    assert model.packer.unpack_document(np.array(ids[1:], np.int64)) == stem.encode()
    table = model.tokenizer.table.leading
    data = b""
    with torch.no_grad():
        for step in range(6):
            logits_V = model.model.logits(model.model.hidden(torch.tensor([ids]))[0, -1])
            if owed and not step:
                logits_V[~torch.from_numpy(table)] = -math.inf
            ids.append(int(logits_V.argmax()))
            piece = model.tokenizer.piece_bytes[ids[-1]]
            drops = not step and (owed or not stem) and table[ids[-1]]
            data += piece[1:] if drops else piece
    found = model.generate(prompt, max_tokens=6, temperature=0)
    assert found == data.decode(errors="replace")
    assert "".join(model.stream(prompt, max_tokens=6, temperature=0)) == found


def test_a_blank_that_ends_a_prompt_is_not_said_twice(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    word = int(model.tokenizer.encode("a token")[1])
    piece = model.tokenizer.piece_bytes[word].decode()
    assert piece.startswith(" ") and piece.strip()
    monkeypatch.setattr(model.model, "logits", always(word))
    for prompt, text in (("The model", piece), ("The model ", piece[1:]), ("The  ", piece[1:])):
        assert model.generate(prompt, max_tokens=1) == text
        assert model.generate(prompt, max_tokens=2) == text + piece


def test_rows_side_by_side_say_what_they_say_alone(
    model: LanguageModel, documents: list[str]
) -> None:
    prompts = ["", "The", "The model predicts ", documents[0][:90], documents[0], documents[1]]
    # Beyond the window, and not.
    for manner, most in ((Manner(0.0), 30), (Manner(1.0, 20, 0.9), 12)):
        rows = [Row(model.packer, text, most, seed) for seed, text in enumerate(prompts)]
        model.write(rows, manner)
        alone = [Row(model.packer, text, most, seed) for seed, text in enumerate(prompts)]
        for row in alone:
            model.write([row], manner)
        assert [row.text for row in rows] == [row.text for row in alone]


@pytest.mark.parametrize(
    ("stops", "left"),
    [
        ([b"two"], b"one "),
        ([b"e t"], b"on"),
        ([b"three", b" th"], b"one two"),
        ([b"e three", b"ne"], b"o"),
        ([b"one"], b""),
        ([b"four"], b"one two three"),
        ([], b"one two three"),
    ],
)
def test_a_row_ends_before_its_first_stop(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch, stops: list[bytes], left: bytes
) -> None:
    ids = iter([*model.packer.pack(b"one two three").tolist(), model.tokenizer.bos_id])
    monkeypatch.setattr(model.model, "logits", always(ids))
    row = Row(model.packer, "The", 99, 0, stops)
    model.write([row], Manner(0.0))
    assert row.text == left


def test_an_artifact_without_tokenizer_takes_the_one_beside_it(
    bare: Path, smoke_model: LanguageModel, tmp_path: Path
) -> None:
    assert load(bare, runtime=RUNTIME).bits_per_byte(TEXT) == smoke_model.bits_per_byte(TEXT)
    alone = Path(shutil.copy(bare / "artifact.fwy", tmp_path))
    with pytest.raises(UserError, match="carries no tokenizer"):
        load(alone, runtime=RUNTIME)
    named = load(alone, tokenizer=bare / "tokenizer.model", runtime=RUNTIME)
    assert named.bits_per_byte(TEXT) == smoke_model.bits_per_byte(TEXT)


def test_another_tokenizer_is_refused(
    bare: Path, smoke_run: Path, documents: list[str], tmp_path: Path
) -> None:
    other = tmp_path / "other.model"
    other.write_bytes(train_tokenizer(documents, 295))
    for artifact in (bare, smoke_run):
        with pytest.raises(
            UserError, match=r"was made with the tokenizer .*, but this tokenizer is"
        ):
            load(artifact, tokenizer=other, runtime=RUNTIME)


def test_a_missing_artifact_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the artifact .*artifact\.fwy does not exist"):
        load(tmp_path, runtime=RUNTIME)


@pytest.mark.parametrize(
    ("work", "told"),
    [
        (lambda file, other: load(file, runtime=RUNTIME), "carries no tokenizer"),
        (lambda file, other: load(file, tokenizer=other, runtime=RUNTIME), "but this tokenizer is"),
        (
            lambda file, other: load(file.parent.parent / "run", adapter=other, runtime=RUNTIME),
            "is not an adapter file",
        ),
        (lambda file, other: export(file, other.parent / "out", "torch"), "carries no tokenizer"),
        (
            lambda file, other: open_desk([file.parent.parent / "run", file], None, RUNTIME),
            "carries no tokenizer",
        ),
    ],
)
def test_what_does_not_belong_to_an_artifact_is_refused_before_its_weights_are_decoded(
    work: Callable[[Path, Path], object],
    told: str,
    bare: Path,
    documents: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Decoding the 36 million weights of the full system takes seconds."""
    (tmp_path / "alone").mkdir()
    shutil.copytree(bare, tmp_path / "run")
    file = Path(shutil.copy(bare / "artifact.fwy", tmp_path / "alone"))
    other = tmp_path / "other.model"
    other.write_bytes(train_tokenizer(documents, 295))
    monkeypatch.setattr("fairway.pack.artifact.decode_section", pytest.fail)
    monkeypatch.setattr("fairway.pack.artifact.Loaded.state", pytest.fail)
    with pytest.raises(UserError, match=told):
        work(file, other)
