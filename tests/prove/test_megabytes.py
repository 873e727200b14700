"""Five megabytes through a model of the full size on a GPU, both ways; 2.5 kB of a small one."""

import json
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from damage import run_command
from shared import forking

from fairway.config.settings import ModelConfig, PackConfig, QuantConfig, ScoreConfig
from fairway.config.written import to_dict
from fairway.data.tokens import Tokenizer, train_tokenizer
from fairway.model.gpt import build
from fairway.pack.artifact import save_artifact
from fairway.quantise.gptq import quantise_model

FULL = ModelConfig()
SMALL = replace(
    FULL, vocab_size=400, num_layers=3, dim=32, num_heads=4, num_kv_heads=2, mlp_dim=64,
    rope_dims=4, parallel_from=2, loop_first=1, loop_last=1, loop_extra=1,
)  # fmt: skip
# Each way on one H100 takes a fraction of it (benchmarks/README.md).
LIMIT_S = 200
ON_A_GPU = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]


def text_of_words(count: int, size: int) -> bytes:
    """Return so many bytes of lines of made-up words, drawn at random."""
    draw = np.random.default_rng(3)
    letters = [bytes(draw.integers(97, 123, draw.integers(3, 9)).tolist()) for _ in range(count)]
    lines = draw.integers(0, count, (size // 30, 10))
    return b"\n".join(b" ".join(letters[n] for n in line) for line in lines)[:size]


def artifact_of(config: ModelConfig, seq_len: int, text: str, out: Path) -> Path:
    """Write a model that has learned nothing, whose every weight matters.

    Words are pieces, so that even equal shares for all pieces pay.
    """
    model = build(config, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.01 * torch.randn(weight.shape, generator=generator))
    quantised = quantise_model(model.state_dict(), {}, QuantConfig(method="round", min_numel=256))
    provenance = {
        "recipe": "random", "recipe_hash": "0" * 16, "seed": 1, "looping": True,
        "score": to_dict(ScoreConfig(seq_len=seq_len, stride=seq_len // 32)), "fairway": "0",
    }  # fmt: skip
    tokenizer = Tokenizer.from_bytes(train_tokenizer([text], config.vocab_size))
    pack, path = PackConfig(codec="raw", with_tokenizer=True), out / "artifact.fwy"
    save_artifact(path, quantised, config, pack, tokenizer, provenance)
    return path


@pytest.mark.long
@pytest.mark.parametrize(
    ("config", "seq_len", "words", "size"),
    [
        pytest.param(SMALL, 64, 50, 2_499, id="small"),
        pytest.param(FULL, 2048, 5_000, 5_000_000, id="full", marks=ON_A_GPU),
    ],
)
def test_a_text_survives_both_ways(
    config: ModelConfig,
    seq_len: int,
    words: int,
    size: int,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = text_of_words(words, size)
    assert len(data) == size
    artifact = artifact_of(config, seq_len, data[:300_000].decode(), tmp_path)
    monkeypatch.chdir(tmp_path)
    Path("text").write_bytes(data)
    device = "cuda" if config is FULL else "cpu --set runtime.threads=1"
    line = f"compress text --artifact {artifact} --json --set runtime.device={device}"
    code, out, err = run_command(line.split(), capsys, monkeypatch)
    assert code == 0, err
    facts = json.loads(out)
    assert facts["bytes"] == size and facts["compressed_bytes"] < 0.7 * size
    assert facts["seconds"] < LIMIT_S
    start_s = time.perf_counter()
    line = f"decompress text.fwz --artifact {artifact} --out again"
    subprocess.run([*forking(), *line.split()], check=True)
    assert time.perf_counter() - start_s < LIMIT_S
    assert Path("again").read_bytes() == data
    file = Path("text.fwz").read_bytes()
    for spoilt in (file[:-1], file[: len(file) // 2], file[:-99] + b"\1\2" + file[-97:]):
        Path("spoilt").write_bytes(spoilt)
        line = f"decompress spoilt --artifact {artifact} --out other"
        code, out, err = run_command(line.split(), capsys, monkeypatch)
        assert code == 2 and "damaged or cut short" in err
        assert not Path("other").exists()
