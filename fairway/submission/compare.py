"""Compares two runs, or a run and a published record, with reasons against the comparison."""

import statistics
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from fairway.audit.records.audit import audit_record
from fairway.base.errors import UserError
from fairway.base.terminal import command
from fairway.base.units import NATS_PER_BIT
from fairway.pipeline.folder import MEMORY, run_at
from fairway.pipeline.results import RESULTS, SCHEMA, read_results
from fairway.submission.published import HARDWARE, RECORDS, STEP_TOKENS, Record, Seed, record
from fairway.submission.statistics import (
    FRONTIER_P,
    MARGIN_NATS,
    RECORD_P,
    margin_bpb,
    paired,
    sample,
    seeds_needed,
    welch,
)

# The text of a record's folder, known by the tokens and bytes in its logs, which its audit checks.
_OF_LOGS = "as its logs say"
# Two texts count as equally dense in tokens if their ratio is within this.
_SAME_DENSITY = 0.005
_DECLARED = "its bytes of code are declared, and not those of its own bundle"


@dataclass(frozen=True, slots=True)
class Figure:
    """A number, or the mean and the standard deviation of several seeds."""

    mean: float
    sd: float | None = None
    seeds: int = 1


@dataclass(frozen=True, slots=True)
class Side:
    """One side of a comparison.

    `text` identifies the scored text; `tokens` and `bytes` are the scored amounts. `scores` are
    bits per byte by stage and seed.
    """

    name: str
    title: str
    text: str
    tokens: int
    bytes: int
    hardware: str
    figures: dict[str, Figure]
    notes: tuple[str, ...] = ()
    scores: dict[str, dict[int, float]] = field(default_factory=dict)


def compare(a: str, b: str) -> dict[str, Any]:
    """Return both sides, the figures with the differences a - b, cautions and tests, for JSON.

    Each name is that of a published record, the path of a run folder with results, several such
    paths separated by commas (seeds of one system), or the folder of a record in the challenge's
    format. Raises UserError for anything else.
    """
    left, right = side(a), side(b)
    names = [*left.figures, *(name for name in right.figures if name not in left.figures)]
    return {
        "a": asdict(left),
        "b": asdict(right),
        "differences": {
            name: left.figures[name].mean - right.figures[name].mean
            for name in names
            if name in left.figures and name in right.figures
        },
        "cautions": list(cautions(left, right)),
        "statistics": statistics_of(left, right),
    }


def side(name: str) -> Side:
    """Return a published record or a run, by its path or by its name in `runs`; see `compare`."""
    if name in RECORDS:
        return _of_record(record(name))
    paths = [_found(part) for part in name.split(",")]
    if not all(path.exists() for path in paths):
        return _of_record(record(name))
    if len(paths) > 1:
        return _of_runs(name, [_of_run(path) for path in paths])
    if (paths[0] / "submission.json").is_file() and not (paths[0] / MEMORY).is_file():
        return _of_folder(paths[0])
    return _of_run(paths[0])


def _found(name: str) -> Path:
    """Return the path of a run, also by its name in `runs`; an artifact means its run."""
    inside = Path("runs") / name
    return run_at(inside if inside.exists() and not Path(name).exists() else Path(name))


# ---------------------------------------------------------------------------------------------
# A published record


def _of_record(published: Record) -> Side:
    seeds = published.seeds
    of_seed: dict[str, Callable[[Seed], float]] = {
        "training seconds": lambda seed: seed.train_s,
        "steps": lambda seed: seed.steps,
        "tokens": lambda seed: seed.steps * STEP_TOKENS,
        "tokens per second": lambda seed: seed.steps * STEP_TOKENS / seed.train_s,
        "artifact bytes": lambda seed: seed.artifact_bytes,
        "code bytes": lambda seed: seed.code_bytes,
        "bytes in all": lambda seed: seed.artifact_bytes + seed.code_bytes,
    }
    figures = {"parameters": Figure(published.parameters)}
    figures |= {name: _mean([get(seed) for seed in seeds]) for name, get in of_seed.items()}
    for stage in seeds[0].bpb:
        figures[f"bpb, {stage}"] = _mean([seed.bpb[stage] for seed in seeds])
    return Side(
        name=published.name,
        title=f"pull request #{published.name.removeprefix('pr')}, its authors' logs; claims "
        f"{published.claim}",
        text=f"FineWeb, 50,000 documents as {published.tokens_of}",
        tokens=published.scored_tokens,
        bytes=published.text_bytes,
        hardware=HARDWARE,
        figures=figures,
        notes=published.notes,
        scores={s: {seed.seed: seed.bpb[s] for seed in seeds} for s in seeds[0].bpb},
    )


