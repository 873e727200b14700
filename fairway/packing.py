"""From averaged weights to an artifact: calibrate, quantise, write, and say what came of it."""

import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fairway.config import Config
from fairway.data.folder import DataFolder
from fairway.data.loader import ShuffledLoader
from fairway.files import digest_file
from fairway.model.gpt import GPT
from fairway.pack.artifact import save_artifact
from fairway.quantise.calibrate import collect_hessians
from fairway.quantise.gptq import grid_of, needs_hessian, quantise_model, tensor_stats
from fairway.quantise.grid import QuantisedTensor
from fairway.weights import weight_statistics


def pack_model(
    config: Config,
    model: GPT,
    state: dict[str, Tensor],
    source: DataFolder,
    path: Path,
    provenance: dict[str, Any],
) -> dict[str, Any]:
    """Write the artifact of some weights and return its facts: bytes, sections, statistics.

    `model` holds `state` and reads the calibration text in its present looping state.
    """
    start_s = time.perf_counter()
    hessians = _hessians(config, model, state, source)
    calibrated_s = time.perf_counter()
    quantised = quantise_model(state, hessians, config.quant)
    quantised_s = time.perf_counter()
    account = save_artifact(
        path, quantised, config.model, config.pack, source.tokenizer, provenance
    )
    packed_s = time.perf_counter()
    size = path.stat().st_size
    assert sum(count for _, count in account) == size, "the byte account misses the file size"
    coded = {n: t for n, t in quantised.items() if isinstance(t, QuantisedTensor)}
    return {
        "bytes": size,
        "digest": digest_file(path),
        "limit_bytes": config.pack.limit_bytes,
        "code_bytes": config.pack.code_bytes,
        "sections": [{"name": name, "bytes": count} for name, count in account],
        "weights": weight_statistics(state, {n: t.codes.numpy() for n, t in coded.items()}),
        "matrices": [
            dataclasses.asdict(tensor_stats(n, state[n], t, hessians.get(n)))
            for n, t in coded.items()
        ],
        "seconds": {
            "calibrate": calibrated_s - start_s,
            "quantise": quantised_s - calibrated_s,
            "pack": packed_s - quantised_s,
        },
    }


def _hessians(
    config: Config, model: GPT, state: dict[str, Tensor], source: DataFolder
) -> dict[str, Tensor]:
    quant = config.quant
    names = [
        name
        for name, weight in state.items()
        if grid_of(name, weight, quant) is not None and needs_hessian(name, state)
    ]
    if quant.method != "gptq" or not names:
        return {}
    return collect_hessians(model, _calibration(config, source, model), names)


def _calibration(config: Config, source: DataFolder, model: GPT) -> Iterator[Tensor]:
    """Yield the first training batches of rank 0: reading them again is training time."""
    train = config.train
    loader = ShuffledLoader(
        source.train_shards(), train.seq_len, train.micro_tokens // train.seq_len
    )
    for _ in range(max(1, config.quant.calibration_tokens // train.micro_tokens)):
        yield torch.from_numpy(loader.next_batch()[0]).to(model.tok_emb.weight.device)
