"""The training speed of this machine, from a few steps of small models.

The time of a step has three parts: a constant per visit of a block, the matrix products, and the
products of the optimiser. Three numbers give the cost of each part. They are fitted to measured
steps and noted for this machine and version.
"""

import dataclasses
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import torch
from scipy.optimize import nnls

from fairway.base.arrays import FloatArray
from fairway.base.cores import usable_cores
from fairway.base.files import digest_json
from fairway.base.notes import Notes
from fairway.base.timing import Pace, pace
from fairway.config.settings import Config, ModelConfig
from fairway.machine.plan import DTYPES, Plan
from fairway.model.gpt import build, visits
from fairway.model.paths import prepare
from fairway.planning.cost import size_of
from fairway.train.muon import Optimisers
from fairway.version import VERSION

# A function that returns the seconds of an optimiser step of a config under a plan.
Measure = Callable[[Config, Plan], float]

# Seconds for measuring a model, without building it; at least five steps are made.
_ALLOWANCE_S = 1.5
# Vocabulary, width, blocks and tokens of a step of the measured models.
_SHAPES = ((512, 128, 4, 1024), (2048, 192, 4, 4096), (1024, 320, 6, 2048), (4096, 256, 3, 2048))
_NOTES = Notes("speed", "seconds")


@dataclass(frozen=True)
class Speed:
    """The seconds of steps by their parts, and the measured steps.

    `costs_3`: seconds per visit of a block in every micro-step, per FLOP of a token, per FLOP of an
    update. `off`: the largest share by which a measured step and the three numbers differ.
    """

    costs_3: FloatArray
    off: float
    measured: int

    def step_s(self, config: Config) -> float:
        """Return the expected seconds of an optimiser step of a config."""
        return float(_parts(config) @ self.costs_3)

    @cached_property
    def flops(self) -> float:
        """Return the FLOPs per second of large products."""
        return 1.0 / float(self.costs_3[1])


def measured_speed(base: Config, plan: Plan, measure: Measure | None = None) -> Speed:
    """Return the speed of this machine under a plan: noted before, or measured in about 15 s."""
    configs = [sized(base, *shape) for shape in _SHAPES]
    key = digest_json([stamp(plan), _SHAPES])
    noted = None if measure else _NOTES.find(key)
    if _are_seconds(noted, len(configs)):
        return fitted(configs, noted)
    seconds = [(measure or step_seconds)(config, plan) for config in configs]
    if measure is None:
        _NOTES.keep(key, seconds)
    return fitted(configs, seconds)


def _are_seconds(found: Any, count: int) -> TypeGuard[list[float]]:
    numbers = found if isinstance(found, list) else []
    return len(numbers) == count and all(isinstance(n, float) and 0 < n < 1e4 for n in numbers)


def fitted(configs: Sequence[Config], seconds: Sequence[float]) -> Speed:
    """Return the speed that fits measured steps of configs, by relative errors."""
    parts = np.array([_parts(config) for config in configs])
    took = np.array(seconds)
    scale = parts.max(0)
    costs_3, _ = nnls(parts / scale / took[:, None], np.ones(len(took)))
    costs_3 = np.asarray(costs_3 / scale)
    if not costs_3[1] > 0:
        # The times are too noisy to separate the parts, so all time counts as arithmetic.
        costs_3 = np.array([0.0, 1.0, 1.0]) * float((took / parts[:, 1:].sum(1)).mean())
    off = float(np.abs(parts @ costs_3 / took - 1.0).max())
    return Speed(costs_3, off, len(took))


def _parts(config: Config) -> FloatArray:
    """Return the parts of a step: visits of blocks, FLOPs of tokens, FLOPs of the update."""
    train, size = config.train, size_of(config.model, config.train.seq_len)
    order = visits(config.model, bool(config.model.loop_extra))
    micro_steps = train.batch_tokens / train.micro_tokens
    return np.array(
        [
            micro_steps * (1 + sum(map(len, order))),
            size.token_flops * train.batch_tokens,
            size.update_flops,
        ]
    )


def sized(base: Config, vocab: int, dim: int, layers: int, batch: int) -> Config:
    """Return a config with a model of another shape: heads of 64, an MLP four times as wide."""
    model: ModelConfig = dataclasses.replace(
        base.model, vocab_size=vocab, dim=dim, num_layers=layers, num_heads=dim // 64,
        num_kv_heads=1, mlp_dim=4 * dim, parallel_from=min(2, layers),
        loop_extra=0,
    )  # fmt: skip
    micro = min(batch, base.train.micro_tokens)
    train = dataclasses.replace(base.train, batch_tokens=batch, micro_tokens=micro)
    return dataclasses.replace(base, model=model, train=train)


def step_seconds(config: Config, plan: Plan) -> float:
    """Return the seconds of an optimiser step on this machine, from real steps on random tokens."""
    return _step_pace(config, plan).median_s


def least_step_seconds(config: Config, plan: Plan) -> float:
    """Return the shortest time of some steps, so that a temporary load does not count."""
    return _step_pace(config, plan).least_s


def _step_pace(config: Config, plan: Plan) -> Pace:
    train, device = config.train, torch.device(plan.device)
    model = build(config.model, 0).to(device)
    prepare(model, DTYPES[plan.dtype], plan.attention, plan.kernels, train.operand_bits)
    model.set_looping(bool(config.model.loop_extra))
    optimisers = Optimisers(model, config.optim)
    rows = train.micro_tokens // train.seq_len
    shape = (rows, train.seq_len + 1)
    ids_BT = torch.randint(2, config.model.vocab_size, shape, device=device)

    def step() -> None:
        for _ in range(train.batch_tokens // train.micro_tokens):
            torch.autograd.backward(model(ids_BT[:, :-1], ids_BT[:, 1:]))
        optimisers.step(0.0, 0)

    with plan.applied():
        return pace(step, _ALLOWANCE_S)


def stamp(plan: Plan) -> Mapping[str, object]:
    """Return the key of a measured speed: the machine, its cores, and the versions."""
    gpu = torch.cuda.get_device_name() if plan.device == "cuda" else ""
    versions = [VERSION, torch.__version__, platform.python_version()]
    return {
        "plan": plan.as_dict(), "processor": _processor(), "cores": usable_cores(), "gpu": gpu,
        "versions": versions,
    }  # fmt: skip


def _processor() -> str:
    """Return the name and the features of the processor, if the system lists them."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return platform.processor()
    wanted = [line for line in lines if line.startswith(("model name", "flags", "Features"))]
    return "\n".join(sorted(set(wanted)))
