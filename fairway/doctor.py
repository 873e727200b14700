"""What this machine has, and what a run would use: `fairway doctor`."""

import os
import platform
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fairway import units
from fairway.config import RuntimeConfig
from fairway.model import attention
from fairway.results import versions
from fairway.runtime import DTYPES, Plan, make_plan, seed_everything


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
    for name in attention.BACKENDS:
        chosen = " (used)" if name == plan.attention else ""
        facts[f"attention '{name}'"] = f"{1e3 * _attention_seconds(name, plan):.1f} ms{chosen}"
    facts["attention measured on"] = "forward and backward, 16 x 256 tokens, 4 heads of 64"
    return facts


def _product_rate(plan: Plan) -> float:
    """Return floating-point operations per second of a 2048 x 512 x 2048 product."""
    a, b = (torch.randn(2048, 512, device=plan.device).to(DTYPES[plan.dtype]) for _ in range(2))
    return 2 * 2048 * 512 * 2048 / _fastest(lambda: a @ b.T)


def _attention_seconds(name: str, plan: Plan) -> float:
    seed_everything(0)
    shape = (16, 4, 256, 64)
    values = [torch.randn(shape, device=plan.device).to(DTYPES[plan.dtype]) for _ in range(3)]
    q, k, v = (value.requires_grad_() for value in values)

    def work() -> Tensor:
        out = attention.BACKENDS[name](q, k, v)
        torch.autograd.backward(out.sum())
        return out

    return _fastest(work)


def _fastest(work: Any, repeats: int = 5) -> float:
    """Return the least seconds of some repeats, after one that is not counted."""
    work()
    best_s = float("inf")
    for _ in range(repeats):
        _settle()
        start_s = time.perf_counter()
        work()
        _settle()
        best_s = min(best_s, time.perf_counter() - start_s)
    return best_s


def _settle() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
