"""A bundle trains, packs and scores like the package, to the bit, where the package is absent."""

import importlib
import inspect
import json
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from alone import start
from features import ALL
from packaging.requirements import Requirement
from tiny import alive

from fairway.base.errors import UserError
from fairway.base.files import read_json
from fairway.bundle.build import SCRIPT, _started, bundle, check_bundle, left_out, write_bundle
from fairway.bundle.flatten import flatten
from fairway.bundle.wrap import unwrap
from fairway.config.overrides import override
from fairway.config.settings import Config, OptimConfig
from fairway.config.written import to_dict
from fairway.model.paths import prepare
from fairway.pipeline.folder import RunFolder
from fairway.pipeline.run import Pipeline
from fairway.train.muon import Optimisers

Tiny = Callable[..., Config]


@pytest.fixture(scope="module")
def made(smoke_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(smoke_bundle, tmp_path_factory.mktemp("bundle") / "made"))


@pytest.mark.long
def test_it_ends_with_the_bits_of_the_package(
    made: Path, smoke_run: Path, data_folder: Path, tmp_path: Path
) -> None:
    ended = start(made / SCRIPT, str(data_folder), "out", cwd=tmp_path / "empty")
    assert ended.returncode == 0, ended.stderr
    found, results = (
        read_json(tmp_path / "empty/out/score.json"),
        read_json(smoke_run / "results.json"),
    )
    assert found["artifact_digest"] == results["artifact"]["digest"]
    assert found["recipe_hash"] == results["recipe_hash"]
    for name, stage in found["stages"].items():
        assert stage["nats"] == results["stages"][name]["nats"], name
    assert set(found["stages"]) == {"quantised", "sliding", "ttt"}
    # The folder that it was unpacked into is gone, and its own is as it was.
    assert {path.name for path in (tmp_path / "empty").iterdir()} == {"out"}
    check_bundle(made)


@pytest.mark.slow
def test_it_trains_by_the_techniques_of_its_settings(
    tiny: Tiny, data_folder: Path, tmp_path: Path
) -> None:
    config = tiny(
        "optim.momentum_buffers=3", "optim.row_beta=0.9", "optim.newton=0.5", "optim.cautious=true",
        "prove.bytes=0",
        "audit.budget_s=0", "ttt.method=off",
    )  # fmt: skip
    pipeline = Pipeline(config, RunFolder(tmp_path / "run"), lambda text: None)
    with pipeline.writing():
        pipeline.walk()
    write_bundle(config, tmp_path / "made")
    ended = start(tmp_path / "made" / SCRIPT, str(data_folder), "out", cwd=tmp_path / "empty")
    assert ended.returncode == 0, ended.stderr
    found = read_json(tmp_path / "empty/out/score.json")
    results = read_json(tmp_path / "run/results.json")
    assert found["artifact_digest"] == results["artifact"]["digest"]


@pytest.mark.slow
def test_it_runs_what_is_compiled_too(tiny: Tiny, data_folder: Path, tmp_path: Path) -> None:
    """Threads that compile must not wait for a program that is still being imported."""
    config = tiny(
        "quant.method=trellis", "pack.codec=cabac", "quant.gradient_tokens=1024",
        "quant.rate_bits=4", "ttt.method=lora", "ttt.lora_rank=4", "ttt.lora_chunks=16",
        "mixture.experts=ppm match tilt", "runtime.kernels=plain", "data.order_seed=seed",
    )  # fmt: skip
    pipeline = Pipeline(config, RunFolder(tmp_path / "run"), lambda text: None)
    with pipeline.writing():
        results = pipeline.walk()
    write_bundle(config, tmp_path / "made")
    assert "numba" in (tmp_path / "made/requirements.txt").read_text()
    ended = start(tmp_path / "made" / SCRIPT, str(data_folder), "out", cwd=tmp_path / "empty")
    assert ended.returncode == 0, ended.stderr
    found = read_json(tmp_path / "empty/out/score.json")
    assert found["artifact_digest"] == results["artifact"]["digest"]
    assert set(found["stages"]) == {"quantised", "sliding", "ttt", "mixture"}
    for name, stage in found["stages"].items():
        assert stage["nats"] == results["stages"][name]["nats"], name


def closure(requirements: list[str]) -> set[str]:
    """Return the distributions that some requirements bring, themselves among them."""
    found: set[str] = set()
    asked = [Requirement(text) for text in requirements]
    while asked:
        wanted = asked.pop()
        if wanted.name in found or (wanted.marker and not wanted.marker.evaluate({"extra": ""})):
            continue
        assert wanted.specifier.contains(metadata.version(wanted.name), prereleases=True), wanted
        found.add(wanted.name)
        asked += [Requirement(text) for text in metadata.requires(wanted.name) or []]
    return found


