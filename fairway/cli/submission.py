"""The verbs from runs to a submission: bundle, seeds, submit, verify, runs, export."""

from pathlib import Path
from typing import Annotated, Any

import typer

from fairway.base.errors import InterruptedRun, UserError
from fairway.base.outputs import require_file, require_folder, require_new
from fairway.base.terminal import command, put_bytes
from fairway.cli.base import (
    AdapterFile,
    Json,
    Recipe,
    RunOrArtifact,
    Set,
    TokenizerFile,
    emit,
    say_to,
    table,
)
from fairway.cli.options import (
    file_option,
    flag,
    path_argument,
    path_option,
    require_none,
    run_argument,
    whole,
    whole_option,
)
from fairway.config.overrides import override
from fairway.config.settings import MOST_SEED, Config, declares_code

# More processors than any host has.
MOST_PROCESSES = 4096

_PROCESSES, _CARRY = "--nproc-per-node", "--with-artifacts"

NewOut = Annotated[
    Path, path_option("--out", help="New folder to write; existing files are never replaced.")
]
Plain = Annotated[bool, flag("--plain", "Print the bundle as readable source, and write nothing.")]
Explain = Annotated[bool, flag("--explain", "Print the bytes of every module.")]
Ascii = Annotated[bool, flag("--ascii", "Encode in Base85, not Latin-1: larger, but plain ASCII.")]
SeedsOut = Annotated[
    Path | None, path_option("--out", help="Folder of the runs [runs/RECIPE-seeds].")
]
RecordOut = Annotated[
    Path | None, path_option("--record", help="Also write the record into this folder.")
]


def _seed_option(name: str, help: str) -> Any:
    return whole_option(name, lo=0, hi=MOST_SEED, help=help)


def _count_option(name: str, help: str) -> Any:
    return whole_option(name, lo=1, hi=MOST_PROCESSES, help=help)


def bundle(
    recipe: Recipe,
    out: NewOut = Path("bundle"),
    plain: Plain = False,
    explain: Explain = False,
    ascii_only: Ascii = False,
    overrides: Set = None,
    as_json: Json = False,
) -> None:
    """Write one train_gpt.py that trains, packs and scores a recipe without Fairway."""
    from fairway.bundle.build import bundle as bundled
    from fairway.bundle.build import left_out, write_bundle

    config = override(_recipe_of(recipe), overrides or [])
    if plain:
        # A program is UTF-8, independent of the terminal's encoding.
        put_bytes(bundled(config, ascii_only).plain.encode())
        return
    require_folder(out)
    made = write_bundle(config, out, ascii_only)
    size = made.manifest["bytes"]
    lines: list[object] = [
        f"{out}: train_gpt.py has {size:,} bytes, {made.manifest['digest'][:16]}"
    ]
    if missing := left_out(config):
        lines.append(f"not in the bundle: what {' and '.join(missing)} ask for; `fairway run` does")
    if declares_code(config.pack):
        lines.append(
            f"runs of these settings count {config.pack.code_bytes:,} declared bytes instead; one "
            "to be submitted needs --set pack.code_bytes=auto"
        )
    if explain:
        rows = [
            (m["name"], f"{m['characters']:,}", f"{m['bytes']:,}") for m in made.manifest["modules"]
        ]
        lines.append(table("bytes by module", ("module", "characters", "bytes"), rows))
        if parts := made.manifest["parts_left_out"]:
            lines.append(f"left out is what only these ask for: {'; '.join(parts)}")
    emit(as_json, made.manifest, *lines)


