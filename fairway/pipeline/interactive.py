"""Runs from Python, as in a notebook: `fairway.run` and `fairway.results`."""

from pathlib import Path
from typing import Any

from fairway.api import path_of
from fairway.base import notebook, units
from fairway.base.errors import UserError, shown
from fairway.base.terminal import put
from fairway.machine.plan import unaffected
from fairway.pipeline.folder import run_at
from fairway.pipeline.results import read_results
from fairway.pipeline.run import REPORT
from fairway.pipeline.sizes import open_recipe
from fairway.score.baselines import TOOL_NAMES, part_bytes


class Results(dict[str, Any]):
    """The results of a finished run, by the names of results.json; notebooks show a table."""

    def __init__(self, values: dict[str, Any], folder: Path) -> None:
        super().__init__(values)
        self.folder = folder

    @property
    def bpb(self) -> float:
        """Return the score that the run claims, in bits per byte."""
        return float(self["stages"][self["headline"]]["bpb"])

    def _repr_html_(self) -> str:
        stages = [
            (f"model, {name}{' (claimed)' if name == self['headline'] else ''}", stage["bpb"])
            for name, stage in self["stages"].items()
        ]
        part = part_bytes(self["baselines"], self["text"]["bytes"])
        scope = "" if part is None else f", first {part:,} bytes"
        tools = [
            (f"{TOOL_NAMES.get(name, name)}, {way}{scope}", tool[key])
            for name, tool in (self["baselines"] or {}).items()
            for way, key in (("cold", "bpb"), ("primed", "primed_bpb"))
            if tool[key] is not None
        ]
        artifact, train = self["artifact"], self["train"]
        caption = (
            f"{self['recipe']}, seed {self['seed']}: {self.bpb:.4f} bits per byte, "
            f"{units.megabytes(artifact['bytes'])}, {units.duration(train['seconds'])} of training"
        )
        scores = [(name, f"{bpb:.4f}") for name, bpb in sorted([*stages, *tools], key=_second)]
        sample = next((one for one in self["samples"] if one["text"].strip()), None)
        written = f"{sample['prompt']} | {sample['text']}" if sample else ""
        return notebook.page(
            caption,
            notebook.table(("what", "bits per byte"), scores),
            notebook.text(written),
            notebook.text(f"report: {self.folder / REPORT}"),
        )


def _second(pair: tuple[str, float]) -> float:
    return pair[1]


def run(
    recipe: str,
    *settings: str,
    out: str | Path | None = None,
    resume: bool = False,
    restart: bool = False,
) -> Results:
    """Train, pack, score, prove, audit and report a recipe, as `fairway run`; return its results.

    `settings` are changes such as "train.budget_s=60". Finished stages are kept. Raises UserError
    in every case that the command refuses.
    """
    for what, word in (("the recipe", recipe), *(("a setting", setting) for setting in settings)):
        if not isinstance(word, str):
            raise UserError(f"{what} is {shown(word)}; give str, as on the command line")
    folder = None if out is None else path_of(out, "the folder")
    with unaffected():
        pipeline = open_recipe(recipe, folder, settings, resume, restart, put)
        with pipeline.writing():
            return Results(pipeline.walk(resume, restart), pipeline.folder.path)


def results(path: str | Path) -> Results:
    """Return the results of a finished run; UserError if its folder has none."""
    folder = run_at(path_of(path, "the run"))
    return Results(read_results(folder), folder)
