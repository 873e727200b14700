"""A text becomes a proof; a fresh process that has the artifact and the proof restores it."""

import dataclasses
import json
import re
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from shared import forking

from fairway.base.errors import UserError
from fairway.base.units import nats_to_bits
from fairway.config.settings import RuntimeConfig
from fairway.data.documents import Document
from fairway.prove import container
from fairway.prove.archive import decompress
from fairway.prove.coding import Session, Sliding
from fairway.prove.container import (
    ARCHIVE,
    PROOF,
    Header,
    coded_file,
    open_coded,
    open_file,
    stored_file,
)
from fairway.prove.machine import Machine
from fairway.prove.proof import Account, first_bytes, prove, restore, written
from fairway.prove.streams import cut_evenly, default_streams

RUNTIME = RuntimeConfig(threads=1, dtype="float32", matmul="highest")
LINES = [f"The model {n} reads a text.\nIt learns the token; caf\u00e9 {n * n}." for n in range(14)]
DOCUMENTS = [
    Document("a", "\n".join(LINES)),
    Document("b", "  It is.\n"),
    Document("c", "To bytes"),
]
TEXT = "".join(document.text for document in DOCUMENTS).encode()


def proof(artifact: Path, documents: list[Document], streams: int) -> tuple[bytes, Account]:
    return prove(
        artifact,
        documents,
        Sliding(),
        limit_bytes=0,
        streams=streams,
        tokenizer=None,
        runtime=RUNTIME,
    )


def changed(file: bytes, **fields: object) -> bytes:
    """Return a proof whose header says something else, with a digest that fits."""
    header, payload = open_coded(open_file(file)[1])
    return coded_file(PROOF, dataclasses.replace(header, **fields), payload)


@pytest.fixture(scope="module")
def proven(artifact: Path) -> tuple[bytes, Account]:
    return proof(artifact, DOCUMENTS, 3)


def test_the_account_adds_up(proven: tuple[bytes, Account]) -> None:
    file, account = proven
    assert account.text_bytes == len("\n".join(LINES).encode()) + len("  It is.\n") + len(
        "To bytes"
    )
    assert (account.streams, account.file_bytes) == (3, len(file))
    assert abs(account.coded_excess_bits) < 32
    assert abs(account.quantisation_share) < 1e-5
    assert abs(account.scorer_difference_share) < 1e-5
    assert account.bits_per_byte == 8 * account.coded_bytes / account.text_bytes


def test_a_fresh_process_restores_the_text(
    proven: tuple[bytes, Account], artifact: Path, tmp_path: Path
) -> None:
    shutil.copy(artifact, tmp_path / "artifact.fwy")
    (tmp_path / "proof.fwp").write_bytes(proven[0])
    words = "prove --decode proof.fwp --artifact artifact.fwy --out text.jsonl --json"
    ended = subprocess.run(
        [*forking(), *words.split()], cwd=tmp_path, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["documents"] == 3
    texts = [json.loads(line)["text"] for line in (tmp_path / "text.jsonl").open()]
    assert texts == [document.text for document in DOCUMENTS]


def test_one_document_is_restored_as_it_is(artifact: Path, tmp_path: Path) -> None:
    file = tmp_path / "p"
    file.write_bytes(proof(artifact, DOCUMENTS[:1], 4)[0])
    data, header = restore(file, artifact, None)
    assert data.decode() == DOCUMENTS[0].text
    assert header["joined"] == (False, True, True, True)


@pytest.mark.parametrize("streams", [1, 3])
def test_a_text_of_odd_bytes_is_restored_and_costs_what_its_score_says(
    artifact: Path, session: Session, tmp_path: Path, streams: int
) -> None:
    odd = [" ", "\r\n a\u2581 \t", "\ufeffb\x00", "", "c\u0301 \U0001f600\n\n"]
    documents = [Document(str(number), text) for number, text in enumerate(odd)]
    file, account = proof(artifact, documents, streams)
    (tmp_path / "p").write_bytes(file)
    assert restore(tmp_path / "p", artifact, None)[0] == written([text for text in odd if text])
    scored = session.language.score([text for text in odd if text])
    assert account.text_bytes == scored.bytes
    assert streams > 1 or account.ideal_bits == pytest.approx(nats_to_bits(scored.nats), rel=1e-6)


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        (0, ["ab\u00e9", "c", "d"]),
        (1, ["a"]),
        (3, ["ab"]),
        (4, ["ab\u00e9"]),
        (5, ["ab\u00e9", "c"]),
    ],
)
def test_a_text_is_cut_between_characters(limit: int, expected: list[str]) -> None:
    documents = [Document(name, name) for name in ("ab\u00e9", "c", "d")]
    assert list(first_bytes(documents, limit)) == expected


