"""What calibration, sensitivities and GPTQ of the seed model cost; are the codes right?

    python benchmarks/quantise.py [--weights FILE.safetensors] [--data FOLDER] [--small]

Without --weights the model is random, without --data the calibration text is random tokens; the
times are the same. --small takes the demo's model, for a CPU. The floor of calibration
is its products alone at the rate of the largest one; the codes of the first and last block and of
the embedding are compared with those of one matrix at a time on the CPU.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import torch
from seed_model import load_state
from torch import Tensor

from fairway.base.timing import settle
from fairway.config.settings import Config, RuntimeConfig
from fairway.data.folder import DataFolder
from fairway.data.loader import ShuffledLoader
from fairway.machine.plan import DTYPES, make_plan
from fairway.model.gpt import GPT, build
from fairway.model.paths import prepare
from fairway.quantise.calibrate import collect_hessians, gram
from fairway.quantise.gptq import Matrix, gptq_all, grid_of, quantise_model, tensor_stats
from fairway.quantise.grid import QuantisedTensor
from fairway.quantise.sensitivity import curvatures
from fairway.recipes import recipe

T = TypeVar("T")


def timed(work: Callable[[], T]) -> tuple[T, float]:
    """Return the work's result and seconds, everything the device was given included."""
    settle()
    start_s = time.perf_counter()
    result = work()
    settle()
    return result, time.perf_counter() - start_s


def model_of(config: Config, weights: Path | None) -> GPT:
    model = build(config.model)
    if weights:
        model.load_state_dict(load_state(weights))
    else:
        # Output projections start at zero, which would make their codes and inputs trivial.
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for weight in model.parameters():
                weight += 0.02 * torch.randn(weight.shape, generator=generator)
    model.set_looping(True)
    return model


def batches(config: Config, data: Path | None, count: int, device: str) -> Iterator[Tensor]:
    rows, length = config.train.micro_tokens // config.train.seq_len, config.train.seq_len
    if data:
        loader = ShuffledLoader(DataFolder.open(data).train_shards(), length, rows)
        for _ in range(count):
            yield torch.from_numpy(loader.next_batch()[0]).to(device)
        return
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        ids_BT = torch.randint(0, config.model.vocab_size, (rows, length), generator=generator)
        yield ids_BT.to(device)


def product_flops(config: Config, hessians: dict[str, Tensor], model: GPT, count: int) -> float:
    """Return the operations of all X^T X: once per tensor that is read, at every visit."""
    order = model.encoder_visits + model.decoder_visits
    distinct = {id(hessian): (name, len(hessian)) for name, hessian in hessians.items()}
    values = 0
    for name, columns in distinct.values():
        visits = order.count(int(name.split(".")[1])) if name.startswith("blocks.") else 1
        values += visits * columns**2
    return 2.0 * values * config.train.micro_tokens * count


def forward_only(model: GPT, ids: Iterator[Tensor]) -> None:
    model.eval()
    with torch.no_grad():
        for ids_BT in ids:
            model.hidden(ids_BT)


def gram_rate(columns: int, model: GPT, rows: int) -> float:
    """Return the operations per second of one X^T X, as calibration computes it."""
    x_NC = torch.randn(rows, columns, device=model.tok_emb.weight.device).to(model.compute_dtype)
    gram(x_NC)
    _, taken_s = timed(lambda: [gram(x_NC) for _ in range(5)])
    return 5 * 2.0 * rows * columns**2 / taken_s


def measure_hessians(
    config: Config, model: GPT, ids: Callable[[int], Iterator[Tensor]], count: int
) -> tuple[dict[str, Tensor], float]:
    """Print the seconds of calibration beside its floor; return the Hessians and the seconds."""
    state = model.state_dict()
    names = [name for name, weight in state.items() if grid_of(name, weight, config.quant)]
    collect_hessians(model, ids(1), names)
    _, forward_s = timed(lambda: forward_only(model, ids(count)))
    hessians, taken_s = timed(lambda: collect_hessians(model, ids(count), names))
    wide, narrow = (
        gram_rate(columns, model, config.train.micro_tokens)
        for columns in (config.model.mlp_dim, config.model.dim)
    )
    flops = product_flops(config, hessians, model, count)
    print(f"Hessians of {count} batches: {taken_s:.2f} s, of which reading {forward_s:.2f} s")
    print(
        f"  floor of the products {flops / wide:.2f} s at {wide / 1e12:.2f} TFLOP/s "
        f"(width {config.model.mlp_dim}); {narrow / 1e12:.2f} (width {config.model.dim})"
    )
    return hessians, taken_s


