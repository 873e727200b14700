"""Optimisers without the compiler step as PyTorch's own do, and never import it."""

import sys
from typing import Any

import pytest
import torch

from fairway.base.optimisers import without_compiler

KINDS: list[tuple[Any, dict[str, Any]]] = [
    (torch.optim.AdamW, {"betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1, "fused": True}),
    (torch.optim.SGD, {"momentum": 0.9}),
]


def walked(kind: Any, options: dict[str, Any]) -> list[torch.Tensor]:
    """Return weights after a few steps, the last of a group at another rate."""
    draw = torch.Generator().manual_seed(1)
    weights = [torch.randn(shape, generator=draw, requires_grad=True) for shape in ((3, 5), (7,))]
    groups = [{"params": weights[:1]}, {"params": weights[1:], "lr": 0.5}]
    optimiser = kind(groups, lr=0.01, **options)
    for _ in range(3):
        sum(weight.square().sum() for weight in weights).backward()
        optimiser.step()
    return weights


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_steps_are_those_of_pytorch_without_its_compiler(
    kind: Any, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = walked(kind, options)
    # From here on who imports it fails, even where another test has imported it.
    monkeypatch.setitem(sys.modules, "torch._dynamo", None)
    found = walked(without_compiler(kind), options)
    assert all(map(torch.equal, expected, found))
    with pytest.raises(ImportError):
        walked(kind, options)
