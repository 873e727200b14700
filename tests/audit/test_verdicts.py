"""The verdict of all probes, and how a probe's finding becomes its verdict."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from damage import Call

from fairway.audit.scorers.bench import Bench
from fairway.audit.scorers.flips import CurrentFlip
from fairway.audit.scorers.scorer import MOST_ROUNDED_NATS, FromProgram, RowScorer, unlike
from fairway.audit.scorers.trial import Trial
from fairway.audit.scorers.verdicts import Probe, Verdict, joined, verdict_of
from fairway.score.sliding import ROW_TOLERANCE_NATS


def test_the_worst_verdict_counts() -> None:
    assert joined(["valid", "not decidable", "invalid"]) == "invalid"
    assert joined(["valid", "not decidable"]) == "not decidable"
    assert joined([]) == "valid"


@pytest.mark.parametrize(
    ("verdict", "passed", "code"),
    [("valid", True, 0), ("valid", False, 1), ("invalid", False, 1), ("not decidable", True, 3)],
)
def test_the_exit_code_tells_the_verdict(
    verdict: str,
    passed: bool,
    code: int,
    tmp_path: Path,
    call: Call,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = {"passed": passed, "verdict": verdict, "findings": [], "probes": []}
    monkeypatch.setattr("fairway.cli.audit._program", lambda *_, **__: found)
    (tmp_path / "ids.json").write_text("[1, 2]")
    assert call(f"audit --program x --tokens {tmp_path / 'ids.json'}") == (code, "")


@pytest.mark.parametrize(
    ("flip", "samples", "whole"),
    [
        ("invalid", 9, "invalid"),
        ("invalid", 0, "invalid"),
        ("not decidable", 9, "not decidable"),
        ("not decidable", 0, "valid"),
    ],
)
def test_a_valid_sum_stands_in_for_a_probe_that_saw_no_distribution_alone(
    flip: Verdict, samples: int, whole: Verdict
) -> None:
    valid: tuple[Verdict, Verdict] = ("valid", flip)
    sums, flips = (
        Probe(name, ("C2",), "", samples, None, None, verdict, "")
        for name, verdict in zip(("P1 substitution", "P3 current flip"), valid, strict=True)
    )
    assert verdict_of([sums, flips]) == whole
    assert sums.power == ""


def test_other_probes_count_beside_a_valid_sum() -> None:
    for verdict in ("invalid", "not decidable"):
        names = {"P1 substitution": "valid", "coverage": verdict}
        probes = [
            Probe(name, ("C2",), "", 0, None, None, cast(Verdict, each), "")
            for name, each in names.items()
        ]
        assert verdict_of(probes) == verdict


@pytest.mark.parametrize("sums", ["invalid", "not decidable"])
def test_sums_that_are_not_valid_stand_in_for_nothing(sums: Verdict) -> None:
    probes = [
        Probe(name, ("C2",), "", 0, None, None, verdict, "")
        for name, verdict in (("P1 substitution", sums), ("P3 current flip", "not decidable"))
    ]
    assert verdict_of(probes) == sums
    assert verdict_of(probes[1:]) == "not decidable"


class Found(Trial):
    """A probe that finds what it is told."""

    name, rules, did = "a probe", ("C1",), "looked"

    def steps(self) -> Iterator[None]:
        yield

    def passed(self) -> str:
        return "nothing found"

    def power(self) -> str:
        return "little"


@pytest.mark.parametrize(
    ("found", "verdict", "why", "power"),
    [
        ({}, "valid", "nothing found", "little"),
        ({"doubt": "too few"}, "not decidable", "too few", ""),
        ({"wrong": "a leak"}, "invalid", "a leak", ""),
        ({"wrong": "a leak", "doubt": "too few"}, "invalid", "a leak", ""),
    ],
)
def test_a_fault_counts_before_a_doubt(
    found: dict[str, Any], verdict: Verdict, why: str, power: str
) -> None:
    trial = Found(cast(Bench, type("B", (), {"seed": 0})()))
    for name, value in found.items():
        setattr(trial, name, value)
    probe = trial.probe()
    assert (probe.verdict, probe.why, probe.power) == (verdict, why, power)


class Rows:
    """A scorer whose rows are rounded."""

    vocab_size, row_tolerance_nats, rounds = 7, 0.25, True


@pytest.mark.parametrize(
    ("offs", "verdict"),
    [([], "not decidable"), ([0.1, -0.1] * 3, "not decidable"), ([0.1, -0.1] * 4, "valid")],
)
def test_stated_rounding_needs_some_differences(offs: list[float], verdict: Verdict) -> None:
    """Also if the budget ends before the probe begins."""
    bench = type("B", (), {"seed": 0, "rows": Rows(), "tolerance_nats": 0.0, "grain_nats": 0.0})()
    bench.text = np.zeros(9, np.int64)
    trial = CurrentFlip(cast(Bench, bench))
    trial.shaved = offs
    probe = trial.probe()
    assert probe.verdict == verdict
    assert ("within the 0.25 nats that it states" in probe.why) == (verdict == "valid")


def test_a_small_difference_gets_advice_if_a_program_can_follow_it() -> None:
    program = FromProgram.__new__(FromProgram)
    advice = 'it can state a "row_tolerance"'
    assert advice in unlike("x", 0.2, cast(RowScorer, program))
    assert unlike("x", 0.3, cast(RowScorer, program)) == "x" == unlike("x", 0.2, Rows())  # type: ignore[arg-type]
    assert ROW_TOLERANCE_NATS[torch.bfloat16] == MOST_ROUNDED_NATS
