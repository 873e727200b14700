"""Models that learn along are decoded by models that learn the same."""

import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from damage import run_command

from fairway.base.errors import UserError
from fairway.base.room import Room
from fairway.config.settings import RuntimeConfig, TttConfig
from fairway.data.documents import Document
from fairway.model.need import cached_bytes, way_of
from fairway.prove import coding
from fairway.prove.coding import Method, Session, Sliding, method_named, method_record, open_session
from fairway.prove.container import PROOF, coded_file, open_coded, open_file
from fairway.prove.learning import ChunkSgd, DocumentLora
from fairway.prove.machine import coding_plan
from fairway.prove.proof import Account, prove, restore, written
from fairway.prove.walk import Walked

RUNTIME = RuntimeConfig(threads=1, dtype="float32", matmul="highest")
SGD = ChunkSgd(TttConfig(chunk_tokens=64, lr=0.05))
LORA = DocumentLora(
    TttConfig(lora_rank=4, lora_alpha=8, lora_lr=0.01, lora_chunks="8@24 16", lora_documents=2),
    seed=5,
)
METHODS = pytest.mark.parametrize("method", [SGD, LORA], ids=["sgd", "lora"])
DOCUMENTS = [
    Document("a", "The model reads a text. The model reads a text, and it reads it.\n" * 2),
    Document("b", "It is a token."),
    Document("c", "Every byte is a token, every byte is a token.\n" * 3),
]
# The same in fewer words.
SHORT = [Document(d.name, d.text.partition("\n")[0]) for d in DOCUMENTS]
FILE = {"limit_bytes": 0, "tokenizer": None, "runtime": RUNTIME}


def proof(artifact: Path, method: Method, documents: list[Document]) -> tuple[bytes, Account]:
    rows = method.ttt.lora_documents if isinstance(method, DocumentLora) else 1
    return prove(artifact, documents, method, streams=rows, **FILE)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def proven(artifact: Path) -> Callable[[Method], tuple[bytes, Account]]:
    return cache(lambda method: proof(artifact, method, DOCUMENTS))


@pytest.fixture(scope="module")
def walked(artifact: Path) -> Callable[[Method, list[np.ndarray]], Walked]:
    """Return a function: the walk of some streams with BOS, by a model that is loaded anew."""

    def walk(method: Method, streams: list[np.ndarray]) -> Walked:
        session = open_session(artifact, None, coding_plan(RUNTIME))
        rows = min(2, len(streams))
        return session.encode([ids[1:] for ids in streams], rows, method)[1]

    return walk


def streams_of(session: Session, method: Method) -> list[np.ndarray]:
    ids = session.language.packer.stream([d.text for d in DOCUMENTS])
    return [part.ids for part in method.cut(ids, 2, session.language.tokenizer)]


@pytest.mark.long
@METHODS
def test_a_model_loaded_anew_restores_the_text(
    proven: Callable[[Method], tuple[bytes, Account]],
    artifact: Path,
    tmp_path: Path,
    method: Method,
) -> None:
    file, account = proven(method)
    (tmp_path / "p").write_bytes(file)
    data, header = restore(tmp_path / "p", artifact, None)
    assert data == written([document.text for document in DOCUMENTS])
    assert header["method"] == method_record(method)
    assert header["joined"] == (False,) * (1 if method == SGD else 3)
    assert -8 < account.coded_excess_bits < 64
    # The scorer's path has learned the same.
    assert abs(account.scorer_difference_share) < 1e-5


@METHODS
def test_the_scorer_leaves_the_model_as_it_was(session: Session, method: Method) -> None:
    model, streams = session.language.model, streams_of(session, method)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    assert method.scorer_nats(session.language, streams) > 0
    assert all((before[name] == weight).all() for name, weight in model.state_dict().items())
    assert all(weight.grad is None and weight.requires_grad for weight in model.parameters())


