"""The verbs that code text with a model: prove, compress, decompress, sample."""

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import typer

from fairway.base.errors import UserError
from fairway.base.outputs import require_file
from fairway.base.terminal import command, put
from fairway.base.units import counted
from fairway.cli.base import (
    AdapterFile,
    Json,
    RunOrArtifact,
    Set,
    TokenizerFile,
    emit,
    require_inputs,
    runtime_of,
    settings_of,
)
from fairway.cli.options import (
    file_option,
    path_argument,
    path_option,
    require_only,
    whole_option,
)
from fairway.config.settings import MAX_STREAMS
from fairway.data.documents import Document, LeftOut, told

SUFFIX = ".fwz"
_OUT = f"File to write [FILE{SUFFIX}]; replaced only if it restores the same bytes."

Artifact = Annotated[
    Path, path_option("--artifact", help="Artifact of the model, or folder of its run.")
]
Streams = Annotated[
    int | None,
    whole_option(
        "--streams",
        lo=1,
        hi=MAX_STREAMS,
        help="Parts coded side by side; more are faster, but have less context [automatic].",
    ),
]


def prove(
    context: typer.Context,
    out: Annotated[Path, file_option("--out", help="File to write.")],
    artifact: Annotated[
        Path | None, path_argument("RUN|ARTIFACT", "Folder of a run, or an artifact.")
    ] = None,
    text: Annotated[
        Path | None, path_argument("TEXT", "A text file, or a data folder with validation text.")
    ] = None,
    limit_bytes: Annotated[
        int,
        whole_option(
            "--bytes", lo=0, help="Encode only this many bytes from the start; 0 encodes all."
        ),
    ] = 0,
    streams: Streams = None,
    method: Annotated[
        str,
        typer.Option(
            "--method",
            help="Predictor: sliding (frozen model), or sgd or lora (test-time training).",
        ),
    ] = "sliding",
    decode: Annotated[
        Path | None, path_option("--decode", help="Restore the text of this proof.")
    ] = None,
    decode_with: Annotated[
        Path | None,
        path_option(
            "--artifact", help="With --decode: artifact of the model, or folder of its run."
        ),
    ] = None,
    tokenizer: TokenizerFile = None,
    overrides: Set = None,
    as_json: Json = False,
) -> None:
    """Compress a text with the scorer's probabilities, or restore a text."""
    if decode is None:
        if artifact is None or text is None or decode_with is not None:
            raise UserError("name an artifact and a text to code, or --decode FILE --artifact FILE")
        _prove(artifact, text, out, limit_bytes, streams, method, tokenizer, overrides, as_json)
        return
    if text is not None or artifact is not None or decode_with is None:
        raise UserError(
            "to restore a text, give --decode FILE, --artifact FILE and --out FILE only"
        )
    taken = ("out", "decode", "decode_with", "tokenizer", "as_json")
    require_only(context, "with --decode, because the file says how it was coded", *taken)
    _restore(decode, decode_with, out, tokenizer, as_json)


def _prove(
    artifact: Path,
    text: Path,
    out: Path,
    limit_bytes: int,
    streams: int | None,
    method: str,
    tokenizer: Path | None,
    overrides: list[str] | None,
    as_json: bool,
) -> None:
    from fairway.base.files import write_atomic
    from fairway.prove.coding import method_named
    from fairway.prove.container import PROOF
    from fairway.prove.proof import prove as proven

    inputs = {"artifact": artifact, "text": text, "tokenizer": tokenizer}
    require_file(out, inputs, _of_kind(PROOF))
    require_inputs(artifact, tokenizer, text)
    config = settings_of(overrides, ("runtime", "ttt", "mixture"))
    predictor, rows = method_named(method, config.ttt, config.seed, streams, config.mixture)
    left_out = LeftOut()
    file, account = proven(
        artifact,
        _documents(text, limit_bytes, left_out),
        predictor,
        limit_bytes=limit_bytes,
        streams=rows,
        tokenizer=tokenizer,
        runtime=config.runtime,
    )
    write_atomic(out, file)
    a = account
    emit(
        as_json,
        {**asdict(account), "left_out": dict(left_out)},
        f"{a.coded_bytes:,} bytes code {a.text_bytes:,} bytes of text: {a.bits_per_byte:.4f} bits "
        f"per byte ({counted(a.tokens, 'token')}, {counted(a.streams, 'stream')})",
        f"predicted: {a.ideal_bits:,.1f} bits; coded: {a.coded_excess_bits:+,.1f} bits, of which "
        f"{a.quantisation_bits:,.3f} for whole-number frequencies ({a.quantisation_share:.2e})",
        f"the scorer's fast path: {a.scorer_bits:,.1f} bits, {a.scorer_difference_bits:+.4f} to "
        f"the prediction ({a.scorer_difference_share:+.2e})",
        f"{a.seconds:.1f} s, {a.bytes_per_s:,.0f} bytes per second; with its header {out} has "
        f"{a.file_bytes:,} bytes",
        f"restore with: {command('prove', '--decode', out, '--artifact', artifact)} --out FILE",
        *filter(None, [told(left_out)]),
        beside=out,
    )


