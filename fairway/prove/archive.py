"""Files compressed with a language model: decompression restores exactly the same bytes.

Text is coded with the model's tokens, other content with one token per byte (`pieces`). If coding
saves nothing, the bytes are stored, so no file grows by more than `container.PREFIX_BYTES`.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np

from fairway.base.arrays import IntArray
from fairway.base.errors import UserError
from fairway.base.files import digest_bytes
from fairway.base.units import nats_to_bits
from fairway.data.pieces import Packer
from fairway.prove.coding import Session, Sliding, method_record, session_for
from fairway.prove.container import (
    ARCHIVE,
    KINDS,
    PROOF,
    Header,
    check_restored,
    coded_file,
    open_coded,
    open_file,
    stored_file,
)
from fairway.score.evaluation import Evaluation
from fairway.score.ledger import Text
from fairway.score.sliding import evaluate_frozen

# The number of streams of a long file on a CPU.
_STREAMS_ON_CPU = 16
# A file has no documents: its bytes are coded as they are.
_DOCUMENTS = 0
# The number of windows that are tested before a long file is coded.
_TRIALS = 8


def compress(data: bytes, session: Session, streams: int | None) -> bytes:
    """Return a file from which `decompress` restores the bytes.

    `streams` streams are coded side by side; None lets the file and the device decide.
    """
    stored = stored_file(data)
    if not data:
        return stored
    packer = Packer(session.language.tokenizer)
    ids = packer.pack(data)
    if _hopeless(ids, session):
        return stored
    count = streams or session.streams(len(ids), _STREAMS_ON_CPU)
    parts = [np.asarray(part) for part in np.array_split(ids, min(count, len(ids)))]
    header = header_of(session, data, parts)
    payload, _ = session.encode(parts, len(parts), Sliding())
    coded = coded_file(ARCHIVE, header, payload)
    return coded if len(coded) < len(stored) else stored


def _hopeless(ids: IntArray, session: Session) -> bool:
    """Return whether sample windows of a long file cost more than their bytes.

    This saves the time to code noise, which is stored in the end. The windows begin without
    context, so a tenth more is allowed.
    """
    language = session.language
    score = replace(language.score_config, truncate=False, check_positions=0)
    if len(ids) < 4 * _TRIALS * score.seq_len:
        return False
    bits = size_bytes = 0.0
    for at in np.linspace(0, len(ids) - score.seq_len, _TRIALS).astype(int):
        part = ids[at : at + score.seq_len]
        table = language.tokenizer.table
        lengths = (table.base_bytes + table.leading)[part].astype(np.int64)
        whole = np.insert(part, 0, language.tokenizer.bos_id)
        text = Text(whole, lengths, int(lengths.sum()), language.tokenizer.vocab_size)
        asked = Evaluation(text, score, description="looking")
        found = evaluate_frozen(language.model, asked, sliding=False)
        bits += nats_to_bits(found.nats)
        size_bytes += found.bytes
    return bits > 1.1 * 8 * size_bytes


def header_of(session: Session, data: bytes, parts: list[IntArray]) -> Header:
    """Return the header of a file's bytes, whose tokens are coded in parts side by side."""
    return Header(
        artifact=session.artifact,
        digest=digest_bytes(data),
        bytes=len(data),
        documents=_DOCUMENTS,
        targets=tuple(len(part) for part in parts),
        joined=(True,) * len(parts),
        rows=len(parts),
        method=method_record(Sliding()),
        machine=session.machine,
        fingerprint=session.fingerprint(len(parts)),
    )


def decompress(file: bytes, artifact: Path, tokenizer: Path | None) -> bytes:
    """Return the bytes that were compressed, their digest compared.

    Raises UserError, worded to follow the name of the file, if the file is damaged or was coded
    with another artifact or on another machine. A stored file needs neither the artifact nor the
    machine.
    """
    kind, body = open_file(file)
    if kind == PROOF:
        raise UserError(f"it is {KINDS[kind]}; restore it with fairway prove --decode")
    if kind != ARCHIVE:
        return body
    header, payload = open_coded(body)
    session = session_for(header, artifact, tokenizer)
    packer = Packer(session.language.tokenizer)
    data = packer.unpack(np.concatenate(list(session.decode(header, payload))))
    check_restored(data, _DOCUMENTS, header)
    return data
