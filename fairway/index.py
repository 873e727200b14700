"""All runs of a folder side by side: what sets each apart from its recipe, and what came of it."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fairway.config import Config, from_dict, settings
from fairway.errors import UserError
from fairway.recipes import RECIPES
from fairway.stages import MEMORY, RunFolder
from fairway.terminal import line

_FACTS = ("name", "recipe", "seed", "differences", "bytes", "train_s", "steps", "state")


def runs(folder: Path) -> list[dict[str, Any]]:
    """Return the runs below a folder in order of name; UserError if there is no such folder."""
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; runs lie in `runs` by default")
    return [_run(path.parent, folder) for path in sorted(folder.rglob(MEMORY))]


def _run(path: Path, root: Path) -> dict[str, Any]:
    name = path.relative_to(root).as_posix() if path != root else path.name
    try:
        memory = RunFolder(path).memory
        config: Config = from_dict(memory["config"])
    except (UserError, KeyError) as error:
        reason = str(error) if isinstance(error, UserError) else "no settings yet"
        return {**dict.fromkeys(_FACTS), "name": name, "scores": {}, "state": reason}
    facts = {stage: kept["facts"] for stage, kept in memory["stages"].items()}
    trained, packed = facts.get("train", {}), facts.get("pack", {})
    scores = {
        n.removeprefix("score."): f["bpb"] for n, f in facts.items() if n.startswith("score.")
    }
    last = list(facts)[-1] if facts else "begun"
    return {
        "name": name,
        "recipe": config.recipe,
        "seed": config.seed,
        "differences": differences(config),
        "bytes": packed.get("bytes"),
        "train_s": trained.get("seconds"),
        "steps": trained.get("steps"),
        "scores": scores,
        "state": "scored" if "score.sliding" in facts else last,
    }


def differences(config: Config) -> list[str]:
    """Return the settings, but for seed and machine, in which a run departs from its recipe."""
    if config.recipe not in RECIPES:
        return []
    own = {name: value for name, _, value in settings(RECIPES[config.recipe]())}
    return [
        f"{name}={value}"
        for name, _, value in settings(config)
        if value != own[name] and name != "seed" and not name.startswith("runtime.")
    ]


def as_csv(found: Sequence[dict[str, Any]]) -> str:
    """Return runs as comma-separated values: one column per stage that any of them has."""
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
    """Return whether a file begins as these values do."""
    return head.startswith(",".join(_FACTS).encode())