def _of_kind(*kinds: int) -> Callable[[bytes], bool]:
    """Return a function that tests whether a file begins like a coded file of some kinds."""
    from fairway.prove.container import kind_of

    return lambda head: kind_of(head) in kinds


def _documents(text: Path, limit_bytes: int, left_out: LeftOut) -> Iterator[Document]:
    """Yield the documents of a text, or the validation documents of a data folder."""
    from fairway.data.folder import DataFolder
    from fairway.data.sources import read_documents

    if not any(text.glob("*_val_*.bin")):
        yield from read_documents([text], left_out)
        return
    # Every target except BOS is at least one byte, so these suffice.
    taken = DataFolder.open(text).sample_validation(max_tokens=2 * limit_bytes)
    for number, document in enumerate(taken.documents):
        yield Document(str(number), document)


def _restore(file: Path, artifact: Path, out: Path, tokenizer: Path | None, as_json: bool) -> None:
    from fairway.base.files import digest_file, read_bytes, write_atomic
    from fairway.prove.container import restores
    from fairway.prove.proof import restore

    inputs, read = {"proof": file, "artifact": artifact, "tokenizer": tokenizer}, cache(read_bytes)
    require_file(out, inputs, same=lambda old: restores(read(file), digest_file(old)))
    start_s = time.perf_counter()
    data, header = restore(file, artifact, tokenizer, read)
    write_atomic(out, data)
    facts = {**header, "seconds": time.perf_counter() - start_s}
    line = f"restored {len(data):,} bytes to {out}; their digest is that of the coded text"
    digest, seconds = header["digest"][:12], facts["seconds"]
    emit(as_json, facts, f"{line}, {digest} ({seconds:.1f} s)", beside=out)


def compress(
    file: Annotated[Path, path_argument("FILE", "Any file.")],
    artifact: Artifact,
    out: Annotated[Path | None, file_option("--out", help=_OUT)] = None,
    streams: Streams = None,
    beside: Annotated[
        bool, typer.Option("--compare", help="Also print the sizes that other compressors reach.")
    ] = False,
    tokenizer: TokenizerFile = None,
    overrides: Set = None,
    as_json: Json = False,
) -> None:
    """Compress a file with a model, and check that it decodes to the same bytes."""
    from fairway.base.files import digest_bytes, read_bytes, write_atomic
    from fairway.prove.archive import compress as compressed
    from fairway.prove.archive import decompress as decompressed
    from fairway.prove.coding import open_session
    from fairway.prove.container import restores
    from fairway.prove.machine import coding_plan

    _require_source(file, out)
    # The names . and / have no ending, but paths that are no files were refused above.
    target, read = out or file.with_name(file.name + SUFFIX), cache(read_bytes)
    inputs = {"file": file, "artifact": artifact, "tokenizer": tokenizer}
    # An archive may be the only copy of another content.
    require_file(
        target, inputs, same=lambda old: restores(read_bytes(old), digest_bytes(read(file)))
    )
    require_inputs(artifact, tokenizer)
    data = read(file)
    start_s = time.perf_counter()
    plan = coding_plan(runtime_of(overrides), exact=False)
    session = open_session(artifact, tokenizer, plan)
    coded = compressed(data, session, streams)
    seconds = time.perf_counter() - start_s
    if decompressed(coded, artifact, tokenizer) != data:
        raise UserError(f"{file} does not decode to the same bytes; nothing was written")
    write_atomic(target, coded)
    others = _others(data) if beside else {}
    bytes_per_s = len(data) / seconds
    pace = f"{bytes_per_s:,.{0 if bytes_per_s >= 10 else 1}f} bytes per second"
    facts = {
        "file": str(target),
        "bytes": len(data),
        "compressed_bytes": len(coded),
        "seconds": seconds,
        "bytes_per_s": bytes_per_s,
        "others": others,
    }
    share = " (no shorter: too few bytes, or bytes that the model cannot predict)"
    if len(coded) < len(data):
        share = f" ({len(coded) / len(data):.1%})"
    emit(
        as_json,
        facts,
        f"{target}: {len(data):,} to {len(coded):,} bytes{share}, decoded again and compared",
        f"{seconds:.1f} s to code, {pace}",
        *(f"{name}: {size:,} bytes" for name, size in others.items()),
        beside=target,
    )