def seeds(
    context: typer.Context,
    recipe: Recipe,
    more: Annotated[
        list[int] | None,
        typer.Argument(parser=whole(0, MOST_SEED), metavar="SEED...", help="More seeds."),
    ] = None,
    first: Annotated[
        list[int] | None, _seed_option("--seeds", "Seeds to run; several may follow [42 314 999].")
    ] = None,
    out: SeedsOut = None,
    at_once: Annotated[
        int, _count_option("--at-once", "Number of seeds that run at the same time.")
    ] = 1,
    processes: Annotated[
        int, _count_option(_PROCESSES, "Processes for each seed, with one GPU each.")
    ] = 1,
    record: RecordOut = None,
    track: Annotated[
        str, typer.Option("--track", help="With --record: 10min_16mb or non_record.")
    ] = "non_record",
    with_artifacts: Annotated[bool, flag(_CARRY, "With --record: include the artifacts.")] = False,
    overrides: Set = None,
    as_json: Json = False,
) -> None:
    """Run or resume several seeds of a recipe; print mean and spread of their scores."""
    from fairway.pipeline.folder import RunFolder
    from fairway.pipeline.sizes import sized
    from fairway.submission.seeds import Plan, run_seeds, seed_folder
    from fairway.submission.submission import Claim, submit

    wanted = (*(first or []), *(more or [])) or (42, 314, 999)
    config = override(_recipe_of(recipe), overrides or [])
    target = out or Path("runs") / f"{config.recipe}-seeds"
    if record:
        require_new(record)
    else:
        require_none(context, "without --record", "track", "with_artifacts")
    if record and declares_code(config.pack):
        raise UserError(
            f"{recipe} declares {config.pack.code_bytes:,} bytes of code, but a record counts the "
            "bytes of its bundle; add --set pack.code_bytes=auto"
        )
    begun = [RunFolder(seed_folder(target, seed)) for seed in wanted]
    size = sized(recipe, overrides or [], begun, say_to(as_json))
    plan = Plan(size.name, tuple(overrides or []), wanted, at_once, processes)
    try:
        summary = run_seeds(plan, target, say_to(as_json))
    except KeyboardInterrupt:
        raise InterruptedRun("interrupted; the same command continues the seeds") from None
    emit(as_json, summary, _seed_table(summary), *_failures(summary))
    if summary["failed"]:
        raise UserError(
            f"{summary['failed']} of {len(wanted)} seeds failed; see the logs in {target}"
        )
    if record:
        claim = Claim(config.recipe, track, processes=processes, with_artifacts=with_artifacts)
        submit([seed_folder(target, seed) for seed in wanted], claim, record, say_to(as_json))


def _recipe_of(name: str) -> Config:
    from fairway.recipes import recipe

    return recipe(name)


def _seed_table(summary: dict[str, Any]) -> object:
    rows = [
        (seed, *(f"{bpb:.4f}" for bpb in run["bpb"].values()), f"{run['artifact_bytes']:,}")
        for seed, run in summary["seeds"].items()
        if "failed" not in run
    ]
    for name in ("mean", "sd"):
        numbers = [spread[name] for spread in summary["bpb"].values()]
        rows.append((name, *("" if n is None else f"{n:.4f}" for n in numbers), ""))
    return table("bits per byte", ("seed", *summary["bpb"], "artifact bytes"), rows)


def _failures(summary: dict[str, Any]) -> list[str]:
    return [
        f"seed {seed} failed: {run['failed']}"
        for seed, run in summary["seeds"].items()
        if "failed" in run
    ]


