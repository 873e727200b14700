"""A model whose tokenizer has marks for capital letters: nobody outside meets one."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from specimens import PROVENANCE, TINY, quantised

from fairway.api import LanguageModel, load
from fairway.base.arrays import IntArray
from fairway.config.settings import PackConfig, RuntimeConfig
from fairway.costing import continuation
from fairway.data.case import ALL, ESCAPE, MARKS, NEXT, TITLE
from fairway.data.documents import Document
from fairway.data.tokens import Tokenizer, train_tokenizer
from fairway.model.writing import Row
from fairway.pack.artifact import save_artifact
from fairway.prove import archive, proof
from fairway.prove.coding import Sliding, open_session
from fairway.prove.machine import coding_plan
from fairway.prove.proof import prove, restore

RUNTIME = RuntimeConfig(threads=1, dtype="float32", matmul="highest")
LINES = "The QUICK brown McFox met NASA in Paris. I SAID: eBay is HTTPServer2.\n"
TEXT = f"{LINES}and {TITLE}{ESCAPE}aB{ALL}\u00c9TAT{NEXT} A"


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = replace(TINY, vocab_size=315)
    more = "the other brother rather gathered those feathers there; their mother bothered another. "
    tokenizer = Tokenizer(train_tokenizer([LINES * 20, more * 20], 315, case_ops=True))
    path = tmp_path_factory.mktemp("case") / "a.fwy"
    pack = PackConfig(codec="raw", with_tokenizer=True)
    provenance = PROVENANCE | {"score": {**PROVENANCE["score"], "seq_len": 48, "stride": 8}}
    save_artifact(path, quantised(config), config, pack, tokenizer, provenance)
    return path


@pytest.fixture(scope="module")
def model(artifact: Path) -> LanguageModel:
    return load(artifact, runtime=RUNTIME)


def test_a_proof_is_of_the_text_itself(artifact: Path, tmp_path: Path) -> None:
    documents = [Document("a", TEXT), Document("b", "  IT is.\n"), Document("c", MARKS[0])]
    file, account = prove(
        artifact, documents, Sliding(), limit_bytes=0, streams=7, tokenizer=None, runtime=RUNTIME
    )
    assert account.text_bytes == sum(len(document.text.encode()) for document in documents)
    path = tmp_path / "p.fwp"
    path.write_bytes(file)
    data, facts = restore(path, artifact, None)
    assert data == proof.written([document.text for document in documents])
    assert any(facts["joined"])


def test_a_compressed_file_comes_back(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # What an untrained model codes is longer than the file, and would be stored.
    monkeypatch.setattr(archive, "stored_file", lambda data: bytes(10**6))
    session = open_session(artifact, None, coding_plan(RUNTIME))
    data = TEXT.encode() + b"\xff\xee\x80A"
    # A stream of a token or two ends between marks and their words.
    file = archive.compress(data, session, 60)
    assert archive.decompress(file, artifact, None) == data


def test_scores_are_by_the_bytes_of_the_text(model: LanguageModel) -> None:
    found = model.score(TEXT)
    assert found.bytes == len(TEXT.encode())
    assert found.bpb == pytest.approx(-model.logprobs(TEXT).sum() / np.log(2) / found.bytes)


def test_continuations_begin_where_the_text_does(model: LanguageModel) -> None:
    for context in ("", "The", "The QU", "I"):
        asked = continuation(model.packer, context, TEXT)
        read = model.packer.unpack_document(asked.ids[1 : asked.first + 1]).decode()
        assert context.startswith(read) and len(context) - len(read) < 8


def rows(model: LanguageModel, prompt: str | IntArray, tokens: list[int]) -> list[str]:
    row, told = Row(model.packer, prompt, 99, 0), []
    for token in tokens:
        row._add(token)
        told.append(row.said())
    return told


def test_what_a_model_writes_has_capitals_and_no_marks(model: LanguageModel) -> None:
    packer, tokenizer = model.packer, model.tokenizer
    title, every, _, escape, _ = tokenizer.mark_ids.values()
    a, b = tokenizer.byte_ids[[97, 98]].tolist()
    assert rows(model, "x", [title, a, b, every, title, a]) == ["", "A", "Ab", "Ab", "Ab", "AbA"]
    assert rows(model, "x", [every, a, b, escape, a, a]) == ["", "A", "AB", "AB", f"AB{TITLE}",
                                                             f"AB{TITLE}a"]  # fmt: skip
    # The prompt's last word goes on as it began.
    assert rows(model, "NASA", [a, b]) == ["A", "AB"]
    assert rows(model, "Nasa", [a]) == ["a"] and rows(model, "I am ", [title, a])[-1][-1] == "A"
    ids = packer.document(TEXT)
    start = np.array([tokenizer.bos_id])
    told = rows(model, start, ids.tolist()[:90])
    assert all(TEXT.startswith(part.removesuffix("\ufffd")) for part in told)
    drawn = model.generate("The QUICK", max_tokens=60, seed=3, top_k=315, temperature=3.0)
    assert drawn == "".join(
        model.stream("The QUICK", max_tokens=60, seed=3, top_k=315, temperature=3.0)
    )
