"""How well a checker of records does on the public ones: precision and recall by class of fault.

    python benchmarks/records.py CLONE [--sample N] [--jobs N] [--json OUT] [--keep FOLDER]
    python benchmarks/records.py CLONE --answers ANSWERS.json

CLONE is a clone of openai/parameter-golf with its pull requests (`git clone --mirror`). The folders
of even pull requests and of even days are written below FOLDER (a temporary one, unless kept), and
each is audited by Fairway. Another checker reads the folders that `--keep` leaves and hands in what
it found: a JSON object of folder, as 'pr/1858/head/track_10min_16mb/NAME', and classes.

The labels are in records_labels.json: facts, read by hand. A label is found if any folder of its
pull request and revision is accused of its class, or a question about it is asked. docs/records.md
has the results.
"""

import argparse
import json
import statistics
import tempfile
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from record_clone import Clone, Origin, chosen

from fairway.audit.findings import plain
from fairway.audit.records.fence import Reader
from fairway.audit.records.questions import question
from fairway.audit.records.telling import judged

LABELS = Path(__file__).with_name("records_labels.json")
_MOST_NAMES = 12


@dataclass(slots=True)
class Answer:
    """What a checker says of one folder: classes that it accuses of, and that it asks about."""

    origin: Origin
    accused: set[str]
    asked: set[str]
    seconds: float = 0.0
    judgement: str = ""
    invalid: list[dict[str, Any]] = field(default_factory=list)
    coverage: list[float] = field(default_factory=list)


# ---------------------------------------------------------------------------------------------
# Fairway's answers

_own = threading.local()


def fairway(origin: Origin, place: Path) -> Answer:
    """Return Fairway's answer to a folder."""
    if not hasattr(_own, "reader"):
        _own.reader = Reader()
    audit = _own.reader.audit(place)
    seconds = _own.reader.cpu_s
    kinds: dict[str, set[str]] = {"invalid": set(), "warning": set(), "note": set()}
    invalid = []
    for found in audit.findings:
        kind = question(found.code).kind
        kinds[found.severity] |= {kind} - {""}
        if found.severity == "invalid":
            quoted = _line(place / found.file, found.line)
            invalid.append({"code": found.code, "kind": kind, "place": found.place,
                            "value": found.value, "line": quoted})  # fmt: skip
    shares = [log.get("coverage", {}) for log in audit.facts.get("logs", [])]
    coverage = [share["settings"] for share in shares if "settings" in share]
    asked = kinds["warning"] - kinds["invalid"]
    word = judged(audit)
    return Answer(origin, kinds["invalid"], asked, seconds, word, invalid, coverage)


def _line(file: Path, number: int | None) -> str:
    """Return a line of a file as it may be printed, or an empty text."""
    if not number or not file.is_file():
        return ""
    lines = file.read_bytes().decode("utf-8", "replace").splitlines()
    return plain(lines[number - 1].strip(), 160) if number <= len(lines) else ""


# ---------------------------------------------------------------------------------------------
# Labels against answers


@dataclass(frozen=True, slots=True)
class Score:
    """What became of one class."""

    kind: str
    labelled: int
    invalid: int
    asked: int
    missed: list[str]
    unlabelled: list[str]
    asked_unlabelled: int


def scores(labels: dict[str, Any], answers: Sequence[Answer]) -> list[Score]:
    """Return how the labels of each class were found, and who was accused without one."""
    by_pull: dict[tuple[int, str], list[Answer]] = {}
    for answer in answers:
        by_pull.setdefault((answer.origin.pull, answer.origin.revision), []).append(answer)
    found = []
    for kind in labels["classes"]:
        faults = [fault for fault in labels["faults"] if fault["class"] == kind]
        known = {(fault["pull"], fault["revision"]) for fault in faults}
        seen = [place for place in sorted(known) if place in by_pull]
        invalid = [p for p in seen if any(kind in a.accused for a in by_pull[p])]
        asked = [p for p in seen if p not in invalid and any(kind in a.asked for a in by_pull[p])]
        others = [a for a in answers if (a.origin.pull, a.origin.revision) not in known]
        found.append(
            Score(
                kind, len(seen), len(invalid), len(asked),
                [_short(*place) for place in seen if place not in invalid and place not in asked],
                sorted({_name(a.origin) for a in others if kind in a.accused}),
                sum(kind in answer.asked for answer in others),
            )
        )  # fmt: skip
    return found


def _short(pull: int, revision: str) -> str:
    return f"#{pull}" if revision == "head" else f"#{pull} {revision[:8]}"


def _name(origin: Origin) -> str:
    return _short(origin.pull, origin.revision) if origin.pull else Path(origin.path).name


