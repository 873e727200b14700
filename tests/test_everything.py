"""A run whose model has all that a model can have goes through every stage, proof and audit too."""

from collections.abc import Callable
from pathlib import Path

import pytest
from features import ALL
from small_run import sample_little

from fairway.base.files import read_json
from fairway.config.settings import Config
from fairway.pipeline.folder import RunFolder
from fairway.pipeline.run import Pipeline

SETTINGS = [f"model.{name}={value}" for name, value in ALL.items()]
TRAINED = [
    "train.documents=true", "train.windows=8@0.3 16@0.6",
    "optim.momentum_buffers=3", "optim.row_beta=0.9", "optim.newton=0.5", "optim.cautious=true",
    "optim.min_lr=0.1",
    "quant.lqer_rank=2", "quant.min_numel=256",
    "data.shuffle_documents=true",
]  # fmt: skip


# Each method scores in one run and proves in the other.
@pytest.mark.long
@pytest.mark.parametrize(
    ("method", "proving"), [("lora", "sgd"), pytest.param("sgd", "lora", marks=pytest.mark.slow)]
)
def test_every_stage_takes_every_feature(
    method: str,
    proving: str,
    tiny: Callable[..., Config],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = tiny(
        *SETTINGS, *TRAINED, f"ttt.method={method}", f"prove.method={proving}", "prove.bytes=60",
        "quant.method=trellis", "quant.gradient_tokens=512", "pack.codec=cabac",
        "ttt.lora_rank=2", "ttt.lora_factors=mlp 0.5 head 2", "ttt.lora_chunks=8@16 32",
        "ttt.lora_logit_factor=0.9", "ttt.lora_frozen_share=0.2",
        "audit.budget_s=0.1", "data.val_bytes=200",
        "train.steps=8",
    )  # fmt: skip
    sample_little(monkeypatch)
    pipeline = Pipeline(config, RunFolder(tmp_path / "run"), lambda text: None)
    with pipeline.writing():
        pipeline.walk()
    results = read_json(tmp_path / "run" / "results.json")
    assert {"raw", "ema", "quantised", "sliding", "ttt"} <= results["stages"].keys()
    assert results["audit"]["verdict"] == "valid"
    # The proof has been restored by a process of its own.
    assert results["proof"]["tokens"] > 0