def _others(data: bytes) -> dict[str, int]:
    from fairway.score.baselines import TOOL_NAMES, usable

    tools = usable()
    return {title: tools[name].cold(data) for name, title in TOOL_NAMES.items() if name in tools}


def decompress(
    file: Annotated[Path, path_argument("FILE", "A compressed file.")],
    artifact: Artifact,
    out: Annotated[
        Path | None, file_option("--out", help=f"File to write [FILE without {SUFFIX}].")
    ] = None,
    tokenizer: TokenizerFile = None,
    as_json: Json = False,
) -> None:
    """Restore a compressed file; it needs the same artifact."""
    from fairway.base.files import digest_file, read_bytes, write_atomic
    from fairway.prove.archive import decompress as decompressed
    from fairway.prove.container import restores

    if out is None and file.suffix != SUFFIX:
        raise UserError(f"{file} does not end in {SUFFIX}; name the file to write with --out")
    target, read = out or file.with_suffix(""), cache(read_bytes)
    inputs = {"file": file, "artifact": artifact, "tokenizer": tokenizer}
    require_file(target, inputs, same=lambda old: restores(read(file), digest_file(old)))
    coded = read(file)
    start_s = time.perf_counter()
    try:
        data = decompressed(coded, artifact, tokenizer)
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    write_atomic(target, data)
    seconds = time.perf_counter() - start_s
    facts = {"file": str(target), "bytes": len(data), "seconds": seconds}
    line = f"restored {len(data):,} bytes to {target} ({seconds:.1f} s)"
    emit(as_json, facts, line, beside=target)


def _require_source(file: Path, out: Path | None) -> None:
    """Raise UserError for what is no file, and for a stream if no output is named."""
    from fairway.base.files import opened, stream_number

    if stream_number(file) is not None:
        if out is None:
            raise UserError(f"{file} has no name for the output; name the file with --out")
    elif not file.is_file():
        opened(file).close()


def sample(
    path: RunOrArtifact,
    prompt: Annotated[str, typer.Option("--prompt", help="Text to continue.")] = "",
    tokens: Annotated[
        int, whole_option("--tokens", lo=0, help="Largest number of tokens to add.")
    ] = 100,
    temperature: Annotated[
        float, typer.Option("--temperature", help="Randomness; 0 always takes the likeliest token.")
    ] = 0.8,
    top_k: Annotated[
        int, whole_option("--top-k", lo=1, help="Draw from this many likeliest tokens.")
    ] = 50,
    top_p: Annotated[
        float,
        typer.Option(
            "--top-p", help="Draw from the likeliest tokens whose probabilities sum to this."
        ),
    ] = 1.0,
    seed: Annotated[int, whole_option("--seed", lo=0, help="Seed of the draw.")] = 0,
    tokenizer: TokenizerFile = None,
    adapter: AdapterFile = None,
    overrides: Set = None,
    as_json: Json = False,
) -> None:
    """Let a model continue a prompt."""
    from fairway.api import load
    from fairway.model.writing import Manner

    require_inputs(path, tokenizer, adapter=adapter)
    runtime = runtime_of(overrides)
    # Wrong numbers are told before the model is loaded, which takes seconds.
    manner = Manner(temperature, top_k, top_p)
    model = load(path, tokenizer=tokenizer, adapter=adapter, runtime=runtime)
    options: dict[str, Any] = {**asdict(manner), "seed": seed}
    if as_json:
        text = model.generate(prompt, max_tokens=tokens, **options)
        emit(True, {"prompt": prompt, "text": text})
        return
    parts = model.stream(prompt, max_tokens=tokens, **options)
    # Compute the first part before printing: if the prompt is refused, only the reason is printed.
    first = next(parts, "")
    put(prompt + first, end="")
    for part in parts:
        put(part, end="")
    put("")
