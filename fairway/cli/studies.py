"""The verbs of paired experiments: ablate, transfer."""

import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from fairway.base import terminal
from fairway.base.errors import InterruptedRun, UserError
from fairway.base.outputs import require_file, require_folder
from fairway.cli.base import UNFINISHED, Json, Set, emit, recipe_names, say_to
from fairway.cli.options import (
    file_option,
    flag,
    number_option,
    path_argument,
    path_option,
    require_only,
    whole_option,
    word_option,
)
from fairway.config.settings import MOST_SEED

_SCORES = ("raw", "ema", "quantised", "sliding", "ttt", "mixture")
_PAGE = "study.html"
_MOST_S = 30 * 86_400

Recipe = Annotated[
    str | None,
    typer.Argument(
        metavar="RECIPE", autocompletion=recipe_names, help="Name of a recipe, such as demo."
    ),
]
Arms = Annotated[
    list[str] | None,
    typer.Option(
        "--arm",
        metavar="NAME:SECTION.FIELD=VALUE,...",
        help="A variant to compare with the recipe; repeatable.",
    ),
]
Pairs = Annotated[
    int,
    whole_option(
        "--pairs", lo=1, hi=1000, help="Largest number of pairs of runs for every variant."
    ),
]
Clock = Annotated[
    str | None,
    word_option(
        "--clock",
        words=("steps", "wall"),
        help="Budget of every run: equal steps or equal seconds (wall).",
    ),
]
Until = Annotated[
    str,
    word_option(
        "--until",
        words=("train", "pack", "score"),
        help="Last stage of every run: train, pack or score.",
    ),
]
Metric = Annotated[
    str | None,
    word_option("--metric", words=_SCORES, help="Score that is compared [that of the last stage]."),
]
Noise = Annotated[
    bool, flag("--noise", "Run the base twice in the first pairs to measure its noise.")
]
KeepHopeless = Annotated[
    bool,
    flag(
        "--keep-hopeless",
        "Go on with variants that cannot gain any more, until it is clear whether they are worse.",
    ),
]
Effect = Annotated[
    float,
    number_option(
        "--effect", lo=1e-6, hi=10, help="Smallest difference that matters, in bits per byte."
    ),
]
Error = Annotated[
    float,
    number_option("--error", lo=1e-4, hi=0.5, help="Error rate of the interval of every variant."),
]
FirstSeed = Annotated[
    int, whole_option("--first-seed", lo=1, hi=MOST_SEED, help="Seed of the first pair.")
]
StudyOut = Annotated[
    Path | None, path_option("--out", help="Folder of the study [runs/RECIPE-study].")
]
Budget = Annotated[
    float | None,
    number_option(
        "--budget",
        lo=1,
        hi=_MOST_S,
        help="Stop after this many seconds; the same command continues.",
    ),
]
AtOnce = Annotated[
    int,
    whole_option(
        "--at-once", lo=0, hi=1024, help="Runs at the same time; 0 runs one on every GPU."
    ),
]
DropWeights = Annotated[bool, flag("--drop-weights", "Delete the weights of finished runs.")]
Retry = Annotated[bool, flag("--retry", "Repeat runs that failed.")]
DryRun = Annotated[bool, flag("--dry-run", "Print how many runs are needed; then stop.")]
OnCluster = Annotated[
    str | None,
    word_option(
        "--cluster", words=("slurm", "local", "debug"), help="Run on a cluster, with submitit."
    ),
]
ClusterSet = Annotated[
    list[str] | None,
    typer.Option(
        "--cluster-set", metavar="NAME=VALUE", help="Change a setting of submitit; repeatable."
    ),
]
Merge = Annotated[
    list[Path] | None,
    path_option("--merge", metavar="TABLE", help="Join this table of a study; repeatable."),
]


def ablate(
    context: typer.Context,
    recipe: Recipe = None,
    arms: Arms = None,
    pairs: Pairs = 8,
    clock: Clock = None,
    until: Until = "train",
    metric: Metric = None,
    noise: Noise = False,
    keep_hopeless: KeepHopeless = False,
    effect: Effect = 0.002,
    error: Error = 0.05,
    first_seed: FirstSeed = 1,
    out: StudyOut = None,
    budget: Budget = None,
    at_once: AtOnce = 0,
    cluster: OnCluster = None,
    cluster_set: ClusterSet = None,
    drop_weights: DropWeights = False,
    retry: Retry = False,
    dry_run: DryRun = False,
    merged: Merge = None,
    overrides: Set = None,
    as_json: Json = False,
) -> None:
    """Compare variants of a recipe in paired runs, and stop when the answer is clear."""
    if merged:
        _require_tables_alone(recipe, context)
        _merge(merged, metric, error, out, as_json)
        return
    if recipe is None:
        raise UserError("name a recipe to ablate, such as demo, or tables to join with --merge")
    from fairway.studies.arms import study
    from fairway.studies.running import Where

    rest = {
        "first_seed": first_seed,
        "until": until,
        "error": error,
        "noise": noise,
        "keep_hopeless": keep_hopeless,
    }
    asked = study(recipe, arms or [], pairs, overrides or [], clock, metric, **rest)
    target = out or Path("runs") / f"{asked.own.recipe}-study"
    _require_place(target)
    where = Where(math.inf if budget is None else budget, at_once, drop_weights, retry)
    if cluster_set and not cluster:
        raise UserError(
            "--cluster-set needs --cluster; name the cluster, or leave --cluster-set out"
        )
    if cluster:
        where = _on_cluster(asked, target, where, cluster, cluster_set or [])
    _ablate(asked, target, where, effect, dry_run, as_json)


