"""From averaged weights to an artifact: calibrate, quantise, write, and report the result."""

import dataclasses
import functools
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fairway.base.files import digest_file
from fairway.config.settings import Config, order_seed
from fairway.data.folder import DataFolder
from fairway.data.loader import ShuffledLoader
from fairway.model.gpt import GPT
from fairway.pack.artifact import Account, save_artifact
from fairway.pack.streams import prepare_coder
from fairway.quantise.calibrate import collect_hessians
from fairway.quantise.dependent import Plan
from fairway.quantise.estimate import CONTAINER_BYTES, estimate_bytes, factor_bytes
from fairway.quantise.fill import finest_fitting
from fairway.quantise.fit import smallest_fitting, with_sigmas
from fairway.quantise.gptq import (
    QuantisedModel,
    dequantise,
    grid_of,
    quantise_model,
    tensor_stats,
)
from fairway.quantise.grid import QuantisedTensor
from fairway.quantise.low_rank import corrected
from fairway.quantise.sensitivity import curvatures
from fairway.quantise.weights import void_fraction, weight_statistics
from fairway.train.steps import Say

# Bytes that the step of a row or a column takes in an artifact of a trained model.
_BYTES_PER_STEP = 0.32
# Statistics that are being made.
_Coming = Future[dict[str, Any]]


def pack_model(
    config: Config,
    code_bytes: int,
    model: GPT,
    state: dict[str, Tensor],
    source: DataFolder,
    path: Path,
    provenance: dict[str, Any],
    say: Say,
) -> dict[str, Any]:
    """Write the artifact of some weights and return its facts: bytes, sections, statistics.

    `model` holds `state` and reads the calibration text with recurrence on or off as it is now.
    `code_bytes` is the size of the code that counts with the artifact. With quant.fit the clip
    multiplier is raised, with a line through `say`, until artifact and code fit. If no multiplier
    is large enough, it raises UserError and leaves the file at `path` unchanged.
    """
    start_s = time.perf_counter()
    packs: dict[float, _Pack] = {}
    # Beside the artifact, since a file that does not fit must not replace it.
    place = tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent)
    with place as folder, ThreadPoolExecutor(1) as beside:
        if config.pack.codec == "cabac":
            beside.submit(prepare_coder)
        text = _Calibration(config, source, model.tok_emb.weight.device)
        hessians = _hessians(text, model, state)
        method = _method(text, code_bytes, model, state, hessians)
        calibrated_s = time.perf_counter()

        def tell(quantised: QuantisedModel) -> _Coming:
            return beside.submit(_statistics, state, hessians, quantised)

        def size_at(setting: float) -> int:
            file = Path(folder) / str(len(packs))
            # The first pack is nearly always the one that is kept.
            packs[setting] = _pack(text, method, setting, file, provenance, None if packs else tell)
            return packs[setting].bytes + code_bytes

        chosen = method.choose(size_at)
        chosen_s = time.perf_counter()
        kept = packs[chosen]
        kept.file.replace(path)
        statistics = kept.statistics or _statistics(state, hessians, kept.quantised)
    assert sum(count for _, count in kept.account) == path.stat().st_size, "bytes are missing"
    if chosen != method.asked:
        say(
            f"{method.what} {method.asked:.4g} -> {chosen:.4g} so that artifact and code fit: "
            f"{kept.bytes + code_bytes:,} of {config.pack.limit_bytes:,} bytes"
        )
    return {
        **_bytes(config, code_bytes, packs.values(), kept),
        method.key: chosen,
        "digest": digest_file(path),
        **statistics,
        "seconds": _seconds((start_s, calibrated_s, chosen_s), packs.values()),
    }


def _bytes(
    config: Config, code_bytes: int, packs: Collection["_Pack"], kept: "_Pack"
) -> dict[str, Any]:
    """Return the sizes of the packs and of the sections of the one that is kept."""
    return {
        "bytes": kept.bytes,
        "matrix_sigmas": None,
        "level": None,
        # Of artifact and code, in the order of the packs.
        "sizes": [pack.bytes + code_bytes for pack in packs],
        "limit_bytes": config.pack.limit_bytes,
        "code_bytes": code_bytes,
        "sections": [{"name": name, "bytes": count} for name, count in kept.account],
    }