def measure_sensitivities(
    config: Config, model: GPT, ids: Callable[[int], Iterator[Tensor]], hessians: dict[str, Tensor],
    count: int,
) -> None:  # fmt: skip
    """Print the seconds of sensitivities, of the first call and of the second."""
    tokens = count * config.train.micro_tokens
    _, first_s = timed(lambda: curvatures(model, ids(count), hessians, tokens))
    _, again_s = timed(lambda: curvatures(model, ids(count), hessians, tokens))
    print(f"sensitivities of {tokens:,} tokens: {first_s:.2f} s, once more {again_s:.2f} s")


def measure_codes(
    config: Config, state: dict[str, Tensor], hessians: dict[str, Tensor]
) -> tuple[dict[str, QuantisedTensor], float]:
    """Print what GPTQ and the statistics take and give; return the codes and the seconds."""
    # The first call loads the device's linear algebra; a run pays for that once.
    _, first_s = timed(lambda: quantise_model(state, hessians, config.quant))
    quantised, again_s = timed(lambda: quantise_model(state, hessians, config.quant))
    coded = {n: t for n, t in quantised.items() if isinstance(t, QuantisedTensor)}
    print(f"GPTQ of {len(coded)} matrices: {first_s:.2f} s, once more {again_s:.2f} s")
    stats, stats_s = timed(
        lambda: [tensor_stats(n, state[n], t, hessians[n]) for n, t in coded.items()]
    )
    print(f"statistics: {stats_s:.2f} s")
    entropy_bytes = sum(s.entropy_bits * s.values for s in stats) / 8
    print(f"codes: {sum(s.values for s in stats):,}, order-0 entropy {entropy_bytes:,.0f} bytes")
    worse = [s.name for s in stats if s.error >= s.error_rounded]
    print("output error below plain rounding's: " + (f"not in {worse}" if worse else "everywhere"))
    return coded, first_s + stats_s


def compare(
    config: Config,
    state: dict[str, Tensor],
    hessians: dict[str, Tensor],
    coded: dict[str, QuantisedTensor],
) -> None:
    """Print the share of codes that one matrix at a time on the CPU finds too, and its time."""
    quant, last = config.quant, config.model.num_layers - 1
    off, values, total_s = 0, 0, 0.0
    for name, together in coded.items():
        grid = grid_of(name, state[name], quant)
        if grid is None or not name.startswith(("tok_emb.", "blocks.0.", f"blocks.{last}.")):
            continue
        inputs = state[name].cpu(), hessians[name].cpu()
        start_s = time.perf_counter()
        [(_, alone)] = gptq_all([Matrix(name, *inputs, grid)])
        total_s += time.perf_counter() - start_s
        off += int((alone.codes != together.codes).sum())
        values += alone.codes.numel()
    print(f"{values:,} codes one matrix at a time on the CPU: {total_s:.2f} s")
    print(f"  the same: {1 - off / values:.5%}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--batches", type=int)
    arguments = parser.parse_args()
    config = recipe("demo" if arguments.small else "pr1858")
    count = arguments.batches or (2 if arguments.small else 64)
    plan = make_plan(RuntimeConfig())
    plan.apply()
    print(plan.describe(), "| torch", torch.__version__)
    model = model_of(config, arguments.weights).to(plan.device)
    prepare(model, DTYPES[plan.dtype], plan.attention, plan.kernels)
    state = dict(model.state_dict())

    def ids(number: int) -> Iterator[Tensor]:
        return batches(config, arguments.data, number, plan.device)

    hessians, hessians_s = measure_hessians(config, model, ids, count)
    measure_sensitivities(config, model, ids, hessians, count)
    coded, codes_s = measure_codes(config, state, hessians)
    print(f"Hessians, GPTQ and statistics together: {hessians_s + codes_s:.2f} s")
    compare(config, state, hessians, coded)
    if plan.device == "cuda":
        print(f"peak memory {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")


if __name__ == "__main__":
    main()
