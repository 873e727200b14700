"""The doctor lists every attention backend, whatever becomes of it."""

import pytest
import torch

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
