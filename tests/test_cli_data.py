"""The verbs about text, for people and with --json."""

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from damage import FIXED, Cli

from fairway.base.files import read_json


def test_data(cli: Cli, tmp_path: Path) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    for number in range(12):
        words = [f"word{(number * 7 + k * k) % 97} in text {number}." for k in range(60)]
        (texts / f"{number}.md").write_text(" ".join(words))
    out = tmp_path / "data"
    options = ("--out", out, "--vocab-size", 290, "--val-share", 0.2, "--shard-tokens", 2000)
    built = cli("data", "build", texts, *options, "--json").json
    assert built["tokenizer"]["vocab_size"] == 290
    assert built["train"]["documents"] + built["val"]["documents"] == 12
    shown = cli("data", "show", out, "--json").json
    assert shown["train_tokens"] == built["train"]["tokens"]
    assert shown["left_out"] == built["dropped"] and shown["vocab_size"] == 290
    for name in ("documents", "bytes", "tokens"):
        assert shown[f"val_{name}"] == built["val"][name]
    said = cli("data", "show", out).out
    assert f"train_tokens: {built['train']['tokens']}\n" in said
    assert said.startswith("vocab_size: 290\n") and said.endswith("\nleft out: nothing\n")

    validation = tmp_path / "validation.txt"
    validation.write_text("Here is quite another text, which nothing else resembles at all.")
    again = ("--tokenizer", out / "tokenizer.model", "--validation", validation)
    told = cli("data", "build", texts, "--out", tmp_path / "more", *again)
    lines = told.out.splitlines()
    wanted = f"--set data.source={tmp_path / 'more'} --set model.vocab_size=290"
    assert lines[-1] == f"built {tmp_path / 'more'}; train with: fairway run demo {wanted}"
    assert lines[0].startswith("training text: 12 documents, ") and lines[0].endswith(" tokens")
    assert lines[1].startswith("validation text: 1 document, 64 bytes, ")
    assert lines[2] == "left out: nothing"
    assert read_json(tmp_path / "more" / "manifest.json")["split"]["rule"] == "given"


