"""All runs of a folder side by side: the settings that differ from the recipe, and the results."""

import csv
import io
import os
from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from fairway.base.errors import UserError
from fairway.base.files import missing
from fairway.base.names import ARTIFACT, WEIGHTS
from fairway.base.terminal import line
from fairway.config.settings import Config
from fairway.pipeline.folder import MEMORY, RunFolder
from fairway.pipeline.order import stages_of
from fairway.pipeline.record import config_of, differences

# The most files in a folder of runs; a run has about 20 files.
_MOST_ENTRIES = 100_000
# What to do where there are no runs.
NEXT = "make a run with `fairway run demo`, or name another folder with `fairway runs FOLDER`"
# The stage that writes each file whose digest other stages record.
_WRITERS = {WEIGHTS: "train", ARTIFACT: "pack"}
_FACTS = ("name", "recipe", "seed", "differences", "bytes", "train_s", "steps", "state")


def runs(folder: Path) -> list[dict[str, Any]]:
    """Return the runs below a folder in order of name; UserError if the folder does not exist."""
    if not folder.is_dir():
        raise UserError(_why_none(folder))
    return [_run(path, folder) for path in sorted(_folders(folder))]


def _why_none(folder: Path) -> str:
    if folder.exists():
        return f"{folder} is a file, not a folder; name the folder that contains the runs"
    return f"there are no runs: the folder {folder} {missing(folder)}; {NEXT}"


def _folders(folder: Path) -> Iterator[Path]:
    """Yield the run folders below a folder; links are not followed."""
    seen = 0

    def unreadable(error: OSError) -> None:
        # One below it may be somebody else's, such as the lost+found of a disk.
        if error.filename == str(folder):
            raise UserError(f"cannot read {folder}: {error.strerror}") from None

    for path, folders, files in os.walk(str(folder), onerror=unreadable):
        seen += len(folders) + len(files)
        if seen > _MOST_ENTRIES:
            raise UserError(
                f"{folder} has more than {_MOST_ENTRIES:,} files and folders; name a folder of runs"
            )
        if MEMORY in files:
            yield Path(path)


def _run(path: Path, root: Path) -> dict[str, Any]:
    """Return the facts of a run; for an unreadable run, a sentence as its state."""
    below = path.relative_to(root).as_posix()
    named = {"name": path.resolve().name if path == root else below, "path": below}
    try:
        folder = RunFolder(path)
        with folder.reading():
            return {**named, **_facts_of(folder)}
    except (UserError, OSError) as error:
        return {**dict.fromkeys(_FACTS), **named, "scores": {}, "state": str(error)}


def _facts_of(folder: RunFolder) -> dict[str, Any]:
    config, stages = config_of(folder), folder.memory["stages"]
    # Numbers of former weights or of a former artifact are not those of this run.
    facts = {name: kept["facts"] for name, kept in stages.items() if _is_present(name, stages)}
    trained, packed = facts.get("train", {}), facts.get("pack", {})
    return {
        "recipe": config.recipe,
        "seed": config.seed,
        "differences": differences(config, folder.memory.get("origin"), _is_apart),
        "bytes": packed.get("bytes"),
        "train_s": trained.get("seconds"),
        "steps": trained.get("steps"),
        "scores": present_scores(stages),
        "state": _state(config, stages.keys(), facts.keys()),
    }


def present_scores(stages: Mapping[str, Any]) -> dict[str, float]:
    """Return the bits per byte of the stages that scored what a run has now, by name."""
    return {
        name.removeprefix("score."): float(kept["facts"]["bpb"])
        for name, kept in stages.items()
        if name.startswith("score.") and _is_present(name, stages)
    }


def _is_present(name: str, stages: Mapping[str, Any]) -> bool:
    """Return whether a stage read the weights and the artifact that its run has now."""
    read = stages[name]["reads"]
    return all(
        writer in stages
        and read[file] == stages[writer]["files"].get(file)
        and _is_present(writer, stages)
        for file, writer in _WRITERS.items()
        if file in read
    )


def _is_apart(name: str) -> bool:
    """Return whether a setting is irrelevant for comparing the recipes of runs."""
    return name == "seed" or name.startswith("runtime.")


def _state(config: Config, made: Set[str], present: Set[str]) -> str:
    """Return the state of a run: 'scored', the last stage before the first missing one, or what to
    do again because a stage was `made` with files that are not the `present` ones."""
    done = "begun"
    for stage in stages_of(config):
        if stage.name not in made:
            return done
        if stage.name not in present:
            return "trained again; pack it" if stage.name == "pack" else "packed again; score it"
        done = stage.name
    return "scored"


def as_csv(found: Sequence[dict[str, Any]]) -> str:
    """Return runs as comma-separated values, with one column for each stage of any run."""
    stages = list(dict.fromkeys(stage for run in found for stage in run["scores"]))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*_FACTS, *(line(f"bpb_{stage}") for stage in stages)])
    for run in found:
        cells = [" ".join(run[n] or []) if n == "differences" else run[n] for n in _FACTS]
        shown = [line(cell) if isinstance(cell, str) else cell for cell in cells]
        writer.writerow([*shown, *(run["scores"].get(stage) for stage in stages)])
    return out.getvalue()


def is_csv(head: bytes) -> bool:
    """Return whether a file begins like these values."""
    return head.startswith(",".join(_FACTS).encode())