def table(labels: dict[str, Any], found: Sequence[Score]) -> str:
    """Return the scores by class as a table in Markdown."""
    rows = [
        "| class | labelled | invalid | asked | missed | invalid without a label | asked without |",
        "|---|--:|--:|--:|---|---|--:|",
    ]
    for one in found:
        missed, others = (_names(names) for names in (one.missed, one.unlabelled))
        rows.append(
            f"| {labels['classes'][one.kind]} | {one.labelled} | {one.invalid} | {one.asked} | "
            f"{missed} | {others} | {one.asked_unlabelled} |"
        )
    labelled = sum(one.labelled for one in found)
    told = sum(one.invalid + one.asked for one in found)
    rows.append(f"| all | {labelled} | {sum(one.invalid for one in found)} | "
                f"{sum(one.asked for one in found)} | {labelled - told} | "
                f"{sum(len(one.unlabelled) for one in found)} | |")  # fmt: skip
    return "\n".join(rows)


def _names(names: Sequence[str]) -> str:
    more = f", {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(names[:_MOST_NAMES]) + more


def innocent(labels: dict[str, Any], answers: Sequence[Answer]) -> list[str]:
    """Return who is accused of what labels say it is not."""
    return [
        f"{_name(answer.origin)}: {kind}"
        for answer in answers
        for one in labels["innocent"]
        if (one["pull"], one["revision"]) == (answer.origin.pull, answer.origin.revision)
        for kind in [one["class"]]
        if kind in answer.accused
    ]


# ---------------------------------------------------------------------------------------------
# The report


def report(labels: dict[str, Any], answers: Sequence[Answer]) -> str:
    """Return all tables."""
    heads = [answer for answer in answers if answer.origin.revision == "head"]
    parts = [table(labels, scores(labels, answers))]
    wrong = innocent(labels, answers)
    parts.append(f"Accused of what labels say they are not: {', '.join(wrong) or 'none'}.")
    if answers and answers[0].judgement:
        seconds = sorted(answer.seconds for answer in answers)
        coverage = [share for answer in answers for share in answer.coverage]
        words = [answer.judgement for answer in heads]
        counts = ", ".join(f"{words.count(word)} {word}" for word in sorted(set(words)))
        parts.append(
            f"{len(answers)} folders ({len(heads)} of heads and merged: {counts}); "
            f"median {statistics.median(seconds):.2f} s, worst {seconds[-1]:.2f} s of processor "
            "time a folder."
        )
        if coverage:
            few = sum(share < 0.9 for share in coverage)
            middle = f"{statistics.median(coverage):.1%}"
            parts.append(
                f"Settings of {len(coverage)} logs: median {middle} read, {few} below 90 %."
            )
        parts.append(_convicted(answers))
    return "\n\n".join(parts)


def _convicted(answers: Sequence[Answer]) -> str:
    rows = ["| folder | code | place | line |", "|---|---|---|---|"]
    for answer in answers:
        for one in answer.invalid:
            text = (one["line"] or one["value"]).replace("|", "\\|")
            rows.append(f"| {_name(answer.origin)} | {one['code']} | {one['place']} | `{text}` |")
    return "\n".join(rows)


def _answers(given: dict[str, list[str]], origins: Sequence[Origin]) -> list[Answer]:
    """Return another checker's answers; a folder that it does not name is not accused."""
    unknown = given.keys() - {origin.name for origin in origins}
    if unknown:
        raise SystemExit(f"answers about folders that there are not: {sorted(unknown)[:3]}")
    return [Answer(origin, set(given.get(origin.name, ())), set()) for origin in origins]


def main() -> None:
    """Check the folders of a clone and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clone", type=Path)
    parser.add_argument("--labels", type=Path, default=LABELS)
    parser.add_argument(
        "--sample", type=int, default=1, help="of unlabelled folders, one in so many"
    )
    parser.add_argument("--jobs", type=int, default=1, help="folders side by side")
    parser.add_argument("--json", type=Path, help="file for all answers")
    parser.add_argument("--keep", type=Path, help="folder for the records, which stays")
    parser.add_argument("--answers", type=Path, help="another checker's: {folder: [classes]}")
    given = parser.parse_args()
    labels = json.loads(given.labels.read_text())
    revisions = {(one["pull"], one["revision"]) for one in labels["faults"] + labels["innocent"]}
    clone = Clone(given.clone)
    origins = chosen(clone, revisions, given.sample)
    if given.answers:
        answers = _answers(json.loads(given.answers.read_text()), origins)
    else:
        with tempfile.TemporaryDirectory() as place:
            below = given.keep or Path(place)
            written = [clone.write(origin, below) for origin in origins]
            with ThreadPoolExecutor(given.jobs) as pool:
                answers = list(pool.map(fairway, origins, written))
    clone.close()
    print(report(labels, answers))
    if given.json:
        given.json.write_text(json.dumps([_plain(answer) for answer in answers], indent=1))


def _plain(answer: Answer) -> dict[str, Any]:
    return {"folder": answer.origin.name, **asdict(answer),
            "accused": sorted(answer.accused), "asked": sorted(answer.asked)}  # fmt: skip


if __name__ == "__main__":
    main()
