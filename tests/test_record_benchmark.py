"""The benchmark of checkers: which folders it takes from a clone, and what it counts."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from audit.record import Case

from fairway.audit.records.questions import KINDS

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "records.py"
LABELS = SCRIPT.with_name("records_labels.json")
TRACK = "records/track_10min_16mb"


def git(place: Path, *words: str) -> str:
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    done = subprocess.run(["git", *who, *words], cwd=place, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A repository with two merged folders and pull requests 2, 3 and 4; 4 in two revisions."""
    place = tmp_path / "clone"
    place.mkdir()
    git(place, "init", "-q", "-b", "main")
    for day in ("02", "03"):
        Case().write(place / TRACK / f"2026-04-{day}_Merged")
    git(place, "add", "-A")
    git(place, "commit", "-qm", "main")
    for number in (2, 3, 4):
        git(place, "checkout", "-q", "-b", f"p{number}", "main")
        late = Case().change(42, train_s=610.0)
        (late if number == 4 else Case()).write(place / TRACK / f"2026-04-05_P{number}")
        git(place, "add", "-A")
        git(place, "commit", "-qm", str(number))
        if number == 4:
            Case().write(place / TRACK / "2026-04-05_P4")
            git(place, "commit", "-qam", "mended")
        git(place, "update-ref", f"refs/pull/{number}/head", "HEAD")
    git(place, "checkout", "-q", "main")
    return place


def measured(clone: Path, labels: dict[str, Any], *words: str | Path) -> str:
    file = clone.parent / "labels.json"
    file.write_text(json.dumps(labels))
    command = [sys.executable, SCRIPT, clone, "--labels", file, *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=clone)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_heads_and_labelled_revisions_are_checked(clone: Path) -> None:
    first = git(clone, "rev-parse", "p4~1")[:8]
    fault = {"pull": 4, "revision": first, "class": "over-time", "file": "", "shows": ""}
    missed = {"pull": 2, "revision": "head", "class": "subset", "file": "", "shows": ""}
    innocent = {"pull": 4, "revision": first, "class": "over-time", "why": ""}
    classes = {"over-time": "time", "subset": "part"}
    labels = {"classes": classes, "faults": [fault, missed], "innocent": [innocent]}
    told = measured(clone, labels, "--json", clone / "answers.json")
    assert "| time | 1 | 1 | 0 |  |  | 0 |" in told
    assert "| part | 1 | 0 | 0 | #2 |  | 0 |" in told
    assert f"Accused of what labels say they are not: #4 {first}: over-time." in told
    assert "train-time | train_seed42.log:" in told and "stopping_early" in told
    answers = json.loads((clone / "answers.json").read_text())
    assert [one["folder"] for one in answers] == [
        "pr/2/head/track_10min_16mb/2026-04-05_P2", "pr/4/head/track_10min_16mb/2026-04-05_P4",
        "merged/track_10min_16mb/2026-04-02_Merged",
        f"pr/4/{first}/track_10min_16mb/2026-04-05_P4",
    ]  # fmt: skip


def test_another_checker_hands_in_its_answers(clone: Path) -> None:
    given = clone / "theirs.json"
    given.write_text(json.dumps({"pr/2/head/track_10min_16mb/2026-04-05_P2": ["subset"]}))
    labels = {"classes": {"subset": "part"}, "faults": [], "innocent": []}
    assert "| part | 0 | 0 | 0 |  | #2 | 0 |" in measured(clone, labels, "--answers", given)


def test_labels_are_facts_of_known_classes_and_even_numbers() -> None:
    labels = json.loads(LABELS.read_text())
    assert labels["classes"] == KINDS
    for one in labels["faults"] + labels["innocent"]:
        assert one["pull"] % 2 == 0 and one["class"] in KINDS, one
        assert one["revision"] == "head" or len(one["revision"]) == 8, one
        assert len(one.get("shows", "")) <= 160 and len(one.get("why", "")) <= 160, one
    places = [(one["pull"], one["revision"], one["class"]) for one in labels["faults"]]
    assert len(set(places)) == len(places)