def test_building_says_what_was_left_out_and_replaces_when_told(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    for number in range(12):
        words = " ".join(f"word{(number * 7 + k * k) % 97} in text {number}." for k in range(60))
        (texts / f"{number}.jsonl").write_text(json.dumps({"text": words, "id": 1}) + "\n")
    (texts / "0.jsonl").write_text('{"text": null}\n{"text": " "}\n')
    (texts / "more.pdf").touch()
    (texts / "link").symlink_to(texts)
    monkeypatch.chdir(tmp_path)
    build = ("data", "build", "texts", "--vocab-size", 290, "--val-share", 0.2, "--out")
    told = cli(*build, "data")
    assert told.out.splitlines()[2] == (
        "left out: files of unknown ending (1), links to folders that were already read (1), "
        "rows or lines whose text is null (1), documents without text (1)"
    )
    refused = cli(*build, "data")
    assert (refused.code, refused.out) == (2, "") and "--replace" in refused.err
    again = cli(*build, "data", "--replace", "--json").json
    assert again["dropped"]["null_text"] == again["dropped"]["blank"] == 1
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    here = cli("data", "build", "../texts", *build[3:], ".")
    assert here.code == 0, here.err
    assert cli("data", "show", ".").code == 0
    small = cli("data", "build", "../texts", "--vocab-size", 261, "--out", "small")
    assert small.code == 2 and "set --vocab-size" in small.err and "coverage" not in small.err


def words(seed: int) -> str:
    return " ".join(f"word{(seed * 7 + k * k) % 97} in text {seed}." for k in range(60))


def test_a_collection_is_named(cli: Cli, tmp_path: Path) -> None:
    texts = [words(number) for number in range(30)]
    (tmp_path / "texts").mkdir()
    for number, text in enumerate(texts):
        (tmp_path / "texts" / f"{number}.txt").write_text(text)
    (tmp_path / "texts" / "all.txt").write_text("\n".join(texts))
    told = cli("data", "build", tmp_path / "texts", "--out", tmp_path / "data", "--vocab-size", 290)
    assert told.code == 0, told.err
    assert told.out.splitlines()[2:4] == [
        "left out: documents that hold the text of most others (1)",
        "with the text of most others, and left out: all.txt",
    ]
    shown = cli("data", "show", tmp_path / "data").out
    assert shown.endswith("\nleft out: documents that hold the text of most others (1)\n")


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        (["--case-ops"], "--case-ops has no effect with --tokenizer"),
        (["--vocab-size", 290], "--vocab-size has no effect with --tokenizer"),
        (["--vocab-size", 300, "--case-ops"], "have no effect with --tokenizer"),
    ],
)
def test_options_of_a_new_tokenizer_are_refused_beside_a_given_one(
    cli: Cli, data_folder: Path, tmp_path: Path, option: list[object], sentence: str
) -> None:
    (tmp_path / "a.txt").write_text(words(1))
    given = ("--tokenizer", data_folder / "tokenizer.model")
    ended = cli("data", "build", tmp_path / "a.txt", "--out", tmp_path / "data", *given, *option)
    assert (ended.code, ended.out) == (2, "") and sentence in ended.err
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("tokenizer.json", b'{"added_tokens": []}', "it is a Hugging Face tokenizer (JSON)"),
        ("a.tiktoken", b"IQ== 0\n", "it is a tiktoken file"),
        ("a.model", b"", "it has 0 bytes"),
        ("run/tokenizer.model", b"", "/run is a folder; name the file "),
    ],
)
def test_another_kind_of_tokenizer_is_named(
    cli: Cli, tmp_path: Path, name: str, content: bytes, sentence: str
) -> None:
    (tmp_path / "a.txt").write_text(words(1))
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(content)
    given = tmp_path / name.split("/")[0]
    ended = cli("data", "build", tmp_path / "a.txt", "--out", tmp_path / "d", "--tokenizer", given)
    assert ended.code == 2 and sentence in ended.err and ended.err.count("\n") == 1


@pytest.mark.parametrize("text", ["One.\r\nTwo.\r\n", "One.\n", "\ufeffOne\rTwo", "  One \t"])
def test_a_text_has_one_score_in_every_kind_of_file(
    cli: Cli, smoke_run: Path, tmp_path: Path, text: str
) -> None:
    line = json.dumps({"text": text}).encode()
    (tmp_path / "a.txt").write_bytes(text.encode())
    (tmp_path / "b.md").write_bytes(text.encode())
    (tmp_path / "c.jsonl").write_bytes(line + b"\r\n")
    (tmp_path / "d.jsonl.zst").write_bytes(zstandard.compress(line))
    pyarrow.parquet.write_table(pyarrow.table({"text": [text]}), tmp_path / "e.parquet")
    artifact = smoke_run / "artifact.fwy"
    names = ("a.txt", "b.md", "c.jsonl", "d.jsonl.zst", "e.parquet")
    scores = [
        cli("score", artifact, tmp_path / name, *FIXED.split(), "--json").json for name in names
    ]
    assert all(score == scores[0] for score in scores)
    assert scores[0]["bytes"] == len(text.encode())


def test_fetching_offline_is_refused(cli: Cli, tmp_path: Path) -> None:
    ended = cli("data", "fetch", "--out", tmp_path / "data", "--json")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("fairway: cannot reach the Hub")
    assert not (tmp_path / "data").exists()


def test_what_fetch_is_asked_reaches_the_hub_module(
    cli: Cli, data_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def fetch(out: Path, **options: Any) -> dict[str, Any]:
        asked.update(out=out, **options)
        return {"files": {}}

    monkeypatch.setattr("fairway.data.hub.fetch", fetch)
    words = ("data", "fetch", "--out", data_folder, "--shards", 3, "--revision", "v1")
    assert cli(*words, "--json").json == {"files": {}}
    assert asked == {"out": data_folder, "shards": 3, "revision": "v1", "new_commit": False}
    assert f"--set data.source={data_folder} --set model.vocab_size=300" in cli(*words).out
