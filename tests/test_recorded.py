"""Costs of tokens that a stage booked: kept as booked, read without trust."""

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from fairway.api import load
from fairway.base.errors import UserError
from fairway.base.files import digest_json
from fairway.base.units import nats_to_bits
from fairway.config.settings import RuntimeConfig
from fairway.data.folder import Validation
from fairway.data.tokens import Tokenizer, encode_documents
from fairway.machine.ranks import Ranks
from fairway.pipeline.folder import RunFolder
from fairway.pipeline.record import config_of
from fairway.pipeline.recorded import Recorder, openings, read, recorded
from fairway.pipeline.text import open_text
from fairway.score.costs import costs_of
from fairway.score.documents import longest_first
from fairway.score.evaluation import Evaluation
from fairway.score.ledger import Witness
from fairway.score.predictor import Receipt
from fairway.score.sliding import text_of
from fairway.score.windows import Event, Window

RUNTIME = RuntimeConfig(threads=1, dtype="float32", matmul="highest")


def test_what_is_kept_is_what_the_stage_booked(smoke_run: Path) -> None:
    folder = RunFolder(smoke_run)
    config, model = config_of(folder), load(smoke_run / "artifact.fwy", runtime=RUNTIME)
    source = open_text(config, smoke_run / "data", lambda reads, work: None)
    whole = source.sample_validation(config.data.val_bytes, config.data.val_tokens)
    text = text_of(whole.ids, source.tokenizer.table, whole.bytes)
    asked = Evaluation(text, config.score, config.ttt, config.seed, "again")
    again = costs_of(model.model, asked, 0)
    kept = recorded(folder, "sliding", source.tokenizer)
    assert len(kept) == min(12, len(whole.documents))
    starts = np.flatnonzero(np.asarray(whole.ids) == source.tokenizer.bos_id)
    for words, found in kept.items():
        (place,) = (n for n, one in enumerate(whole.documents) if one.startswith(words))
        own = again.nats[starts[place] : starts[place] + found["tokens"]]
        assert found["bits"] == pytest.approx([nats_to_bits(n) for n in own], abs=2e-6)
        assert found["total_bits"] == pytest.approx(sum(found["bits"]))
        assert found["bytes"] == len(words.encode()) == found["ends"][-1] <= 1500
    learned = recorded(folder, "ttt", source.tokenizer)
    assert learned.keys() == kept.keys() and learned != kept
    assert recorded(folder, "mixture", source.tokenizer) == {}


DOCUMENTS = [
    "The model was.",
    "caf\u00e9 \U0001f389" * 40 + " the end of it",
    "small every byte" * 9,
]


@pytest.fixture
def tokenizer(data_folder: Path) -> Tokenizer:
    return Tokenizer.load(data_folder / "tokenizer.model")


class Side:
    """One of two processes: the second leaves its numbers for the first."""

    def __init__(self, left: list[np.ndarray], first: bool) -> None:
        self.left, self.first = left, first

    def total(self, values: np.ndarray) -> np.ndarray:
        if not self.first:
            self.left.append(values)
        return np.asarray(values + sum(self.left))


def booked(recorder: Recorder, ids: np.ndarray, positions: Iterable[int]) -> None:
    """Book positions; the cost of a token is its number, so that it tells which one was booked."""
    for at in positions:
        target = np.asarray(ids[at + 1 : at + 2], np.int64)
        event = Event(at, (Window(at, at + 1, at),))
        recorder.scored(Receipt(event, target, target.astype(np.float64)))


@pytest.mark.parametrize("ordered", [False, True], ids=["as it is", "longest first"])
@pytest.mark.parametrize("world", [1, 2])
def test_openings_are_found_in_any_order(
    tokenizer: Tokenizer, tmp_path: Path, ordered: bool, world: int
) -> None:
    ids = np.asarray(encode_documents(tokenizer, DOCUMENTS))
    size = sum(len(one.encode()) for one in DOCUMENTS)
    text = text_of(ids, tokenizer.table, size)
    scored = longest_first(text, len(ids) - 1) if ordered else text
    kept, left = openings(Validation(ids, DOCUMENTS, size), tokenizer), []
    for rank in reversed(range(world)):
        recorder = Recorder(Witness(), kept)
        recorder.opened(scored)
        booked(recorder, np.asarray(scored.ids), range(rank, len(ids) - 1, world))
        recorder.write(tmp_path / "kept.json", cast(Any, Side(left, rank == 0)))
    found = json.loads((tmp_path / "kept.json").read_text())
    assert {one["text"] for one in found} == set(DOCUMENTS)
    assert all(one["nats"] == one["ids"][1:] for one in found)
    # What was not scored as a whole is not kept.
    recorder = Recorder(Witness(), kept)
    recorder.opened(scored)
    booked(recorder, np.asarray(scored.ids), range(len(ids) - 2))
    recorder.write(tmp_path / "kept.json", Ranks())
    assert len(json.loads((tmp_path / "kept.json").read_text())) == len(DOCUMENTS) - 1


SPOILED = {
    "not JSON": lambda one: "{",
    "no list": lambda one: "3",
    "no text": lambda one: json.dumps([{**one, "text": None}]),
    "half a character": lambda one: json.dumps([{**one, "text": "\ud800"}]),
    "another text": lambda one: json.dumps([{**one, "text": one["text"] + "x"}]),
    "a token too large": lambda one: json.dumps([{**one, "ids": [10**6, *one["ids"][1:]]}]),
    "a token below 0": lambda one: json.dumps([{**one, "ids": [-1, *one["ids"][1:]]}]),
    "no numbers": lambda one: json.dumps([{**one, "ids": [[]]}]),
    "a cost too few": lambda one: json.dumps([{**one, "nats": one["nats"][1:]}]),
    "a negative cost": lambda one: json.dumps([{**one, "nats": [-1.0, *one["nats"][1:]]}]),
    "nothing": lambda one: json.dumps([{"text": "", "ids": [1], "nats": []}]),
    "too large": lambda one: " " * (1 << 23),
}


@pytest.mark.parametrize("spoil", SPOILED.values(), ids=SPOILED)
def test_a_spoiled_record_is_refused(
    smoke_run: Path, tokenizer: Tokenizer, tmp_path: Path, spoil: Callable[[dict], str]
) -> None:
    path = tmp_path / "costs-ttt.json"
    own = load(smoke_run / "artifact.fwy", runtime=RUNTIME).tokenizer
    first = json.loads((smoke_run / path.name).read_text())[0]
    path.write_text(json.dumps([first]))
    assert len(read(path, own)) == 1
    path.write_text(spoil(first))
    with pytest.raises(UserError, match=r"costs-ttt\.json"):
        read(path, own)


def test_a_changed_record_is_refused_and_a_run_without_one_has_none(
    smoke_run: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(smoke_run, run)
    tokenizer = load(run / "artifact.fwy", runtime=RUNTIME).tokenizer
    path = run / "costs-ttt.json"
    path.write_text(path.read_text().replace(".", ".1", 1))
    with pytest.raises(UserError, match=r"costs-ttt\.json is not what was written.*fairway score"):
        recorded(RunFolder(run), "ttt", tokenizer)
    memory = json.loads((run / "run.json").read_text())
    del memory["digest"], memory["stages"]["score.ttt"]["files"][path.name]
    (run / "run.json").write_text(json.dumps({**memory, "digest": digest_json(memory)}))
    assert recorded(RunFolder(run), "ttt", tokenizer) == {}