def submit(
    runs: Annotated[
        list[Path], run_argument("RUN...", "Folders of the seeds, or the artifacts in them.")
    ],
    track: Annotated[str, typer.Option("--track", help="Track: 10min_16mb or non_record.")],
    out: Annotated[Path, path_option("--out", help="New folder for the record.")],
    name: Annotated[str, typer.Option("--name", help="Title of the record.")] = "Fairway",
    author: Annotated[str, typer.Option("--author", help="Name of the author.")] = "",
    github_id: Annotated[str, typer.Option("--github-id", help="GitHub name of the author.")] = "",
    min_seeds: Annotated[
        int, _count_option("--min-seeds", "Number of seeds that the record needs.")
    ] = 3,
    processes: Annotated[
        int, _count_option(_PROCESSES, "Number of processes in the command of the README.")
    ] = 1,
    with_artifacts: Annotated[
        bool, flag(_CARRY, "Include the artifacts, so that others can score them again.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Write the record of finished runs; refuse if a check fails."""
    from fairway.submission.submission import Claim
    from fairway.submission.submission import submit as submitted

    claim = Claim(name, track, author, github_id, min_seeds, processes, with_artifacts)
    text = submitted(runs, claim, out, say_to(as_json))
    emit(as_json, text, f"check it with: {command('verify', out)}")


def verify(
    context: typer.Context,
    record: Annotated[Path, path_argument("RECORD", "Folder of a record.")],
    rescore: Annotated[
        Path | None,
        path_option(
            "--rescore", metavar="DATA", help="Score the artifact of the record again on this data."
        ),
    ] = None,
    retrain: Annotated[
        Path | None,
        path_option(
            "--retrain", metavar="DATA", help="Run train_gpt.py of the record again on this data."
        ),
    ] = None,
    seed: Annotated[int | None, _seed_option("--seed", "Seed to repeat.")] = None,
    as_json: Json = False,
) -> None:
    """Check that the numbers of a record agree; repeat its score or its run if asked."""
    from dataclasses import asdict

    from fairway.submission.verify import verify as verified

    if rescore and retrain:
        raise UserError("--rescore and --retrain are two ways to check a score; choose one")
    if not rescore and not retrain:
        require_none(context, "without --rescore or --retrain", "seed")
    found = verified(record, rescore=rescore, retrain=retrain, seed=seed)
    lines = [*(f"- {fault}" for fault in found.faults), *(f"- {note}" for note in found.notes)]
    if found.repeated:
        lines.append(f"- {found.repeated['sentence']}")
    ending = "the record holds" if found.holds else "the record does not hold"
    emit(as_json, {**asdict(found), "holds": found.holds}, *lines, f"{record}: {ending}")
    if not found.holds:
        raise typer.Exit(1)


def runs(
    context: typer.Context,
    folder: Annotated[Path, path_argument("FOLDER", "Folder that contains the runs.")] = Path(
        "runs"
    ),
    kind: Annotated[
        str | None, typer.Option("--export", help="Export the runs: csv, tensorboard or wandb.")
    ] = None,
    out: Annotated[
        Path | None,
        file_option(
            "--out", help="File or folder of the export [csv: standard output; else logs]."
        ),
    ] = None,
    html: Annotated[
        Path | None,
        file_option("--html", help="Write a page of all runs that sorts, with their losses."),
    ] = None,
    as_json: Json = False,
) -> None:
    """List runs with their changed settings, scores, bytes and seconds."""
    from fairway.base.files import write_atomic
    from fairway.pipeline.folder import RunFolder
    from fairway.pipeline.index import NEXT, as_csv, is_csv, present_scores
    from fairway.pipeline.index import runs as runs_of
    from fairway.pipeline.sink import send, sink_named

    if html is not None:
        if kind is not None:
            raise UserError("--html and --export are two outputs; choose one")
        require_none(context, "with --html, which names the page", "out")
        _overview(folder, html, as_json)
        return
    if kind is None:
        require_none(context, "without --export", "out")
    if kind == "csv" and out is not None:
        require_file(out, {}, is_csv)
    found = runs_of(folder)
    if kind == "csv":
        text = as_csv(found)
        if out is None:
            put_bytes(text.encode())
        else:
            write_atomic(out, text.encode())
        return
    if not found:
        emit(as_json, found, f"there are no runs in {folder}; {NEXT}")
        return
    if kind is not None:
        require_folder(out or Path("logs"))
        for run in (run for run in found if run["steps"]):
            memory = RunFolder.existing(folder / run["path"])
            scores = present_scores(memory.memory["stages"])
            send(memory, sink_named(kind, memory, out or Path("logs")), scores)
        return
    emit(as_json, found, _run_table(found))


def _overview(folder: Path, page: Path, as_json: bool) -> None:
    from fairway.pipeline.overview import write_overview
    from fairway.report.overview import is_page

    require_file(page, {}, is_page, "--html")
    facts = write_overview(folder, page)
    without = f", {facts['broken']:,} of them without results" if facts["broken"] else ""
    line = f"{page}: {facts['shown']:,} of {facts['runs']:,} runs{without}"
    emit(as_json, facts, line, beside=page)


def _run_table(found: list[dict[str, Any]]) -> object:
    stages = list(dict.fromkeys(stage for run in found for stage in run["scores"]))
    rows = [
        (
            run["name"],
            "" if run["seed"] is None else str(run["seed"]),
            " ".join(run["differences"] or []),
            *(f"{run['scores'][s]:.4f}" if s in run["scores"] else "" for s in stages),
            f"{run['bytes']:,}" if run["bytes"] else "",
            f"{run['train_s']:.0f}" if run["train_s"] else "",
            run["state"],
        )
        for run in found
    ]
    columns = ("run", "seed", "settings", *stages, "bytes", "seconds", "state")
    return table("runs", columns, rows)


def export(
    path: RunOrArtifact,
    out: NewOut,
    kind: Annotated[
        str,
        typer.Option(
            "--format", help="safetensors (weights), torch (with PyTorch code) or transformers."
        ),
    ] = "safetensors",
    tokenizer: TokenizerFile = None,
    adapter: AdapterFile = None,
    as_json: Json = False,
) -> None:
    """Write weights, config and tokenizer for PyTorch, transformers or other programs."""
    from fairway.export.formats import export as exported

    require_folder(out)
    facts = exported(path, out, kind, tokenizer, adapter)
    emit(as_json, facts, f"{out}: {facts['parameters']:,} float32 weights")
