"""The verb that turns a budget into a recipe: plan."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from fairway.base.outputs import require_file
from fairway.base.terminal import command
from fairway.cli.base import Json, Set, emit, runtime_of, say_to, table
from fairway.cli.options import file_option, number_option, path_option, whole_option
from fairway.config.settings import LIMIT_BYTES

if TYPE_CHECKING:
    from fairway.planning.grid import Candidate
    from fairway.planning.proposal import Proposal

_MOST_SECONDS = 1e7
_MOST_BYTES = 1 << 40
_COLUMNS = (
    "bpb", "90 %", "vocabulary", "width", "blocks", "loop", "batch", "length", "steps",
    "ms/step", "MB", "M weights",
)  # fmt: skip


def plan(
    seconds: Annotated[
        float, number_option("--seconds", lo=1.0, hi=_MOST_SECONDS, help="Seconds for training.")
    ],
    limit_bytes: Annotated[
        int,
        whole_option(
            "--bytes", lo=10_000, hi=_MOST_BYTES, help="Largest size of artifact and code together."
        ),
    ] = LIMIT_BYTES,
    data: Annotated[
        Path | None,
        path_option("--data", help="Data folder to train on [documentation on this machine]."),
    ] = None,
    out: Annotated[Path, file_option("--out", help="Recipe to write.")] = Path("planned.py"),
    rows: Annotated[
        int, whole_option("--rows", lo=1, hi=1000, help="Number of candidates to print.")
    ] = 10,
    overrides: Set = None,
    as_json: Json = False,
) -> None:
    """Write a recipe that suits this machine and a budget of seconds and bytes."""
    from fairway.base.files import write_atomic
    from fairway.planning.here import plan_here
    from fairway.planning.writing import MARK, recipe_text

    require_file(out, {}, lambda head: head.startswith(MARK.encode()))
    runtime = runtime_of(overrides)
    found, speed = plan_here(seconds, limit_bytes, data, runtime, say_to(as_json))
    lines = proposal_lines(found)
    write_atomic(out, recipe_text(found.config, "planned", lines).encode())
    shown = [_row(point) for point in found.grid[:rows]]
    timed = [_row(point) for point in found.timed]
    run = command("run", out)
    emit(
        as_json,
        facts(found, speed.flops, out, rows),
        table(f"the grid: {len(found.grid):,} points that fit, the best", _COLUMNS, shown),
        table("the best shapes, their steps timed here", _COLUMNS, timed),
        *lines,
        f"wrote {out}; train it with: {run}",
    )


def proposal_lines(found: "Proposal") -> list[str]:
    """Return what is proposed and expected, in sentences."""
    model, train, point = found.config.model, found.config.train, found.chosen
    score = point.prediction
    loop = f", blocks {model.loop_first} to {model.loop_last} run twice" if model.loop_extra else ""
    lines = [
        f"{model.num_layers} blocks of width {model.dim} with {model.num_heads} heads{loop}, "
        f"{model.vocab_size:,} tokens in the vocabulary; batches of {train.batch_tokens:,} tokens "
        f"in sequences of {train.seq_len}; rates {found.config.optim.matrix_lr:g} (matrices) and "
        f"{found.config.optim.embed_lr:g} (embedding).",
        f"Expected: {point.steps:,} steps in {found.budget.seconds:g} s, {score.bpb:.3f} bits per "
        f"byte, between {score.low_bpb:.3f} and {score.high_bpb:.3f} in 9 of 10 cases, "
        f"{point.fit.bytes:,} bytes with code.",
        f"The law: {found.law.told}.",
    ]
    if not score.inside:
        lines.append(
            "This lies outside what the law was fitted to: the order of the points may hold, the "
            "score may not."
        )
    if found.config.data.source != "embedded":
        lines.append(
            "The law was fitted to English documentation: on another text the score has another "
            "level, while the order of the points should hold."
        )
    return lines


def _row(point: "Candidate") -> list[str]:
    from fairway.planning.cost import size_of

    model, train, score = point.config.model, point.config.train, point.prediction
    weights = size_of(model, train.seq_len).parameters
    return [
        f"{score.bpb:.3f}", f"{score.low_bpb:.3f}-{score.high_bpb:.3f}", f"{model.vocab_size}",
        f"{model.dim}", f"{model.num_layers}", f"{model.loop_extra}", f"{train.batch_tokens}",
        f"{train.seq_len}", f"{point.steps:,}", f"{1000 * point.step_s:.0f}",
        f"{point.fit.bytes / 1e6:.2f}", f"{weights / 1e6:.2f}",
    ]  # fmt: skip


def facts(found: "Proposal", flops: float, out: Path, rows: int) -> dict[str, Any]:
    """Return the proposal as plain values."""
    from fairway.config.written import to_dict

    def values(point: "Candidate") -> dict[str, Any]:
        score = point.prediction
        model, train = point.config.model, point.config.train
        return {
            "bpb": score.bpb, "low_bpb": score.low_bpb, "high_bpb": score.high_bpb,
            "inside": score.inside, "vocab_size": model.vocab_size, "dim": model.dim,
            "num_layers": model.num_layers, "loop_extra": model.loop_extra,
            "batch_tokens": train.batch_tokens, "seq_len": train.seq_len,
            "steps": point.steps, "step_s": point.step_s, "bytes": point.fit.bytes,
            "bits": point.fit.bits or None,
        }  # fmt: skip

    return {
        "recipe": str(out), "chosen": values(found.chosen), "timed": [*map(values, found.timed)],
        "grid": [*map(values, found.grid[:rows])], "points": len(found.grid),
        "flops_per_s": flops, "law": found.law.told, "config": to_dict(found.config),
    }  # fmt: skip
