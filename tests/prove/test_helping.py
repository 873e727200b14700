"""Proofs by decoding with experts beside the model."""

import resource
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny

from fairway.base.errors import UserError
from fairway.base.units import nats_to_bits
from fairway.config.settings import MixtureConfig, RuntimeConfig, TttConfig
from fairway.data.documents import Document
from fairway.prove.coding import Session, Sliding, method_named, method_record
from fairway.prove.container import PROOF, Header, coded_file
from fairway.prove.helping import WithExperts
from fairway.prove.proof import prove, restore, written

RUNTIME = RuntimeConfig(threads=1, dtype="float32", matmul="highest")
TEXT = [
    Document("a", "The model reads a text. The model reads a text, and it reads it.\n"),
    Document("b", "Every byte is a token, every byte is a token.\n"),
]
TTT = TttConfig(chunk_tokens=64, lr=0.05)
MIXTURE = MixtureConfig(experts="ppm match tilt", variant="B")


@pytest.fixture
def _small_experts() -> Iterator[None]:
    with tiny.tuned({"match_min": 6, "tilt_bits": 10}):
        yield


@pytest.mark.usefixtures("_small_experts")
@pytest.mark.parametrize(("base", "streams"), [("sliding", 2), ("sgd", 1)])
def test_the_mixture_is_decoded(
    artifact: Path, session: Session, tmp_path: Path, base: str, streams: int
) -> None:
    method, rows = method_named(base, TTT, 0, streams, MIXTURE)
    arguments = {"limit_bytes": 0, "tokenizer": None, "runtime": RUNTIME, "streams": rows}
    file, account = prove(artifact, TEXT, method, **arguments)  # type: ignore[arg-type]
    (tmp_path / "p").write_bytes(file)
    data, header = restore(tmp_path / "p", artifact, None)
    assert data == written([document.text for document in TEXT])
    assert header["method"]["name"] == "experts" and header["method"]["mixture"]["base"] == base
    assert account.streams == streams and -8 < account.coded_excess_bits < 64
    # The scorer's path, token by token along its nodes, says the same.
    assert abs(account.scorer_difference_share) < 1e-6
    alone, _ = method_named(base, TTT, 0, streams)
    ids = session.language.packer.stream([document.text for document in TEXT])
    parts = [part.ids for part in method.cut(ids, streams, session.language.tokenizer)]
    assert account.scorer_bits < 0.9 * nats_to_bits(alone.scorer_nats(session.language, parts))


def test_methods_with_experts_by_name(artifact: Path) -> None:
    found, rows = method_named("sliding", TTT, 0, None, MIXTURE)
    assert found == WithExperts(replace(MIXTURE, base="sliding"), TTT) and rows == 1
    assert method_named("sliding", TTT, 0, 3, MixtureConfig())[0] == Sliding()
    with pytest.raises(UserError, match="unknown method 'experts'"):
        method_named("experts", TTT, 0, None, MIXTURE)
    lora, _ = method_named("lora", TTT, 0, None, MIXTURE)
    with pytest.raises(UserError, match="experts follow one text"):
        prove(
            artifact, TEXT, lora, limit_bytes=0, tokenizer=None, runtime=RUNTIME, streams=1
        )  # fmt: skip


# ---------------------------------------------------------------------------------------------
# Claims


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def forged(session: Session, targets: list[int], method: WithExperts, payload: bytes) -> bytes:
    """Return a proof that claims streams of so many tokens, all else made right."""
    header = Header(
        artifact=session.artifact,
        digest="0" * 64,
        bytes=10**6,
        documents=1,
        targets=tuple(targets),
        joined=(False, *(True,) * (len(targets) - 1)),
        rows=len(targets),
        method=method_record(method),
        machine=session.machine,
        fingerprint=session.fingerprint(len(targets)),
    )
    return coded_file(PROOF, header, payload)


@pytest.mark.long
@pytest.mark.parametrize("targets", [[5000, 1, 1], [60] * 64, [1] * 1024, [100_000]])
def test_what_a_header_claims_for_experts_takes_no_memory_until_it_is_read(
    artifact: Path, session: Session, tmp_path: Path, targets: list[int]
) -> None:
    method = WithExperts(MIXTURE, TTT)
    payload = np.random.default_rng(1).integers(0, 256, 100, np.uint8).tobytes()
    (tmp_path / "p").write_bytes(forged(session, targets, method, payload))
    # What glibc keeps and has handed out before, it clears before it hands it out again.
    kept = [np.zeros(90_000_000, np.uint8) for _ in range(3)]
    del kept
    Path("/proc/self/clear_refs").write_text("5")
    before, before_s = resident_bytes(), time.process_time()
    with pytest.raises(UserError, match="ends before the tokens|other bytes"):
        restore(tmp_path / "p", artifact, None)
    grew = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grew < 64_000_000
    assert time.process_time() - before_s < 10


def test_experts_that_the_machine_has_no_room_for_are_refused(
    artifact: Path, session: Session, tmp_path: Path
) -> None:
    method = WithExperts(MIXTURE, TTT)
    (tmp_path / "p").write_bytes(forged(session, [900] * 512, method, b"\1" * 500))
    limits = resource.getrlimit(resource.RLIMIT_AS)
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + 600_000_000, limits[1]))
    try:
        with pytest.raises(UserError, match="experts for 512 streams .* fewer --streams"):
            restore(tmp_path / "p", artifact, None)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
