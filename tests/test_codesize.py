"""The bytes of code that count with an artifact: those of the run's own bundle, before and after.

A bundle takes some seconds, so that few are made here and each is looked at from all sides.
"""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from alone import start
from small_run import sample_little

from fairway.base.files import read_json
from fairway.bundle import build
from fairway.bundle.build import SCRIPT, bundle, bundle_bytes, write_bundle
from fairway.config.settings import Config
from fairway.pipeline import codesize
from fairway.pipeline.codesize import CODE, measure_code
from fairway.pipeline.folder import RunFolder
from fairway.pipeline.run import Pipeline

Tiny = Callable[..., Config]

# Room for some 40 kB of artifact beside the bundle.
LIMIT = 110_000
# Recipe `best`, but for the sizes of its parts.
BEST = (
    "pack.code_bytes=auto", "quant.method=trellis", "quant.rate_price=0.12", "quant.fit=true",
    "quant.gradient_tokens=1024", "pack.codec=cabac",
    "ttt.method=lora", "ttt.lora_rank=4", "ttt.lora_chunks=16", "prove.bytes=0", "audit.budget_s=0",
    "data.val_bytes=300",
)  # fmt: skip


@pytest.fixture(scope="module")
def full(
    tiny: Tiny, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Config, RunFolder, dict[str, Any], list[str]]:
    """Return a finished run that fills a budget: its config, folder, results, what it said."""
    config = tiny(*BEST, f"pack.limit_bytes={LIMIT}")
    folder, said = RunFolder(tmp_path_factory.mktemp("full") / "run"), []
    pipeline = Pipeline(config, folder, said.append)
    with pytest.MonkeyPatch.context() as patch, pipeline.writing():
        sample_little(patch)
        pipeline.train()
        pipeline.pack()
        pipeline.score()
        pipeline.report()
        results = pipeline.results()
    return config, folder, results, said


@pytest.mark.long
def test_artifact_and_bundle_together_keep_the_limit_and_fill_it(full: Any, tmp_path: Path) -> None:
    config, folder, results, said = full
    write_bundle(config, tmp_path / "made")
    script, artifact = tmp_path / "made" / SCRIPT, folder.file("artifact.fwy")
    code_bytes = script.stat().st_size
    assert results["artifact"]["code_bytes"] == code_bytes > 30_000
    assert results["artifact"]["code"] == "measured"
    # Less than a hundredth is left: uncounted or declared, code would be far above the limit.
    assert 0.99 * LIMIT < artifact.stat().st_size + code_bytes <= LIMIT
    assert f"code: the bundle of these settings has {code_bytes:,} bytes" in said
    assert sum(line.endswith(" left  0.11 MB") for line in said) > 3
    assert not any("over the limit" in line or "declared" in line for line in said)


@pytest.mark.slow
def test_the_file_that_is_shipped_makes_that_artifact(
    full: Any, data_folder: Path, tmp_path: Path
) -> None:
    """Where the package is absent. (tests/bundle has that for a recipe that compiles nothing.)"""
    config, _, results, _ = full
    write_bundle(config, tmp_path / "made")
    script = tmp_path / "made" / SCRIPT
    ended = start(script, str(data_folder), "out", cwd=tmp_path / "empty")
    assert ended.returncode == 0, ended.stderr
    found = read_json(tmp_path / "empty/out/score.json")
    assert found["artifact_digest"] == results["artifact"]["digest"]
    for name, stage in found["stages"].items():
        assert stage["nats"] == results["stages"][name]["nats"], name


def test_seed_text_and_clock_change_no_byte_count(full: Any) -> None:
    config, _, results, _ = full
    size = results["artifact"]["code_bytes"]
    embedded = replace(config, data=replace(config.data, source="embedded"))
    wall = replace(config, train=replace(config.train, clock="wall"))
    others = [replace(config, seed=0), replace(config, seed=2**32 - 1), embedded, wall]
    files = {bundle(other).file for other in others}
    assert len(files) == len(others) and {len(file) for file in files} == {size}
    # A run that follows another one has that one's bundle.
    follower = replace(config, train=replace(config.train, clock="replay", replay="run"))
    assert bundle_bytes(follower) == size
    # Base85 is larger, and told so.
    ascii_only = bundle(config, ascii_only=True).file
    assert len(ascii_only) > size and f"start({len(ascii_only):7}," in ascii_only.decode()


def test_the_readable_program_is_told_the_bytes_of_what_is_shipped(full: Any) -> None:
    config, _, results, _ = full
    last = bundle(config).plain.splitlines()[-1]
    assert last.startswith(f"start({results['artifact']['code_bytes']:7},")


def again(folder: RunFolder, config: Config, tmp_path: Path) -> tuple[Pipeline, list[str]]:
    said: list[str] = []
    copy = Path(shutil.copytree(folder.path, tmp_path / "again"))
    return Pipeline(config, RunFolder(copy), said.append), said


@pytest.mark.long
def test_other_code_packs_anew_and_the_same_code_does_not(
    full: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Edited sources count when an artifact is packed; scoring leaves the number as it was."""
    sample_little(monkeypatch)
    config, folder, results, _ = full
    pipeline, said = again(folder, config, tmp_path)
    with pipeline.writing():
        pipeline.pack()
    assert said == ["pack: unchanged, kept"]
    monkeypatch.setattr(build, "_sources", lambda: "edited")
    fresh, _ = again(folder, config, tmp_path / "fresh")
    assert fresh.results()["artifact"] == results["artifact"]
    other = LIMIT - 40_000
    monkeypatch.setattr(codesize, "bundle_bytes", lambda config: other)
    with pipeline.writing():
        pipeline.score()
        assert pipeline.results()["artifact"]["code_bytes"] == results["artifact"]["code_bytes"]
        facts = pipeline.pack()
        # Sizes of so small a model jump by hundreds of bytes from one level to the next.
        assert facts["code_bytes"] == other and 0.95 * 40_000 < facts["bytes"] <= 40_000


def test_settings_of_the_score_count_too(
    full: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An artifact that filled its limit beside one bundle is over it beside a larger one."""
    config, folder, results, _ = full
    larger = replace(config, ttt=replace(config.ttt, lora_chunks="8@64 16"))
    pipeline, said = again(folder, larger, tmp_path)
    more = LIMIT - results["artifact"]["bytes"] + 7_654
    monkeypatch.setattr(codesize, "bundle_bytes", lambda config: more)
    with pipeline.writing():
        pipeline.score()
    told = f"over the limit: artifact and code exceed {LIMIT:,} bytes by 7,654; pack again"
    assert any(told in line for line in said)
    found = pipeline.results()
    assert found["artifact"]["code_bytes"] == more and not found["audit"]["passed"]


def test_a_declared_figure_is_never_measured(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(codesize, "bundle_bytes", lambda config: pytest.fail("a bundle is made"))
    folder = RunFolder(tmp_path)
    for packing in (False, True):
        assert measure_code(tiny("pack.code_bytes=7"), folder, pytest.fail, packing) == 7
    assert CODE not in folder.memory | folder.proposed
