"""Claims as people write them: read like numbers, or asked about; from a README if need be."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from audit.record import README, Case

from fairway.audit.records.audit import RecordAudit, audit_record
from fairway.audit.records.claims import read_claims
from fairway.audit.records.said import written
from fairway.submission.published import record

SEEDS = {s.seed: s.bpb["adapted"] for s in record("pr1858").seeds}
LOW = [1.01, 1.02, 1.03]


def codes(audit: RecordAudit) -> dict[str, str]:
    return {f.code: f.severity for f in audit.findings if f.severity != "note"}


def of(folder: Path, **claim: Any) -> dict[str, str]:
    return codes(audit_record(Case(claim=claim).write(folder)))


# ---------------------------------------------------------------------------------------------
# Texts


@pytest.mark.parametrize(
    ("text", "value", "off"),
    [
        ("16900000 bytes", 16_900_000, 0), ("17,000,000 bytes", 17_000_000, 0),
        (" 16,900,000 ", 16_900_000, 0), ("16.9MB", 16_900_000, 100_000),
        ("16.9 MB", 16_900_000, 100_000), ("16900 kB", 16_900_000, 1_000),
        ("16.50 MiB", 17_301_504, 10_485.76), ("16 KiB", 16_384, 1_024), ("900 B", 900, 0),
        ("15,996,321 bytes (15.26 MiB)", 15_996_321, 0),
    ],
)  # fmt: skip
def test_bytes_are_read_with_their_unit(text: str, value: float, off: float) -> None:
    assert written(text, "bytes") == pytest.approx((value, off))


@pytest.mark.parametrize(
    "text",
    ["~16.9 MB", "<16MB", "16.9 or 17 MB", "15,9001 bytes", "16.9 parsecs", "pending", "", "1e7",
     "16.9.1 MB", "-5", "1.29 (1xH100) / 5.04 (hybrid)"],
)  # fmt: skip
def test_what_is_unclear_is_no_number(text: str) -> None:
    assert written(text, "bytes") is None


@pytest.mark.parametrize(("text", "value"), [("900 s", 900), ("15 min", 900), ("900000 ms", 900)])
def test_seconds_are_read_with_their_unit(text: str, value: float, tmp_path: Path) -> None:
    assert (written(text, "seconds", "s") or (0.0,))[0] == pytest.approx(value)
    assert of(tmp_path, eval_time_seconds=text) == {"eval-time": "warning"}


# ---------------------------------------------------------------------------------------------
# Bytes


@pytest.mark.parametrize(
    "claim",
    [
        {"bytes_total": "16900000 bytes"}, {"bytes_total": "16.9MB"}, {"bytes_total": "16.9 MB"},
        {"bytes_total": "17,000,000 bytes"}, {"bytes_total": "16.3 MiB"},
        {"bytes_total": [16_900_000, 15_900_000]}, {"bytes_total": ["15.9 MB", "16.9 MB"]},
        {"bytes_total": {"42": 16_900_000}}, {"bytes_total": {"seed_42": "16.9 MB"}},
        {"bytes_total": {"code": 20_000, "total": 16_900_000}},
        {"bytes_total": None, "artifact_size_mb": 16.9},
        {"bytes_total": None, "artifact_size_mb": {"42": 16.9}},
        {"artifact_bytes_per_seed": {"42": 16_900_000}},
        {"seed_results": {str(s): {"val_bpb": v, "artifact_bytes": "16.9 MB"}
                          for s, v in SEEDS.items()}},
    ],
    ids=str,
)  # fmt: skip
def test_bytes_over_the_limit_convict_however_they_are_written(
    claim: dict[str, Any], tmp_path: Path
) -> None:
    assert of(tmp_path, **claim) == {"over-cap": "invalid"}


@pytest.mark.parametrize(
    ("text", "severity"),
    [
        ("15.9 MB", None), ("16.0 MB", None), ("16 MB", None), ("15.99 MB", None),
        ("15.25 MiB", None), ("16.02 MB", "invalid"), ("16.1 MB", "warning"), ("17 MB", "warning"),
        ("15.26 MiB", "warning"), ("16000 kB", None), ("16001 kB", "warning"),
        ("16002 kB", "invalid"), ("16000001 bytes", "invalid"),
    ],
)  # fmt: skip
def test_a_rounded_number_does_not_convict_below_its_last_digit(
    text: str, severity: str | None, tmp_path: Path
) -> None:
    assert of(tmp_path, bytes_total=text) == ({"over-cap": severity} if severity else {})


@pytest.mark.parametrize(
    ("claim", "expected"),
    [
        ({"artifact_bytes": 17e6, "total_size_mb": 17.2}, {"bytes-differ": "warning"}),
        ({"total_size_mb": 17.2}, {"bytes-differ": "warning"}),
        ({"artifact_bytes": 3_000_000}, {"bytes-differ": "warning"}),
        ({"artifact": {"total_bytes": 17_000_000}}, {"bytes-differ": "warning"}),
        # The challenge's own name is not in doubt.
        (
            {"bytes_total": 17_000_000, "total_size_mb": 15.9},
            {"over-cap": "invalid", "bytes-differ": "warning"},
        ),
        # The artifact without its code may fit.
        ({"bytes_total": 16_050_000, "artifact_bytes": 15_990_000}, {"over-cap": "invalid"}),
        (
            {"bytes_total": None, "artifact_bytes": 15_990_000, "total_submission_bytes": 16.05e6},
            {"over-cap": "invalid"},
        ),
        ({"bytes_total": None, "artifact_bytes": 17e6, "total_size_mb": 17.2},
         {"over-cap": "invalid"}),
        # The model without the code; a number rounded; what is not counted; other sizes.
        ({"artifact_bytes": 15_976_144}, {}), ({"artifact_size_mb": 16.0}, {}),
        ({"artifact_size_mb": 16.1}, {}),
        ({"artifact_bytes_mean": 17_000_000, "scored_bytes": {"42": 151_078_222}}, {}),
        ({"baseline": {"total_bytes": 17_000_000}}, {}),
    ],
    ids=str,
)  # fmt: skip
def test_statements_that_contradict_each_other_are_asked_about(
    claim: dict[str, Any], expected: dict[str, str], tmp_path: Path
) -> None:
    assert of(tmp_path, **claim) == expected


# ---------------------------------------------------------------------------------------------
# Scores


@pytest.mark.parametrize(
    "claim",
    [
        {"seeds": list(SEEDS), "val_bpbs": LOW}, {"seeds": list(SEEDS), "seed_scores": LOW},
        {"seeds": list(SEEDS), "val_bpbs": list(map(str, LOW))},
        {"seeds": list(SEEDS), "seed_scores": list(map(str, LOW))},
        {"seeds": list(map(str, SEEDS)), "seed_scores": list(map(str, LOW))},
        {"seed_results": {f"seed_{s}": f"{v} bpb" for s, v in zip(SEEDS, LOW, strict=True)}},
        {"seed_results": [{"seed": str(s), "val_bpb": f"{v} ± 0.001"}
                          for s, v in zip(SEEDS, LOW, strict=True)]},
    ],
    ids=str,
)  # fmt: skip
def test_scores_of_seeds_are_judged_as_text_as_well(claim: dict[str, Any], tmp_path: Path) -> None:
    audit = audit_record(Case(claim={"seed_results": {}, **claim}).write(tmp_path))
    assert [f.code for f in audit.findings if f.severity == "invalid"] == ["seed-score"] * 3


@pytest.mark.parametrize(
    "text", ["1.0810", "1.0810 ± 0.0004", "1.08 ± 0.0004", "1.08 (3-seed mean)", "1.081 bpb"]
)
def test_a_score_with_a_spread_or_a_remark_is_the_score(text: str, tmp_path: Path) -> None:
    # As for the number 1.08, the README says more exactly 1.0810.
    assert of(tmp_path, val_bpb=text) == ({} if "1.081" in text else {"readme-score": "warning"})


@pytest.mark.parametrize(
    "value", ["1.0100 ± 0.0002", "1.0100 (3-seed mean)", {"mean": 1.01, "std": 0.0001}], ids=str
)
def test_a_score_that_no_log_has_convicts_in_every_form(value: object, tmp_path: Path) -> None:
    assert of(tmp_path, val_bpb=value) == {"claim": "invalid", "readme-score": "warning"}


@pytest.mark.parametrize(
    ("claim", "shown"),
    [
        ({"val_bpb": "~1.01"}, ["val_bpb: ~1.01"]), ({"val_bpb": "1,0500"}, ["val_bpb: 1,0500"]),
        ({"val_bpb": [1.01, 1.02]}, ["val_bpb: [1.01, 1.02]"]),
        ({"val_bpb": True}, ["val_bpb: True"]),
        ({"bytes_total": "about 17 MB"}, ["bytes_total: about 17 MB"]),
        ({"bytes_total": [15_900_000, "pending"]}, ["bytes_total: [15900000, 'pending']"]),
        ({"steps": "see the logs"}, ["steps: see the logs"]),
        ({"eval_time_seconds": "10m30s"}, ["eval_time_seconds: 10m30s"]),
        ({"artifact_size_mb": "<16"}, ["artifact_size_mb: <16"]),
        ({"seeds": [42, 314, 999], "seed_scores": ["1.0806", "pending", "1.0814"]},
         ["seed_scores, seed 314: pending"]),
        ({"seed_results": {"42": {"val_bpb": "unknown"}}}, ["seed 42, val_bpb: unknown"]),
        ({"bytes_total": None, "steps": ""}, []),
        ({"seeds": [42, 314, 999], "bpb_logs": ["a.log", "b.log", "c.log"]}, []),
    ],
    ids=str,
)  # fmt: skip
def test_a_value_that_is_no_number_is_a_question_with_its_name(
    claim: dict[str, Any], shown: list[str], tmp_path: Path
) -> None:
    audit = audit_record(Case(claim={"seed_results": {}, **claim}).write(tmp_path))
    assert [f.value for f in audit.findings if f.code == "claim-unread"] == shown
    assert all(f.severity == "warning" for f in audit.findings if f.code == "claim-unread")
    assert audit.valid


def test_other_values_of_seeds_are_no_scores() -> None:
    claim = {
        "val_loss": {"seed_42": 1.88}, "eval_minutes_time": {"seed_42": 5.2}, "seeds": [42, 7],
        "bpb_stds": [0.1, 0.2], "runs": [{"seed": 7, "val_bpb": 1.1}, {"seed": 42, "val_bpb": 1.2}],
    }  # fmt: skip
    claims = read_claims(claim, "submission.json")
    assert {seed: score.value for seed, score in claims.by_seed.items()} == {7: 1.1, 42: 1.2}


# ---------------------------------------------------------------------------------------------
# Without a claim that can be read


def comma(text: str) -> str:
    return text[:-1] + ",}"


BROKEN: dict[str, Callable[[str], str]] = {
    "a comma at the end": comma,
    "a remark": lambda text: f"// mine\n{text}",
    "a key twice": lambda text: f'{text[:-1]}, "author": "x"}}',
    "a list": lambda text: f"[{text}]",
    "no score": lambda text: "{}",
}


def broken(folder: Path, case: Case, kind: str) -> RecordAudit:
    file = case.write(folder) / "submission.json"
    file.write_text(BROKEN[kind](file.read_text()))
    return audit_record(folder)


@pytest.mark.parametrize("kind", BROKEN)
def test_a_claim_that_cannot_be_read_does_not_excuse_its_runs(kind: str, tmp_path: Path) -> None:
    audit = broken(tmp_path, Case(eval_s=700.0), kind)
    assert [f.code for f in audit.findings if f.severity == "invalid"] == ["eval-time"] * 3
    assert codes(audit).keys() - {"eval-time"} == {"no-claim" if kind == "no score" else "json"}
    (tmp_path / "submission.json").unlink()
    assert codes(audit_record(tmp_path)) == {"eval-time": "invalid", "no-submission": "warning"}


def test_the_score_of_a_readme_tells_runs_apart(tmp_path: Path) -> None:
    readme = README.replace("# Rec", "# Better than the 1.0983 bpb of the baseline: rec")
    folder = Case(readme=readme).change(42, train_s=640.0).write(tmp_path)
    other = Case(eval_s=900.0).change(42, train_s=700.0, bpb=dict.fromkeys(("ema", "quantised",
                 "adapted"), 1.2))  # fmt: skip
    (folder / "ablation.log").write_text(other.log(next(s for s in other.seeds if s.seed == 42)))
    (folder / "submission.json").unlink()
    audit = audit_record(folder)
    assert codes(audit) == {"train-time": "invalid", "no-submission": "warning"}
    assert list(audit.facts["logs_aside"]) == ["ablation.log"]
    assert {f.file for f in audit.findings if f.code == "train-time"} == {"train_seed42.log"}


def test_the_score_of_another_record_in_a_readme_is_not_the_claim(tmp_path: Path) -> None:
    """It is the mean of an earlier evaluation here, which took little time."""
    quantised = [seed.bpb["quantised"] for seed in record("pr1858").seeds]
    other = f"The baseline has a val_bpb of {sum(quantised) / 3:.4f}.\n"
    audit = broken(tmp_path, Case(readme=other + README, eval_s=700.0), "no score")
    assert codes(audit) == {"eval-time": "invalid", "no-claim": "warning"}
    (tmp_path / "README.md").write_text(other.replace("The baseline has", "It has") + README)
    assert "eval-time" not in codes(audit_record(tmp_path))


def over(*seeds: int, **numbers: Any) -> Callable[[Case], None]:
    def change(case: Case) -> None:
        for seed in seeds:
            case.change(seed, **numbers)

    return change


BUDGETS: dict[str, tuple[list[Callable[[Case], None]], dict[str, str]]] = {
    "all train too long": ([over(*SEEDS, train_s=640.0)], {"train-time": "invalid"}),
    "all are too large": ([over(*SEEDS, artifact_bytes=16_100_000)], {"over-cap": "invalid"}),
    "each exceeds another budget": (
        [over(42, 314, train_s=640.0), over(999, artifact_bytes=16_100_000)],
        {"train-time": "invalid", "over-cap": "invalid"},
    ),
    "one is within": ([over(42, 314, train_s=640.0)], {"train-time": "warning"}),
    "one is late by a step": (
        [over(42, 314, train_s=640.0), over(999, train_s=600.9)], {"train-time": "warning"},
    ),
    "a part of the text": (
        [lambda case: setattr(case, "val_tokens", 8_000_000)], {"subset": "warning"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BUDGETS)
def test_budgets_that_every_run_exceeds_convict_whichever_is_claimed(
    name: str, tmp_path: Path
) -> None:
    changes, expected = BUDGETS[name]
    case = Case(readme="# A model\n")
    for change in changes:
        change(case)
    audit = broken(tmp_path, case, "no score")
    assert codes(audit) == {"runs-unknown": "warning", "no-claim": "warning", **expected}


def test_runs_in_one_file_are_told_apart(tmp_path: Path) -> None:
    case = Case(readme="# A model\n").change(42, train_s=640.0)
    folder = case.write(tmp_path)
    (folder / "submission.json").unlink()
    logs = [case.log(seed) for seed in case.seeds]
    for seed in case.seeds:
        (folder / f"train_seed{seed.seed}.log").unlink()
    (folder / "train.log").write_text("".join(logs))
    assert codes(audit_record(folder))["train-time"] == "warning"
    (folder / "train.log").write_text("".join(case.log(s) for s in case.seeds if s.seed == 42) * 2)
    assert codes(audit_record(folder))["train-time"] == "invalid"


def test_a_score_that_no_run_has_leaves_budgets_in_doubt(tmp_path: Path) -> None:
    """The claimed runs may have no log here."""
    case = Case(readme=README.replace("1.0810", "0.9912"), eval_s=700.0)
    audit = broken(tmp_path, case, "a comma at the end")
    assert codes(audit) == dict.fromkeys(("eval-time", "json", "runs-unknown"), "warning")


@pytest.mark.parametrize(
    ("claim", "readme"),
    [
        ({"track": "non-record-unlimited-compute-16mb"}, README),
        ({"hardware": "1xH100"}, README), ({}, README.replace("# ", "# Non-record: ")),
    ],
)  # fmt: skip
def test_what_excuses_a_run_counts_in_a_broken_claim_too(
    claim: dict[str, str], readme: str, tmp_path: Path
) -> None:
    audit = broken(tmp_path, Case(claim=dict(claim), readme=readme, eval_s=700.0), "a remark")
    assert codes(audit) == {"json": "warning"}
    assert json.dumps(claim)[1:-1] in (tmp_path / "submission.json").read_text()
