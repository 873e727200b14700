"""A run that audits itself: what it probes, and what it may not become."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import alive

from fairway.audit.stage import RunFacts, audit_run, summary
from fairway.base.files import read_json
from fairway.base.units import bits_per_byte
from fairway.config.settings import Config
from fairway.config.written import from_dict
from fairway.data.folder import DataFolder
from fairway.pipeline.folder import RunFolder


@pytest.fixture(scope="module")
def stages(smoke_run: Path) -> dict[str, dict[str, Any]]:
    return {n: dict(r["facts"]) for n, r in RunFolder(smoke_run).memory["stages"].items()}


@pytest.fixture(scope="module")
def audited(smoke_run: Path, data_folder: Path) -> Callable[..., dict[str, Any]]:
    """Return a function: the audit of facts in a folder, under a config, without probes."""
    source = DataFolder.open(data_folder)
    config = from_dict(read_json(smoke_run / "results.json")["config"])
    sizes = config.data.val_bytes, config.data.val_tokens
    ids = np.asarray(source.sample_validation(*sizes).ids, np.int64)

    def audit(
        facts: Any, config: Config, folder: Path = smoke_run, code_bytes: int = 0
    ) -> dict[str, Any]:
        run = RunFacts(folder, facts, code_bytes)
        return audit_run(run, config, alive(), ids, source.tokenizer)

    return audit


def test_the_run_of_the_tests_passes_its_audit(smoke_run: Path) -> None:
    found = read_json(smoke_run / "results.json")["audit"]
    assert (found["passed"], found["verdict"]) == (True, "valid")
    assert [(f["severity"], f["code"]) for f in found["findings"]] == [("note", "declared-code")]
    names = {(probe["stage"], probe["name"]) for probe in found["probes"]}
    assert {("raw", "P4 ledger"), ("ttt", "P4 ledger"), ("sliding", "P1 substitution")} <= names
    assert {name for stage, name in names if stage == "ttt"} == {
        name for stage, name in names if stage == "sliding"
    }
    assert summary(found) == f"valid by {len(names)} probes"


@pytest.mark.parametrize(
    ("stage", "facts", "code"),
    [
        ("pack", {"bytes": 16_000_001}, "bytes"),
        ("pack", {"budget": {"used_s": 601.0, "limit_s": 600.0}}, "train-time"),
        ("score.ttt", {"seconds": 700.0}, "eval-time"),
    ],
)
def test_what_exceeds_a_limit_does_not_pass(
    stages: dict[str, dict[str, Any]], audited: Any, tiny: Callable[..., Config],
    stage: str, facts: dict[str, Any], code: str,
) -> None:  # fmt: skip
    changed = {name: dict(kept) for name, kept in stages.items()}
    changed[stage] |= facts
    found = audited(changed, tiny("audit.budget_s=0"))
    assert not found["passed"]
    assert [f["code"] for f in found["findings"] if f["severity"] == "invalid"] == [code]
    assert "limit" in summary(found) or "longer than" in summary(found)


def test_a_ledger_of_another_score_does_not_pass(
    stages: dict[str, dict[str, Any]], audited: Any, tiny: Callable[..., Config], tmp_path: Path
) -> None:
    changed = {name: dict(kept) for name, kept in stages.items()}
    changed["score.ttt"]["trail"] = stages["score.sliding"]["trail"]
    config = tiny("audit.budget_s=0", "ttt.lora_sort=true")
    found = audited(changed, config)
    assert (found["passed"], found["verdict"]) == (False, "invalid")
    assert "ttt, P4 ledger: the entries of process 0 were changed" in summary(found)
    # A run from before there were trails is not accused.
    changed["score.ttt"].pop("trail")
    assert audited(changed, config, tmp_path)["verdict"] == "not decidable"
    sorted_first = replace(config, ttt=replace(config.ttt, method="lora"))
    codes = [f["code"] for f in audited(changed, sorted_first)["findings"]]
    assert codes == ["order", "declared-code", "no-probes"]


@pytest.mark.parametrize(
    "changed",
    [
        {"bytes": lambda score: score["bytes"] + 2},
        {"bpb": lambda score: score["bpb"] * 0.9},
        {"nats_per_token": lambda score: 1.0},
        {"bytes": lambda score: 0},
    ],
)
def test_numbers_of_a_score_must_follow_from_one_another_and_from_the_text(
    stages: dict[str, dict[str, Any]], audited: Any, tiny: Callable[..., Config], changed: Any
) -> None:
    score = dict(stages["score.ttt"])
    score |= {name: make(score) for name, make in changed.items()}
    if "bytes" in changed and score["bytes"]:  # a denominator that agrees with its score
        score["bpb"] = bits_per_byte(score["nats"], score["bytes"])
    found = audited({**stages, "score.ttt": score}, tiny("audit.budget_s=0"))
    codes = {f["code"] for f in found["findings"] if f["severity"] == "invalid"}
    assert (found["passed"], codes) == (False, {"score-numbers"})
