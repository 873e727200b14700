"""Run folders: the record, its results, steps and trails, as `runs`, `report` and `compare` do."""

import json
import os
import random
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from everywhere import FIXED, documents

from fairway.base.errors import UserError
from fairway.base.files import digest_bytes, read_json
from fairway.config.overrides import override
from fairway.data.build import build_data
from fairway.pipeline.folder import MEMORY, RunFolder
from fairway.pipeline.index import runs
from fairway.pipeline.run import Pipeline, open_run
from fairway.recipes import recipe
from fairway.report import plots, write_report
from fairway.submission.compare import compare
from fairway.train.steps import STEPS, read_steps

from . import Case, Change, Files
from .damage import damaged, odd_json, spoil_value

_FOLDER = "r"
_RECORD, _RESULTS, _STEPS = (f"{_FOLDER}/{name}" for name in (MEMORY, "results.json", STEPS))
# To draw a report's figures takes ten times as long as all else; of so many reports one is drawn.
_DRAWN_OF = 12
_draw = plots._svg
_KEPT = (".json", ".jsonl", ".gz", ".fwy", ".fwp", ".model")


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
    return files_of(out), place


def files_of(run: Path) -> Files:
    """Return the files of a finished run that are spoiled here."""
    kept = (path for path in run.iterdir() if path.suffix in _KEPT)
    return {f"{_FOLDER}/{path.name}": path.read_bytes() for path in kept}


class Runs:
    """A finished run; its weights and pages are left out, since nothing here reads them."""

    name = "run"

    def specimens(self) -> list[Files]:
        """Return the run."""
        return [_good()[0]]

    def spoil(self, files: Files, rng: random.Random) -> Case:
        """Spoil bytes, values of the record with its digest made right, or what lies there."""
        kind = rng.random()
        if kind < 0.3:
            name = rng.choice(list(files))
            return Case({name: damaged(files[name], rng)}, False, name)
        if kind < 0.38:
            results = json.loads(files[_RESULTS])
            note = "results" + spoil_value(results, rng)
            return Case({_RESULTS: json.dumps(results).encode()}, False, note)
        if kind < 0.42:
            name = rng.choice([_RECORD, _RESULTS, _STEPS])
            return Case({name: odd_json({"schema": 1, "stages": {}}, rng)}, True, "odd JSON")
        if kind < 0.46:
            change: Change = rng.choice(
                (None, os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/dev/zero"))
            )
            return Case({rng.choice(list(files)): change}, True, "another thing")
        memory = json.loads(files[_RECORD])
        if kind < 0.56:
            return Case({_RECORD: _otherwise(memory, rng)}, False, "the same otherwise")
        if kind < 0.64:
            return Case(_strays(rng), False, "strays")
        del memory["digest"]
        changes: dict[str, Change] = {}
        if kind < 0.7:
            steps = [json.loads(line) for line in files[_STEPS].splitlines()]
            note = "steps" + spoil_value(steps, rng)
            changes[_STEPS] = "".join(f"{json.dumps(step)}\n" for step in steps).encode()
            memory["stages"]["train"]["files"][STEPS] = digest_bytes(changes[_STEPS])
        elif kind < 0.86:
            stage = rng.choice(list(memory["stages"]))
            note = f"facts of {stage}" + spoil_value(memory["stages"][stage]["facts"], rng)
        else:
            note = "record" + spoil_value(memory, rng)
        memory["digest"] = digest_bytes(json.dumps(memory, sort_keys=True).encode())
        return Case({**changes, _RECORD: json.dumps(memory).encode()}, True, note)

    def read(self, folder: Path) -> Any:
        """Return what `runs`, `compare` and `report` say of the run, and what its record holds."""
        path = folder / _FOLDER
        found = runs(folder)
        memory = RunFolder.existing(path).memory
        listed = next(run for run in found if run["name"] == _FOLDER)
        compared, reported = (
            _told(lambda: compare(str(path), "pr1858")),
            _told(lambda: _reported(path)),
        )
        for told in (compared, reported):
            if isinstance(told, UserError):
                raise told
        if listed["state"] != "scored":
            raise UserError(listed["state"])
        # All else of a comparison says where the run lies.
        figures = compared["a"]["figures"], compared["differences"]
        return {"memory": memory, "listed": listed, "compared": figures, "reported": reported}

    def wrong(self, files: Files, case: Case, found: Any) -> str:
        """Compare with the good run if no digest was made right; else with what the record says."""
        if not case.repaired and (other := [n for n in found if found[n] != _right()[n]]):
            return f"read otherwise: {', '.join(other)}"
        record = case.changes.get(_RECORD, files[_RECORD])
        if not isinstance(record, bytes):
            return "there is no record, and one was read"
        said = json.loads(record)
        del said["digest"]
        if found["memory"] != said:
            return "another record was taken"
        facts = {name: kept["facts"] for name, kept in said["stages"].items()}
        scores = {n.removeprefix("score."): f for n, f in facts.items() if n.startswith("score.")}
        pairs = (
            (found["listed"]["bytes"], facts["pack"]["bytes"]),
            (found["listed"]["steps"], facts["train"]["steps"]),
            (found["listed"]["scores"], {name: score["bpb"] for name, score in scores.items()}),
            (found["reported"]["results"]["stages"], scores),
            (found["reported"]["results"]["train"], facts["train"]),
            (found["reported"]["results"]["artifact"]["digest"], facts["pack"]["digest"]),
        )
        return next((f"{a!r:.80} is told, {b!r:.80} is noted" for a, b in pairs if a != b), "")


@cache
def _right() -> Any:
    """Return what is read of the good run."""
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / _FOLDER).mkdir()
        for name, data in _good()[0].items():
            (Path(place) / name).write_bytes(data)
        return Runs().read(Path(place))