def _require_tables_alone(recipe: str | None, context: typer.Context) -> None:
    """Raise UserError if --merge came with a recipe, or with options of runs."""
    if recipe:
        raise UserError(
            f"--merge joins tables and takes no recipe; leave '{recipe[:60]}' out, or put "
            "--merge before it if it is a table"
        )
    taken = ("merged", "metric", "error", "out", "as_json")
    require_only(context, "with --merge, which joins finished runs", *taken)


def _on_cluster(asked: Any, out: Path, where: Any, kind: str, settings: list[str]) -> Any:
    from fairway.studies.cluster import Cluster
    from fairway.studies.running import expected_s
    from fairway.studies.table import table_of

    # By default one pair of runs at a time.
    slots = where.at_once or len(asked.all_arms())
    expected = expected_s(asked, table_of(asked, out))
    return replace(where, place=Cluster(kind, out / "jobs", slots, settings, expected))


def _ablate(asked: Any, out: Path, where: Any, effect: float, dry_run: bool, as_json: bool) -> None:
    from fairway.studies.ahead import ahead
    from fairway.studies.running import check_arms, expected_s, keeps_pairs, run_study, slots_of
    from fairway.studies.table import summary, table_of
    from fairway.studies.telling import lines_of, plan_lines

    say, before = say_to(as_json), table_of(asked, out)
    check_arms(asked)
    slots, run_s = slots_of(asked, where), expected_s(asked, before)
    plan = ahead(asked, before, effect, slots, run_s, keeps_pairs(asked, where))
    if dry_run:
        emit(as_json, plan, *plan_lines(plan))
        return
    for text in plan_lines(plan):
        say(text)
    try:
        table, done = run_study(asked, out, where, say)
    except KeyboardInterrupt:
        raise InterruptedRun("interrupted; the same command continues the study") from None
    found = {**summary(table), "recipe": asked.own.recipe, "done": done, "plan": plan}
    page = write_page(found, out)
    emit(as_json, found, *lines_of(found), f"page {page}, lines {out / 'study.jsonl'}")
    if not done:
        terminal.put("not finished: run the same command again", sys.stderr)
        raise typer.Exit(UNFINISHED)
    if found["failed"]:
        raise typer.Exit(1)


def _require_place(out: Path) -> None:
    """Raise UserError if the path is no folder, or has a run or a page from another source."""
    from fairway.pipeline.folder import MEMORY
    from fairway.studies.page import is_study_page

    require_folder(out)
    if (out / MEMORY).exists():
        raise UserError(f"{out} is the folder of a run; name another one for the study with --out")
    require_file(out / _PAGE, {}, is_study_page)


def write_page(found: dict[str, Any], out: Path) -> Path:
    """Write the page of a study into its folder; return its path."""
    from fairway.base.files import write_atomic
    from fairway.studies.page import study_page

    page = out / _PAGE
    write_atomic(page, study_page(found).encode())
    return page


def _merge(
    paths: list[Path], metric: str | None, error: float, out: Path | None, as_json: bool
) -> None:
    from fairway.studies.table import merge, summary
    from fairway.studies.telling import lines_of

    table, said = merge(paths, metric, error)
    found = summary(table, said)
    if out is not None:
        _require_place(out)
        write_page(found, out)
    emit(as_json, found, *lines_of(found))


def transfer(
    cheap: Annotated[Path, path_argument("CHEAP", "Folder or table of a study with short runs.")],
    dear: Annotated[
        Path, path_argument("DEAR", "Folder or table of the same study with long runs.")
    ],
    out: Annotated[
        Path | None, file_option("--out", help="Page to write, such as transfer.html.")
    ] = None,
    metric: Metric = None,
    error: Error = 0.05,
    as_json: Json = False,
) -> None:
    """Check whether the ranking of variants in short runs holds in long runs."""
    from fairway.base.files import write_atomic
    from fairway.studies.page import is_transfer_page, transfer_page
    from fairway.studies.transfer import lines_of
    from fairway.studies.transfer import transfer as compared

    if out is not None:
        require_file(out, {"table": cheap, "other table": dear}, is_transfer_page)
    found = compared(cheap, dear, metric, error)
    if out is not None:
        write_atomic(out, transfer_page(found).encode())
    emit(as_json, found, *lines_of(found), beside=out)
