"""Published figures, and what may be said of two of them side by side."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from audit.record import Case

from fairway.base.errors import UserError
from fairway.base.files import digest_file, read_json
from fairway.model.gpt import num_parameters
from fairway.pipeline.folder import RunFolder
from fairway.pipeline.run import open_run
from fairway.recipes import recipe
from fairway.submission.compare import compare, side
from fairway.submission.published import RECORDS, STAGES, record


@pytest.mark.parametrize("name", sorted(RECORDS))
def test_the_figures_of_a_record_hang_together(name: str) -> None:
    published = record(name)
    assert len(published.seeds) == (5 if name == "pr1394" else 3)
    assert published.scored_tokens < published.text_bytes < 4 * published.scored_tokens
    for seed in published.seeds:
        assert 585 < seed.train_s < 600
        assert seed.artifact_bytes + seed.code_bytes < 16_000_000
        assert list(seed.bpb) == [stage for stage in STAGES if stage in seed.bpb]
        assert abs(seed.bpb["ema"] - seed.bpb["raw"]) < 0.02
        # Every later stage takes back what quantisation cost.
        after = [seed.bpb[stage] for stage in STAGES[2:] if stage in seed.bpb]
        assert after == sorted(after, reverse=True)


@pytest.mark.parametrize(
    ("name", "score"),
    [("pr1394", 1.0856), ("pr1413", 1.0828), ("pr1493", 1.0810), ("pr1514", 1.0798),
     ("pr1626", 1.0719), ("pr1736", 1.0655), ("pr1787", 1.0638), ("pr1855", 1.0611),
     ("pr1858", 1.0810), ("pr1874", 1.0677), ("pr1953", 1.0586), ("pr2014", 1.0576),
     ("pr2135", 1.0565)],
)  # fmt: skip
def test_the_last_stage_is_the_score_that_is_claimed(name: str, score: float) -> None:
    figures = side(name).figures
    assert figures[list(figures)[-1]].mean == pytest.approx(score, abs=6e-5)
    claimed = 1.0634 if name == "pr1787" else score
    assert f"claims {claimed:.4f}," in side(name).title


def test_means_and_spread_are_those_of_the_logs() -> None:
    found = side("pr1858").figures
    assert found["steps"].mean == (4630 + 4621 + 4625) / 3
    assert found["bpb, adapted"].mean == pytest.approx(1.0810, abs=5e-5)
    assert found["bpb, adapted"].sd == pytest.approx(0.00037, abs=1e-5)
    assert found["bytes in all"].mean == (15_996_321 + 15_995_838 + 15_995_930) / 3
    assert found["tokens per second"].mean == pytest.approx(6.185e6, rel=1e-3)
    assert found["parameters"].mean == num_parameters(recipe("pr1858").model)


def test_what_was_withdrawn_is_said() -> None:
    told = "\n".join(compare("pr1858", "pr2135")["cautions"])
    assert "0.9946 and 0.9727, were withdrawn" in told
    assert "8,000,000 of 40,540,160 tokens" in told
    assert "in no single order are both causal" in told
    assert "the same documents, but different tokens" in told
    assert "3.73 bytes in pr1858 and 3.16 in pr2135" in told
    assert "compare machines" not in told


def test_two_records_on_one_text_are_compared_without_reserve() -> None:
    found = compare("pr1858", "pr1394")
    a, b, differences = found["a"]["figures"], found["b"]["figures"], found["differences"]
    assert set(a) - set(differences) == {"bpb, adapted"}
    for name, value in differences.items():
        assert value == a[name]["mean"] - b[name]["mean"]
    told = found["cautions"]
    assert "which pr1394 does not have: compare the stages that both have" in told[0]
    assert not [line for line in told if "not comparable" in line]


# ---------------------------------------------------------------------------------------------
# Runs


@pytest.fixture
def run(smoke_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(smoke_run, tmp_path / "run"))


def change(run: Path, alter: Callable[[dict[str, Any]], object]) -> None:
    results = read_json(run / "results.json")
    alter(results)
    (run / "results.json").write_text(json.dumps(results))
    RunFolder(run).remember("results", digest_file(run / "results.json"))


def test_a_run_beside_a_record(run: Path) -> None:
    found, results = compare(str(run), "pr1858"), read_json(run / "results.json")
    figures = found["a"]["figures"]
    for stage in ("raw", "ema", "quantised", "sliding"):
        assert figures[f"bpb, {stage}"]["mean"] == results["stages"][stage]["bpb"]
    assert figures["artifact bytes"]["mean"] == results["artifact"]["bytes"]
    assert found["differences"]["steps"] == pytest.approx(12 - 4625.333, abs=0.001)
    told = "\n".join(found["cautions"])
    scored = results["stages"]["sliding"]
    assert f"not comparable: scored was {run} on {scored['bytes']:,} bytes" in told
    assert "another text, or only a part of it" in told
    assert "trained on cpu" in told and "8 x H100" in told
    assert f"{run} is one run, pr1858 the mean of 3 seeds" in told
    assert "deviation of 0.0004 in 'bpb, adapted'" in told


def test_a_run_on_the_records_text_is_comparable(run: Path) -> None:
    change(run, lambda r: r["stages"]["sliding"].update(tokens=40_540_160, bytes=151_078_222))
    told = "\n".join(compare("pr1858", str(run))["cautions"])
    assert "not comparable" not in told


def test_a_run_beside_itself_and_beside_another_text(run: Path, smoke_run: Path) -> None:
    found = compare(str(run), str(smoke_run))
    assert set(found["differences"].values()) == {0}
    told = found["cautions"]
    assert len(told) == 2 and all("its bytes of code are declared" in line for line in told)
    change(run, lambda r: r["artifact"].update(code="measured"))
    change(run, lambda r: r["text"].update(digest="0" * 64))
    told = compare(str(run), str(smoke_run))["cautions"]
    assert len(told) == 2 and told[0].endswith("another text")
    assert told[1].startswith(f"{smoke_run}: its bytes of code are declared")


@pytest.mark.parametrize("at", [0.1, 0.5, 0.9])
def test_results_that_were_damaged_since_are_not_compared(run: Path, at: float) -> None:
    data = bytearray((run / "results.json").read_bytes())
    data[int(at * len(data))] ^= 1
    (run / "results.json").write_bytes(data)
    with pytest.raises(
        UserError, match="results.json was changed after it was written; write it again with"
    ):
        compare(str(run), "pr1858")


def test_results_of_an_artifact_that_was_packed_again_are_not_compared(run: Path) -> None:
    pipeline = open_run(run, ["quant.matrix_bits=5"], lambda text: None)
    with pipeline.writing():
        pipeline.pack()
    with pytest.raises(UserError, match="was packed again; score it, then run `fairway report"):
        compare(str(run), "pr1858")


def test_what_cannot_be_compared_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="record 'pr1859'; did you mean 'pr1858'"):
        compare("pr1859", "pr1858")
    with pytest.raises(UserError, match="is not a run folder"):
        compare("pr1858", str(tmp_path))
    change(run, lambda r: r.pop("train"))
    with pytest.raises(
        UserError, match="results.json is damaged .KeyError.'train'..; write it again"
    ):
        compare(str(run), "pr1858")
    change(run, lambda r: r.update(schema=99))
    with pytest.raises(UserError, match="has schema 99, this Fairway reads 1"):
        compare(str(run), "pr1858")
    (run / "results.json").unlink()
    with pytest.raises(UserError, match="has no results yet; score it, then run `fairway report"):
        compare(str(run), "pr1858")


# ---------------------------------------------------------------------------------------------
# Statistics


def test_the_last_record_under_both_conventions() -> None:
    found = compare("pr1855", "pr2135")["statistics"]
    assert (found["better"], found["stage"]) == ("pr2135", "adapted")
    assert found["gain_nats_per_token"] == pytest.approx(0.0100, abs=5e-5)
    tests = found["tests"]
    assert tests["record"]["margin_bpb"] == pytest.approx(0.002285, abs=1e-6)
    assert tests["record"]["welch"]["p"] == pytest.approx(0.029, abs=5e-4)
    assert (tests["record"]["holds"], tests["frontier"]["holds"]) == (False, True)
    assert tests["record"]["paired"]["df"] == 1
    assert tests["record"]["seeds_needed"] > 3
    assert compare("pr2014", "pr2135")["statistics"]["tests"]["frontier"]["welch"]["p"] == (
        pytest.approx(0.0138, abs=5e-5)
    )


def test_one_run_a_side_is_no_sample(run: Path) -> None:
    assert compare(str(run), "pr1858")["statistics"] is None


def test_runs_with_commas_between_are_seeds_of_one_system(run: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(run, tmp_path / "other"))
    with pytest.raises(UserError, match="has the seed of another run"):
        compare(f"{run},{other}", "pr1858")
    change(other, lambda r: r.update(seed=7))
    change(other, lambda r: r["stages"]["ttt"].update(bpb=r["stages"]["ttt"]["bpb"] + 0.01))
    found = compare(f"{run},{other}", "pr1858")
    sample = found["statistics"]["samples"][f"{run},{other}"]
    assert (sample["n"], sample["sd"]) == (2, pytest.approx(0.01 / 2**0.5))
    assert found["a"]["figures"]["bpb, adapted"]["seeds"] == 2
    change(other, lambda r: r["text"].update(digest="0" * 64))
    with pytest.raises(UserError, match="scored on different texts"):
        compare(f"{run},{other}", "pr1858")


def test_a_records_folder_equals_its_published_figures(tmp_path: Path) -> None:
    folder = str(Case().write(tmp_path / "record"))
    found = compare(folder, "pr1858")
    assert found["differences"]["bpb, adapted"] == pytest.approx(0.0, abs=1e-8)
    assert found["differences"]["bytes in all"] == 0
    assert not [line for line in found["cautions"] if "not comparable" in line]
    assert found["statistics"]["samples"][folder]["n"] == 3
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "submission.json").write_text("{}")
    with pytest.raises(UserError, match="has no log with a seed"):
        compare(str(tmp_path / "empty"), "pr1858")
