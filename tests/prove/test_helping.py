"""Proofs by decoding with experts beside the model."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import tiny

from fairway.base.errors import UserError
from fairway.base.units import nats_to_bits
from fairway.config.settings import MixtureConfig, RuntimeConfig, TttConfig
from fairway.data.documents import Document
from fairway.prove.coding import Session, Sliding, method_named
from fairway.prove.helping import WithExperts
from fairway.prove.proof import prove, restore, written

RUNTIME = RuntimeConfig(threads=1, dtype="float32", matmul="highest")
TEXT = [
    Document("a", "The model reads a text. The model reads a text, and it reads it.\n"),
    Document("b", "Every byte is a token, every byte is a token.\n"),
]
TTT = TttConfig(chunk_tokens=64, lr=0.05)
MIXTURE = MixtureConfig(experts="ppm match tilt", variant="B")


@pytest.fixture(autouse=True)
def _small_experts() -> Iterator[None]:
    with tiny.tuned({"match_min": 6, "tilt_bits": 10}):
        yield


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
