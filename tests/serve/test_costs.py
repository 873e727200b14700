import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from fairway.base.names import ARTIFACT, recorded_file
from fairway.pipeline.folder import RunFolder
from fairway.pipeline.run import open_run
from fairway.serve.asked import MAX_TEXT_BYTES
from fairway.serve.models import Desk, open_desk
from fairway.serve.page import POLICY, SCRIPT

from .conftest import RUNTIME

HOSTILE = '<script>alert("1")</script><img src=x onerror=alert(1)> & \x00 \u202e end'
TEXTS = [
    "The model predicts a small token.\nIt was the text.",
    "\U0001f389 caf\u00e9 \U0001f469\u200d\U0001f469\u200d\U0001f467",
    "\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645",
    "a" * 700,
    " ",
    HOSTILE,
]


def costs(client: TestClient, text: str, **fields: Any) -> dict[str, Any]:
    answer = client.post("/costs", json={"text": text, **fields})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def letters(html: str) -> str:
    return unescape(re.sub(r"<[^>]+>", "", html))


@pytest.mark.parametrize("text", TEXTS, ids=["plain", "emoji", "rtl", "long", "blank", "hostile"])
def test_what_is_shown_is_the_text_and_its_score(client: TestClient, desk: Desk, text: str) -> None:
    (side,) = costs(client, text)["sides"]
    score = desk.first.language.score(text)
    assert side["bpb"] == score.bpb
    assert (side["tokens"], side["bytes"]) == (score.tokens, len(text.encode()))
    assert letters(side["text"]) == text.replace("\x00", "\ufffd")
    assert f'value="{score.bpb!r}"' in side["totals"]
    assert len(side["tips"]) == side["text"].count("<label")
    whole = json.dumps(side)
    assert "<script" not in whole and "<img" not in whole


def test_the_score_is_what_the_command_prints(
    client: TestClient, smoke_run: Path, forked: list[str], tmp_path: Path
) -> None:
    text = "The model predicts a small token.\nIt was the text that every byte is in.\n"
    (tmp_path / "a.txt").write_text(text)
    fixed = ["runtime.threads=1", "runtime.dtype=float32", "runtime.matmul=highest"]
    words = ["score", str(smoke_run), "a.txt", "--json", *(w for s in fixed for w in ("--set", s))]
    ended = subprocess.run([*forked, *words], cwd=tmp_path, capture_output=True, check=True)
    (side,) = costs(client, text)["sides"]
    assert side["bpb"] == json.loads(ended.stdout)["bpb"]


def test_two_stages_are_compared(client: TestClient) -> None:
    found = costs(client, TEXTS[0], model="smoke", beside="smoke:raw")
    a, b = found["sides"]
    assert (a["model"], b["model"]) == ("smoke", "smoke:raw") and a["bpb"] != b["bpb"]
    assert "</b> costs " in found["summary"] and "A costs less" in found["scale"]
    shown = re.findall(r"<td>([+\u2212][\d.]+)</td>", found["list"])
    sizes = [abs(float(value.replace("\u2212", "-"))) for value in shown]
    assert sizes == sorted(sizes, reverse=True) and len(sizes) == 20
    same = costs(client, TEXTS[0], model="smoke", beside="smoke")
    assert same["summary"] == "Both have the same cost." and "<td>" not in same["list"]


def test_records_of_stages_are_compared(client: TestClient, desk: Desk) -> None:
    assert set(desk.records) == {"smoke:sliding", "smoke:ttt"}
    text = client.get("/documents").json()["documents"][0]
    found = costs(client, text, model="smoke:ttt", beside="smoke:sliding")
    a, b = found["sides"]
    assert letters(a["text"]) == letters(b["text"]) == text and a["bpb"] != b["bpb"]
    assert a["bpb"] == desk.records["smoke:ttt"].by_text[text]["bpb"]
    assert found["summary"].count("is a record") == 2
    assert "bits" in a["tips"][3] and "rank" not in a["tips"][3]
    # Beside a model: its first document is scored with the same context.
    live = costs(client, text, model="smoke", beside="smoke:sliding")["sides"]
    assert "rank" in live[0]["tips"][3] and "rank" not in live[1]["tips"][3]


