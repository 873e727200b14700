"""Two processes under `torchrun` train one model: same steps, one writer, finished artifact."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from fairway.data.build import build_data
from fairway.data.documents import Document
from fairway.data.folder import DataFolder


def test_two_processes_train_one_model(
    settings: list[str], data_folder: Path, tmp_path: Path
) -> None:
    texts = [
        Document(f"d{n}", t) for n, t in enumerate(DataFolder.open(data_folder).train_documents())
    ]
    two_shards = tmp_path / "data"
    build_data(texts, two_shards, vocab_size=300, val_share=0.1, shard_tokens=6000)
    assert len(DataFolder.open(two_shards).train_shards()) >= 2
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
        "-m", "fairway.cli", "run", "smoke", "--out", str(tmp_path / "run"), "--json",
    ]  # fmt: skip
    sets = [*settings, f"data.source={two_shards}", "train.steps=4", "train.warmup_steps=1"]
    command += [part for text in sets for part in ("--set", text)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr[-2000:]
    results = json.loads(ended.stdout)
    assert results["train"]["steps"] == 4 and results["train"]["tokens"] == 4096
    assert np.isfinite(results["stages"]["sliding"]["bpb"])