@pytest.mark.long
def test_sgd_learns_from_the_first_chunk_on(
    session: Session, walked: Callable[[Method, list[np.ndarray]], Walked]
) -> None:
    (ids,) = streams_of(session, SGD)
    learned, frozen = walked(SGD, [ids]).nats[0], walked(Sliding(), [ids]).nats[0]
    assert np.array_equal(learned[:64], frozen[:64])
    assert not np.isclose(learned[64:], frozen[64:], atol=1e-4).all()
    other = ids.copy()
    other[41] = ids[40]
    changed = walked(SGD, [other]).nats[0]
    assert np.array_equal(changed[:40], learned[:40])
    # 64 + seq_len tokens on no window sees the changed token, but the weights have learned it.
    assert not np.array_equal(changed[128:], learned[128:])


@pytest.mark.long
def test_lora_learns_from_its_own_document(
    session: Session, walked: Callable[[Method, list[np.ndarray]], Walked]
) -> None:
    streams = streams_of(session, LORA)
    learned = walked(LORA, streams)
    off = replace(LORA, ttt=replace(LORA.ttt, lora_lr=0.0))
    frozen = walked(off, streams)
    for one, other in zip(learned.nats, frozen.nats, strict=True):
        assert np.array_equal(one[:8], other[:8])
        assert len(one) <= 8 or not np.isclose(one[8:], other[8:], atol=1e-4).all()
    changed_ids = [streams[0].copy(), *streams[1:]]
    changed_ids[0][6] = streams[0][5]
    changed = walked(LORA, changed_ids)
    assert np.array_equal(changed.nats[0][:5], learned.nats[0][:5])
    assert not np.array_equal(changed.nats[0][64 + 8 :], learned.nats[0][64 + 8 :])
    # Its neighbour has adapters of its own.
    assert np.allclose(changed.nats[1], learned.nats[1], atol=1e-4)


@pytest.mark.parametrize(
    "change",
    [
        {"lora_lanes": 1, "lora_logit_factor": 0.8, "lora_frozen_share": 0.4},
        {"lora_documents": 1, "lora_targets": "q"},
        # Between the three batches all weights learn whole sequences of what came before.
        {"lora_documents": 1, "lora_phases": 2, "lr": 0.05, "chunk_tokens": 64},
        # Documents longer than a window, with the model itself beside its adapters.
        {
            "lora_documents": 1,
            "lora_phases": 2,
            "lr": 0.05,
            "chunk_tokens": 64,
            "lora_frozen_share": 0.4,
        },
    ],
)
def test_batches_follow_one_another_as_in_the_scorer(
    artifact: Path, session: Session, change: dict[str, object]
) -> None:
    method = replace(LORA, ttt=replace(LORA.ttt, **change))  # type: ignore[arg-type]
    documents = DOCUMENTS if "lora_phases" in change else SHORT
    _, account = proof(artifact, method, documents)
    assert abs(account.scorer_difference_share) < 1e-5


@pytest.mark.parametrize(
    ("method", "told"),
    [
        (replace(SGD, ttt=replace(SGD.ttt, chunk_tokens=100)), "multiple of score.seq_len"),
        (replace(LORA, ttt=replace(LORA.ttt, lora_chunks="x")), "ttt.lora_chunks is 'x'"),
        (replace(LORA, ttt=replace(LORA.ttt, lora_sort=True)), "ttt.lora_sort=false"),
        (replace(LORA, ttt=replace(LORA.ttt, lora_documents=1025)), "must be at most 1024"),
        (replace(LORA, seed=2**32), "below 2\\^32"),
    ],
)
def test_settings_that_cannot_be_proven(
    proven: Callable[[Method], tuple[bytes, Account]],
    artifact: Path,
    tmp_path: Path,
    method: Method,
    told: str,
) -> None:
    with pytest.raises(UserError, match=told):
        proof(artifact, method, DOCUMENTS)
    base = SGD if isinstance(method, ChunkSgd) else LORA
    header, payload = open_coded(open_file(proven(base)[0])[1])
    header = replace(header, method=method_record(method))
    (tmp_path / "p").write_bytes(coded_file(PROOF, header, payload))
    with pytest.raises(UserError, match=f"p: .*{told}"):
        restore(tmp_path / "p", artifact, None)