def fresh_interpreter(folder: Path, requirements: list[str]) -> Path:
    """Return the interpreter of a new virtual environment in which requirements are installed.

    By links to where they are installed already: nothing is fetched, and nothing else is there.
    """
    venv.create(folder, with_pip=False)
    (packages,) = folder.glob("lib/python*/site-packages")
    for name in closure(requirements):
        files = metadata.distribution(name).files or []
        for part in {file.parts[0] for file in files} - {"..", "__pycache__"}:
            link = packages / part
            if not link.exists():
                link.symlink_to(metadata.distribution(name).locate_file(part))
    return folder / "bin/python"


@pytest.mark.slow
def test_a_fresh_environment_with_its_requirements_ends_with_the_same_bits(
    tiny: Tiny, data_folder: Path, tmp_path: Path
) -> None:
    """What a run did under the wall clock, followed by the package and by its bundle."""

    def walked(config: Config, name: str) -> dict[str, Any]:
        pipeline = Pipeline(config, RunFolder(tmp_path / name), lambda text: None)
        with pipeline.writing():
            return pipeline.walk()

    wall = tiny("train.clock=wall", "train.budget_s=4", "train.reserve_s=1")
    walked(wall, "wall")
    results = walked(
        override(wall, ["train.clock=replay", f"train.replay={tmp_path / 'wall'}"]), "followed"
    )
    made, empty = tmp_path / "made", tmp_path / "empty"
    write_bundle(wall, made)
    interpreter = fresh_interpreter(
        tmp_path / "venv", (made / "requirements.txt").read_text().splitlines()
    )
    empty.mkdir()
    alone: dict[str, Any] = {"cwd": empty, "env": {"OMP_NUM_THREADS": "1"}, "check": False}
    gone = subprocess.run([interpreter, "-c", "import fairway"], capture_output=True, **alone)
    assert b"No module named 'fairway'" in gone.stderr
    command = [interpreter, made / SCRIPT, data_folder, "out", "--replay", tmp_path / "wall"]
    ended = subprocess.run(command, capture_output=True, text=True, **alone)
    assert ended.returncode == 0, ended.stderr
    found = read_json(empty / "out/score.json")
    assert found["recipe_hash"] == results["recipe_hash"]
    assert found["artifact_digest"] == results["artifact"]["digest"]
    for name, stage in found["stages"].items():
        assert stage["nats"] == results["stages"][name]["nats"], name


def test_it_follows_a_run_and_overwrites_nothing(
    made: Path, smoke_run: Path, data_folder: Path, tmp_path: Path
) -> None:
    arguments = (str(data_folder), "out", "--replay", str(smoke_run), "--dry-run")
    ended = start(made / SCRIPT, *arguments, cwd=tmp_path / "empty", warm=True)
    assert ended.returncode == 0 and "seed 42" in ended.stdout, ended.stderr
    assert not (tmp_path / "empty/out").exists()
    (tmp_path / "empty/out").mkdir()
    ended = start(made / SCRIPT, str(data_folder), "out", cwd=tmp_path / "empty", warm=True)
    assert ended.returncode == 2 and "out exists already" in ended.stderr
    assert not list((tmp_path / "empty/out").iterdir())


@pytest.mark.long
def test_what_scoring_would_refuse_is_refused_before_training(
    tiny: Tiny, data_folder: Path, tmp_path: Path
) -> None:
    """As the package does: the validation text is shorter than a window."""
    config = tiny("score.truncate=true", "data.val_bytes=0", "data.val_tokens=20")
    # With its long names: to make them short takes longer than all else.
    (tmp_path / SCRIPT).write_text(flatten(config).text + _started(config).call(0))
    ended = start(tmp_path / SCRIPT, str(data_folder), "out", cwd=tmp_path / "empty", warm=True)
    assert ended.returncode == 2 and ended.stderr.count("\n") == 1
    assert ended.stderr.startswith("train_gpt.py: ") and "score.seq_len" in ended.stderr
    assert [*(tmp_path / "empty/out").iterdir()] == []


@pytest.mark.long
def test_another_process_elsewhere_makes_the_same_bytes(
    made: Path, settings: list[str], tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "fairway.cli", "bundle", "smoke", "--out", "b"]
    command += [word for text in settings for word in ("--set", text)]
    root = str(Path(__file__).parents[2])
    environment = os.environ | {"PYTHONPATH": root, "PYTHONHASHSEED": "7"}
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
    assert (tmp_path / "b" / SCRIPT).read_bytes() == (made / SCRIPT).read_bytes()
    assert (tmp_path / "b/bundle.json").read_bytes() == (made / "bundle.json").read_bytes()


