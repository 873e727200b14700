"""Folders in the challenge's format, written from the figures of `fairway.submission.published`."""

import base64
import json
import lzma
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fairway.base.units import NATS_PER_BIT
from fairway.submission.published import Seed, record

SCRIPT = """
import os
import torch
class Hyperparameters:
    seed = int(os.environ.get("SEED", 1337))
    qk_gain_init = float(os.environ.get("QK_GAIN_INIT", 5.25))
    ttt_epochs = int(os.environ.get("TTT_EPOCHS", 2))
    ttt_chunk_tokens = int(os.environ.get("TTT_CHUNK_TOKENS", 32768))
    matrix_lr, ttt_enabled, data_dir, loop_start = 0.022, True, ".", 3
def eval_val_ttt(h, device, val_data, base_model):
    for chunk in chunks(val_data.val_tokens):
        with torch.no_grad():
            loss_sum += base_model(chunk)
        loss = base_model(chunk)
        loss.backward()
        optimizer.step()
def main(h):
    train_model(h)
    serialize(h)
    eval_val_ttt(h, 0, val_data, model)
"""
SETTINGS = {
    "data_dir": "./data/", "loop_start": "3", "matrix_lr": "0.022", "qk_gain_init": "5.25",
    "seed": "42", "ttt_chunk_tokens": "32768", "ttt_enabled": "True", "ttt_epochs": "2",
}  # fmt: skip
README = """# Recurrence and test-time training

val_bpb: **1.0810** (3-seed mean), 2 epochs of TTT.

```bash
QK_GAIN_INIT=5.25 TTT_EPOCHS=2 NCCL_DEBUG=INFO SEED=42 torchrun --nproc_per_node=8 train_gpt.py
```
"""
BYTES_PER_TOKEN = 151_078_222 / 40_540_160


@dataclass
class Case:
    """One record: change what is to be wrong, then write it."""

    seeds: list[Seed] = field(default_factory=lambda: record("pr1858").seeds)
    script: str = SCRIPT
    shipped_bytes: int = 0
    readme: str = README
    claim: dict[str, Any] = field(default_factory=dict)
    settings: dict[int, dict[str, str]] = field(default_factory=dict)
    extra: dict[int, str] = field(default_factory=dict)
    before: dict[int, str] = field(default_factory=dict)
    val_tokens: int = 40_540_160
    train_shards: int = 80
    bytes_per_token: float = BYTES_PER_TOKEN
    hessian_s: float = 11.5
    eval_s: float = 395.3

    def change(self, seed: int, **numbers: Any) -> "Case":
        """Change a seed's figures."""
        self.seeds = [replace(s, **numbers) if s.seed == seed else s for s in self.seeds]
        return self

    def log(self, seed: Seed) -> str:
        """Return a log as the challenge's scripts print them."""
        settings = SETTINGS | {"seed": str(seed.seed)} | self.settings.get(seed.seed, {})
        ms = seed.train_s * 1e3 / seed.steps
        stages = {
            "pre-quantization post-ema": (seed.bpb["ema"], 5094),
            "quantized": (seed.bpb["quantised"], 19115),
            "quantized_sliding_window": (seed.bpb.get("sliding", seed.bpb["ema"]), 90000),
            "quantized_ttt": (seed.bpb["adapted"], int(self.eval_s * 1e3)),
        }
        lines = ["Hyperparameters:", *(f"  {n}: {v}" for n, v in settings.items())]
        lines += [
            f"train_shards: {self.train_shards}", f"val_tokens: {self.val_tokens}",
            "model_params:35944536",
            "gptq:reserving 12s, effective=588000ms",
            "step:0/20000 val_loss:9.0090 val_bpb:3.4877 train_time:0ms step_avg:0.01ms",
            f"step:1000/20000 train_loss:3.2821 train_time:{ms * 1000:.0f}ms step_avg:{ms:.2f}ms",
            f"{seed.steps}/20000 val_loss: 2.8113 val_bpb: 1.0883",
            f"stopping_early: wallclock_cap train_time: {seed.train_s * 1e3:.0f}ms "
            f"step: {seed.steps}/20000",
            "peak memory allocated: 39045 MiB reserved: 39148 MiB",
            f"Code size: {seed.code_bytes} bytes",
            f"GPTQ:collected 67 Hessians in {self.hessian_s}s",
            f"Serialized model quantized+brotli: {seed.artifact_bytes} bytes",
            f"Total submission size brotli: {seed.artifact_bytes + seed.code_bytes} bytes",
        ]  # fmt: skip
        lines += self.before.get(seed.seed, "").splitlines()
        for name, (bpb, ms) in stages.items():
            loss = bpb * NATS_PER_BIT * self.bytes_per_token
            lines.append(f"{name} val_loss:{loss:.8f} val_bpb:{bpb:.8f} eval_time:{ms}ms")
        return "\n".join(lines) + "\n" + self.extra.get(seed.seed, "")

    def write(self, folder: Path) -> Path:
        """Write the folder and return it."""
        folder.mkdir(parents=True, exist_ok=True)
        for seed in self.seeds:
            (folder / f"train_seed{seed.seed}.log").write_text(self.log(seed))
        size = self.shipped_bytes or self.seeds[0].code_bytes
        script = self.script + "#" * max(0, size - len(self.script.encode()))
        (folder / "train_gpt.py").write_text(script)
        (folder / "README.md").write_text(self.readme)
        scores = [seed.bpb["adapted"] for seed in self.seeds]
        claim = {
            "author": "someone", "val_bpb": round(sum(scores) / len(scores), 5),
            "seed_results": {str(s.seed): {"val_bpb": s.bpb["adapted"]} for s in self.seeds},
            "bytes_total": max(s.artifact_bytes + s.code_bytes for s in self.seeds),
            **self.claim,
        }  # fmt: skip
        (folder / "submission.json").write_text(json.dumps(claim))
        return folder


def wrapped(source: str) -> str:
    """Return a script that unpacks and runs another one, as records ship them."""
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9}]
    packed = lzma.compress(source.encode(), format=lzma.FORMAT_RAW, filters=filters)
    return (
        "import lzma as L,base64 as B\n"
        f'exec(L.decompress(B.b85decode("{base64.b85encode(packed).decode()}"),'
        'format=L.FORMAT_RAW,filters=[{"id":L.FILTER_LZMA2}]))\n'
    )
