"""Which runs a record claims: others are read, and nothing of theirs is held against it."""

import json
from pathlib import Path
from typing import Any

import pytest
from audit.record import README, Case

from fairway.audit.records.audit import RecordAudit, audit_record
from fairway.audit.records.claims import read_claims
from fairway.submission.published import record

SEEDS = {s.seed: s.bpb["adapted"] for s in record("pr1858").seeds}
GATES = "ngram total=47851520 within_gate=9870000 word_gate=2890000\n"


def codes(audit: RecordAudit) -> dict[str, str]:
    return {f.code: f.severity for f in audit.findings if f.severity != "note"}


def other(folder: Path, name: str, **changes: Any) -> None:
    """Write the log of a run that the record does not claim, with everything wrong in it."""
    seed = record("pr1858").seeds[0]
    scores = dict.fromkeys(seed.bpb, 1.2)
    case = Case(eval_s=900.0, extra={seed.seed: GATES}).change(
        seed.seed, train_s=700.0, artifact_bytes=17_000_000, bpb=scores
    )
    case.settings = {seed.seed: {"matrix_lr": "0.9"}}
    for key, value in changes.items():
        setattr(case, key, value)
    (folder / name).parent.mkdir(exist_ok=True, parents=True)
    (folder / name).write_text(case.log(case.seeds[0]))


OTHERS = [
    "ablation_no_ttt.log", "train_seed42_original.log", "train_seed42_rerun.log", "old/run.log",
    "eval_seed42.log", "train_seed7.log", "smoke.txt", "logs/train_seed42.log",
]  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_runs_that_are_not_claimed_accuse_nobody(name: str, tmp_path: Path) -> None:
    other(Case().write(tmp_path), name)
    audit = audit_record(tmp_path)
    assert codes(audit) == {}
    aside = next(f for f in audit.findings if f.code == "runs-aside")
    assert name in aside.value
    assert list(audit.facts["logs_aside"]) == [name]


CLAIMS: dict[str, dict[str, Any]] = {
    "objects by seed": {"seed_results": {str(s): {"val_bpb": v} for s, v in SEEDS.items()}},
    "numbers by seed": {"seeds": {str(s): v for s, v in SEEDS.items()}},
    "keys with words": {"results": {f"seed_{s}": {"bpb": v} for s, v in SEEDS.items()}},
    "keys at the top": {f"seed_{s}": {"val_bpb": v} for s, v in SEEDS.items()},
    "names with seeds": {f"val_bpb_seed{s}": v for s, v in SEEDS.items()},
    "a list of objects": {"seed_results": [{"seed": s, "ttt_bpb": v} for s, v in SEEDS.items()]},
    "seeds as text": {"runs": [{"seed": str(s), "val_bpb": v} for s, v in SEEDS.items()]},
    "lists side by side": {"seeds": list(SEEDS), "val_bpb_seeds": list(SEEDS.values())},
    "deep": {
        "evidence": {"all": {"per_seed": {str(s): {"m": {"val_bpb": v}} for s, v in SEEDS.items()}}}
    },
    "many scores a seed": {
        "seeds": {str(s): {"mix_bpb": 0.9, "pre_bpb": 1.2, "ttt_bpb": v} for s, v in SEEDS.items()}
    },
}  # fmt: skip


@pytest.mark.parametrize("shape", CLAIMS)
def test_scores_of_seeds_are_read_in_every_shape(shape: str, tmp_path: Path) -> None:
    claim = {"val_bpb": 1.0810, "val_bpb_std": 0.0004, **CLAIMS[shape]}
    claims = read_claims(claim, "submission.json")
    assert {seed: number.value for seed, number in claims.by_seed.items()} == SEEDS
    case = Case(claim={"seed_results": {}, **CLAIMS[shape]})
    other(case.write(tmp_path), "train_seed42_original.log")
    assert codes(audit_record(tmp_path)) == {}


