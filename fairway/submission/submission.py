"""`fairway submit`: makes a record's folder from finished runs, or says why it cannot."""

import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import fairway
from fairway.audit.records.audit import audit_record
from fairway.base.errors import UserError
from fairway.base.files import digest_file, write_atomic, write_json
from fairway.base.folders import new_folder
from fairway.base.names import ARTIFACT
from fairway.base.outputs import require_new
from fairway.base.terminal import command, line
from fairway.bundle.build import SCRIPT, write_files
from fairway.config.settings import LIMIT_BYTES, Config
from fairway.pipeline.run import Pipeline, open_run
from fairway.pipeline.work import DATA
from fairway.submission.texts import (
    TRACKS,
    as_json,
    log,
    readme,
    recipe_files,
    step_lines,
    submission,
)
from fairway.train.steps import STEPS, Say, read_steps
from fairway.version import VERSION

DIGESTS, RESULTS, README, CLAIM = "digests.json", "results", "README.md", "submission.json"
_SAID = ("--name", "--author", "--github-id")


@dataclass(frozen=True, slots=True)
class Claim:
    """The parts of a submission that only people know, and how much goes into the folder."""

    name: str
    track: str
    author: str = ""
    github_id: str = ""
    min_seeds: int = 3
    processes: int = 1
    with_artifacts: bool = False


def submit(paths: Sequence[Path], claim: Claim, out: Path, say: Say) -> dict[str, Any]:
    """Write the record of some runs into a new folder; return its submission.json.

    Raises UserError for every reason for which a reviewer would refuse it.
    """
    require_new(out)
    for option, words in zip(_SAID, (claim.name, claim.author, claim.github_id), strict=True):
        if words != line(words):
            raise UserError(f"{option} is '{words}'; only printable characters are allowed")
    if claim.track not in TRACKS:
        raise UserError(f"track '{claim.track}' is unknown; choose one of {', '.join(TRACKS)}")
    pipelines = [open_run(path, [], _silent) for path in paths]
    runs = [pipeline.results() for pipeline in pipelines]
    _require_comparable(paths, runs, claim.min_seeds)
    for path, run in zip(paths, runs, strict=True):
        _require_measured(path, run)
        _require_valid(path, run)
    commit = _commit()
    with new_folder(out, _is_ours, _never, DIGESTS) as folder:
        text = _write(folder, pipelines, runs, claim, commit)
    say(f"{out}: {text['val_bpb']:.6f} bits per byte over {len(runs)} seeds")
    return text


def _is_ours(name: str) -> bool:
    """Return False: no file of an existing folder may be replaced."""
    return False


def _never(folder: Path) -> None:
    raise AssertionError(f"a record's folder is always new, but {folder} was to be marked")


def _write(
    folder: Path,
    pipelines: Sequence[Pipeline],
    runs: list[dict[str, Any]],
    claim: Claim,
    commit: str,
) -> dict[str, Any]:
    """Write the files of a record and audit it; return its submission.json."""
    config: Config = replace(pipelines[0].config, seed=runs[0]["seed"])
    made = write_files(config, folder)
    _require_own_code(pipelines, made.manifest["bytes"])
    _require_budgets(pipelines, runs, made.manifest["bytes"])
    people = {"name": claim.name, "author": claim.author, "github_id": claim.github_id}
    facts = {"track": TRACKS[claim.track], "commit": commit, "processes": claim.processes}
    code_bytes = made.manifest["bytes"]
    logs = [_log(pipeline, run, code_bytes) for pipeline, run in zip(pipelines, runs, strict=True)]
    text = submission(runs, logs, made.manifest, {**people, **facts})
    write_atomic(folder / CLAIM, as_json(text))
    write_atomic(folder / README, readme(runs, text).encode())
    for pipeline, run, lines in zip(pipelines, runs, logs, strict=True):
        write_atomic(folder / log_file(run["seed"]), lines.encode())
        _write_run(folder, pipeline, run, claim.with_artifacts)
    _write_recipe(folder, pipelines[0], runs[0])
    _dry_run(folder, pipelines[0], text)
    seal(folder)
    _require_clean(folder)
    return text


def _silent(text: str) -> None:
    """Print nothing."""


