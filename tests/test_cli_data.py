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
    assert f"train_tokens: {built['train']['tokens']}\n" in cli("data", "show", out).out

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
