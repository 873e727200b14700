"""The step records of the other runs in a folder of runs; all files are checked before use."""

import math
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from fairway.base.errors import UserError
from fairway.pipeline.folder import MEMORY, RunFolder
from fairway.report.derive import Earlier
from fairway.train.steps import STEPS, read_steps

# How many earlier runs are shown, and how many folders and bytes are read for them.
MOST_EARLIER = 6
_MOST_FOLDERS = 1_000
# 60,000 steps.
MOST_STEPS_BYTES = 1 << 24
_NUMBERS = ("step", "seconds", "loss", "lr")


def earlier_runs(run: RunFolder) -> list[Earlier]:
    """Return the latest runs in the same folder that were trained before a run, in order of name.

    Folders without a readable finished training on the same text are left out.
    """
    own = run.path.resolve()
    until_s = run.file(STEPS).stat().st_mtime
    found = [one for one in _trained(own.parent, own) if one[0] <= until_s]
    found.sort(key=lambda one: one[0], reverse=True)
    read = ((folder.path.name, known_steps(folder)) for _, folder in found if _alike(folder, run))
    return sorted(islice(((name, steps) for name, steps in read if steps), MOST_EARLIER))


def known_steps(folder: RunFolder) -> list[dict[str, Any]]:
    """Return the step records of a finished training; an empty result if they were changed, are too
    many, or hold no numbers."""
    path = folder.file(STEPS)
    try:
        if folder.facts("train") is None or path.stat().st_size > MOST_STEPS_BYTES:
            return []
        steps = [] if folder.changed("train", STEPS) else read_steps(path)
    except (UserError, OSError):
        return []
    return steps if all(map(_is_record, steps)) else []


def _is_record(value: object) -> bool:
    numbers = [value.get(name) for name in _NUMBERS] if isinstance(value, dict) else [None]
    return all(type(n) in (int, float) and math.isfinite(n) for n in numbers)  # type: ignore[arg-type]


def _trained(parent: Path, own: Path) -> Iterator[tuple[float, RunFolder]]:
    """Yield the runs of a folder, with the time of their last step."""
    paths = (path for path in parent.iterdir() if path != own and (path / MEMORY).is_file())
    for path in islice(paths, _MOST_FOLDERS):
        try:
            yield (path / STEPS).stat().st_mtime, RunFolder(path)
        except (UserError, OSError):
            continue


def _alike(one: RunFolder, other: RunFolder) -> bool:
    """Return whether two runs trained on the same text."""
    stages = [folder.memory["stages"].get("train", {"reads": {}}) for folder in (one, other)]
    first, second = (stage["reads"].get("data") for stage in stages)
    return first is not None and first == second