@pytest.mark.parametrize("count", [1, 2, 7, 400])
def test_streams_keep_every_byte(session: Session, count: int) -> None:
    tokenizer = session.language.tokenizer
    ids = session.language.packer.stream([d.text for d in DOCUMENTS])
    parts = cut_evenly(ids, count, tokenizer)
    assert len(parts) <= count and min(len(part.ids) for part in parts) > 1
    assert count > 2 or len(parts) == count
    packer = session.language.packer
    assert b"".join(b"".join(packer.documents(part.ids)) for part in parts) == TEXT
    whole = np.concatenate([part.ids[part.joined :] for part in parts])
    assert packer.documents(whole) == packer.documents(ids)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("torch", "1.0"),
        ("numpy", "1.0"),
        ("numba", "0.1"),
        ("processor", "abacus"),
        ("instructions", "BEADS"),
        ("gpu", "none such"),
    ],
)
def test_another_machine_is_refused(
    proven: tuple[bytes, Account], artifact: Path, tmp_path: Path, name: str, value: str
) -> None:
    header, _ = open_coded(open_file(proven[0])[1])
    machine = dataclasses.replace(header.machine, **{name: value})
    (tmp_path / "p").write_bytes(changed(proven[0], machine=machine))
    with pytest.raises(UserError, match=f"p: it was coded with {name} {value}, here it is"):
        restore(tmp_path / "p", artifact, None)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"artifact": "0" * 64}, "coded with the artifact 000000000000"),
        ({"digest": "0" * 64}, "decoding gave other bytes"),
        ({"fingerprint": "0" * 16}, "computes other numbers"),
        ({"method": {"name": "slidng"}}, "did you mean 'sliding'"),
        ({"method": {"name": "sliding", "x": 1}}, "unknown config field 'method.x'"),
        ({"method": {}}, "names no method"),
        ({"rows": 0}, "rows"),
        ({"targets": (2**40, 1, 1)}, "tokens"),
        ({"targets": (1,)}, "joins 3 of 1"),
        ({"targets": (1, 1, "x")}, "not a whole number"),
        ({"digest": 3}, "not a text"),
        ({"documents": 0}, "claims 0 documents, but 3 were restored"),
        ({"documents": 2}, "claims 2 documents, but 3 were restored"),
        ({"documents": 4}, "claims 4 documents, but 3 were restored"),
        ({"documents": 10**9}, "claims 1,000,000,000 documents in"),
        ({"documents": -1}, "-1 for documents, not a whole number"),
    ],
)
def test_a_header_that_cannot_be(
    proven: tuple[bytes, Account],
    artifact: Path,
    tmp_path: Path,
    fields: dict[str, object],
    told: str,
) -> None:
    (tmp_path / "p").write_bytes(changed(proven[0], **fields))
    with pytest.raises(UserError, match=told):
        restore(tmp_path / "p", artifact, None)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"threads": 0}, "settings of its arithmetic open"),
        ({"dtype": "auto"}, "settings of its arithmetic open"),
        ({"dtype": "int3"}, "choose one of"),
        (
            {"device": "cuda", "gpu": "X9"},
            "the GPU X9, but torch sees no GPU; decode it where",
        ),
    ],
)
def test_arithmetic_that_cannot_be(
    proven: tuple[bytes, Account],
    artifact: Path,
    tmp_path: Path,
    fields: dict[str, object],
    told: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    header, _ = open_coded(open_file(proven[0])[1])
    machine: Machine = dataclasses.replace(header.machine, **fields)
    (tmp_path / "p").write_bytes(changed(proven[0], machine=machine))
    with pytest.raises(UserError, match=told):
        restore(tmp_path / "p", artifact, None)


@pytest.mark.parametrize("streams", [1, 3])
@pytest.mark.parametrize("more", [b"\0", b"\1" * 2, b"\1" * 20, bytes(20), bytes(9) + b"\1"])
def test_bytes_behind_the_code_are_noticed(
    artifact: Path, tmp_path: Path, streams: int, more: bytes
) -> None:
    file = proof(artifact, DOCUMENTS, streams)[0]
    header, payload = open_coded(open_file(file)[1])
    (tmp_path / "p").write_bytes(coded_file(PROOF, header, payload + more))
    told = f"its code of {len(payload) + len(more):,} bytes does not end where its last token does"
    with pytest.raises(UserError, match=told):
        restore(tmp_path / "p", artifact, None)


def test_damage_is_noticed_before_anything_is_decoded(proven: tuple[bytes, Account]) -> None:
    file = proven[0]
    for at in range(0, len(file), 7):
        with pytest.raises(UserError):
            open_file(file[:at] + bytes([file[at] ^ 4]) + file[at + 1 :])
        with pytest.raises(UserError):
            open_file(file[:at])
    with pytest.raises(UserError, match="damaged"):
        open_file(file + b"\0")


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"", "too few for a header"),
        (b"\xff" * 8, "claims 4294967295 bytes"),
        (b"\x01\0\0\0\x05\0\0\0\x06", "does not hold the 5 bytes"),
    ],
)
def test_bodies_that_nobody_wrote(body: bytes, told: str) -> None:
    with pytest.raises(UserError, match=told):
        open_coded(body)


def test_headers_that_nobody_wrote() -> None:
    fields = dict.fromkeys(Header.__slots__, 1)
    for text, told in (
        (b"{", "not valid JSON"),
        (b'{"a":1}', "must have the fields"),
        (json.dumps(fields, sort_keys=True).encode(), "blanks, escapes or an order"),
        (json.dumps(fields, separators=(",", ":")).encode(), "blanks, escapes or an order"),
    ):
        packed = container.compress(text, "brotli", 1)
        lengths = len(packed).to_bytes(4, "little") + len(text).to_bytes(4, "little")
        with pytest.raises(UserError, match=told):
            open_coded(lengths + packed)


