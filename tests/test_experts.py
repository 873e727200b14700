"""The stages that put experts beside a run's artifact."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from fairway.pipeline.run import Pipeline, open_run
from fairway.submission.texts import as_json, log, readme, submission

CHANGES = [
    "mixture.experts=ppm match",
    "mixture.published=true",
    "prove.experts=true",
    "prove.bytes=60",
]


def walked(folder: Path, changes: list[str]) -> tuple[Pipeline, list[str]]:
    said: list[str] = []
    pipeline = open_run(folder, changes, said.append)
    with pipeline.writing():
        pipeline.score()
        pipeline.report()
    return pipeline, said


def assert_in_no_submission(results: dict[str, Any]) -> None:
    """Neither README, submission.json nor log of a record knows the published mixture's figure."""
    texts = [log(results, [], 1)]
    manifest = {"bytes": 1, "digest": "", "fixed_digest": ""}
    people = {"name": "", "processes": 1}
    claim = submission([results], texts, manifest, people)
    assert claim["stage"] == "ttt" and claim["val_bpb"] == results["stages"]["ttt"]["bpb"]
    texts += [readme([results], claim), as_json(claim).decode()]
    figure = f"{results['published_mixture']['bpb']:.4f}"
    assert not [text for text in texts if figure in text or "published" in text]


@pytest.mark.long
def test_experts_of_a_run(smoke_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(smoke_run, folder)
    _, said = walked(folder, CHANGES)
    results = json.loads((folder / "results.json").read_text())
    mixture, sliding = results["stages"]["mixture"], results["stages"]["sliding"]
    assert mixture["bpb"] < sliding["bpb"] and mixture["tokens"] == sliding["tokens"]
    assert abs(mixture["base_bpb"] / sliding["bpb"] - 1) < 1e-6
    assert mixture["gain_bpb"] == mixture["base_bpb"] - mixture["bpb"]
    assert mixture["worst_sum_error"] < 1e-9 and mixture["checked_positions"] == 8
    published = results["published_mixture"]
    assert published["distribution"] is False and published["label"] == "not a distribution"
    assert published["tokens"] == sliding["tokens"] and published["coverage"] == 1.0
    assert "published" not in results["stages"], "it can be no headline"
    assert "mixture" in {probe["stage"] for probe in results["audit"]["probes"]}
    assert results["proof"]["experts"] == "ppm match" and results["proof"]["equal"]
    assert any("not a distribution: prices of the vocabulary sum to" in line for line in said)
    assert any("less than sliding alone" in line for line in said)
    assert any("mixed over the frozen model, where #1858 mixed over test" in line for line in said)
    assert published["base"] == "sliding"
    whole_bpb = published["model_bpb"] + published["free_bpb"]
    assert abs(whole_bpb / sliding["bpb"] - 1) < 1e-6 and published["free_bpb"] > 0
    page = (folder / "report.html").read_text()
    assert "Mixed</" in page and "Left out: tokens without bytes" in page
    assert "Published mixture (not a distribution)" in page and "Experts" in page
    rows = ("Sum over the vocabulary, mean", "Bytes where the gate fired", "Of all tokens")
    assert all(row in page for row in rows) and f"{published['sums']['mean']:.3f}" in page
    assert published["sums"]["mean"] > 1.0 and 0.0 <= published["gate_share"] <= 1.0
    assert_in_no_submission(results)
    later = [*CHANGES, "audit.budget_s=0"]
    said = walked(folder, [*later, "score.headline=mixture"])[1]
    assert "pack: unchanged, kept" not in said and "score.mixture: unchanged, kept" in said
    claimed = json.loads((folder / "results.json").read_text())
    assert claimed["headline"] == "mixture" and claimed["stages"] == results["stages"]
    people = {"name": "", "processes": 1}
    claim = submission([claimed], [""], {"bytes": 1, "digest": "", "fixed_digest": ""}, people)
    assert claim["stage"] == "mixture" and claim["val_bpb"] == results["stages"]["mixture"]["bpb"]
    again = walked(folder, [*later, "score.headline=auto"])[1]
    assert "score.mixture: unchanged, kept" in again and "published: unchanged, kept" in again
    off = [
        "audit.budget_s=0",
        "score.headline=auto",
        "mixture.experts=",
        "mixture.published=false",
        "prove.experts=false",
        "prove.bytes=0",
    ]
    walked(folder, off)
    results = json.loads((folder / "results.json").read_text())
    assert "mixture" not in results["stages"] and results["published_mixture"] is None
    assert "Published mixture" not in (folder / "report.html").read_text()
