"""The verbs around a finished artifact: its byte account, and its weights as a plain file."""

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from fairway.base.errors import UserError
from fairway.base.outputs import require_file
from fairway.cli.base import Json, emit
from fairway.cli.options import file_option, path_argument, whole_option

Weights = Annotated[Path, file_option("--out", help="File to write, such as weights.safetensors.")]
ByRole = Annotated[
    bool, typer.Option("--account", help="Show bytes, bits per weight and entropy of every part.")
]
Budget = Annotated[
    int | None,
    whole_option(
        "--budget",
        lo=1,
        metavar="BYTES",
        help="Pack the best artifact for this size of artifact and code together, in bytes.",
    ),
]
AnyArtifact = Annotated[Path, path_argument("RUN|ARTIFACT", "Folder of a run, or an artifact.")]


def filling(budget_bytes: int | None) -> list[str]:
    """Return the settings that fill a budget: dependent quantisation and the coder made for it."""
    if budget_bytes is None:
        return []
    return [
        "quant.method=trellis",
        "quant.fit=true",
        "pack.codec=cabac",
        f"pack.limit_bytes={budget_bytes}",
    ]


def unpack(artifact: AnyArtifact, out: Weights, as_json: Json = False) -> None:
    """Write an artifact's weights as float32 in a safetensors file."""
    from fairway.pack.artifact import load_artifact
    from fairway.train.checkpoint import save_checkpoint

    file = artifact_of(artifact)
    require_file(out, {"artifact": file}, _unpacked)
    loaded = load_artifact(file)
    size = save_checkpoint(out, loaded.state, loaded.header)
    values = sum(weight.numel() for weight in loaded.state.values())
    emit(
        as_json,
        {"path": str(out), "tensors": len(loaded.state), "values": values, "bytes": size},
        f"{out}: {len(loaded.state)} tensors, {values:,} values in float32, {size:,} bytes",
        beside=out,
    )


def _unpacked(head: bytes) -> bool:
    """Return whether a file begins like unpacked weights, not like weights of a training."""
    return head[8:].startswith(b'{"__metadata__":{"digest":') and b'\\"provenance\\"' in head


def show_account(path: Path, as_json: bool) -> None:
    """Print the bytes of an artifact by section and role."""
    from fairway.cli.show import parts_table
    from fairway.pack.account import byte_account

    parts = byte_account(artifact_of(path))
    rows = [dataclasses.asdict(part) | {"bits_per_number": part.bits_per_number} for part in parts]
    emit(as_json, {"bytes": sum(part.bytes for part in parts), "parts": rows}, parts_table(parts))


def artifact_of(path: Path) -> Path:
    """Return the artifact at a path: itself, or the one of a run folder."""
    from fairway.base.mistaken import artifact_at

    file = artifact_at(path)
    if not file.is_file():
        raise UserError(f"{file} does not exist; name an artifact or the folder of a packed run")
    return file
