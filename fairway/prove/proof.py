"""Proof by decoding: a text is coded with the scorer's own distributions, then restored.

A score is the calculated cost of a text; the size of the file is its real cost. Restoring the text
needs only the artifact and the file, so the model has predicted every counted token.
"""

import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fairway.base.arrays import IntArray
from fairway.base.errors import UserError
from fairway.base.files import digest_bytes, read_bytes
from fairway.base.units import nats_to_bits
from fairway.config.settings import RuntimeConfig
from fairway.data.documents import Document
from fairway.prove.coding import Method, Session, method_record, open_session, session_for
from fairway.prove.container import (
    KINDS,
    PROOF,
    Header,
    check_restored,
    coded_file,
    open_coded,
    open_file,
    uneven,
)
from fairway.prove.learning import DocumentLora
from fairway.prove.machine import coding_plan
from fairway.prove.walk import Walked


@dataclass(frozen=True, slots=True)
class Account:
    """The result of a proof. Differences are relative to `ideal_bits`, the cost by the walk's own
    log-probabilities. `scorer_bits` is the cost of the same streams by the ledger."""

    text_bytes: int
    tokens: int
    streams: int
    file_bytes: int
    coded_bytes: int
    bits_per_byte: float
    ideal_bits: float
    coded_excess_bits: float
    quantisation_bits: float
    quantisation_share: float
    scorer_bits: float
    scorer_difference_bits: float
    scorer_difference_share: float
    seconds: float
    bytes_per_s: float


def first_bytes(documents: Iterable[Document], limit_bytes: int) -> Iterator[str]:
    """Yield the texts of the first documents, of `limit_bytes` bytes or less; 0 yields all.

    The last document is cut between characters.
    """
    left = limit_bytes
    for document in documents:
        data = document.text.encode()
        if not limit_bytes or len(data) <= left:
            yield document.text
        else:
            yield data[:left].decode(errors="ignore")
        left -= len(data)
        if limit_bytes and left <= 0:
            return


def written(documents: list[str]) -> bytes:
    """Return a text in the form of a file: one document unchanged, several as lines of JSON."""
    if len(documents) == 1:
        return documents[0].encode()
    lines = (json.dumps({"text": text}, ensure_ascii=False) for text in documents)
    return "".join(f"{line}\n" for line in lines).encode()


def prove(
    artifact: Path,
    documents: Iterable[Document],
    method: Method,
    *,
    limit_bytes: int,
    streams: int | None,
    tokenizer: Path | None,
    runtime: RuntimeConfig,
) -> tuple[bytes, Account]:
    """Return the proof of the first bytes of a text as a file, and its account.

    With `streams` None the device decides their number: one on a CPU, many for a long text on a
    GPU. All bytes of each document are coded, as in its score. Raises UserError if there is no
    text.
    """
    session = open_session(artifact, tokenizer, coding_plan(runtime))
    language = session.language
    texts = [text for text in first_bytes(documents, limit_bytes) if text]
    ids = language.packer.stream(texts)
    count = streams or session.streams(len(ids), on_cpu=1)
    parts = method.cut(ids, count, language.tokenizer)
    while not isinstance(method, DocumentLora) and uneven(
        [len(part.ids) - 1 for part in parts], count
    ):
        # Streams can begin at few places of this text.
        count //= 2
        parts = method.cut(ids, count, language.tokenizer)
    scorer_nats = method.scorer_nats(language, [part.ids for part in parts])
    rows = min(count, len(parts))
    fingerprint = session.fingerprint(rows)
    start_s = time.perf_counter()
    payload, walked = session.encode([part.ids[1:] for part in parts], rows, method)
    seconds = time.perf_counter() - start_s
    plain = written(texts)
    header = Header(
        artifact=session.artifact,
        digest=digest_bytes(plain),
        bytes=len(plain),
        documents=len(texts),
        targets=tuple(len(part.ids) - 1 for part in parts),
        joined=tuple(part.joined for part in parts),
        rows=rows,
        method=method_record(method),
        machine=session.machine,
        fingerprint=fingerprint,
    )
    file = coded_file(PROOF, header, payload)
    text_bytes = sum(len(text.encode()) for text in texts)
    return file, _account(text_bytes, len(file), len(payload), walked, scorer_nats, seconds)


def _account(
    text_bytes: int,
    file_bytes: int,
    coded_bytes: int,
    walked: Walked,
    scorer_nats: float,
    seconds: float,
) -> Account:
    ideal_bits = nats_to_bits(float(np.concatenate(walked.nats).sum()))
    scorer_bits = nats_to_bits(scorer_nats)
    quantisation_bits = walked.frequency_bits - ideal_bits
    return Account(
        text_bytes=text_bytes,
        tokens=sum(len(ids) for ids in walked.ids),
        streams=len(walked.ids),
        file_bytes=file_bytes,
        coded_bytes=coded_bytes,
        bits_per_byte=8 * coded_bytes / text_bytes,
        ideal_bits=ideal_bits,
        coded_excess_bits=8 * coded_bytes - ideal_bits,
        quantisation_bits=quantisation_bits,
        quantisation_share=quantisation_bits / ideal_bits,
        scorer_bits=scorer_bits,
        scorer_difference_bits=ideal_bits - scorer_bits,
        scorer_difference_share=ideal_bits / scorer_bits - 1,
        seconds=seconds,
        bytes_per_s=text_bytes / seconds,
    )


def restore(
    file: Path,
    artifact: Path,
    tokenizer: Path | None,
    read: Callable[[Path], bytes] = read_bytes,
) -> tuple[bytes, dict[str, Any]]:
    """Return the text of a proof and its header; the digest of the text is checked.

    `read` returns the bytes of the file, since a pipe can be read only once.

    Raises UserError, in one sentence that names the file, if the file is damaged or was coded with
    another artifact or on another machine.
    """
    try:
        kind, body = open_file(read(file))
        if kind != PROOF:
            raise UserError(f"it is {KINDS[kind]}; restore it with fairway decompress")
        header, payload = open_coded(body)
        session = session_for(header, artifact, tokenizer)
        data = _restored(session, header, payload)
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    return data, asdict(header)


def _restored(session: Session, header: Header, payload: bytes) -> bytes:
    bos = np.array([session.language.tokenizer.bos_id])
    parts: list[IntArray] = []
    for ids, joined in zip(session.decode(header, payload), header.joined, strict=True):
        parts += [ids] if joined else [bos, ids]
    documents = session.language.packer.documents(np.concatenate(parts))
    # Bytes that are no text were never coded, so their digest differs.
    data = written([document.decode(errors="replace") for document in documents])
    check_restored(data, len(documents), header)
    return data
