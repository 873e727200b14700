"""Writes the page of all runs of a folder, with limits on runs and on bytes of curves."""

import os
from pathlib import Path
from typing import Any

from fairway.base.files import write_atomic
from fairway.pipeline.earlier import known_steps
from fairway.pipeline.folder import RunFolder
from fairway.pipeline.index import runs
from fairway.pipeline.run import REPORT
from fairway.report.derive import BESIDE_POINTS, curve_of
from fairway.report.overview import Row, overview
from fairway.train.steps import STEPS

# A page of this many runs has 4 MB. Reading records of 400,000 steps for curves takes seconds.
MOST_RUNS = 2_000
MOST_STEPS_BYTES = 100_000_000


def write_overview(folder: Path, page: Path) -> dict[str, Any]:
    """Write the page of the runs below a folder; return how many there are, shown and broken."""
    found = runs(folder)
    rows, left_bytes, unread = [], MOST_STEPS_BYTES, 0
    for facts in found[:MOST_RUNS]:
        path = folder if facts["path"] == "." else folder / facts["path"]
        steps, size_bytes = path / STEPS, 0
        if facts["steps"] and steps.is_file():
            size_bytes = steps.stat().st_size
            unread += size_bytes > left_bytes
        curve = None
        if 0 < size_bytes <= left_bytes:
            left_bytes -= size_bytes
            curve = curve_of(known_steps(RunFolder(path)), BESIDE_POINTS)
        rows.append(Row(facts, curve, _link(path / REPORT, page)))
    left_out = len(found) - len(rows)
    write_atomic(page, overview(rows, left_out, unread).encode())
    broken = sum(facts["recipe"] is None for facts in found)
    return {"page": str(page), "runs": len(found), "shown": len(rows), "broken": broken}


def _link(report: Path, page: Path) -> str:
    """Return the link from the overview to the page of a run; '' if the run has none."""
    return os.path.relpath(report, page.parent) if report.is_file() else ""
