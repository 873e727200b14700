"""What an audit says to people: one verdict, each finding once, the gravest first."""

from pathlib import Path
from typing import Any

import pytest

from fairway.audit.findings import Finding, Severity, ordered
from fairway.audit.records.audit import RecordAudit
from fairway.audit.records.telling import as_facts, grouped, judged, sentence, summary
from fairway.cli.show import record_figures, record_lines


def finding(severity: Severity, code: str, file: str = "", line: int | None = None) -> Finding:
    return Finding(severity, code, f"why {code}", file, line, "value")


def audit(*findings: Finding, **facts: Any) -> RecordAudit:
    return RecordAudit(Path("a/record"), ordered(findings), facts)


@pytest.mark.parametrize(
    ("findings", "word", "expected"),
    [
        ([], "clean", "nothing invalid, and nothing to ask about"),
        ([finding("note", "few-seeds")], "clean", "nothing invalid, and nothing to ask about"),
        ([finding("warning", "sd")], "to ask about", "nothing invalid; 1 thing to ask about"),
        (
            [finding("warning", code) for code in ("sd", "sd", "steps")],
            "to ask about", "nothing invalid; 2 things to ask about",
        ),
        ([finding("invalid", "subset")], "invalid", "invalid: a part of the text was scored"),
        (
            [finding("invalid", "train-time", "a.log", 7), finding("invalid", "subset", "b.log", 2),
             finding("warning", "sd")],
            "invalid",
            "invalid: a part of the text was scored (b.log:2), and 1 more; 1 thing to ask about",
        ),
        ([finding("warning", "no-log")], "not judged", "could not be judged: no log could be read"),
        (
            [finding("warning", "not-audited")], "not judged",
            "could not be judged: why not-audited",
        ),
        (
            [finding("invalid", "subset", "x"), finding("warning", "work-ended")], "invalid",
            "invalid: a part of the text was scored (x); 1 thing to ask about",
        ),
    ],
)  # fmt: skip
def test_the_verdict_comes_first(findings: list[Finding], word: str, expected: str) -> None:
    assert judged(audit(*findings)) == word
    assert sentence(audit(*findings)) == expected


def test_a_finding_of_five_logs_is_told_once() -> None:
    found = audit(*(finding("warning", "train-time", f"{n}.log", n) for n in range(5)))
    (one,) = grouped(found.findings)
    assert (one.often, one.findings[0].place) == ("5 logs", "0.log:0")
    lines = record_lines([one], 10)
    assert lines[0] == "  1. ask: training over its budget, 5 logs [train-time]"
    assert lines[1].strip() == "0.log:0: value"
    assert sum("why train-time" in text for text in lines) == 1
    assert sum("why train-time" in text for text in record_lines([one])) == 5


@pytest.mark.parametrize(
    ("files", "often"),
    [
        (["a.log"], ""), (["a.log", "b.txt"], "2 logs"), (["a.log", "b.py"], "2 files"),
        (["a.log", "a.log"], "2 places"), (["a.log", "a.log", "b.log"], "3 places in 2 files"),
    ],
)  # fmt: skip
def test_how_often_is_told_in_words(files: list[str], often: str) -> None:
    (one,) = grouped([finding("note", "skipped", file, n) for n, file in enumerate(files)])
    assert one.often == often


def test_at_most_ten_are_told_the_most_important_first_and_the_rest_is_counted() -> None:
    codes = ("sd", "steps", "no-readme", "mixed-config", "claim", "eval-time", "train-time",
             "denominator", "subset", "hashed-target", "uniform-spread", "json")  # fmt: skip
    found = audit(*(finding("warning", code) for code in codes), finding("note", "few-seeds"))
    lines = record_lines(grouped(found.findings), 10)
    heads = [text for text in lines if "ask: " in text and "[" in text]
    assert len(heads) == 10
    assert "[hashed-target]" in heads[0] and "[uniform-spread]" in heads[1]
    assert "[sd]" in heads[-1]
    assert lines[-1].strip() == "3 more kinds of finding or note: see --all, or --json"
    assert len([t for t in record_lines(grouped(found.findings)) if "[" in t]) == 13


def test_names_and_values_of_others_are_only_seen() -> None:
    bad = Finding("warning", "steps", "why", "a\x1b[2J\n.log", 3, "[bold]\u202e\x07")
    text = "\n".join(record_lines(grouped(audit(bad).findings)))
    assert not set(text) & {"\x1b", "\x07", "\u202e"} and "[bold]" in text


def test_the_figures_of_a_record_come_from_its_logs() -> None:
    logs = [
        {
            "seed": 1,
            "steps": 10,
            "total_bytes": 5.0,
            "train_s": 3.0,
            "coverage": {"steps": 0.9, "settings": 1.0},
        },
        {"seed": 2, "steps": 12, "total_bytes": None, "train_s": 4.0, "coverage": {"steps": 0.8}},
    ]
    stages = {"x": {"mean": 1.08, "sd": None, "values": [1.08]}}
    found = audit(logs=logs, claims={"bpb": 1.081}, stages=stages, claimed_stage="x")
    figures = summary(found)
    assert (figures["steps"], figures["bytes"], figures["coverage"]) == (12, 5.0, 0.8)
    assert (figures["claimed_bpb"], figures["recomputed_bpb"], figures["seeds"]) == (1.081, 1.08, 2)
    assert figures["eval_s"] is None
    assert "1.081 bpb claimed, 1.08000 recomputed, seeds: 2" in record_figures(figures)
    assert record_figures(summary(audit())) == ""


def test_json_has_every_finding_and_what_it_means() -> None:
    found = audit(*(finding("warning", "sd", f"{n}") for n in range(30)), logs=[])
    facts = as_facts(found)
    assert len(facts["findings"]) == 30 and facts["verdict"].startswith("nothing invalid; 1 thing")
    assert facts["questions"]["sd"]["kind"] == "claim"