def _seconds(times_s: tuple[float, float, float], packs: Collection["_Pack"]) -> dict[str, float]:
    """Return the seconds of the parts, from when packing and estimates began and ended.

    Of the statistics, which are made beside the first coding, it is what was left to do.
    """
    start_s, calibrated_s, chosen_s = times_s
    quantise_s = sum(pack.quantise_s for pack in packs)
    coding_s = sum(pack.write_s for pack in packs)
    waited_s = sum(pack.statistics_s for pack in packs)
    return {
        "calibrate": calibrated_s - start_s,
        "estimate": chosen_s - calibrated_s - quantise_s - coding_s - waited_s,
        "quantise": quantise_s,
        "coding": coding_s,
        "statistics": time.perf_counter() - chosen_s + waited_s,
    }


def _statistics(
    state: dict[str, Tensor], hessians: dict[str, Tensor], quantised: QuantisedModel
) -> dict[str, Any]:
    """Return the effect of rounding on the weights, ready for JSON."""
    coded = {n: t for n, t in quantised.items() if isinstance(t, QuantisedTensor)}
    restored = dequantise(quantised)
    return {
        "weights": {
            **weight_statistics(state, {n: t.codes.numpy() for n, t in coded.items()}),
            "void_fractions": {
                "average": void_fraction(state.items()),
                "artifact": void_fraction(restored.items()),
            },
        },
        # The effect of rounding on each coded matrix.
        "matrices": [
            dataclasses.asdict(
                tensor_stats(name, state[name], tensor, hessians.get(name), restored[name])
            )
            for name, tensor in coded.items()
        ],
    }


