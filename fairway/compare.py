"""Two runs side by side, or a run and a published record, and what forbids a comparison."""

import statistics
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fairway.errors import UserError
from fairway.files import read_json
from fairway.published import HARDWARE, RECORDS, STEP_TOKENS, Record, Seed, record
from fairway.results import SCHEMA
from fairway.stages import RunFolder

# Two texts count as equally dense in tokens up to this ratio.
_SAME_DENSITY = 0.005


@dataclass(frozen=True, slots=True)
class Figure:
    """A number, or the mean and the standard deviation of several seeds."""

    mean: float
    sd: float | None = None
    seeds: int = 1


@dataclass(frozen=True, slots=True)
class Side:
    """What one side of a comparison says of itself.

    `text` tells one scored text from another, `tokens` and `bytes` how much of it was scored.
    """

    name: str
    title: str
    text: str
    tokens: int
    bytes: int
    hardware: str
    figures: dict[str, Figure]
    notes: tuple[str, ...] = ()


def compare(a: str, b: str) -> dict[str, Any]:
    """Return both sides, the figures with the differences a - b, and cautions, ready for JSON.

    Each name is a published record's, else the path of a run folder with results. Raises
    UserError for anything else.
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
    }


def side(name: str) -> Side:
    """Return a published record or a run, by its path or by its name in `runs`; see `compare`."""
    places = (Path(name), Path("runs") / name)
    if name not in RECORDS and (found := [path for path in places if path.exists()]):
        return _of_run(found[0])
    return _of_record(record(name))


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
    )


def _mean(values: list[float]) -> Figure:
    return Figure(statistics.fmean(values), statistics.stdev(values), len(values))


# ---------------------------------------------------------------------------------------------
# A run


def _of_run(path: Path) -> Side:
    file = RunFolder.existing(path).file("results.json")
    if not file.is_file():
        raise UserError(f"{path} has no results yet; run `fairway report {path}` once it is scored")
    results = read_json(file)
    try:
        if results["schema"] != SCHEMA:
            raise UserError(f"{file} has schema {results['schema']}, this Fairway reads {SCHEMA}")
        return _of_results(str(path), results)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{file} is damaged ({error!r}); write it again by `fairway report {path}`"
        ) from None


def _of_results(name: str, results: dict[str, Any]) -> Side:
    train, artifact, scored = results["train"], results["artifact"], results["stages"]["sliding"]
    figures = {
        "parameters": results["model"]["parameters"],
        "training seconds": train["seconds"],
        "steps": train["steps"],
        "tokens": train["tokens"],
        "tokens per second": train["tokens_per_s"],
        "artifact bytes": artifact["bytes"],
        "code bytes": artifact["code_bytes"],
        "bytes in all": artifact["bytes"] + artifact["code_bytes"],
        **{f"bpb, {stage}": value["bpb"] for stage, value in results["stages"].items()},
    }
    return Side(
        name=name,
        title=f"run of recipe {results['recipe']}, seed {results['seed']}",
        text=f"text {results['text']['digest'][:12]}",
        tokens=scored["tokens"],
        bytes=scored["bytes"],
        hardware=results["machine"]["device"],
        figures={name: Figure(value) for name, value in figures.items()},
    )


# ---------------------------------------------------------------------------------------------
# What forbids a comparison


def cautions(a: Side, b: Side) -> Iterator[str]:
    """Yield a sentence for everything that makes figures of two sides say different things."""
    yield from _text_caution(a, b)
    density_a, density_b = a.bytes / a.tokens, b.bytes / b.tokens
    if abs(density_a / density_b - 1) > _SAME_DENSITY:
        yield (
            f"a token stands for {density_a:.2f} bytes in {a.name} and for {density_b:.2f} in "
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
                f"'adapted' is {one.name} after test-time training, which {other.name} has not: "
                "compare the stages that both have"
            )
    yield from _seed_caution(a, b)
    yield from (f"{one.name}: {note}" for one in (a, b) for note in one.notes)


def _text_caution(a: Side, b: Side) -> Iterator[str]:
    if a.text == b.text and a.bytes == b.bytes:
        return
    published = [one.name in RECORDS for one in (a, b)]
    counted = ", ".join(
        f"{one.name} on {one.bytes:,} bytes ({one.tokens:,} tokens)" for one in (a, b)
    )
    if all(published):
        yield f"the same documents, counted in other tokens: scored was {counted}"
    elif not any(published) or (a.bytes, a.tokens) != (b.bytes, b.tokens):
        part = "another text, or only a part of it" if any(published) else "another text"
        yield f"bits per byte are not comparable: scored was {counted}: {part}"


def _seed_caution(a: Side, b: Side) -> Iterator[str]:
    for one, other in ((a, b), (b, a)):
        name = next((n for n in reversed(one.figures) if n in other.figures), "steps")
        figure = one.figures[name]
        if figure.sd is not None and other.figures[name].seeds == 1:
            yield (
                f"{other.name} is one run, {one.name} the mean of {figure.seeds} seeds, which "
                f"scatter by {figure.sd:.4f} in '{name}' (sd)"
            )
