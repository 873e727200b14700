"""`fairway verify`: checks a record's files against one another, and against a new run.

Nothing of a record is executed, except on request: a new training runs its own train_gpt.py, in a
separate folder and process.
"""

import math
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scipy.special import stdtrit

from fairway.api import load
from fairway.audit.records.audit import audit_record
from fairway.audit.records.folder import open_folder
from fairway.base.errors import UserError, shown
from fairway.base.files import MOST_BYTES, digest_file, missing, read_bytes, read_json
from fairway.bundle.build import SCRIPT, bundle, check_bundle
from fairway.config.settings import Config, declares_code
from fairway.config.written import config_hash, fixed_digest, from_dict
from fairway.data.folder import DataFolder, tokenizer_file
from fairway.machine.plan import Plan
from fairway.pipeline.solo import SCORE_FILE
from fairway.score.accounts import score_faults, text_faults
from fairway.score.evaluation import Evaluation
from fairway.score.experts.evaluate import evaluate_mixture
from fairway.score.sliding import evaluate_frozen, text_of
from fairway.score.ttt import evaluate_ttt
from fairway.submission.submission import (
    CLAIM,
    DIGESTS,
    README,
    artifact_file,
    log_file,
    results_file,
)
from fairway.submission.texts import STEP, TRACKS, as_json, log, readme, recipe_files, submission
from fairway.version import VERSION

# A repeated run should be in the interval that contains this share of new seeds.
CONFIDENCE = 0.99


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of a verification: faults, notes, and a repeated score."""

    faults: tuple[str, ...]
    notes: tuple[str, ...]
    repeated: dict[str, Any] | None = None

    @property
    def holds(self) -> bool:
        """Return whether nothing contradicts the record."""
        return not self.faults


def verify(
    folder: Path,
    *,
    rescore: Path | None = None,
    retrain: Path | None = None,
    seed: int | None = None,
) -> Verdict:
    """Return the result of checking a record's files and, on request, of repeating one seed.

    `rescore` and `retrain` name the data folder, either to score the record's artifact again, or
    to run the record's own script from the beginning.
    """
    if not folder.exists():
        raise UserError(f"{folder} {missing(folder)}; name the folder of a record")
    if folder.is_file():
        raise UserError(f"{folder} is a file; name the folder of a record")
    if not (folder / DIGESTS).is_file():
        raise UserError(f"{folder} is not a record of Fairway (no {DIGESTS})")
    faults = list(_wrong_files(folder))
    if faults:
        return Verdict(tuple(faults), ())
    claim = read_json(folder / CLAIM)
    try:
        faults += _disagreements(folder, claim)
    except (LookupError, TypeError, ValueError, ArithmeticError, OSError) as error:
        faults.append(f"a file is not as Fairway writes it ({type(error).__name__}: {error})")
    # Rebuilding a bundle takes some seconds, so it is skipped if something is already wrong.
    notes = [] if faults else list(_notes(folder))
    faults += [f"{f.place}: {f.why}" for f in audit_record(folder).findings if _grave(f.severity)]
    repeated = None
    if not faults and (rescore or retrain):
        chosen = int(next(iter(claim["seeds"]))) if seed is None else seed
        repeated = _repeat(folder, claim, chosen, rescore, retrain)
        if not repeated["holds"]:
            faults.append(repeated["sentence"])
    return Verdict(tuple(faults), tuple(notes), repeated)


def _grave(severity: str) -> bool:
    return severity == "invalid"


# ---------------------------------------------------------------------------------------------
# Files


def _wrong_files(folder: Path) -> Iterator[str]:
    """Yield every file that is missing, new, or different from its digest."""
    known = read_json(folder / DIGESTS)
    if not isinstance(known, dict):
        raise UserError(f"{folder / DIGESTS} is damaged: it is not a table of digests")
    opened = open_folder(folder)
    sizes = {file.path.relative_to(folder).as_posix(): file.size_bytes for file in opened.files}
    if sum(sizes.values()) > MOST_BYTES:
        yield f"its files have {sum(sizes.values()):,} bytes; at most {MOST_BYTES:,} are read"
        return
    for name in opened.skipped:
        yield f"{name} is not a regular file, or exceeds the number of files"
    for name in sorted(sizes.keys() - known.keys() - {DIGESTS}):
        yield f"{name} is not listed in the record"
    for name, digest in known.items():
        if name not in sizes:
            yield f"{name} is missing"
        elif digest_file(folder / name) != digest:
            yield f"{name} is not what was written"


def _disagreements(folder: Path, claim: Mapping[str, Any]) -> Iterator[str]:
    """Yield everything that does not follow from the results of the record's own runs."""
    try:
        manifest = check_bundle(folder)
    except UserError as error:
        yield str(error)
        return
    runs = [read_json(folder / results_file(int(seed))) for seed in claim["seeds"]]
    logs = [read_bytes(folder / log_file(int(seed))).decode() for seed in claim["seeds"]]
    if claim["track"] not in TRACKS.values():
        yield f"{CLAIM} names an unknown track: {claim['track']}"
    people = {name: claim[name] for name in ("name", "author", "github_id")}
    facts = {name: claim[name] for name in ("track", "commit", "processes")}
    expected = submission(runs, logs, manifest, {**people, **facts})
    if as_json(expected) != read_bytes(folder / CLAIM):
        yield f"{CLAIM} does not follow from the results: {_first_difference(expected, claim)}"
    elif readme(runs, expected).encode() != read_bytes(folder / README):
        yield f"{README} does not follow from the results and {CLAIM}"
    for seed, run, text in zip(claim["seeds"], runs, logs, strict=True):
        yield from _inner_faults(folder, int(seed), run, text, manifest)