def _otherwise(memory: dict[str, Any], rng: random.Random) -> bytes:
    """Return a record of the same values: other blanks, order of names, and escapes."""
    names = rng.sample(list(memory), len(memory))
    indent, ascii_only = rng.choice((None, 0, 7)), rng.random() < 0.5
    text = json.dumps({n: memory[n] for n in names}, indent=indent, ensure_ascii=ascii_only)
    return (rng.choice(("", "\n", "\r\n\t ")) + text + rng.choice(("", "\n"))).encode()


def _strays(rng: random.Random) -> dict[str, Change]:
    """Return what a run does not know and leaves alone: leftovers, odd names, runs inside runs."""
    names = (".report.html.abcdefgh.part", "notes.txt", ".lock", "x/y/z.json", "\x1b[2J", "a" * 255)
    inner = f"{rng.choice(('copies', '.old', 'data'))}/{MEMORY}"
    chosen = rng.sample((*names, inner, "core", "\u202e.json"), rng.randrange(1, 4))
    return {f"{_FOLDER}/{name}": rng.randbytes(rng.randrange(40)) for name in chosen}


def _told(work: Any) -> Any:
    """Return what a command says, or its refusal."""
    try:
        return work()
    except UserError as error:
        return error


def _reported(path: Path) -> Any:
    """Return the numbers of a report, made as `Pipeline.report` does, in another folder."""
    pipeline = open_run(path, [], lambda text: None)
    results = pipeline.results()
    pipeline.folder.require_unchanged("train", STEPS)
    steps = read_steps(path / STEPS)
    drawn = digest_bytes((path / MEMORY).read_bytes())
    plots._svg = _draw if int(drawn, 16) % _DRAWN_OF == 0 else lambda figure: "<svg></svg>"
    with tempfile.TemporaryDirectory() as out:
        page = Path(out) / "report.html"
        with pipeline.folder.reading():
            write_report(path, results, steps, page)
        assert page.read_text().endswith("</html>\n"), "half a page"
        return read_json(page.with_suffix(".json"))
