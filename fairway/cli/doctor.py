"""`fairway doctor`: the hardware and software of this machine, and what a run would use."""

import platform
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fairway.base import units
from fairway.base.cores import usable_cores
from fairway.base.memory import free_bytes
from fairway.base.timing import Stopwatch, device_seconds, pace
from fairway.config.settings import RuntimeConfig
from fairway.machine.plan import DTYPES, Plan, make_plan
from fairway.machine.ranks import seed_everything
from fairway.model import attention
from fairway.pipeline.results import versions


def examine() -> dict[str, Any]:
    """Return versions, memory, disk, what `auto` resolves to here, and measured rates."""
    plan = make_plan(RuntimeConfig())
    plan.apply()
    facts: dict[str, Any] = {f"version of {name}": text for name, text in versions().items()}
    facts["system"] = f"{platform.system()} {platform.machine()}"
    facts["CPU cores"] = usable_cores()
    facts["disk free here"] = units.megabytes(shutil.disk_usage(Path.cwd()).free)
    facts["GPU"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    facts["a run would use"] = plan.describe()
    facts["matrix products"] = _measured(lambda: _products(plan))
    facts |= {f"attention '{name}'": _attention_facts(name, plan) for name in attention.BACKENDS}
    facts["attention measured on"] = f"forward and backward, {_SHAPES[plan.device].describe()}"
    return facts


def _measured(measure: Callable[[], str]) -> str:
    """Return a measurement, or why it failed, so that a failure does not hide the others."""
    try:
        return measure()
    except Exception as error:
        # Foreign kernels and their compilers may raise any exception.
        return f"failed: {(str(error).strip() or repr(error)).splitlines()[0]}"


# Rows and columns of the multiplied matrices. Only large ones keep a GPU busy: at 2048 x 512 x 2048
# the launch alone limits an H100 to 157 TFLOP/s, while it can compute 780.
_SIDES = {"cpu": 1024, "cuda": 8192}
# Seconds for measuring; a GPU's clock needs some tenths of a second to rise.
_ALLOWANCES_S = {"cpu": 0.4, "cuda": 1.0}


def _products(plan: Plan, stopwatch: Stopwatch = device_seconds) -> str:
    """Return the rate of square matrix products in words, with the way of measuring."""
    device, dtype = torch.device(plan.device), DTYPES[plan.dtype]
    side = _SIDES[plan.device]
    # Factors and product, beside everything else in memory.
    while 3 * side * side * dtype.itemsize > free_bytes(device) / 2:
        side //= 2
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    product = torch.empty_like(a)
    found = pace(lambda: torch.mm(a, b, out=product), _ALLOWANCES_S[plan.device], stopwatch)
    rates = [product_rate(side, s) for s in (found.median_s, found.most_s, found.least_s)]
    unit, name = (1e12, "TFLOP/s") if rates[0] >= 1e13 else (1e9, "GFLOP/s")
    middle, least, most = (f"{rate / unit:,.0f}" for rate in rates)
    precision = f" '{plan.matmul}'" if plan.dtype == "float32" else ""
    return (
        f"{middle} {name} in {plan.dtype}{precision} ({side} x {side} x {side}, median of "
        f"{found.batches} batches of {found.calls}, {least} to {most})"
    )


def product_rate(side: int, seconds: float) -> float:
    """Return the floating-point operations per second of a product of two square matrices."""
    return 2 * side**3 / seconds


class _Shape(NamedTuple):
    """Sizes for measuring attention: rows, tokens of a row, query and key/value heads of 64."""

    rows: int
    length: int
    heads: int
    kv_heads: int

    def describe(self) -> str:
        heads = f"{self.heads}/{self.kv_heads} heads of 64"
        return f"{self.rows} x {self.length} tokens, {heads}"


# Layers of the demo and of the published system, with the sizes of their forward passes.
_SHAPES = {"cpu": _Shape(16, 256, 4, 4), "cuda": _Shape(48, 2048, 8, 4)}


def _attention_facts(name: str, plan: Plan) -> str:
    """Return a backend's time on this machine, or why it does not run."""
    if reason := attention.why_not(name, plan.device, DTYPES[plan.dtype]):
        return f"not here: {reason}"
    used = " (used)" if name == plan.attention else ""
    return _measured(lambda: f"{1e3 * _attention_seconds(name, plan):.2f} ms{used}")


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

    return pace(work, _ALLOWANCES_S[plan.device], device_seconds).median_s