def test_headers_with_more_streams_than_learn(
    proven: Callable[[Method], tuple[bytes, Account]],
    session: Session,
    artifact: Path,
    tmp_path: Path,
) -> None:
    for method, fields, told in (
        (SGD, {"targets": (1, 1), "joined": (False, False)}, "one stream"),
        (LORA, {"rows": 3, "fingerprint": session.fingerprint(3)}, "3 rows cannot have"),
    ):
        header, payload = open_coded(open_file(proven(method)[0])[1])
        header = replace(header, **fields)  # type: ignore[arg-type]
        (tmp_path / "p").write_bytes(coded_file(PROOF, header, payload))
        with pytest.raises(UserError, match=told):
            restore(tmp_path / "p", artifact, None)


def test_methods_by_name() -> None:
    ttt = TttConfig()
    assert method_named("sliding", ttt, 1, None) == (Sliding(), None)
    assert method_named("sliding", ttt, 1, 7) == (Sliding(), 7)
    assert method_named("sgd", ttt, 1, None) == (ChunkSgd(ttt), 1)
    assert method_named("lora", ttt, 1, None) == (DocumentLora(ttt, 1), 64)
    narrow = replace(ttt, lora_documents=3)
    assert method_named("lora", ttt, 1, 3) == (DocumentLora(narrow, 1), 3)
    with pytest.raises(UserError, match="did you mean 'lora'"):
        method_named("lore", ttt, 1, None)
    with pytest.raises(UserError, match="one stream"):
        method_named("sgd", ttt, 1, 2)


@pytest.mark.long
def test_a_fresh_process_learns_the_same(
    artifact: Path,
    tmp_path: Path,
    forked: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [json.dumps({"text": document.text}) for document in SHORT]
    Path("t.jsonl").write_text("\n".join(lines))
    settings = "--set ttt.lora_rank=4 --set ttt.lora_lr=0.01 --set ttt.lora_chunks=16"
    fixed = "--set runtime.threads=1 --set runtime.dtype=float32 --set runtime.matmul=highest"
    words = f"prove {artifact} t.jsonl --out p --method lora --streams 2 {settings} {fixed}"
    code, _, err = run_command(words.split(), capsys, monkeypatch)
    assert code == 0, err
    decoding = f"prove --decode p --artifact {artifact} --out back.jsonl"
    ended = subprocess.run([*forked, *decoding.split()], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert Path("back.jsonl").read_bytes() == written([d.text for d in SHORT])
    code, _, err = run_command(f"{words} --set score.stride=4".split(), capsys, monkeypatch)
    assert code == 2 and "for an artifact, set only runtime, ttt, mixture" in err


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU's memory is asked in another place")
def test_rows_that_do_not_fit_into_memory_are_refused(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model itself beside adapters needs keys and values as the adapted one does."""
    session = open_session(artifact, None, coding_plan(RUNTIME))
    needs = []
    for share in (0.0, 0.4):
        method = replace(LORA, ttt=replace(LORA.ttt, lora_frozen_share=share))
        monkeypatch.setattr(coding, "host_room", lambda: Room(1))
        with pytest.raises(UserError, match="2 streams side by side need (.*) MB of mem") as told:
            session._check_memory(method, 2, 4096)
        needs.append(float(str(told.value).split(" need ")[1].split(" MB")[0]))
        monkeypatch.setattr(coding, "host_room", lambda: Room(10**12))
        session._check_memory(method, 2, 4096)
    model = session.language.model
    kept = cached_bytes(model.config, way_of(model), model.looping, 4096)
    assert needs[1] - needs[0] == pytest.approx(2 * kept / 1e6, abs=0.2)
