"""A training that begins with the weights of a run or of an artifact."""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from damage import Cli
from small_run import sample_little

from fairway.api import load
from fairway.base.files import digest_file, read_json
from fairway.config.settings import Config
from fairway.data.build import build_data
from fairway.data.documents import Document
from fairway.data.folder import DataFolder
from fairway.pipeline.folder import RunFolder
from fairway.pipeline.run import Pipeline
from fairway.train.checkpoint import load_checkpoint

STILL = ["optim.matrix_lr=0", "optim.embed_lr=0", "optim.scalar_lr=0", "train.steps=2"]


@pytest.fixture
def trained(tiny: Callable[..., Config], tmp_path: Path) -> Callable[..., Path]:
    """Return a function: the folder of a run that was trained with overrides."""

    def train(*overrides: str, pack: bool = False) -> Path:
        folder = tmp_path / "begun"
        said: list[str] = []
        pipeline = Pipeline(tiny(*overrides), RunFolder(folder), said.append)
        with pipeline.writing():
            pipeline.train()
            if pack:
                pipeline.pack()
        assert any("training begins with the weights of" in line for line in said)
        return folder

    return train


@pytest.mark.parametrize("kind", ["run", "artifact"])
def test_weights_that_learn_nothing_are_those_of_the_beginning(
    kind: str, smoke_run: Path, trained: Callable[..., Path]
) -> None:
    path = smoke_run if kind == "run" else smoke_run / "artifact.fwy"
    folder = trained(f"train.init={path}", *STILL)
    weights, _ = load_checkpoint(folder / "weights.safetensors")
    if kind == "run":
        first, _ = load_checkpoint(smoke_run / "weights.safetensors")
        expected = {n.removeprefix("ema."): w for n, w in first.items() if n.startswith("ema.")}
    else:
        expected = dict(load(path).model.state_dict())
    for name, weight in expected.items():
        # The embedding is kept in bfloat16 while it is trained, where the settings say so.
        assert torch.equal(
            weights[f"raw.{name}"].float(), weight.cpu().to(weights[f"raw.{name}"].dtype).float()
        )
    facts = RunFolder(folder).facts("train")
    assert facts is not None and facts["init"]["kind"] == kind
    assert facts["init"]["recipe"] == "smoke" and facts["init"]["seed"] == 42


NO_EVIDENCE = ("prove.bytes=0", "audit.budget_s=0")


@pytest.mark.long
def test_such_a_run_goes_on_learning_and_tells_where_it_began(
    smoke_run: Path,
    tiny: Callable[..., Config],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sample_little(monkeypatch)
    first = read_json(smoke_run / "results.json")
    moved = Path(shutil.copytree(smoke_run, tmp_path / "first"))
    config = tiny(f"train.init={moved}", "train.loop_from=0", "train.steps=6", *NO_EVIDENCE)
    pipeline = Pipeline(config, RunFolder(tmp_path / "run"), lambda text: None)
    with pipeline.writing():
        results = pipeline.walk()
    assert results["stages"]["raw"]["bpb"] < first["stages"]["raw"]["bpb"]
    digest = digest_file(moved / "weights.safetensors")
    assert results["train"]["init"]["digest"] == digest
    assert results["config"]["train"]["init"] == f"sha256:{digest}"
    assert str(tmp_path) not in (tmp_path / "run" / "results.json").read_text()
    assert results["recipe_hash"] != first["recipe_hash"] and results["audit"]["passed"]
    # Nothing is trained again while the weights are those; others are noticed by their digest.
    again = Pipeline(config, RunFolder(tmp_path / "run"), lambda text: None)
    assert again.folder.is_done("train", again._inputs.of("train"))
    (moved / "weights.safetensors").unlink()
    assert not again.folder.is_done("train", again._inputs.of("train"))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (["model.dim=32"], "model.dim is 64 there and 32 here"),
        (["model.mlp_dim=64", "model.smear=true"], "model.mlp_dim is 128 there and 64 here, "),
        (["model.num_layers=3"], "model.num_layers is 4 there and 3 here"),
        (["model.gate_features=3"], "model.gate_features is 0 there and 3 here"),
    ],
)
def test_other_shapes_are_refused_with_both_values(
    changes: list[str], told: str, smoke_run: Path, settings: list[str], tmp_path: Path, cli: Cli
) -> None:
    sets = [w for t in (*settings, *changes, f"train.init={smoke_run}") for w in ("--set", t)]
    found = cli("train", "smoke", "--out", tmp_path / "run", *sets)
    assert found.code == 2 and told in found.err and found.err.count("\n") == 1, found.err
    assert not (tmp_path / "run" / "run.json").exists()


@pytest.mark.parametrize("name", ["gone", "empty", "text.txt"])
def test_what_holds_no_weights_is_refused(
    name: str, settings: list[str], tmp_path: Path, cli: Cli
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").write_text("no artifact")
    sets = [w for t in (*settings, f"train.init={tmp_path / name}") for w in ("--set", t)]
    found = cli("train", "smoke", "--out", tmp_path / "run", *sets)
    assert found.code == 2 and found.err.count("\n") == 1 and name in found.err, found.err


def test_another_tokenizer_is_refused_and_that_of_the_weights_can_be_kept(
    smoke_run: Path, settings: list[str], tmp_path: Path, cli: Cli
) -> None:
    words = [hashlib.sha256(str(n).encode()).hexdigest()[: 2 + n % 5] for n in range(4000)]
    texts = [Document(f"d{n}", " ".join(words[100 * n : 100 * n + 100])) for n in range(40)]
    how = {"vocab_size": 300, "val_share": 0.2, "shard_tokens": 1000}
    build_data(texts, tmp_path / "other", **how)
    own = DataFolder.open(Path(settings[0].partition("=")[2])).tokenizer
    build_data(texts, tmp_path / "same", tokenizer=own, **how)
    for name, code in (("other", 2), ("same", 0)):
        sets = [w for t in (*settings, f"data.source={tmp_path / name}", "train.steps=2",
                            "train.batch_tokens=64", "train.micro_tokens=64",
                            "data.val_bytes=300", f"train.init={smoke_run}")
                for w in ("--set", t)]  # fmt: skip
        found = cli("train", "smoke", "--out", tmp_path / name / "run", *sets)
        assert found.code == code, found.err
        if code:
            assert "build the data with the tokenizer of train.init" in found.err


def test_a_bundle_holds_no_weights(smoke_run: Path, tmp_path: Path, cli: Cli) -> None:
    found = cli("bundle", "smoke", "--out", tmp_path / "b", "--set", f"train.init={smoke_run}")
    assert found.code == 2 and "a bundle contains no weights" in found.err
