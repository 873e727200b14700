"""What verbs say when they are done, and that a run may be named by its folder or its artifact."""

import shlex
import shutil
from pathlib import Path

import pytest
from damage import Cli

from fairway.base.files import read_json
from fairway.cli.after import next_lines, sample_lines
from fairway.cli.show import run_summary


def test_commands_of_a_run_can_be_copied(smoke_run: Path, cli: Cli, tmp_path: Path) -> None:
    shown = next_lines(Path("runs/demo"))
    assert max(map(len, shown)) <= 80 and shown[0] == "What next:"
    run = tmp_path / "a run's folder"
    shutil.copytree(smoke_run, run)
    words = [shlex.split(line) for line in next_lines(run) if line.strip().startswith("fairway ")]
    assert [verb for _, verb, *_ in words] == ["sample", "serve", "score", "compress", "runs"]
    for _, *words_of_one in (words[0], words[4]):
        extra = ["--tokens", "2"] if words_of_one[0] == "sample" else []
        done = cli(*[str(tmp_path / w) if w == "runs.html" else w for w in words_of_one], *extra)
        assert done.code == 0, done
    assert (tmp_path / "runs.html").is_file()


def test_a_sample_is_one_of_the_run_and_harmless(smoke_run: Path) -> None:
    results = read_json(smoke_run / "results.json")
    head, *lines = sample_lines(results)
    first = results["samples"][0]
    assert " ".join(first["prompt"].split()) in " ".join(" ".join(lines).split())
    assert max(map(len, [head, *lines])) <= 80
    hostile = {
        "samples": [{"prompt": "", "text": " "}, {"prompt": "a\x1b[31m", "text": "b\n" * 999}]
    }
    head, *lines = sample_lines(hostile)
    assert "\x1b" not in "".join(lines) and len(lines) < 6 and lines[-1].endswith("...")
    assert sample_lines({"samples": []}) == []
    assert run_summary(results, str(smoke_run))


@pytest.mark.parametrize("verb", ["report", "pack", "score", "compare", "audit"])
def test_a_run_may_be_named_by_its_artifact(
    verb: str, cli: Cli, smoke_run: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(smoke_run, run)
    artifact = run / "artifact.fwy"
    words = {"compare": [str(run)], "pack": ["--account"]}.get(verb, [])
    done = cli(verb, str(artifact), *words)
    assert done.code == 0, done
    if verb == "score":
        assert f"next: fairway report {run}" in done.out


@pytest.mark.parametrize("verb", ["report", "score", "compare", "audit", "push", "submit", "pack"])
def test_an_artifact_without_its_run_is_one_sentence(
    verb: str, cli: Cli, smoke_run: Path, tmp_path: Path
) -> None:
    artifact = tmp_path / "artifact.fwy"
    shutil.copy(smoke_run / "artifact.fwy", artifact)
    words = {
        "compare": [str(smoke_run)],
        "push": ["owner/name"],
        "submit": ["--track", "non_record", "--out", str(tmp_path / "record")],
    }
    done = cli(verb, str(artifact), *words.get(verb, []))
    told = {"score": "name at least one text file", "pack": "is already packed"}
    assert done.code == 2 and done.err.count("fairway: ") == 1, done
    assert told.get(verb, "is a file, but this command needs the folder of its run") in done.err