def _first_difference(expected: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    names = [name for name in expected if expected[name] != found.get(name)]
    return f"{names[0]} should be {expected[names[0]]}" if names else "other text"


def _inner_faults(
    folder: Path, seed: int, run: Mapping[str, Any], text: str, manifest: Mapping[str, Any]
) -> Iterator[str]:
    """Yield contradictions inside a run's results, or with its log."""
    name = results_file(seed)
    if as_json(run) != read_bytes(folder / name):
        yield f"{name} is not in the form that Fairway writes"
    config: Config = from_dict(run["config"])
    if fixed_digest(config) != manifest["fixed_digest"]:
        yield f"{name} has other settings than the bundle"
    if config_hash(config) != run["recipe_hash"] or not config.seed == run["seed"] == seed:
        yield f"{name} has another recipe_hash or seed than its config and its name"
    for fault in _faults_of_scores(run):
        yield f"{name}: {fault}"
    if sum(section["bytes"] for section in run["artifact"]["sections"]) != run["artifact"]["bytes"]:
        yield f"{name}: the artifact's sections do not sum to its bytes"
    if (counted := run["artifact"]["code_bytes"]) != manifest["bytes"]:
        yield f"{name} counts {counted} bytes of code, its bundle has {manifest['bytes']}"
    for file, digest in recipe_files(run).items():
        if digest_file(folder / file) != digest:
            yield f"{file} is not the recipe's file that {name} describes"
    if declares_code(config.pack):
        yield f"{name} declares its bytes of code instead of counting its bundle"
    artifact = folder / artifact_file(seed)
    if artifact.is_file() and digest_file(artifact) != run["artifact"]["digest"]:
        yield f"{artifact.name} is not the artifact that was scored"
    steps = [line for line in text.splitlines() if line.startswith(STEP)]
    if len(steps) != run["train"]["steps"]:
        yield f"{log_file(seed)} has {len(steps)} steps, the run {run['train']['steps']}"
    if log(run, steps, manifest["bytes"]) != text:
        yield f"{log_file(seed)} does not follow from {name}"


def _faults_of_scores(run: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is wrong with the numbers of a run's scores."""
    for stage, score in run["stages"].items():
        yield from score_faults(stage, score)
    yield from text_faults(run["stages"], run["text"])


def _notes(folder: Path) -> Iterator[str]:
    """Yield whether the bundle follows from the installed sources."""
    manifest = read_json(folder / "bundle.json")
    if manifest["fairway"] != VERSION:
        yield f"made by Fairway {manifest['fairway']}, this is {VERSION}: the bundle is not rebuilt"
        return
    made = bundle(from_dict(manifest["config"]))
    same = made.manifest["digest"] == manifest["digest"]
    changed = [n for n, d in made.manifest["sources"].items() if manifest["sources"].get(n) != d]
    if same:
        yield "the bundle follows from the installed sources, to the byte"
    elif changed:
        yield f"{len(changed)} modules differ from those of the record ({changed[0]}, ...)"
    else:
        tools = ", ".join(f"{name} {version}" for name, version in manifest["tools"].items())
        yield f"the bundle is different here; the record was made with {tools}"


# ---------------------------------------------------------------------------------------------
# A repeated score


def _repeat(
    folder: Path, claim: Mapping[str, Any], seed: int, rescore: Path | None, retrain: Path | None
) -> dict[str, Any]:
    if str(seed) not in claim["seeds"]:
        raise UserError(f"the record has no seed {seed}; it has {', '.join(claim['seeds'])}")
    results = read_json(folder / results_file(seed))
    data = rescore or retrain
    assert data is not None
    source = DataFolder.open(data)
    if source.digest != claim["data_sha256"]:
        raise UserError(f"{data} is not the data of this record: its digest differs")
    if rescore:
        found = _rescored(folder, claim, results, source)
    else:
        found = _retrained(folder, claim, seed, data)
    return judged(found, claim, seed, "scored again" if rescore else "trained again")


def judged(found: float, claim: Mapping[str, Any], seed: int, how: str) -> dict[str, Any]:
    """Return whether a repeated score is the claimed one, or within the spread of the seeds.

    A new run on another machine is one more draw: it should be within the interval that contains
    99 % of new seeds, given the mean and the spread of the claimed ones.
    """
    scores = [run["val_bpb"] for run in claim["seeds"].values()]
    claimed = claim["seeds"][str(seed)]["val_bpb"]
    margin = prediction_margin(scores)
    exact = found == claimed
    holds = exact or abs(found - statistics.fmean(scores)) <= margin
    words = "the same bits" if exact else f"within {margin:.6f} of the mean" if holds else "outside"
    sentence = f"seed {seed} {how}: {found:.8f} bits per byte, claimed {claimed:.8f}: {words}"
    return {"seed": seed, "bpb": found, "claimed": claimed, "exact": exact, "margin": margin,
            "holds": holds, "sentence": sentence}  # fmt: skip


def prediction_margin(scores: Sequence[float]) -> float:
    """Return how far one more seed may be from the mean of others; 0 for a single one."""
    n = len(scores)
    if n < 2:
        return 0.0
    quantile = float(stdtrit(n - 1, 0.5 + CONFIDENCE / 2))
    return quantile * statistics.stdev(scores) * math.sqrt(1 + 1 / n)


def _rescored(
    folder: Path, claim: Mapping[str, Any], results: Mapping[str, Any], source: DataFolder
) -> float:
    path = folder / artifact_file(results["seed"])
    if not path.is_file():
        raise UserError(
            f"the record contains no {path.name}; train it again, or submit with --with-artifacts"
        )
    config: Config = from_dict(results["config"])
    plan = Plan(**results["machine"])
    plan.apply()
    loaded = load(path, tokenizer=tokenizer_file(source.path), plan=plan)
    validation = source.sample_validation(config.data.val_bytes, config.data.val_tokens)
    text = text_of(validation.ids, source.tokenizer.table, validation.bytes)
    asked = Evaluation(text, config.score, config.ttt, config.seed)
    if claim["stage"] == "mixture":
        found, _ = evaluate_mixture(loaded.model, asked, config.mixture, source.tokenizer)
        return found.bpb
    if claim["stage"] == "ttt":
        return evaluate_ttt(loaded.model, asked).score.bpb
    if claim["stage"] != "sliding":
        raise UserError(f"{CLAIM} claims the stage {shown(claim['stage'])}, which no run claims")
    return evaluate_frozen(loaded.model, asked, sliding=True).bpb


def _retrained(folder: Path, claim: Mapping[str, Any], seed: int, data: Path) -> float:
    with tempfile.TemporaryDirectory() as empty:
        command = [str((folder / SCRIPT).resolve()), str(data.resolve()), "RUN"]
        ended = subprocess.run(
            [sys.executable, *command, "--seed", str(seed)],
            cwd=empty,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
        if ended.returncode:
            said = ended.stderr.strip().splitlines() or ["nothing"]
            raise UserError(f"the record's train_gpt.py failed: {said[-1]}")
        score = read_json(Path(empty) / "RUN" / SCORE_FILE)
    return float(score["stages"][claim["stage"]]["bpb"])
