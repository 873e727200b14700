"""The proof of a run: its validation text is coded, then restored by a separate process."""

import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fairway.base.children import child
from fairway.base.errors import UserError
from fairway.base.files import write_atomic
from fairway.config.settings import Config, RuntimeConfig
from fairway.data.documents import Document
from fairway.prove.coding import method_named
from fairway.prove.proof import Account, first_bytes, prove, written

# The number of parts of the text side by side (documents, if each has adapters): enough for a few
# cores, and equal on every machine.
_STREAMS = 8


def prove_run(
    config: Config,
    runtime: RuntimeConfig,
    artifact: Path,
    texts: Sequence[str],
    out: Path,
) -> dict[str, Any]:
    """Write the proof of the first `config.prove.bytes` bytes of some texts; return its facts.

    The seconds of coding count the walk alone; the seconds of decoding count the whole process.
    Raises UserError if a fresh process does not restore exactly these texts from proof and
    artifact.
    """
    settings = config.prove
    streams = None if settings.method == "sgd" else _STREAMS
    mixture = config.mixture if settings.experts else None
    method, rows = method_named(settings.method, config.ttt, config.seed, streams, mixture)
    documents = [Document(str(number), text) for number, text in enumerate(texts)]
    file, account = prove(
        artifact,
        documents,
        method,
        limit_bytes=settings.bytes,
        streams=rows,
        tokenizer=None,
        runtime=runtime,
    )
    write_atomic(out, file)
    start_s = time.perf_counter()
    restored = _restored(out, artifact)
    decode_s = time.perf_counter() - start_s
    if restored != written([part for part in first_bytes(documents, settings.bytes) if part]):
        raise UserError(
            f"a fresh process restored {len(restored):,} bytes from {out} that are not the text "
            "that was coded; this is a fault of Fairway, please report it"
        )
    experts = config.mixture.experts if settings.experts else ""
    return {
        "method": settings.method,
        "experts": experts,
        **_facts(account),
        "decode_s": decode_s,
        "equal": True,
    }


def _facts(account: Account) -> dict[str, Any]:
    coded_bits = 8 * account.coded_bytes
    return {
        "streams": account.streams,
        "tokens": account.tokens,
        "bytes": account.text_bytes,
        "coded_bytes": account.coded_bytes,
        "file_bytes": account.file_bytes,
        "bpb": account.bits_per_byte,
        "ledger_bpb": account.scorer_bits / account.text_bytes,
        "difference_share": coded_bits / account.scorer_bits - 1,
        "frequency_bits": account.quantisation_bits,
        "code_s": account.seconds,
    }


def _restored(proof: Path, artifact: Path) -> bytes:
    """Return the text that a fresh process restores, given only two files and an output path."""
    # Beside the proof, since the run folder removes files left by a kill.
    with tempfile.TemporaryDirectory(prefix=f".{proof.name}.", dir=proof.parent) as empty:
        out = Path(empty).resolve() / "text"
        files = ("--decode", proof.resolve(), "--artifact", artifact.resolve(), "--out", out)
        quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
        with child(["prove", *map(str, files)], cwd=empty, **quiet) as process:
            assert process.stderr is not None
            said = process.stderr.read().decode(errors="replace")
            code = process.wait()
        if code:
            told = said.strip().rpartition("\n")[2].removeprefix("fairway: ")
            raise UserError(f"a fresh process could not restore the proof: {told}")
        return out.read_bytes()