def _mean(values: list[float]) -> Figure:
    return Figure(statistics.fmean(values), statistics.stdev(values), len(values))


# ---------------------------------------------------------------------------------------------
# A run


def _of_run(path: Path) -> Side:
    file, results = path / RESULTS, read_results(path)
    try:
        if results["schema"] != SCHEMA:
            raise UserError(f"{file} has schema {results['schema']}, this Fairway reads {SCHEMA}")
        return _of_results(str(path), results)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{file} is damaged ({error!r}); write it again by `{command('report', path)}`"
        ) from None


def _of_results(name: str, results: dict[str, Any]) -> Side:
    train, artifact, scored = results["train"], results["artifact"], results["stages"]["sliding"]
    # The challenge's records call test-time training 'adapted'.
    stages = {"adapted" if n == "ttt" else n: score for n, score in results["stages"].items()}
    figures = {
        "parameters": results["model"]["parameters"],
        "training seconds": train["seconds"],
        "steps": train["steps"],
        "tokens": train["tokens"],
        "tokens per second": train["tokens_per_s"],
        "artifact bytes": artifact["bytes"],
        "code bytes": artifact["code_bytes"],
        "bytes in all": artifact["bytes"] + artifact["code_bytes"],
        **{f"bpb, {stage}": value["bpb"] for stage, value in stages.items()},
    }
    return Side(
        name=name,
        title=f"run of recipe {results['recipe']}, seed {results['seed']}",
        text=f"text {results['text']['digest'][:12]}",
        tokens=scored["tokens"],
        bytes=scored["bytes"],
        hardware=results["machine"]["device"],
        figures={name: Figure(value) for name, value in figures.items()},
        notes=(_DECLARED,) if artifact.get("code") == "declared" else (),
        scores={stage: {results["seed"]: value["bpb"]} for stage, value in stages.items()},
    )


def _of_runs(name: str, runs: list[Side]) -> Side:
    """Return several runs as seeds of one system; UserError if they scored different texts."""
    first = runs[0]
    for run in runs[1:]:
        if (run.text, run.tokens, run.bytes) != (first.text, first.tokens, first.bytes):
            raise UserError(f"{run.name} and {first.name} were scored on different texts")
    scores: dict[str, dict[int, float]] = {}
    for run in runs:
        for stage, by_seed in run.scores.items():
            seen = scores.setdefault(stage, {})
            if seen.keys() & by_seed.keys():
                raise UserError(f"{run.name} has the seed of another run; a seed counts once")
            seen |= by_seed
    common = [n for n in first.figures if all(n in run.figures for run in runs)]
    figures = {n: _mean([run.figures[n].mean for run in runs]) for n in common}
    title = f"{len(runs)} runs; the first is a {first.title}"
    return replace(first, name=name, title=title, figures=figures, scores=scores)


# ---------------------------------------------------------------------------------------------
# A record's folder


def _of_folder(path: Path) -> Side:
    facts = audit_record(path).facts
    logs = [log for log in facts["logs"] if log["seed"] is not None and log["stages"]]
    counted = [log for log in logs if "val tokens" in log and log["text_bytes"]]
    if not counted:
        raise UserError(f"{path} has no log with a seed, a score and its number of tokens")
    of_log = {"training seconds": "train_s", "steps": "steps", "bytes in all": "total_bytes"}
    figures = {
        name: _mean(values) if len(values) > 1 else Figure(values[0])
        for name, key in of_log.items()
        if (values := [float(log[key]) for log in logs if log[key] is not None])
    }
    stages = [s for s in logs[0]["stages"] if all(s in log["stages"] for log in logs)]
    scores = {s: {log["seed"]: log["stages"][s] for log in logs} for s in stages}
    # Other records have other names for the claimed stage.
    if facts.get("claimed_stage") in scores:
        scores["adapted"] = scores[facts["claimed_stage"]]
    for stage, by_seed in scores.items():
        values = list(by_seed.values())
        figures[f"bpb, {stage}"] = _mean(values) if len(values) > 1 else Figure(values[0])
    return Side(
        name=str(path),
        title="a record's folder, its authors' logs",
        text=_OF_LOGS,
        tokens=int(counted[0]["val tokens"]),
        bytes=counted[0]["text_bytes"],
        hardware="as its logs say",
        figures=figures,
        scores=scores,
    )


