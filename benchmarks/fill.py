"""The bytes that are estimated before packing, and the bytes that are written.

    python benchmarks/fill.py FOLDER [--limits 16000000] [--calibration 16384]

FOLDER holds sp8192.model, val.jsonl.zst and the trained seed weights (`seed_model`). Curvatures are
made from validation text, which only an estimate of bytes may do. The quotient is what
`quantise.fill.FIRST_MARGIN` must allow. Four minutes for one limit on two cores.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from score import read_text, read_weights

from fairway.api import model_from
from fairway.config.settings import RuntimeConfig
from fairway.data.tokens import Tokenizer
from fairway.machine.plan import make_plan
from fairway.pack.artifact import _all_at_once, _encode
from fairway.pack.layout import form_of, layout, threshold
from fairway.pack.model import CONTAINER_BYTES, _estimate
from fairway.quantise.calibrate import collect_hessians
from fairway.quantise.dependent import Plan
from fairway.quantise.fill import _within
from fairway.quantise.gptq import grid_of
from fairway.quantise.sensitivity import curvatures
from fairway.recipes import recipe

LENGTH = 1024


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--limits", type=int, nargs="*", default=[16_000_000])
    parser.add_argument("--calibration", type=int, default=16_384)
    options = parser.parse_args()
    plan, config = make_plan(RuntimeConfig(dtype="float32")), recipe("best_8")
    plan.apply()
    state, shape = read_weights(options.folder / "pr1858_ema_int8.safetensors")
    model = model_from(state, shape, plan, False)
    weights = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    tokenizer = Tokenizer.load(options.folder / "sp8192.model")
    text = read_text(tokenizer, options.folder / "val.jsonl.zst", options.calibration)
    ids = np.asarray(text.ids[: options.calibration]).astype(np.int64).reshape(-1, LENGTH)
    batches = torch.split(torch.from_numpy(ids), 2)
    names = [name for name, weight in weights.items() if grid_of(name, weight, config.quant)]
    hessians = collect_hessians(model, batches, names)
    curved = curvatures(model, batches[: len(batches) // 2], hessians, ids.size)
    steps = Plan(weights, curved, config.quant)
    for limit_bytes in options.limits:
        pack = replace(config.pack, limit_bytes=limit_bytes)
        estimate_at = _estimate(replace(config, pack=pack), steps, 0)
        level = _within(estimate_at, limit_bytes, *steps.levels())
        quantised = steps.quantise(level)
        specs = layout(shape, threshold(quantised), form_of(quantised, shape))
        stored = _all_at_once([_encode(spec, quantised, pack) for spec in specs])
        written, estimate = sum(map(len, stored)) + CONTAINER_BYTES, estimate_at(level)
        print(
            f"limit {limit_bytes:,}: estimated {estimate:,.0f} bytes, written {written:,}, "
            f"quotient {written / estimate:.5f}"
        )


if __name__ == "__main__":
    main()
