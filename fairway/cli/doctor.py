"""What this machine has, and what a run would use: `fairway doctor`."""

import os
import platform
import shutil
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fairway.base import units
from fairway.config.settings import RuntimeConfig
from fairway.machine.plan import DTYPES, Plan, make_plan, settle
from fairway.machine.ranks import seed_everything
from fairway.model import attention
from fairway.pipeline.results import versions


def examine() -> dict[str, Any]:
    """Return versions, memory, disk, what `auto` resolves to here, and measured rates."""
    plan = make_plan(RuntimeConfig())
    plan.apply()
    facts: dict[str, Any] = {f"version of {name}": text for name, text in versions().items()}
    facts["system"] = f"{platform.system()} {platform.machine()}"
    facts["CPU cores"] = os.cpu_count()
    facts["disk free here"] = units.megabytes(shutil.disk_usage(Path.cwd()).free)
    facts["GPU"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    facts["a run would use"] = plan.describe()
    facts["matrix products"] = f"{_product_rate(plan) / 1e9:.0f} GFLOP/s in {plan.dtype}"
    facts |= {f"attention '{name}'": _attention_facts(name, plan) for name in attention.BACKENDS}
    facts["attention measured on"] = f"forward and backward, {_SHAPES[plan.device].describe()}"
    return facts


def _product_rate(plan: Plan) -> float:
    """Return floating-point operations per second of a 2048 x 512 x 2048 product."""
    a, b = (torch.randn(2048, 512, device=plan.device).to(DTYPES[plan.dtype]) for _ in range(2))
    return 2 * 2048 * 512 * 2048 / _fastest(lambda: a @ b.T)


class _Shape(NamedTuple):
    """What attention is measured on: rows of so many tokens, query and key/value heads of 64."""

    rows: int
    length: int
    heads: int
    kv_heads: int

    def describe(self) -> str:
        heads = f"{self.heads}/{self.kv_heads} heads of 64"
        return f"{self.rows} x {self.length} tokens, {heads}"


# Layers of the demo and of the published system, at the size of their forward passes.
_SHAPES = {"cpu": _Shape(16, 256, 4, 4), "cuda": _Shape(48, 2048, 8, 4)}


def _attention_facts(name: str, plan: Plan) -> str:
    """Return a backend's time here, or why it has none: one that fails must not hide the others."""
    if reason := attention.why_not(name, plan.device, DTYPES[plan.dtype]):
        return f"not here: {reason}"
    try:
        taken_s = _attention_seconds(name, plan)
    except Exception as error:
        # Other people's kernels and their compilers raise whatever they like.
        return f"failed: {(str(error).strip() or repr(error)).splitlines()[0]}"
    return f"{1e3 * taken_s:.2f} ms{' (used)' if name == plan.attention else ''}"


def _attention_seconds(name: str, plan: Plan) -> float:
    seed_everything(0)
    rows, length, *heads = _SHAPES[plan.device]

    def values(count: int) -> Tensor:
        value_BTHK = torch.randn(rows, length, count, 64, device=plan.device)
        return value_BTHK.to(DTYPES[plan.dtype]).transpose(1, 2).requires_grad_()

    inputs = [values(count) for count in (heads[0], heads[1], heads[1])]
    dy_BHTK = torch.randn_like(inputs[0])

    def work() -> tuple[Tensor, ...]:
        return torch.autograd.grad(attention.BACKENDS[name](*inputs), inputs, dy_BHTK)

    return _fastest(work)


def _fastest(work: Any, repeats: int = 5) -> float:
    """Return the least seconds of some repeats, after one that is not counted."""
    work()
    best_s = float("inf")
    for _ in range(repeats):
        settle()
        start_s = time.perf_counter()
        work()
        settle()
        best_s = min(best_s, time.perf_counter() - start_s)
    return best_s