def test_the_size_that_is_told_is_that_of_the_file_and_of_its_modules(made: Path) -> None:
    size, manifest = (made / SCRIPT).stat().st_size, read_json(made / "bundle.json")
    assert manifest["bytes"] == size == sum(module["bytes"] for module in manifest["modules"])
    names = {module["name"] for module in manifest["modules"]}
    assert not names & {"fairway.audit.scorers.probes", "fairway.data.build"}
    assert {"fairway.model.gpu.kernels", "fairway.score.sgd"} <= names


@pytest.mark.long
def test_its_gpu_kernels_are_those_of_the_package(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the shortened source, in the file where the interpreter of kernels looks for it."""
    pytest.importorskip("triton")
    config = tiny(*(f"model.{name}={value}" for name, value in ALL.items()))
    made = bundle(config)
    definitions = unwrap(made.file).rstrip().rpartition("\n")[0]
    (tmp_path / "bundled_kernels.py").write_text(definitions + "\n")
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("bundled_kernels")

    def named(name: str) -> Any:
        return getattr(module, made.names[name])

    # PyTorch calls what an operator keeps by the names of its parameters.
    assert list(inspect.signature(named("_fa4_keep")).parameters) == ["ctx", "inputs", "output"]
    own = alive(config.model)
    model = named("GPT")(named("ModelConfig")(**to_dict(config.model)))
    getattr(model, made.names.get("set_looping", "set_looping"))(True)
    model.load_state_dict(own.state_dict())
    prepare(own, torch.float32, "plain", "fused")
    named("prepare")(model, torch.float32, "plain", "fused")
    ids = torch.arange(2, 26).view(2, 12)
    losses = [one(ids, ids.roll(-1, 1)) for one in (own, model)]
    assert torch.equal(*losses)
    for loss in losses:
        loss.backward()
    theirs = dict(model.named_parameters())
    for name, weight in own.named_parameters():
        assert weight.grad is not None and torch.equal(weight.grad, theirs[name].grad), name
    optim = {"momentum_buffers": 3, "cautious": True}
    named("Optimisers")(model, named("OptimConfig")(**optim)).step(1.0, 3)
    Optimisers(own, OptimConfig(**optim)).step(1.0, 3)
    for name, weight in own.named_parameters():
        assert torch.equal(weight, theirs[name]), name


@pytest.mark.long
def test_any_edited_byte_is_noticed(made: Path) -> None:
    """One of every value that a byte has, and places all over; changed, dropped, doubled, cut."""
    path = made / SCRIPT
    data = path.read_bytes()
    places = {data.index(value) for value in set(data)} | set(range(0, len(data), len(data) // 40))
    edits: tuple[Callable[[int], bytes], ...] = (
        lambda at: data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :],
        lambda at: data[:at] + data[at + 1 :],
        lambda at: data[:at] + data[at : at + 1] + data[at:],
        lambda at: data[:at],
    )
    try:
        for number, at in enumerate(sorted(places)):
            path.write_bytes(edits[number % len(edits)](at))
            with pytest.raises(UserError):
                check_bundle(made)
    finally:
        path.write_bytes(data)
    check_bundle(made)


@pytest.mark.parametrize(
    "name", ["config", "fairway", "fixed_digest", "requirements", "sources", "tools"]
)
def test_a_manifest_that_lacks_a_field_or_has_another_kind_is_one_sentence(
    made: Path, name: str
) -> None:
    path = made / "bundle.json"
    good = path.read_bytes()
    manifest = read_json(path)
    try:
        for value in (None, 7, [7] if name != "requirements" else {}, [["\ud800"]]):
            changed = {**manifest, name: value}
            if value is None:
                del changed[name]
            path.write_text(json.dumps(changed))
            with pytest.raises(UserError, match=r"bundle\.json"):
                check_bundle(made)
    finally:
        path.write_bytes(good)
    check_bundle(made)


def test_what_cannot_be_bundled_is_refused(made: Path, tiny: Tiny) -> None:
    with pytest.raises(UserError, match="exists already"):
        write_bundle(tiny(), made)
    with pytest.raises(UserError, match="clock is replay"):
        bundle(tiny("train.clock=replay", "train.replay=run"))


def test_what_a_bundle_leaves_out_is_named(tiny: Tiny) -> None:
    assert left_out(tiny()) == ["prove.bytes"]
    asked = tiny("prove.bytes=0", "mixture.published=true", "mixture.experts=ppm")
    assert left_out(asked) == ["mixture.published"]


def test_no_path_of_this_machine_is_in_it(made: Path, data_folder: Path) -> None:
    program = unwrap((made / SCRIPT).read_bytes())
    for text in (program, (made / "bundle.json").read_text()):
        assert str(data_folder) not in text and str(Path(__file__).parents[2]) not in text
