"""The report of a run: one self-contained HTML page, and every number on it as JSON."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fairway.base.files import write_atomic, write_json
from fairway.report.derive import Earlier, derive


def write_report(
    run_folder: Path,
    results: dict[str, Any],
    steps: list[dict[str, Any]],
    out: Path,
    earlier: Sequence[Earlier] = (),
    costs: Sequence[dict[str, Any]] = (),
) -> Path:
    """Write the page to `out` and its numbers to the same name with .json; return `out`.

    `results` is a run's results.json (schema 1), and `steps` its steps.jsonl. The page shows the
    losses of `earlier` runs beside its own. `costs` is the run's costs.json: documents with the
    cost of each token (`fairway.score.costs.document_costs`). The JSON contains the results, these
    costs and all derived numbers, so that every `<data value>` of the page is in it. Equal input
    gives equal bytes. Raises UserError for the results of an unfinished run.
    """
    # Half a second of Matplotlib and of the record auditor, which other commands do without.
    from fairway.report.page import page

    numbers = out.with_suffix(".json")
    derived = derive(results, steps, earlier)
    links = [
        numbers.name,
        *(_files(run_folder, (out, numbers)) if out.parent == run_folder else []),
    ]
    write_json(numbers, {"schema": 1, "results": results, "derived": derived, "costs": list(costs)})
    write_atomic(out, page(results, derived, links, costs).encode())
    return out


def _files(folder: Path, without: tuple[Path, ...]) -> list[str]:
    """Return the names of a run's own files; the links stay valid if the folder moves."""
    found = (path for path in folder.glob("[!.]*") if path.is_file() and path.suffix != ".lock")
    return sorted(path.name for path in found if path not in without)
