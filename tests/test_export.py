"""An exported artifact is the model: the same weights, hence the same scores."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fairway.api import load
from fairway.base.errors import UserError
from fairway.base.files import digest_file, read_json
from fairway.config.settings import ModelConfig
from fairway.config.written import from_dict
from fairway.machine.plan import Plan
from fairway.model.gpt import build
from fairway.pipeline.export import export


def test_weights_and_config_make_the_same_model(smoke_run: Path, tmp_path: Path) -> None:
    facts = export(smoke_run, tmp_path / "out", "safetensors")
    tensors, config = (
        load_file(tmp_path / "out/model.safetensors"),
        read_json(tmp_path / "out/config.json"),
    )
    assert (
        config == facts
        and digest_file(tmp_path / "out/model.safetensors") == facts["weights_digest"]
    )
    assert all(value.dtype == torch.float32 for value in tensors.values())
    plan = Plan("cpu", "float32", "highest", 1, "plain")
    own = load(smoke_run, plan=plan).model
    shape: ModelConfig = from_dict(config["model"], ModelConfig)
    model = build(shape)
    model.load_state_dict(tensors)
    model.set_looping(config["provenance"]["looping"])
    ids = torch.arange(2, 34)[None]
    model.set_compute(own.compute_dtype, "plain")
    with torch.no_grad():
        assert torch.equal(model.logits(model.hidden(ids)), own.logits(own.hidden(ids)))


def test_what_is_there_stays_and_unknown_formats_are_refused(
    smoke_run: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="format 'x' is unknown"):
        export(smoke_run, tmp_path, "x")
    (tmp_path / "config.json").write_text("mine")
    with pytest.raises(UserError, match="exists already"):
        export(smoke_run, tmp_path, "safetensors")
    assert (tmp_path / "config.json").read_text() == "mine"