# ---------------------------------------------------------------------------------------------
# Statistics


def statistics_of(a: Side, b: Side) -> dict[str, Any] | None:
    """Return the tests of 'the better side is better', or None without two seeds on each.

    The tests use the last stage that both sides have, in bits per byte. The margin is 0.005 nats
    per token; in bits per byte it depends on the tokenizer, here that of the better side.
    """
    shared = [s for s in a.scores if s in b.scores]
    if not shared or min(len(a.scores[shared[-1]]), len(b.scores[shared[-1]])) < 2:
        return None
    stage = shared[-1]
    sides = [(side, sample(list(side.scores[stage].values()))) for side in (a, b)]
    better, worse = sorted(sides, key=lambda pair: pair[1].mean)
    margin = margin_bpb(better[0].bytes / better[0].tokens)
    pairs = [side.scores[stage] for side, _ in (better, worse)]
    gained, sd = worse[1].mean - better[1].mean, max(better[1].sd, worse[1].sd)
    rules = {"record": (margin, RECORD_P), "frontier": (0.0, FRONTIER_P)}
    tests = {}
    for rule, (least, p) in rules.items():
        found, paired_test = welch(better[1], worse[1], least), paired(pairs[0], pairs[1], least)
        tests[rule] = {
            "margin_nats": MARGIN_NATS if least else 0.0,
            "margin_bpb": least,
            "needed_p": p,
            "welch": asdict(found),
            "paired": asdict(paired_test) if paired_test else None,
            "holds": found.p < p,
            "seeds_needed": seeds_needed(gained, sd, p, least),
        }
    return {
        "stage": stage,
        "better": better[0].name,
        "samples": {side.name: asdict(found) for side, found in sides},
        "gain_bpb": gained,
        "gain_nats_per_token": gained * NATS_PER_BIT * better[0].bytes / better[0].tokens,
        "tests": tests,
    }


# ---------------------------------------------------------------------------------------------
# Reasons against a comparison


def cautions(a: Side, b: Side) -> Iterator[str]:
    """Yield a sentence for every reason why figures of the two sides are not comparable."""
    yield from _text_caution(a, b)
    density_a, density_b = a.bytes / a.tokens, b.bytes / b.tokens
    if abs(density_a / density_b - 1) > _SAME_DENSITY:
        yield (
            f"a token has {density_a:.2f} bytes in {a.name} and {density_b:.2f} in "
            f"{b.name}: tokens per second and losses per token are not comparable"
        )
    if a.hardware != b.hardware:
        yield (
            f"{a.name} trained on {a.hardware}, {b.name} on {b.hardware}: seconds, steps and "
            "tokens per second compare machines, not systems"
        )
    for one, other in ((a, b), (b, a)):
        if "bpb, adapted" in one.figures and "bpb, adapted" not in other.figures:
            yield (
                f"'adapted' is {one.name} after test-time training, which {other.name} does not "
                "have: compare the stages that both have"
            )
    yield from _seed_caution(a, b)
    yield from (f"{one.name}: {note}" for one in (a, b) for note in one.notes)


def _text_caution(a: Side, b: Side) -> Iterator[str]:
    if a.text == b.text and a.bytes == b.bytes:
        return
    published = [one.name in RECORDS or one.text == _OF_LOGS for one in (a, b)]
    counted = ", ".join(
        f"{one.name} on {one.bytes:,} bytes ({one.tokens:,} tokens)" for one in (a, b)
    )
    if all(published):
        yield f"the same documents, but different tokens: scored was {counted}"
    elif not any(published) or (a.bytes, a.tokens) != (b.bytes, b.tokens):
        part = "another text, or only a part of it" if any(published) else "another text"
        yield f"bits per byte are not comparable: scored was {counted}: {part}"


def _seed_caution(a: Side, b: Side) -> Iterator[str]:
    for one, other in ((a, b), (b, a)):
        name = next((n for n in reversed(one.figures) if n in other.figures), "steps")
        figure = one.figures[name]
        if figure.sd is not None and other.figures[name].seeds == 1:
            yield (
                f"{other.name} is one run, {one.name} the mean of {figure.seeds} seeds with a "
                f"standard deviation of {figure.sd:.4f} in '{name}'"
            )
