"""Second moments of gradients: from the weights' own gradients, and against losses measured."""

import gc
from collections.abc import Iterator

import pytest
import torch
from tiny import TINY, alive
from torch import Tensor

from fairway.model.gpt import GPT
from fairway.quantise.calibrate import collect_hessians
from fairway.quantise.sensitivity import Curvature, curvatures


def batches(rows: int, length: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(3)
    for _ in range(2):
        yield torch.randint(0, 260, (rows, length), generator=generator)


def found_for(model: GPT, rows: int, length: int) -> dict[str, Curvature]:
    state = model.state_dict()
    names = [n for n in state if n.endswith(".weight")]
    hessians = collect_hessians(model, batches(rows, length), names)
    return curvatures(model, batches(rows, length), hessians, 2 * rows * length)


def test_one_position_has_the_moments_of_its_weights_gradients() -> None:
    """Of one position and one visit a weight's gradient is g x^T: so g g^T |x|^2 = grad grad^T."""
    model = alive()
    model.set_looping(False)
    found = found_for(model, 1, 1)
    generator = torch.Generator().manual_seed(0)
    moments: dict[str, Tensor] = {}
    for ids_BT in batches(1, 1):
        model.zero_grad()
        logits_NV = model.logits(model.hidden(ids_BT))[0]
        label_N = torch.multinomial(logits_NV.detach().softmax(-1), 1, generator=generator)[:, 0]
        torch.nn.functional.cross_entropy(logits_NV, label_N, reduction="sum").backward()
        for name, weight in model.named_parameters():
            # These read normalised states, whose one length comes out of the sum.
            if name.endswith(("c_v.weight", "fc.weight")):
                assert weight.grad is not None
                product_RR = weight.grad.double() @ weight.grad.double().T
                moments[name] = moments.get(name, 0) + product_RR
    assert len(moments) == 2 * TINY.num_layers
    for name, product_RR in moments.items():
        cost = found[name]
        assert cost.outputs is not None
        expected_RR = 2 * cost.outputs.double() * float(cost.inputs.trace())
        torch.testing.assert_close(expected_RR, product_RR, rtol=2e-3, atol=1e-7)
    assert not any(module._forward_hooks for module in model.modules())
    assert all(weight.requires_grad for weight in model.parameters())


def test_predicted_losses_are_near_those_measured() -> None:
    """Half of tr(G E H E^T) against the divergence of what the model says after an error E."""
    model = alive()
    found = found_for(model, 16, 32)
    before = spoken(model)
    assert set(found) == {n for n, w in model.named_parameters() if n.endswith(".weight")}
    generator = torch.Generator().manual_seed(5)
    ratios = {}
    for name, cost in found.items():
        weight = model.get_parameter(name)
        error_RC = 1e-3 * torch.randn(weight.shape, generator=generator)
        with torch.no_grad():
            weight += error_RC
            after = spoken(model)
            weight -= error_RC
        divergence = float((before.exp() * (before - after)).sum(-1).mean())
        outputs_RR = cost.rows.diag() if cost.outputs is None else cost.outputs
        predicted = float(((outputs_RR @ error_RC @ cost.inputs) * error_RC).sum()) / 2
        ratios[name] = predicted / divergence
    values = torch.tensor(list(ratios.values()))
    assert float(values.min()) > 0.4 and float(values.max()) < 2.5, ratios
    assert 0.7 < float(values.median()) < 1.4, ratios


@torch.no_grad()
def spoken(model: GPT) -> Tensor:
    ids_BT = torch.cat(list(batches(16, 32)))
    return model.logits(model.hidden(ids_BT)).double().log_softmax(-1)


def test_no_batches_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one batch"):
        curvatures(alive(), [], {}, 1)


def test_only_the_logits_are_kept_for_the_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables of the distribution would take a third more memory than the plan knows of."""
    model, tables = alive(), []
    backward = torch.autograd.backward

    def counted(costs: Tensor) -> None:
        size = 64 * TINY.vocab_size
        objects = [o for o in gc.get_objects() if isinstance(o, Tensor)]
        tables.append(len({t.data_ptr() for t in objects if t.numel() == size}))
        backward(costs)

    monkeypatch.setattr(torch.autograd, "backward", counted)
    found_for(model, 2, 32)
    assert tables == [1, 1]