def test_other_files_are_no_proofs(artifact: Path, tmp_path: Path) -> None:
    (tmp_path / "p").write_bytes(stored_file(b"abc"))
    with pytest.raises(UserError, match="stored file; restore it with fairway decompress"):
        restore(tmp_path / "p", artifact, None)
    with pytest.raises(UserError, match="not written by fairway"):
        restore(artifact, artifact, None)


def test_what_is_written() -> None:
    assert written(["a\nb"]) == b"a\nb"
    assert written(["a\nb", "\u00e9"]) == '{"text": "a\\nb"}\n{"text": "\u00e9"}\n'.encode()


@pytest.mark.parametrize(
    ("tokens", "device", "most", "count"),
    [
        (100, "cpu", 16, 1),
        (8 * 64, "cpu", 16, 2),
        (8 * 64 - 1, "cpu", 16, 1),
        (10**6, "cpu", 16, 16),
        (10**6, "cpu", 1, 1),
        (0, "cuda", 900, 1),
        (60, "cuda", 900, 1),
        (61, "cuda", 900, 2),
        (6000, "cuda", 900, 100),
        (10**6, "cuda", 900, 900),
        (10**6, "cuda", 0, 1),
    ],
)
def test_streams_by_device_and_length(tokens: int, device: str, most: int, count: int) -> None:
    assert default_streams(tokens, 64, device, most) == count


def test_more_streams_than_tokens_or_streams_are_refused(proven: tuple[bytes, Account]) -> None:
    for fields in ({"rows": 4}, {"rows": 0}, {"rows": 1025}):
        with pytest.raises(UserError, match="at most 3 rows"):
            open_coded(open_file(changed(proven[0], **fields))[1])


CLAIMS = [
    ({"targets": (2**24,), "joined": (False,), "rows": 1, "bytes": 2**24}, "can stand for 1024"),
    ({"targets": (2**47,), "joined": (False,), "rows": 1, "bytes": 2**47}, "can stand for 1024"),
    ({"targets": (1,) * 100_000, "joined": (True,) * 100_000, "rows": 1}, "side by side in 1 rows"),
    ({"targets": (1,) * 100_000, "joined": (True,) * 100_000, "rows": 1024}, "in 1024 rows"),
    ({"targets": (1,) * 900, "joined": (True,) * 900, "rows": 900}, "ends before the tokens"),
    ({"targets": (90_000,), "joined": (False,), "rows": 1}, "ends before the tokens"),
    (
        {"targets": (90_000, *(1,) * 99), "joined": (True,) * 100, "rows": 100},
        "a stream of 90000 tokens among 100",
    ),
    # Told by the end of the payload, or by bytes that are not those of the header's digest.
    (
        {"targets": (250, *(1,) * 14), "joined": (True,) * 15, "rows": 15},
        "ends before|other bytes|does not end where",
    ),
    ({"targets": (0,) * 100_000, "joined": (True,) * 100_000}, "a stream of no tokens"),
    ({"targets": (10**45,), "joined": (True,), "rows": 1}, "a number of 46 digits"),
]


# Both kinds share the code that weighs claims: what runs the model is tried with one of them.
@pytest.mark.parametrize(
    ("fields", "told", "kind"),
    [
        (fields, told, kind)
        for number, (fields, told) in enumerate(CLAIMS)
        for kind in (ARCHIVE, PROOF)
        if not re.search("ends before|1024 rows", told) or kind == (ARCHIVE, PROOF)[number % 2]
    ],
)
def test_what_a_header_claims_costs_no_more_than_its_payload(
    proven: tuple[bytes, Account],
    session: Session,
    artifact: Path,
    tmp_path: Path,
    fields: dict[str, object],
    told: str,
    kind: int,
) -> None:
    header, payload = open_coded(open_file(proven[0])[1])
    rows = int(str(fields.get("rows", header.rows)))
    own = {"bytes": 10**6, "fingerprint": session.fingerprint(rows)}
    header = dataclasses.replace(header, **{**own, **fields})  # type: ignore[arg-type]
    file = coded_file(kind, header, payload)
    assert len(file) < 1_200
    before_s = time.process_time()
    with pytest.raises(UserError, match=told):
        if kind == PROOF:
            (tmp_path / "p").write_bytes(file)
            restore(tmp_path / "p", artifact, None)
        else:
            decompress(file, artifact, None)
    # The model is run once for every row, to see that it computes as the encoder did.
    assert time.process_time() - before_s < 10


def test_a_code_that_is_very_short_gets_zeros_behind_it() -> None:
    assert container.padded(b"\1", 10_000) == b"\1" + bytes(9)
    assert container.padded(b"\1", 1024) == b"\1" and container.padded(b"\1", 1025) == b"\1\0"
    assert container.padded(b"", 0) == b"" and container.padded(b"abc", 5) == b"abc"