def packed_again(copy: Path, scored: tuple[str, ...]) -> None:
    """Let a run remember that all its records but some are of another artifact."""
    folder = RunFolder(copy)
    stages = json.loads(json.dumps(folder.memory["stages"]))
    for name in {"score.sliding", "score.ttt"} - {f"score.{stage}" for stage in scored}:
        stages[name]["facts"]["file_digest"] = "0" * 64
    folder.remember("stages", stages)


@pytest.mark.parametrize("scored", [("sliding", "ttt"), ("ttt",), ()])
def test_records_of_a_former_artifact_are_not_listed(
    smoke_run: Path, tmp_path: Path, scored: tuple[str, ...]
) -> None:
    copy = Path(shutil.copytree(smoke_run, tmp_path / "copy"))
    packed_again(copy, scored)
    found = open_desk([copy], None, RUNTIME)
    assert set(found.records) == {f"copy:{stage}" for stage in scored}
    assert set(found.served) == {"copy", "copy:raw", "copy:average"}
    # The validation text of the run takes the place of the texts of records.
    assert found.documents()


def test_an_artifact_of_another_run_gets_no_records(smoke_run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(smoke_run, tmp_path / "copy"))
    pipeline = open_run(copy, ["quant.matrix_bits=5"], lambda text: None)
    with pipeline.writing():
        pipeline.pack()
    assert not open_desk([copy], None, RUNTIME).records
    shutil.copy(smoke_run / ARTIFACT, copy / "other.fwy")
    assert set(open_desk([copy / "other.fwy"], None, RUNTIME).records) == {
        "other:sliding",
        "other:ttt",
    }


def test_a_record_neither_computes_nor_knows_other_texts(client: TestClient) -> None:
    answer = client.post("/costs", json={"text": "my own", "beside": "smoke:ttt"})
    words = answer.json()["error"]["message"]
    assert answer.status_code == 400 and "record of" in words and "'Text from'" in words
    answer = client.post("/v1/completions", json={"model": "smoke:ttt", "prompt": "a"})
    assert answer.status_code == 400 and "choose a model" in answer.json()["error"]["message"]
    names = {one["id"] for one in client.get("/v1/models").json()["data"]}
    assert names == {"smoke", "smoke:raw", "smoke:average"}


@pytest.mark.parametrize(
    ("fields", "status", "told"),
    [
        ({}, 400, "the text is empty"),
        ({"text": ""}, 400, "the text is empty"),
        ({"text": ["a"]}, 400, "text is ['a']; it must be a text"),
        ({"text": "a" * (MAX_TEXT_BYTES + 1)}, 400, "the text has 20,001 bytes"),
        ({"text": "\ud800"}, 400, "half a character"),
        ({"text": "a", "model": "none"}, 404, "there is no model 'none'"),
        ({"text": "a", "beside": "none"}, 404, "there is no model 'none'"),
        ({"text": "a", "beside": 3}, 400, "beside is 3"),
        ({"text": "a", "colour": 1}, 400, "'colour' is not a field"),
    ],
)
def test_what_cannot_be_shown_is_refused(
    client: TestClient, fields: dict[str, Any], status: int, told: str
) -> None:
    kind = {"content-type": "application/json"}
    answer = client.post("/costs", content=json.dumps(fields), headers=kind)
    assert answer.status_code == status and told in answer.json()["error"]["message"]


def test_validation_documents_are_offered(client: TestClient, smoke_run: Path) -> None:
    found = client.get("/documents").json()["documents"]
    assert 1 <= len(found) <= 12 and all(len(text.encode()) <= 1500 for text in found)


def test_the_page_needs_nothing_from_elsewhere(client: TestClient) -> None:
    answer = client.get("/")
    assert answer.headers["content-security-policy"] == POLICY
    page = answer.text
    assert not re.search(r"""(src|href)=["'](?!data:)""", page) and "@import" not in page
    assert page.count("<script>") == 1 and SCRIPT in page
    labelled = set(re.findall(r'<label for="(\w+)"', page))
    fields = set(re.findall(r'<(?:select|input|textarea) id="(\w+)"', page))
    assert fields and fields == labelled


def test_a_whole_artifact_is_served_without_its_records(smoke_run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(smoke_run, tmp_path / "copy"))
    for stage in ("sliding", "ttt"):
        (copy / recorded_file(stage)).unlink()
    found = open_desk([copy], None, RUNTIME)
    assert not found.records and set(found.served) == {"copy", "copy:raw", "copy:average"}