def test_scores_of_others_are_no_claims() -> None:
    claim = {
        "val_bpb": 1.08, "seeds": [42], "baseline_seed_results": {"42": 1.1},
        "compliance_rerun": {"seed_results": {"42": {"val_bpb": 1.0812}}},
        "ablations": [{"seed": 42, "val_bpb": 1.3}], "seed_results": {"42": {"val_bpb": 1.08}},
        "reference_logs": [{"log": "logs/train_seed9.log"}],
    }  # fmt: skip
    claims = read_claims(claim, "submission.json")
    assert {seed: number.value for seed, number in claims.by_seed.items()} == {42: 1.08}
    assert claims.others == {"train_seed9.log"}


def test_a_run_that_the_claim_names_as_a_reference_is_aside(tmp_path: Path) -> None:
    claim = {"reference_logs": [{"log": "train_seed7.log"}], "seed_results": {}}
    other(Case(claim=claim).write(tmp_path), "train_seed7.log")
    assert codes(audit_record(tmp_path)) == {}


def test_the_rows_of_a_readme_tell_runs_apart(tmp_path: Path) -> None:
    rows = "".join(f"| {s} | 4630 | 1.0983 | **{v:.5f}** |\n" for s, v in SEEDS.items())
    table = f"\n| seed | steps | int6 | final |\n|---|---|---|---|\n{rows}"
    case = Case(claim={"seed_results": {}}, readme=README + table)
    for name in ("train_seed42_old.log", "train_seed42_b.log", "x_seed314.log"):
        other(case.write(tmp_path), name)
    audit = audit_record(tmp_path)
    assert codes(audit) == {}
    assert len(audit.facts["logs"]) == 3


def test_the_mean_tells_runs_apart(tmp_path: Path) -> None:
    case = Case(claim={"seed_results": {}})
    other(case.write(tmp_path), "sweep_1.log")
    other(tmp_path, "sweep_2.log")
    audit = audit_record(tmp_path)
    assert codes(audit) == {}
    assert [log["seed"] for log in audit.facts["logs"]] == [314, 42, 999]


def test_an_evaluation_of_its_own_counts_with_its_training(tmp_path: Path) -> None:
    """The training log has gates and a late evaluation; the evaluation that is claimed has none."""
    case = Case(extra=dict.fromkeys(SEEDS, GATES), eval_s=700.0)
    case.seeds = [s for s in case.seeds if s.seed != 0]
    folder = case.write(tmp_path)
    claimed = {str(s): {"val_bpb": v - 0.001} for s, v in SEEDS.items()}
    for seed, value in SEEDS.items():
        text = (
            f"seed:{seed}\nval_tokens: 40540160\n"
            f"quantized_ttt val_loss:{(value - 0.001) * 2.5831033:.6f} val_bpb:{value - 0.001:.8f} "
            "eval_time:500000ms\n"
        )
        (folder / f"eval_seed{seed}.log").write_text(text)
    claim = json.loads((folder / "submission.json").read_text())
    claim |= {"seed_results": claimed, "val_bpb": 1.08000}
    (folder / "submission.json").write_text(json.dumps(claim))
    (folder / "README.md").write_text(README.replace("1.0810", "1.0800"))
    audit = audit_record(folder)
    assert codes(audit) == {}
    assert audit.facts["seeds"] == [314, 42, 999]


def test_nothing_convicts_where_no_run_is_known_to_be_claimed(tmp_path: Path) -> None:
    case = Case(
        claim={"val_bpb": 0.99, "seed_results": {}}, readme=README.replace("1.0810", "0.99")
    )
    folder = case.write(tmp_path)
    for name in ("a.log", "b/c.log"):
        other(folder, name)
    audit = audit_record(folder)
    assert audit.valid
    assert {"train-time", "over-cap", "claim"} <= codes(audit).keys()
    assert "it is not known" in next(f for f in audit.findings if f.code == "over-cap").why


def test_what_every_claimed_run_does_wrong_is_found_beside_others(tmp_path: Path) -> None:
    case = Case(extra={42: GATES}).change(314, train_s=640.0)
    other(case.write(tmp_path), "ablation.log")
    found = codes(audit_record(tmp_path))
    assert found == {"target-gate": "invalid", "train-time": "invalid"}
