"""Run folders: the record, its results, steps and trails, as `runs`, `report` and `compare` do."""

import json
import os
import random
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from conftest import FIXED, documents

from fairway.compare import compare
from fairway.data.build import build_data
from fairway.errors import UserError
from fairway.files import digest_bytes
from fairway.index import runs
from fairway.overrides import override
from fairway.recipes import recipe
from fairway.report import write_report
from fairway.run import Pipeline, open_run
from fairway.stages import MEMORY, RunFolder
from fairway.steps import STEPS, read_steps

from . import Case, Change, Files
from .damage import damaged, odd_json, spoil_value

_FOLDER = "r"
_KEPT = (".json", ".jsonl", ".gz", ".fwy", ".model")


@cache
def _good() -> tuple[Files, tempfile.TemporaryDirectory[str]]:
    """Return the files of a finished run, and where the data lies that it read."""
    place = tempfile.TemporaryDirectory()
    data, out = Path(place.name) / "data", Path(place.name) / "run"
    build_data(documents(60), data, vocab_size=300, val_share=0.1, shard_tokens=20_000)
    words = [f"data.source={data}", "model.vocab_size=300", "data.val_bytes=1500", *FIXED]
    pipeline = Pipeline(override(recipe("smoke"), words), RunFolder(out), lambda text: None)
    with pipeline.writing():
        pipeline.walk()
    kept = (path for path in out.iterdir() if path.suffix in _KEPT)
    return {f"{_FOLDER}/{path.name}": path.read_bytes() for path in kept}, place


class Runs:
    """A finished run; its weights and pages are left out, since nothing here reads them."""

    name = "run"

    def specimens(self) -> list[Files]:
        """Return the run."""
        return [_good()[0]]

    def spoil(self, files: Files, rng: random.Random) -> Case:
        """Spoil bytes, values of the record with its digest made right, or what lies there."""
        kind, record = rng.random(), f"{_FOLDER}/{MEMORY}"
        if kind < 0.4:
            name = rng.choice([name for name in files if not name.endswith((".fwy", ".model"))])
            return Case({name: damaged(files[name], rng)}, False, name)
        if kind < 0.5:
            results = json.loads(files[f"{_FOLDER}/results.json"])
            note = "results" + spoil_value(results, rng)
            return Case({f"{_FOLDER}/results.json": json.dumps(results).encode()}, True, note)
        if kind < 0.55:
            name = rng.choice([record, f"{_FOLDER}/results.json", f"{_FOLDER}/{STEPS}"])
            return Case({name: odd_json({"schema": 1, "stages": {}}, rng)}, True, "odd JSON")
        if kind < 0.6:
            change: Change = rng.choice(
                (None, os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/dev/zero"))
            )
            return Case({rng.choice(list(files)): change}, True, "another thing")
        memory = json.loads(files[record])
        del memory["digest"]
        note = "record" + spoil_value(memory, rng)
        memory["digest"] = digest_bytes(json.dumps(memory, sort_keys=True).encode())
        return Case({record: json.dumps(memory).encode()}, True, note)

    def read(self, folder: Path) -> Any:
        """Return the record, after all that reads a stranger's run has read this one."""
        path = folder / _FOLDER
        listed = runs(folder)
        memory = RunFolder.existing(path).memory
        told = [_told(lambda: compare(str(path), "pr1858")), _told(lambda: _reported(path))]
        if any(told) or listed[0]["state"] != "scored":
            raise UserError(next(filter(None, told), listed[0]["state"]))
        return memory

    def wrong(self, files: Files, case: Case, found: Any) -> str:
        """Compare the record with the original, where its digest was not made right."""
        good = json.loads(files[f"{_FOLDER}/{MEMORY}"])
        del good["digest"]
        return "" if case.repaired or found == good else "another record was taken"


def _told(work: Any) -> str:
    """Return what a command refused, or nothing."""
    try:
        work()
    except UserError as error:
        return str(error)
    return ""


def _reported(path: Path) -> None:
    results = open_run(path, [], lambda text: None).results()
    with tempfile.TemporaryDirectory() as out:
        write_report(path, results, read_steps(path / STEPS), Path(out) / "report.html")
