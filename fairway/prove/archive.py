"""Files compressed with a language model: any bytes go in, and exactly they come out.

Text costs what the model makes of it, anything else a token per byte (`pieces`). Where that does
not pay, the bytes are stored, so no file grows by more than `container.PREFIX_BYTES`.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fairway.errors import UserError
from fairway.files import digest_bytes
from fairway.prove.coding import Session, Sliding, method_record, session_for
from fairway.prove.container import (
    ARCHIVE,
    KINDS,
    PROOF,
    Header,
    check_digest,
    coded_file,
    open_coded,
    open_file,
    stored_file,
)
from fairway.prove.pieces import Packer

IntArray = NDArray[np.int64]

# A stream begins without context, so it has to be some windows long.
_WINDOWS_PER_STREAM = 4


def compress(data: bytes, session: Session, streams: int) -> bytes:
    """Return a file from which `decompress` restores the bytes; at most `streams` side by side."""
    stored = stored_file(data)
    if not data:
        return stored
    packer = Packer(session.language.tokenizer)
    parts = _parts(packer.pack(data), streams, session.language.score_config.seq_len)
    fingerprint = session.fingerprint(len(parts))
    payload, _ = session.encode(parts, len(parts), Sliding())
    header = Header(
        artifact=session.artifact,
        digest=digest_bytes(data),
        bytes=len(data),
        documents=0,
        targets=tuple(len(part) for part in parts),
        joined=(True,) * len(parts),
        rows=len(parts),
        method=method_record(Sliding()),
        machine=session.machine,
        fingerprint=fingerprint,
    )
    coded = coded_file(ARCHIVE, header, payload)
    return coded if len(coded) < len(stored) else stored


def _parts(ids: IntArray, streams: int, seq_len: int) -> list[IntArray]:
    count = min(streams, max(1, len(ids) // (_WINDOWS_PER_STREAM * seq_len)))
    return [np.asarray(part) for part in np.array_split(ids, count)]


def decompress(file: bytes, artifact: Path, tokenizer: Path | None) -> bytes:
    """Return the bytes that were compressed, their digest compared.

    Raises UserError, in words that follow the file's name, if it is damaged, of another artifact or
    of another machine. A stored file needs neither.
    """
    kind, body = open_file(file)
    if kind == PROOF:
        raise UserError(f"it is {KINDS[kind]}; restore it with fairway prove --decode")
    if kind != ARCHIVE:
        return body
    header, payload = open_coded(body)
    session = session_for(header, artifact, tokenizer)
    packer = Packer(session.language.tokenizer)
    data = b"".join(packer.unpack(ids) for ids in session.decode(header, payload))
    check_digest(data, header)
    return data