@dataclass(frozen=True, slots=True, eq=False)
class _Calibration:
    """The training batches of rank 0, from the first one on; reading them counts as training
    time."""

    config: Config
    source: DataFolder
    device: torch.device

    def batches(self, tokens: int) -> Iterator[Tensor]:
        """Yield batches of token ids [B, T], about as many tokens in total as given."""
        train = self.config.train
        rows = train.micro_tokens // train.seq_len
        shards, order = self.source.train_shards(train.shards), order_seed(self.config)
        loader = ShuffledLoader(shards, train.seq_len, rows, order_seed=order)
        for _ in range(self._count(tokens)):
            yield torch.from_numpy(loader.next_batch()[0]).to(self.device)

    def positions(self, tokens: int) -> int:
        """Return the number of these tokens."""
        return self._count(tokens) * self.config.train.micro_tokens

    def _count(self, tokens: int) -> int:
        return max(1, tokens // self.config.train.micro_tokens)


@dataclass(frozen=True, slots=True, eq=False)
class _Pack:
    """The artifact of one clip multiplier, and the cost of making it.

    `statistics` are those of its rounding, if they were asked for.
    """

    file: Path
    bytes: int
    quantised: QuantisedModel
    account: Account
    quantise_s: float
    write_s: float
    statistics_s: float
    statistics: dict[str, Any] | None


def _pack(
    text: _Calibration,
    method: "_Method",
    setting: float,
    file: Path,
    provenance: dict[str, Any],
    told: Callable[[QuantisedModel], _Coming] | None,
) -> _Pack:
    config, tokenizer = text.config, text.source.tokenizer
    start_s = time.perf_counter()
    quantised = method.quantise(setting)
    quantised_s = time.perf_counter()
    waiting = told(quantised) if told else None
    account = save_artifact(file, quantised, config.model, config.pack, tokenizer, provenance)
    end_s = time.perf_counter()
    size = file.stat().st_size
    taken_s = quantised_s - start_s, end_s - quantised_s
    # They set the precision of products for the whole process, so another pack must not begin yet.
    statistics = waiting.result() if waiting else None
    return _Pack(file, size, quantised, account, *taken_s, time.perf_counter() - end_s, statistics)


@dataclass(frozen=True, slots=True, eq=False)
class _Method:
    """A quantiser with one adjustable number: its name, its requested value and how a value is
    chosen.

    `choose` packs at one or several values, by a function that returns bytes, and returns the value
    to keep.
    """

    key: str
    what: str
    asked: float
    quantise: Callable[[float], QuantisedModel]
    choose: Callable[[Callable[[float], int]], float]


def _method(
    text: _Calibration,
    code_bytes: int,
    model: GPT,
    state: dict[str, Tensor],
    hessians: dict[str, Tensor],
) -> _Method:
    config, quant = text.config, text.config.quant
    if quant.method == "trellis":
        # At most as many as the Hessians have read.
        few = text.batches(min(quant.gradient_tokens, quant.calibration_tokens))
        positions = text.positions(quant.calibration_tokens)
        plan = Plan(state, curvatures(model, few, hessians, positions), quant)
        method = _by_level(config, plan, code_bytes)
    else:
        method = _by_sigmas(config, model, state, hessians)
    return _with_corrections(method, state, quant.lqer_rank) if quant.lqer_rank else method


def _with_corrections(method: _Method, state: dict[str, Tensor], rank: int) -> _Method:
    """Return a quantiser that adds corrections to the worst matrices."""

    def quantise(setting: float) -> QuantisedModel:
        return corrected(method.quantise(setting), state, rank)

    return dataclasses.replace(method, quantise=quantise)


def _by_level(config: Config, plan: Plan, code_bytes: int) -> _Method:
    quant, limit_bytes = config.quant, config.pack.limit_bytes
    asked = plan.level_for(quant.rate_bits)

    def choose(size_at: Callable[[float], int]) -> float:
        if quant.fit:
            estimate_at = _estimate(config, plan, code_bytes)
            return finest_fitting(limit_bytes, size_at, estimate_at, plan.levels())
        size_at(asked)
        return asked

    return _Method("level", "level of the steps", asked, plan.quantise, choose)


def _estimate(config: Config, plan: Plan, code_bytes: int) -> Callable[[float], float]:
    """Return the bytes of artifact and code at a level, estimated from the codes of a few rows near
    the limit."""
    numbers = sum(group.cost.numel() + group.columns.numel() for group in plan.groups)
    beside = code_bytes + CONTAINER_BYTES + _BYTES_PER_STEP * numbers
    beside += 2 * sum(tensor.numel() for tensor in plan.kept.values() if isinstance(tensor, Tensor))
    shapes = [tuple(weights.shape) for group in plan.groups for weights in group.weights]
    beside += factor_bytes(shapes, config.quant)
    weights = sum(group.weights.numel() for group in plan.groups)
    near = plan.level_for(8 * (config.pack.limit_bytes - beside) / max(weights, 1))
    beside += (plan.sampled_bits(near) - plan.expected_bits(near)) / 8
    return lambda level: beside + plan.expected_bits(level) / 8


def _by_sigmas(
    config: Config, model: GPT, state: dict[str, Tensor], hessians: dict[str, Tensor]
) -> _Method:
    quant, at = config.quant, functools.partial(with_sigmas, config.quant)

    def choose(size_at: Callable[[float], int]) -> float:
        if quant.fit:
            limit_bytes = config.pack.limit_bytes
            return smallest_fitting(
                quant.matrix_sigmas, limit_bytes, size_at, lambda s: estimate_bytes(model, at(s))
            )
        size_at(quant.matrix_sigmas)
        return quant.matrix_sigmas

    return _Method(
        "matrix_sigmas",
        "clip multiplier",
        quant.matrix_sigmas,
        lambda sigmas: quantise_model(state, hessians, at(sigmas)),
        choose,
    )


def _hessians(text: _Calibration, model: GPT, state: dict[str, Tensor]) -> dict[str, Tensor]:
    quant = text.config.quant
    names = [name for name, weight in state.items() if grid_of(name, weight, quant) is not None]
    if quant.method == "round" or not names:
        return {}
    return collect_hessians(model, text.batches(quant.calibration_tokens), names)