# ---------------------------------------------------------------------------------------------
# Refusals


def settings_but_seed(results: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run's settings without its seed, which all seeds of a record share."""
    return {name: value for name, value in results["config"].items() if name != "seed"}


def _require_comparable(paths: Sequence[Path], runs: list[dict[str, Any]], least: int) -> None:
    seeds = [run["seed"] for run in runs]
    if len(set(seeds)) < max(1, least):
        raise UserError(
            f"{len(set(seeds))} different seeds ({', '.join(map(str, sorted(set(seeds))))}); a "
            f"record needs {least}: run more with `fairway seeds`"
        )
    if len(set(seeds)) < len(seeds):
        raise UserError("two runs have the same seed; name each seed once")
    for path, run in zip(paths[1:], runs[1:], strict=True):
        first = runs[0]
        parts = {
            "settings": settings_but_seed(run) == settings_but_seed(first),
            "recipe": run["recipe_origin"] == first["recipe_origin"],
            "text": run["text"] == first["text"],
            "versions": run["versions"] == first["versions"],
            "stages": list(run["stages"]) == list(first["stages"]),
        }
        if other := [name for name, same in parts.items() if not same]:
            raise UserError(
                f"{path} has other {other[0]} than {paths[0]}; the seeds of a record share one "
                "configuration"
            )


def _require_measured(path: Path, run: Mapping[str, Any]) -> None:
    if run["artifact"]["code"] == "declared":
        raise UserError(
            f"{path} declares {run['artifact']['code_bytes']:,} bytes of code, but a record counts "
            "the bytes of its bundle; run "
            f"`{command('pack', path, '--set', 'pack.code_bytes=auto')}`, then "
            f"`{command('score', path)}`"
        )


def _require_own_code(pipelines: Sequence[Pipeline], size: int) -> None:
    """Raise UserError if an artifact was packed beside other code than the bundle's."""
    for pipeline in pipelines:
        path, packed = pipeline.folder.path, pipeline.folder.facts("pack") or {}
        if packed["code_bytes"] != size:
            raise UserError(
                f"{path} was packed with {packed['code_bytes']:,} bytes of code, but its bundle "
                f"has {size:,} now; run `{command('pack', path)}`, then `{command('score', path)}`"
            )


def _require_valid(path: Path, run: Mapping[str, Any]) -> None:
    audit = run["audit"]
    if audit is None or not audit["passed"]:
        why = "was not audited" if audit is None else "did not pass its audit"
        raise UserError(f"{path} {why}; see the audit in its report")
    if audit["verdict"] != "valid":
        longer = command("audit", path, "--budget", "600")
        why = f"its report says why, and `{longer}` gives it more time"
        raise UserError(f"the audit of {path} is {audit['verdict']}; {why}")
    claimed = run["stages"][run["headline"]]
    if "published" in str(claimed.get("method", "")):
        raise UserError(
            f"{path} claims the published byte mixture, which is not a distribution over tokens; "
            "it cannot be the headline of a record"
        )
    budget = run["budget"]
    if budget["limit_s"] and budget["used_s"] > budget["limit_s"]:
        raise UserError(
            f"{path} trained and calibrated for {budget['used_s']:.1f} s of "
            f"{budget['limit_s']:.0f} s"
        )
    allowed_s = run["config"]["ttt"]["budget_s"]
    if claimed["seconds"] > allowed_s:
        raise UserError(f"{path} was scored in {claimed['seconds']:.1f} s of {allowed_s:.0f} s")


def _require_budgets(
    pipelines: Sequence[Pipeline], runs: Sequence[Mapping[str, Any]], code_bytes: int
) -> None:
    for pipeline, run in zip(pipelines, runs, strict=True):
        path = pipeline.folder.path
        limit = min(LIMIT_BYTES, run["config"]["pack"]["limit_bytes"])
        total = run["artifact"]["bytes"] + code_bytes
        if total > limit:
            raise UserError(
                f"seed {run['seed']} has {run['artifact']['bytes']:,} bytes of model and "
                f"{code_bytes:,} of code, {total - limit:,} above {limit:,}; run "
                f"`{command('pack', path, '--budget', limit)}`, then `{command('score', path)}`"
            )


def commit_of_sources() -> tuple[str, list[str]]:
    """Return the commit of the sources and the changed files, from git.

    Without git, or for an installed package, the version takes the place of the commit. In a
    container the sources often belong to another user. Git then refuses to read them, because their
    configuration could start programs; but these sources are running already.
    """
    git = ["git", "-c", "safe.directory=*", "-C", str(Path(fairway.__file__).parent)]
    try:
        known = subprocess.run(
            [*git, "ls-files", "--error-unmatch", "version.py"], capture_output=True, check=False
        )
    except FileNotFoundError:
        return f"fairway {VERSION}", []
    if known.returncode:
        return f"fairway {VERSION}", []
    status = [*git, "status", "--porcelain", "--", "."]
    changed = subprocess.run(status, capture_output=True, check=True).stdout
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    return head.stdout.strip(), changed.decode(errors="replace").splitlines()


def _commit() -> str:
    """Return the commit of the sources, or the version of an installed package.

    Raises UserError for sources that differ from their commit.
    """
    commit, changed = commit_of_sources()
    if changed:
        raise UserError(
            f"{len(changed)} source files differ from their commit ({changed[0][3:]}, ...); commit "
            "them, so that the record can name its source"
        )
    return commit


def _require_clean(folder: Path) -> None:
    grave = [f for f in audit_record(folder).findings if f.severity != "note"]
    if grave:
        raise UserError(f"the record's own audit found {grave[0].place}: {grave[0].why}")


# ---------------------------------------------------------------------------------------------
# Files


def results_file(seed: int) -> str:
    """Return the name of a seed's results in a record."""
    return f"{RESULTS}/seed{seed}.json"


def log_file(seed: int) -> str:
    """Return the name of a seed's log in a record."""
    return f"train_seed{seed}.log"


def artifact_file(seed: int) -> str:
    """Return the name of a seed's artifact in a record; the file is optional."""
    return f"artifact_seed{seed}.fwy"


def _log(pipeline: Pipeline, run: Mapping[str, Any], code_bytes: int) -> str:
    return log(run, step_lines(run, read_steps(pipeline.folder.file(STEPS))), code_bytes)


def _write_run(folder: Path, pipeline: Pipeline, run: dict[str, Any], with_artifact: bool) -> None:
    seed = run["seed"]
    write_json(folder / results_file(seed), run)
    if with_artifact:
        data = pipeline.folder.file(ARTIFACT).read_bytes()
        write_atomic(folder / artifact_file(seed), data)


def _write_recipe(folder: Path, pipeline: Pipeline, run: Mapping[str, Any]) -> None:
    """Write the files of a recipe that is not Fairway's, for readers; they are never executed."""
    texts = [file["text"] for file in (pipeline.origin or {"files": []})["files"]]
    for name, text in zip(recipe_files(run), texts, strict=True):
        write_atomic(folder / name, text.encode())


def data_of(pipeline: Pipeline) -> Path:
    """Return the data folder of a run."""
    source = pipeline.config.data.source
    return pipeline.folder.file(DATA) if source == "embedded" else Path(source)


def _dry_run(folder: Path, pipeline: Pipeline, claim: Mapping[str, Any]) -> None:
    """Run the README's command up to the start of training."""
    seed, data = next(iter(claim["seeds"])), data_of(pipeline).resolve()
    with tempfile.TemporaryDirectory() as empty:
        command = [str((folder / SCRIPT).resolve()), str(data), "RUN", "--seed", seed]
        ended = subprocess.run(
            [sys.executable, *command, "--dry-run"],
            cwd=empty,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
    wanted = f"{claim['recipe']}, seed {seed}, on {claim['data_sha256'][:16]}"
    if ended.returncode or wanted not in ended.stdout:
        said = (ended.stderr or ended.stdout).strip().splitlines() or ["nothing"]
        raise UserError(f"the command of the README fails before training: {said[-1]}")


def seal(folder: Path) -> None:
    """Write the digests of all files of a record."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    digests = {path.relative_to(folder).as_posix(): digest_file(path) for path in files}
    write_json(folder / DIGESTS, digests)
