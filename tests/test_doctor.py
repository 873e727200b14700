"""The doctor lists every attention backend, whatever becomes of it."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from fairway.base.timing import device_seconds, pace
from fairway.cli import doctor
from fairway.machine.plan import Plan
from fairway.model import attention

PLAN = Plan("cpu", "float32", "highest", 1, "plain")


def test_every_backend_is_listed_though_one_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("\nno kernel image\nwith a long story")

    monkeypatch.setattr(doctor, "make_plan", lambda config: PLAN)
    monkeypatch.setattr(doctor, "_SHAPES", {"cpu": doctor._Shape(1, 3, 2, 1)})
    monkeypatch.setitem(attention.BACKENDS, "sdpa", broken)
    facts = doctor.examine()
    assert facts["attention 'plain'"].endswith(" ms (used)")
    assert facts["attention 'sdpa'"] == "failed: no kernel image"
    assert facts["attention 'fa4'"] == "not here: it runs on CUDA GPUs only"
    assert {f"attention '{name}'" for name in attention.BACKENDS} < set(facts)
    assert facts["attention measured on"] == "forward and backward, 1 x 3 tokens, 2/1 heads of 64"


def by_clock(once_s: float) -> Callable[[Callable[[], object]], float]:
    """Return a stopwatch by which every product takes as long, whatever the machine does."""
    done: list[int] = []
    multiply = torch.mm

    def count(*factors: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        done.append(1)
        return multiply(*factors, out=out)

    def stopwatch(work: Callable[[], object]) -> float:
        before = len(done)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "mm", count)
            work()
        return (len(done) - before) * once_s

    return stopwatch


@pytest.mark.parametrize(
    ("side", "once_s", "told"),
    [
        (8, 1.024e-6, "1 GFLOP/s in float32 'highest' (8 x 8 x 8, median of 7 batches of"),
        (30, 5.4e-7, "100 GFLOP/s in float32 'highest' (30 x 30 x 30, "),
        (30, 5.3e-9, "10 TFLOP/s in float32"),
        (30, 6e-9, "9,000 GFLOP/s in float32"),
        (50, 250_000 / 780e12, "780 TFLOP/s in float32 'highest' (50 x 50 x 50, "),
    ],
)
def test_the_rate_of_products_is_counted_from_their_shape(
    side: int, once_s: float, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_SIDES", {"cpu": side})
    monkeypatch.setattr(doctor, "_ALLOWANCES_S", {"cpu": 2e-5})
    found = doctor._products(PLAN, by_clock(once_s))
    assert found.startswith(told) and found.endswith(" to " + told.split()[0] + ")")


def test_the_precision_of_float32_says_nothing_of_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_SIDES", {"cpu": 8})
    found = doctor._products(replace(PLAN, dtype="bfloat16"), by_clock(1.0))
    assert " in bfloat16 (8 x 8 x 8, median of 3 batches of 1, " in found


def test_products_are_made_smaller_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three matrices of float32 take at most half of what is free."""
    monkeypatch.setattr(doctor, "_SIDES", {"cpu": 64})
    for free, side in ((2 * 3 * 64 * 64 * 4, 64), (2 * 3 * 64 * 64 * 4 - 1, 32), (25_000, 32)):
        monkeypatch.setattr(doctor, "free_bytes", lambda device, free=free: free)
        assert f"({side} x {side} x {side}, " in doctor._products(PLAN, by_clock(1.0))


def test_products_that_fail_hide_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> str:
        raise torch.OutOfMemoryError("no room\nat all")

    monkeypatch.setattr(doctor, "make_plan", lambda config: PLAN)
    monkeypatch.setattr(doctor, "_products", broken)
    monkeypatch.setattr(doctor, "_attention_facts", lambda name, plan: "1.00 ms")
    facts = doctor.examine()
    assert facts["matrix products"] == "failed: no room" and facts["attention 'plain'"] == "1.00 ms"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_large_products_of_a_gpu_are_faster_than_launches() -> None:
    """What was once measured was the launch of a small one."""
    plan = replace(PLAN, device="cuda", dtype="bfloat16")
    found = doctor._products(plan)
    assert "bfloat16 (8192 x 8192 x 8192, median of 7 batches of " in found
    small = torch.randn(512, 512, device="cuda", dtype=torch.bfloat16)
    launched = pace(lambda: small @ small, 0.1, device_seconds)
    number, unit, *_ = found.split()
    rate = float(number.replace(",", "")) * {"TFLOP/s": 1e12, "GFLOP/s": 1e9}[unit]
    assert rate > doctor.product_rate(512, launched.median_s)
